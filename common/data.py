"""A data set that lives on the device as uint8, and batches whose order and views are functions of (seed, epoch).

Example indices are global: they count in the whole training set, whatever --subset or --holdout keep of it, so that
statistics of one run can be looked up by another.
"""
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common import ranks
from common.amp import amp_dtype
from common.files import Refused, listed
from common.seeding import generator
from common.splits import CENTER, VIEWS, Split
from common.subsets import parts, rank_in_class, subset


@dataclass
class Batch:
    """B examples of a step."""

    image: Tensor                                             # [B, 3, H, W] float32, normalised, channels-last
    target: Tensor                                            # [B] class, or what the task's split has for it
    index: Tensor                                             # [B] global example index
    view: Tensor                                              # [B] which augmentation, or which column of `views`
    weight: Tensor                                            # [B] factor on the example's loss, 1 unless asked


@dataclass
class Data:
    """What `task.load` returns."""

    train: Split
    test: Split                                               # the held-out part of train under --holdout
    classes: list[int] | list[str]                            # the data set's own number, or name, of each class in use
    labels: str                                               # "fine", or "coarse" where those are superclasses
    examples: int                                             # N, of the whole training set
    fingerprint: str                                          # of training images and labels, before --subset
    test_fingerprint: str                                     # the same of the test set
    final: Split | None = None                                # under --holdout the test set, for one look at the end


def channel_moments(images: np.ndarray, keep: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3] of the channels of images `keep` [n] of [N, H, W, 3] uint8, from exact histograms.

    The deviation of a channel that is the same everywhere, as of microscopes with two dyes, is 1, so that one may divide by it.
    """
    level, counts = np.arange(256), np.zeros((3, 256), np.int64)
    size = max(1, 2 ** 25 // images[0].nbytes)                # images at a time, of what may not fit in memory
    for begin in range(0, len(keep), size):
        part = images[keep[begin:begin + size]]
        counts += np.stack([np.bincount(part[..., c].ravel(), minlength=256) for c in range(3)])
    counts = counts / counts[0].sum()
    mean = counts @ level
    std = np.sqrt(np.maximum(counts @ level ** 2 - mean ** 2, 0))
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(np.where(std < 1e-3, 1, std), dtype=torch.float32)


def fingerprint(images: np.ndarray, target: np.ndarray, whole: bool = False) -> str:
    """16 hex digits that tell data sets apart: all labels and every 97th image; or every one, of files that come and go."""
    plain = target.astype(np.int64) if target.ndim == 1 else target         # classes; label maps and boxes as they are
    crc = zlib.crc32(np.ascontiguousarray(plain))
    for image in images if whole else images[::97]:           # one at a time, of what may not fit in memory
        crc = zlib.crc32(np.ascontiguousarray(image), crc)
    return f"{crc:08x}{zlib.crc32(str(images.shape).encode()):08x}"


def assemble(train: tuple, test: tuple, args, device: torch.device, names: list[str] | None = None,
             split: type[Split] = Split, anybodys: bool = False) -> Data:
    """Arrays (images [N, H, W, 3] uint8, fine [N], coarse [N]) of both splits -> Data, by --subset, --holdout, --labels.

    A fourth array is what `split` has for targets; then no class is in the way and `names` are those of the task's. Otherwise
    `names` of the classes stand for their numbers where those may change with the data. anybodys: their files, too, may change.
    """
    (images, fine, coarse, *own), (test_images, test_fine, test_coarse, *test_own) = train, test
    keep, test_keep, labels = subset(args.subset, fine, coarse, test_fine)
    coarse_labels = args.labels == "coarse" or labels == "coarse"
    if own:
        (target,), (test_target,), classes = own, test_own, names
    else:
        target, test_target = (coarse, test_coarse) if coarse_labels else (fine, test_fine)
        used = np.unique(target[keep])
        lookup = np.full(int(max(target.max(), test_target.max())) + 1, -1)     # class of the data set -> class of this run
        lookup[used] = np.arange(len(used))
        classes = [names[c] for c in used] if names else used.tolist()
        lacking = np.setdiff1d(test_target[test_keep], used)
        if len(lacking):                                      # what a subset left nothing of
            ranks.say(f"warning: --subset {args.subset} has no training image of {len(lacking)} classes, whose test images are "
                      f"left out: {listed([str(names[c] if names else c) for c in lacking])}.")
            test_keep = test_keep[np.isin(test_target[test_keep], used)]
        target, test_target = lookup[target], lookup[test_target]
    mean, std = channel_moments(images, keep)

    def part(index, images, target, augment):
        made = split(images, target, index, mean, std, device, amp_dtype(args.no_amp, device), augment)
        made.classes = classes
        return made

    final = None
    if args.holdout:                                          # of the whole data set, so that no --subset has seen another's
        held = rank_in_class(fine, np.arange(len(fine)))[keep] >= 1 - args.holdout      # [n]
        lacking = [] if own else np.setdiff1d(target[keep], target[keep[held]])
        if len(lacking):
            ranks.say(f"warning: --holdout {args.holdout:g} holds out no image of {len(lacking)} classes, which have too few: "
                      f"{listed([str(classes[c]) for c in lacking])}.")
        evaluated, keep = part(keep[held], images, target, "none"), keep[~held]
        final = part(test_keep, test_images, test_target, "none")
    else:
        evaluated = part(test_keep, test_images, test_target, "none")
    train = part(keep, images, target, args.augment)
    if args.parts:
        in_train, in_test = parts(args.parts, fine, coarse, test_fine)
        whole = bool(in_test.all())                           # then nothing sets test examples apart: training ones do
        apart = train if whole else evaluated
        mask = torch.from_numpy(in_train if whole or args.holdout else in_test).to(device)
        apart.parts = {"old": mask, "new": ~mask}
    data = Data(train, evaluated, classes, "coarse" if coarse_labels else "fine", len(images),
                fingerprint(images, own[0] if own else fine, whole=anybodys),
                fingerprint(test_images, test_own[0] if own else test_fine, whole=anybodys), final)
    if not len(data.test):
        raise Refused(
            f"--holdout {args.holdout} of {len(keep)} examples leaves nothing to evaluate on; take more." if args.holdout else
            f"no test image is of a class that --subset {args.subset} trains on: take more classes, or a --holdout.")
    if len(data.train) * args.epochs < args.batch_size:
        raise Refused(f"{len(data.train)} examples x {args.epochs:g} epochs do not fill one batch of --batch-size "
                      f"{args.batch_size}: lower --batch-size or raise --epochs.")
    return data


def all_batches(split: Split, size: int, view: int | Tensor = CENTER, order: Tensor | None = None) -> Iterator[Batch]:
    """Every example of a split once, the last batch smaller: for scores, caches and evaluation.

    Args
        view: of every example, or [N] of each.
        order: indices [n] of the examples to go through instead.
    """
    for index in (split.index if order is None else order).to(split.device).split(size):
        views = torch.full_like(index, view) if isinstance(view, int) else view[index]
        yield Batch(split.images(index, views), split.targets(index, views), index, views,
                    torch.ones(len(index), device=split.device))


def visits(index: Tensor) -> Tensor:
    """[n] how often each entry's example stood earlier in `index` [n]: 0 for a first visit."""
    order = torch.argsort(index, stable=True)
    grouped = index[order]
    start = torch.ones(len(index), dtype=torch.bool)
    start[1:] = grouped[1:] != grouped[:-1]
    place = torch.arange(len(index))
    first = torch.cummax(torch.where(start, place, 0), 0).values
    count = torch.empty_like(index)
    count[order] = place - first
    return count


