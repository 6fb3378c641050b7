"""Images with boxes on the device, and a detector's scores over them."""
import numpy as np
import torch
from torch import Tensor, nn

from common.amp import autocast
from common.data import all_batches
from common.detection import decode, detection_loss, mean_average_precision, shifted
from common.splits import SHIFTS, Split

BATCH = 32                                                    # images of an evaluation's step


class BoxSplit(Split):
    """Images with boxes: the target of an example is [M, 6], see common/detection.py."""

    def keep(self, target: np.ndarray, index: np.ndarray) -> Tensor:
        """Boxes [N, M, 6]."""
        return torch.from_numpy(target)

    def targets(self, index: Tensor, view: Tensor) -> Tensor:
        """Boxes [B, M, 6] as they lie in `images(index, view)`."""
        return shifted(self.target[index], view // SHIFTS % SHIFTS, view % SHIFTS, view // SHIFTS ** 2, self.height, self.width)


@torch.no_grad()
def evaluate_detector(model: nn.Module, split: Split) -> dict[str, float]:
    """COCO's average precision at IoU .5 and over .5 to .95 of the whole split, and loss (nats). The model's mode stays."""
    training = model.training
    model.eval()
    loss, found, truth = torch.zeros((), device=split.device), [], []
    for examples in all_batches(split, BATCH):
        with autocast(split.amp, split.device):
            output = model(examples.image)
        loss = loss + detection_loss(output, examples.target).sum()
        found += decode(output).cpu().unbind()
        truth += examples.target.cpu().unbind()
    model.train(training)
    classes = output.shape[1] - 4
    scores = mean_average_precision(found, truth, classes, [str(c) for c in range(classes)])
    return {f"test/{name}": value for name, value in scores.items()} | {"test/loss": loss.item() / len(split)}
