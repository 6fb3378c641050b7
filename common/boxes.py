"""Images with boxes on the device, under any view, and a detector's scores over them."""
import contextlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.amp import autocast
from common.data import all_batches
from common.detection import LEAST, decode, detection_loss
from common.files import Refused
from common.splits import PAD, SHIFTS, Split

BATCH = 32                                                    # images of an evaluation's step


class BoxSplit(Split):
    """Images with boxes: the target of an example is [M, 6], see common/detection.py."""

    def keep(self, target: np.ndarray, index: np.ndarray) -> Tensor:
        """Boxes [N, M, 6]."""
        return torch.from_numpy(target)

    def targets(self, index: Tensor, view: Tensor) -> Tensor:
        """Boxes [B, M, 6] as they lie in `images(index, view)`."""
        return shifted(self.target[index], view // SHIFTS % SHIFTS, view % SHIFTS, view // SHIFTS ** 2, self.height, self.width)


def shifted(boxes: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, height: int, width: int) -> Tensor:
    """Boxes [B, M, 6] of images under the views that `Split.images` makes: padded, cropped at dy, dx [B] (0..8), flipped where 1.

    Clipped to the image of `height` x `width` pixels. Of which less than 2 pixels are left either way is difficult, of which
    nothing is left becomes padding.
    """
    kind, x0, y0, x1, y1, difficult = boxes.unbind(2)         # [B, M]
    x0, x1 = ((x + PAD - dx[:, None]).clamp(0, width) for x in (x0, x1))
    y0, y1 = ((y + PAD - dy[:, None]).clamp(0, height) for y in (y0, y1))
    mirror = flip[:, None] == 1
    x0, x1 = torch.where(mirror, width - x1, x0), torch.where(mirror, width - x0, x1)
    gone = (kind < 0) | (x1 <= x0) | (y1 <= y0)
    difficult = torch.where((x1 - x0 < LEAST) | (y1 - y0 < LEAST), 1.0, difficult)
    moved = torch.stack([kind + 1, x0, y0, x1, y1, difficult], 2).masked_fill(gone[..., None], 0.0)
    return torch.cat([moved[..., :1] - 1, moved[..., 1:]], 2)


def mean_average_precision(found: Sequence, truth: Sequence, classes: int, names: Sequence[str]) -> dict[str, float]:
    """COCO's average precision, the mean over classes with an object: at IoU .5, and the mean over IoU .5, .55, ... .95.

    Args
        found: of each image detections [n, 6] on the CPU, as `decode` returns them; COCO takes the best 100 of each class.
        truth: of each image boxes [m, 6], as in a target.
        names: of the `classes`.
    Where no image has an object both are 0. A difficult box neither counts nor punishes who finds it: it is given an area
    outside of COCO's range, which takes one detection by IoU as other boxes do. `iscrowd` would take any number, by their share
    inside of the box, and so excuse every wrong detection within it.

    Raises
        Refused: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO  # nothing else needs it
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise Refused("detections are scored by pycocotools, which is not installed: pip install pycocotools.") from None

    def listed(kept):                                         # (image, class, x0, y0, x1, y1, more) -> COCO's index of them
        coco = COCO()
        coco.dataset = {"images": [{"id": i} for i in range(len(truth))],
                        "categories": [{"id": c, "name": name} for c, name in zip(range(classes), names, strict=True)],
                        "annotations": [{"id": number, "image_id": image, "category_id": int(kind), "iscrowd": 0, **more,
                                         "bbox": [x0, y0, x1 - x0, y1 - y0]}
                                        for number, (image, kind, x0, y0, x1, y1, more) in enumerate(kept, 1)]}     # 0: no match
        coco.createIndex()
        return coco

    def rows(images):                                         # without padding, and without what a diverged model puts out
        for image, one in enumerate(np.asarray(one, np.float64).reshape(-1, 6) for one in images):
            yield from ((image, *row) for row in one[(one[:, 0] >= 0) & np.isfinite(one).all(1)].tolist())

    if len(found) != len(truth):
        raise ValueError(f"expected detections of each of {len(truth)} images, got {len(found)}")
    with contextlib.redirect_stdout(io.StringIO()):
        boxes = listed((image, kind, *box, {"area": -1.0 if difficult else 1.0})
                       for image, kind, *box, difficult in rows(truth))
        detections = listed((image, kind, *box, {"area": 1.0, "score": score}) for image, kind, score, *box in rows(found))
        scorer = COCOeval(boxes, detections, "bbox")
        scorer.params.areaRng, scorer.params.areaRngLbl, scorer.params.maxDets = [[0, 1e10]], ["all"], [100]
        scorer.evaluate()
        scorer.accumulate()
    precision = scorer.eval["precision"][..., 0, 0]           # [10 IoU, 101 recall, C], -1 for a class without objects
    scored = precision[..., precision[0, 0] > -1]
    return {"map": float(scored.mean()), "map50": float(scored[0].mean())} if scored.size else {"map": 0.0, "map50": 0.0}


@torch.no_grad()
def evaluate_detector(model: nn.Module, split: Split, per_image: float = 1.0) -> dict[str, float]:
    """COCO's average precision at IoU .5 and over .5 to .95 of the whole split, and loss (nats). The model's mode stays.

    per_image: objects an image, as of `detection_loss`.
    Boxes are compared at the size of the network's input; another scale along x or y does not change their overlaps.
    """
    training = model.training
    model.eval()
    loss, found, truth = torch.zeros((), device=split.device), [], []
    for examples in all_batches(split, BATCH):
        with autocast(split.amp, split.device):
            output = model(examples.image)
        loss = loss + detection_loss(output, examples.target, per_image).sum()
        found += decode(output).cpu().unbind()
        truth += examples.target.cpu().unbind()
    model.train(training)
    classes = output.shape[1] - 4
    scores = mean_average_precision(found, truth, classes, [str(c) for c in range(classes)])
    return {f"test/{name}": value for name, value in scores.items()} | {"test/loss": loss.item() / len(split)}
