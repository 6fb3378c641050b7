"""A single-stage detector without anchors: targets and losses of CenterNet, as pure functions.

Source   "Objects as Points", Zhou, Wang, Kraehenbuehl 2019, arXiv:1904.07850; its Gaussians are CornerNet's, arXiv:1808.01244
Differs  log p from logits, not from clamped probabilities; sums are divided by one number of objects an image for the whole
         data set, where their code has the batch's: an image's loss is its own, whatever lies beside it; the distances of size
         and offset are so as in the paper's equations, where their code divides them by twice the objects

A target is boxes [B, M, 6] float32: class (-1 is padding), x0, y0, x1, y1 (pixels of the network's input, half-open), difficult
(0 or 1). The network's output is one tensor [B, C + 4, h, w], a cell for each STRIDE pixels of the input: C heat-map logits,
then width and height of the box centred there, in cells, then the centre's offset x, y from the cell's corner, in cells.
Difficult boxes take no part in training: heat about them is neither wanted nor punished. Nothing here waits for the device, or
branches on a value. What becomes of boxes under a view, and the score, stand in common/boxes.py.
"""
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

STRIDE = 4                                                    # pixels of the input a cell is wide; section 3 of the paper
BOX = 4                                                       # channels of width, height, offset x, offset y
OVERLAP = 0.7                                                 # that CornerNet's radius is to leave
ALPHA, BETA = 2, 4                                            # of the focal loss, section 3
SIZE_WEIGHT, OFFSET_WEIGHT = 0.1, 1.0                         # section 4
LEAST = 2                                                     # pixels of a box's sides: of a smaller one too little is seen
FOUND = 0.3                                                   # probability from which an object counts as found, ours


class Objects(NamedTuple):
    """Targets in cells. Rows that do not train are all zero, so that nothing they could hold reaches a loss."""

    trains: Tensor                                            # [B, M] bool: neither padding nor difficult
    kind: Tensor                                              # [B, M] class
    cell: Tensor                                              # [B, M, 2] column, row of the centre's cell, float
    place: Tensor                                             # [B, M] row * w + column
    size: Tensor                                              # [B, M, 2] width, height
    offset: Tensor                                            # [B, M, 2] of the centre within its cell, 0..1

    def pick(self, values: Tensor) -> Tensor:
        """[B, K, h, w] -> [B, K, M], in the centres' cells."""
        return values.flatten(2).gather(2, self.place[:, None].expand(-1, values.shape[1], -1))


def objects(target: Tensor, h: int, w: int) -> Objects:
    """Boxes [B, M, 6] on a map of h x w cells; a centre outside of it counts to the nearest cell."""
    trains = (target[..., 0] >= 0) & (target[..., 5] == 0)    # [B, M]
    target = target.masked_fill(~trains[..., None], 0.0)
    low, high = target[..., 1:3] / STRIDE, target[..., 3:5] / STRIDE        # [B, M, 2]
    center = (low + high) / 2
    column, row = center[..., 0].floor().clamp(0, w - 1), center[..., 1].floor().clamp(0, h - 1)
    cell = torch.stack([column, row], -1)
    return Objects(trains, target[..., 0].long(), cell, (row * w + column).long(), high - low, center - cell)


def heat(target: Tensor, classes: int, h: int, w: int) -> Tensor:
    """Boxes [B, M, 6] -> heat map [B, C, h, w]: a Gaussian about each centre, the larger of two where they meet.

    It is exactly 1 in the cells of centres and nowhere else, and 0 farther than the radius either way. CornerNet takes the least
    of three radii. In its first code, and in CenterNet's, they lack their denominators; then the one here is always the least,
    about three times what CornerNet's text means. CenterNet's results are of this one, and with the text's no square box of up
    to 12 cells would have more than a point.
    """
    found = objects(target, h, w)
    sides = found.size.ceil()                                 # [B, M, 2]
    reach = OVERLAP * sides.sum(2)                            # [B, M]
    radius = ((reach ** 2 + 4 * OVERLAP * (1 - OVERLAP) * sides.prod(2)).sqrt() - reach).floor()[..., None]      # [B, M, 1]
    sigma = (2 * radius + 1) / 6

    def bell(center, n):                                      # [B, M] -> [B, M, n]
        away = torch.arange(n, device=center.device) - center[..., None]
        return torch.where(away.abs() <= radius, (-away ** 2 / (2 * sigma ** 2)).exp(), 0.0)

    spot = bell(found.cell[..., 1], h)[..., None] * bell(found.cell[..., 0], w)[:, :, None]       # [B, M, h, w]
    spot = (spot * found.trains[..., None, None]).flatten(2)
    into = found.kind[..., None].expand_as(spot)
    return spot.new_zeros(len(spot), classes, h * w).scatter_reduce(1, into, spot, "amax").view(-1, classes, h, w)


