"""Segmentation: a class for every pixel. Outputs are logits [B, C, h, w]; the labels' grid [B, H, W] may be finer."""
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.amp import autocast
from common.data import all_batches
from common.splits import VOID, Split

BATCH = 32                                                    # images of an evaluation's step


def at_labels(output: Tensor, target: Tensor) -> Tensor:
    """Logits [B, C, h, w] -> [B, C, H, W] float32 at the labels' resolution, bilinear."""
    return on_grid(output, target[:, None])


def on_grid(output: Tensor, like: Tensor) -> Tensor:
    """Logits [B, C, h, w] -> float32, brought to the grid of `like` where another model has another stride."""
    output = output.float()
    if output.shape[2:] == like.shape[2:]:
        return output
    return F.interpolate(output, size=like.shape[2:], mode="bilinear", align_corners=False)


def mean_of_pixels(values: Tensor, target: Tensor) -> Tensor:
    """[B, H, W] -> [B], the mean over the pixels that are not void; 0 where all are."""
    known = target != VOID
    return (values * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


def pixel_cross_entropy(output: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Logits [B, C, h, w], classes [B, H, W] -> [B] nats a pixel; `smoothing` as for classes of images."""
    loss = F.cross_entropy(at_labels(output, target), target, reduction="none", ignore_index=VOID, label_smoothing=smoothing)
    return mean_of_pixels(loss, target)


def pixel_distill(output: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(soft / T) || softmax(output / T)) at each place of the output's grid, their mean [B] in nats.

    Liu et al. 2019, arXiv:1903.04197, equation 1 (pixel-wise distillation), with Hinton's T^2. Void pixels take part: the
    teacher has an opinion of them, too. So do those that a crop put black there (3 % at 128 x 160), of which it knows nothing.
    """
    student, teacher = (F.log_softmax(on_grid(logits, output) / temperature, 1) for logits in (output, soft))
    return temperature ** 2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1).mean((1, 2))


def pixel_stats(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What is recorded of each image [B]: means over its pixels of cross-entropy, of whether correct, and of |p - y| (EL2N)."""
    logits = at_labels(output.detach(), target)
    label = target.where(target != VOID, 0)
    right = (logits.argmax(1) == label).float()               # [B, H, W]
    loss = F.cross_entropy(logits, label, reduction="none")
    p = logits.softmax(1)
    norm = (p.square_().sum(1) - 2 * (-loss).exp() + 1).clamp_(min=0).sqrt_()
    return {name: mean_of_pixels(values, target) for name, values in (("loss", loss), ("correct", right), ("el2n", norm))}


def intersection_over_union(confusion: Tensor) -> Tensor:
    """Pixels [C, C] by true and predicted class -> [C], NaN for a class that is neither there nor predicted."""
    both = confusion.diagonal().double()
    return both / (confusion.sum(0) + confusion.sum(1) - both)


@torch.no_grad()
def evaluate_segmenter(model: nn.Module, split: Split) -> dict[str, float]:
    """Mean intersection over union of the classes over all pixels of the split that are not void, share of correct pixels, loss
    (nats, mean over images), and each class's intersection over union, at the size to which images and labels were brought.

    The model's mode stays.
    """
    training = model.training
    model.eval()
    loss, confusion = torch.zeros((), device=split.device), None
    for examples in all_batches(split, BATCH):
        with autocast(split.amp, split.device):
            output = model(examples.image)
        logits, known = at_labels(output, examples.target), examples.target != VOID
        loss = loss + pixel_cross_entropy(logits, examples.target).sum()
        classes = logits.shape[1]
        pairs = examples.target[known] * classes + logits.argmax(1)[known]
        counts = torch.bincount(pairs, minlength=classes ** 2).view(classes, classes)
        confusion = counts if confusion is None else confusion + counts
    model.train(training)
    apart = intersection_over_union(confusion)
    return {"test/miou": apart.nanmean().item(),
            "test/pixel_accuracy": (confusion.diagonal().sum() / confusion.sum().clamp(min=1)).item(),
            "test/loss": loss.item() / len(split)} | {
            f"test/iou/{split.classes[c]}": one for c, one in enumerate(apart.tolist()) if split.classes and not math.isnan(one)}