def epoch_order(split: Split, seed: int, epoch: int, keep: Tensor | None, count: int = VIEWS) -> tuple[Tensor, Tensor]:
    """The examples of an epoch in their order [n], and the view of each [n], one of `count`.

    Place and view of an example's r-th visit are functions of (seed, epoch, r, example), so that two methods which
    keep other examples show those that both keep in the same order and under the same crops.
    """
    if keep is None:
        index = split.index
    elif keep.dtype == torch.bool:
        index = split.index[keep.cpu()[split.index]]
    else:
        index = keep.cpu()
    visit = visits(index)
    place, view = torch.empty_like(index), torch.full_like(index, CENTER if count == VIEWS else 0)
    for r in range(int(visit.max()) + 1 if len(index) else 0):
        mine = visit == r
        name = f"order {r}" if r else "order"
        place[mine] = torch.randperm(len(split.target), generator=generator(seed, name, epoch))[index[mine]]
        if split.augment == "crop-flip":
            drawn = torch.randint(count, (len(split.target),), generator=generator(seed, name + " view", epoch))
            view[mine] = drawn[index[mine]]
    order = torch.argsort(place, stable=True)
    return index[order], view[order]


def middle(epoch: int, epochs: float) -> float:
    """Progress (0..1) half-way through an epoch, the last of which may be cut short."""
    return (epoch - 1 + min(1, epochs - epoch + 1) / 2) / epochs


def train_batches(split: Split, run, epoch: int, keep: Tensor | None = None, weight: Tensor | None = None,
                  views: Tensor | None = None) -> Iterator[tuple[float, Batch]]:
    """Full batches of one epoch, each with the run's progress (0..1) before it; epoch 0 is before training: none.

    Examples that do not fill the last batch go first in the next epoch. A fractional --epochs ends within its last
    epoch.

    Args
        keep: [N] bool, which examples this epoch passes over, or their indices [n], repeated where wanted.
        weight: [N] factor on each example's loss.
        views: [N, V] the only views that each example is shown under; `batch.view` is then the column.
    """
    if epoch == 0:
        return
    span = min(1.0, run.args.epochs - (epoch - 1))            # share of this epoch that is trained
    if run.rest is None:                                      # else a run that was stopped within this epoch goes on
        index, view = epoch_order(split, run.args.seed, epoch, keep, VIEWS if views is None else views.shape[1])
        index, view = index[:round(span * len(index))], view[:round(span * len(index))]
        factor = torch.ones(len(index)) if weight is None else weight.cpu()[index].float()
        order = {"index": index, "view": view, "weight": factor}
        run.rest = {name: torch.cat([run.leftover[name], order[name]]) for name in order} | {"done": 0}
    rest, size = run.rest, run.args.batch_size
    part = size // ranks.world()                              # of the global batch, which all ranks compose alike
    batches = len(rest["index"]) // size
    index, view, factor = (rest[name].to(split.device) for name in ("index", "view", "weight"))
    while rest["done"] < batches:
        run.stop_if_asked()
        begin = rest["done"] * size + ranks.rank() * part
        at = slice(begin, begin + part)
        progress = (epoch - 1 + span * rest["done"] / batches) / run.args.epochs
        rest["done"] += 1
        shown = view[at] if views is None else views[index[at], view[at]]
        yield progress, Batch(split.images(index[at], shown), split.targets(index[at], shown), index[at], view[at], factor[at])
        run.bar.advance(progress)
    run.leftover = {name: rest[name][batches * size:] for name in run.leftover}
    run.rest = None