def parted(output: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C + 4, h, w] -> heat-map logits [B, C, h, w], boxes [B, 4, h, w], both float32."""
    output = output.float()
    return output[:, :-BOX], output[:, -BOX:]


def detection_loss(output: Tensor, target: Tensor, per_image: float = 1.0) -> Tensor:
    """Output [B, C + 4, h, w], boxes [B, M, 6] -> [B]: focal loss + 0.1 L1 of sizes + L1 of offsets, over `per_image`.

    per_image: objects an image of the data set has on average. Divided by its own number, as in the paper's text, an image
    whose objects are not all labelled, as some of BCCD's, would have some eight times the others' weight for finding them. So
    an image with more objects has more loss, and an order by loss is nearly one by objects.
    """
    return loss_and_heat(output, target, per_image)[0]


def loss_and_heat(output: Tensor, target: Tensor, per_image: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss [B], the heat map [B, C, h, w] that it wants, and where it does not look [B, C, h, w] bool: at difficult boxes."""
    logits, boxes = parted(output)
    _, classes, h, w = logits.shape
    found, (wanted, passed) = objects(target, h, w), heat(apart(target, classes), 2 * classes, h, w).chunk(2, 1)
    passed = (passed > 0) & (wanted < 1)                      # the centre of another is one all the same
    hit = (-logits).sigmoid() ** ALPHA * F.logsigmoid(logits)
    miss = (1 - wanted) ** BETA * logits.sigmoid() ** ALPHA * F.logsigmoid(-logits)
    focal = -torch.where(wanted == 1, hit, miss).masked_fill(passed, 0.0).sum((1, 2, 3))    # [B]
    away = (found.pick(boxes) - torch.cat([found.size, found.offset], 2).mT).abs()       # [B, 4, M]
    away = (weighted(away) * found.trains).sum(1)             # [B]
    return (focal + away) / per_image, wanted, passed


def apart(target: Tensor, classes: int) -> Tensor:
    """Boxes [B, M, 6], of which difficult ones have classes of their own, C to 2 C - 1, and are difficult no more."""
    hard = (target[..., 0] >= 0) & (target[..., 5] == 1)      # [B, M]
    return torch.cat([target[..., :1] + classes * hard[..., None], target[..., 1:5], torch.zeros_like(target[..., 5:])], 2)


def weighted(away: Tensor) -> Tensor:
    """Distances of width, height, offset x and y [B, 4, ...] -> [B, ...]."""
    return SIZE_WEIGHT * away[:, :2].sum(1) + OFFSET_WEIGHT * away[:, 2:].sum(1)


def detection_distill(output: Tensor, soft: Tensor, temperature: float, per_image: float = 1.0) -> Tensor:
    """Student's and teacher's output [B, C + 4, h, w] -> [B], 0 where they are equal.

    T^2 KL(sigmoid(soft / T) || sigmoid(output / T)) of every cell and class, and the L1 distance of the boxes, weighted as in the
    loss, where the teacher sees an object: in a cell that is the largest of its 3 x 3 neighbours, of more than half of the
    largest probability that the class has in the image (where that is below .3, it has no object there). The KL has weight 1
    there. Elsewhere it has the square, the power of the loss's own focal weight, of the student's probability or of the teacher's
    over that largest, whichever is more (at temperature 1, no gradient): by the probability itself, background would drown the
    objects. Sums are divided by `per_image`, as the loss's are. This is ours, after work that distils a detector where either
    sees an object (such as Wang et al. 2019, arXiv:1906.03609).
    """
    (student, boxes), (teacher, known) = parted(output), parted(soft)
    found = teacher.sigmoid()                                 # [B, C, h, w]
    largest = found.amax((2, 3), keepdim=True)                # [B, C, 1, 1]
    most = largest.clamp(min=FOUND)
    peak = (teacher == F.max_pool2d(teacher, 3, 1, 1)) & (found > most / 2) & (largest > FOUND)
    seen = torch.maximum((found / most) ** ALPHA, student.detach().sigmoid() ** ALPHA).masked_fill(peak, 1.0)
    p = (teacher / temperature).sigmoid()
    cross, entropy = (F.binary_cross_entropy_with_logits(logits / temperature, p, reduction="none")
                      for logits in (student, teacher))
    kl = temperature ** 2 * (seen * (cross - entropy)).sum((1, 2, 3))       # [B]
    return (kl + (peak.any(1) * weighted((boxes - known).abs())).sum((1, 2))) / per_image


def detection_mean(outputs: list[Tensor], temperature: float) -> Tensor:
    """P outputs [B, C + 4, h, w] -> one whose heat map's sigmoid at `temperature` is the mean of theirs.

    A cell's box is the mean of theirs, weighted by the square of the largest probability that each has there: a box is trained
    where an object's centre is, and elsewhere it is anything.
    """
    logits, boxes = (torch.stack(parts) for parts in zip(*map(parted, outputs), strict=True))       # [P, B, ...]
    sees = (2 * F.logsigmoid(logits).amax(2, keepdim=True)).softmax(0)      # [P, B, 1, h, w], sum to 1 over P
    yes, no = (F.logsigmoid(sign * logits / temperature).logsumexp(0) for sign in (1, -1))
    return torch.cat([temperature * (yes - no), (sees * boxes).sum(0)], 1)


@torch.no_grad()
def detection_stats(output: Tensor, target: Tensor, per_image: float = 1.0) -> dict[str, Tensor]:
    """What is recorded of each example [B].

    loss: `detection_loss`; correct: the share of the image's objects in whose centre's cell the right class is the largest and
    has probability above .3, 1 without objects; el2n: |p - heat| over the cells and classes that it counts, over the square root
    of the number of objects (else it would be little more than that), after arXiv:2107.07075.
    """
    p = parted(output)[0].sigmoid()
    found = objects(target, *p.shape[2:])
    best, kind = found.pick(p).max(1)                         # [B, M]
    right = ((kind == found.kind) & (best > FOUND) & found.trains).sum(1)
    count = found.trains.sum(1)
    loss, wanted, passed = loss_and_heat(output, target, per_image)
    return {"loss": loss,
            "correct": torch.where(count > 0, right / count.clamp(min=1), 1.0),
            "el2n": (p - wanted).masked_fill(passed, 0.0).flatten(1).norm(dim=1) / count.clamp(min=1).sqrt()}


@torch.no_grad()
def decode(output: Tensor, top: int = 100) -> Tensor:
    """Output [B, C + 4, h, w] -> detections [B, top, 6], best first: class, score, x0, y0, x1, y1 in pixels within the image.

    A detection is a cell that is the largest of its 3 x 3 neighbours in its class's map. Where there are fewer, class is -1.
    """
    logits, boxes = parted(output)
    _, classes, h, w = logits.shape
    peak = torch.where(logits == F.max_pool2d(logits, 3, 1, 1), logits, -math.inf).flatten(1)
    score, index = F.pad(peak, (0, max(0, top - peak.shape[1])), value=-math.inf).topk(top)         # [B, top]
    kind, place = index // (h * w), index % (h * w)
    width, height, x, y = boxes.flatten(2).gather(2, place[:, None].expand(-1, BOX, -1)).unbind(1)
    x, y, width, height = x + place % w, y + place // w, width.clamp(min=0) / 2, height.clamp(min=0) / 2
    sides = [(side * STRIDE).clamp(0, limit * STRIDE)
             for side, limit in ((x - width, w), (y - height, h), (x + width, w), (y + height, h))]
    return torch.stack([torch.where(score > -math.inf, kind, -1).float(), score.sigmoid(), *sides], 2)
