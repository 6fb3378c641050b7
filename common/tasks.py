"""What depends on the task and not on the method: a record of plain functions for each."""
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import models
from common.amp import autocast
from common.boxes import BoxSplit, evaluate_detector
from common.boxfiles import read_bccd, read_shapes_det, read_voc_det
from common.data import Data, all_batches, assemble
from common.datasets import read_caltech101, read_cifar100, read_folder, read_shapes
from common.dense import build_detector, build_segmenter
from common.detection import detection_distill, detection_loss, detection_mean, detection_stats
from common.mapfiles import read_camvid, read_shapes_seg, read_voc_seg
from common.pictures import detected, segmented
from common.seeding import generator
from common.segmentation import evaluate_segmenter, on_grid, pixel_cross_entropy, pixel_distill, pixel_stats
from common.splits import MapSplit, Split, sides


@dataclass(frozen=True)
class Task:
    """load(args, device) -> Data; build(args, data) -> model; the others are documented where they are defined below."""

    read: Callable                                            # (data_dir, image_size) -> arrays, kept for the process
    load: Callable
    net: Callable                                             # (name, classes, generator, device, pixels of a side) -> model
    build: Callable
    loss: Callable
    distill: Callable
    mean: Callable
    stats: Callable
    evaluate: Callable
    defaults: dict                                            # arguments whose default the task sets
    predicts: str = "classes"                                 # of images; "pixels", or "boxes"
    score: str = "accuracy"                                   # what evaluate returns first, as test/SCORE: more is better
    picture: Callable | None = None                           # (model, split) -> [h, w, 3] uint8: predictions for a few examples
    anybodys: bool = False                                    # whether --data-dir, and not the task's name, says which data


def build_with(net: Callable) -> Callable:
    """build(args, data) of a task: the --model with outputs for the run's classes; initial weights are a function of --seed."""
    def build(args, data: Data) -> nn.Module:
        model = net(args.model, len(data.classes), generator(args.seed, "weights"), data.train.device, data.train.size)
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if args.sync_batch_norm else model
    return build


def cross_entropy(output: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Logits [B, C], classes [B] -> [B] nats; `smoothing` is the share of each target that goes to all classes alike."""
    return F.cross_entropy(output.float(), target, reduction="none", label_smoothing=smoothing)


def soft_cross_entropy(output: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """Hinton's term: T^2 KL(softmax(soft / T) || softmax(output / T)); student [B, C], teacher [B, C] logits -> [B] nats.

    T^2 keeps the size of its gradient when T changes (Hinton et al. 2015, section 2.1). Classes that the teacher does not
    know, its logits there being -inf, take no part: both softmaxes are over the others.
    """
    unknown = soft == -math.inf                               # [B, C]
    student = F.log_softmax((output.float() / temperature).masked_fill(unknown, -math.inf), 1)
    teacher = F.log_softmax(soft.float() / temperature, 1)
    terms = F.kl_div(student, teacher, reduction="none", log_target=True).masked_fill(unknown, 0.0)
    return temperature ** 2 * terms.sum(1)


def mean_output(outputs: list[Tensor], temperature: float) -> Tensor:
    """P teachers' logits [B, C] -> logits [B, C] whose softmax at `temperature` is the mean of theirs."""
    stacked = torch.stack(outputs).float()                    # [P, B, C]
    log_mean = F.log_softmax(stacked / temperature, 2).logsumexp(0) - math.log(len(outputs))
    return temperature * log_mean


def mean_on_finest(outputs: list[Tensor], temperature: float) -> Tensor:
    """`mean_output` of P teachers' logits [B, C, h, w] on the finest of their grids."""
    finest = max(outputs, key=lambda output: output.shape[2])
    return mean_output([on_grid(output, finest) for output in outputs], temperature)


def classification_stats(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What is recorded of each example [B]: plain cross-entropy, whether correct, EL2N |p - y| (arXiv:2107.07075)."""
    output = output.detach().float()
    p = output.softmax(1)
    return {"loss": F.cross_entropy(output, target, reduction="none"),
            "correct": (output.argmax(1) == target).float(),
            "el2n": (p - F.one_hot(target, p.shape[1])).norm(dim=1)}


@torch.no_grad()
def evaluate_classifier(model: nn.Module, split: Split, batch: int | None = None, per_class: bool = False) -> dict[str, float]:
    """Accuracy (fraction) and loss (nats) over the whole split; accuracy of its parts, too. The model's mode stays.

    batch: images at a time; unless told 500, on a CPU, whose cache their activations would leave, 100, or 25 above 32 pixels
        a side (measured: ResNet-20 evaluates 1.3 to 1.9 times as many as by 100 at 64 and 128 pixels).
    per_class: the mean of every class's accuracy as well, where classes have unlike numbers of examples.
    """
    training = model.training
    model.eval()
    loss, right = torch.zeros((), device=split.device), torch.zeros(len(split.target), dtype=torch.bool, device=split.device)
    fitting = 500 if split.device.type != "cpu" else 100 if split.size <= 32 else 25
    for examples in all_batches(split, batch or fitting):
        with autocast(split.amp, split.device):
            output = model(examples.image).float()
        loss = loss + F.cross_entropy(output, examples.target, reduction="sum")
        right[examples.index] = output.argmax(1) == examples.target
    model.train(training)
    used = split.index.to(split.device)                       # [n]
    apart = {f"test/accuracy_{part}": right[used][mask[used]].float().mean().item() for part, mask in split.parts.items()
             if mask[used].any()}
    if per_class:
        target = split.target[used]
        hits, of = torch.bincount(target, right[used].float()), torch.bincount(target)          # [C]
        apart["test/accuracy_per_class"] = (hits[of > 0] / of[of > 0]).mean().item()
    return {"test/accuracy": right[used].sum().item() / len(split), "test/loss": loss.item() / len(split)} | apart


def load_with(read: Callable, split: type[Split], anybodys: bool) -> Callable:
    """load(args, device) -> Data of a task whose `read(data_dir, image_size)` returns the arrays of both splits."""
    def load(args, device):
        train, test, *names = read(args.data_dir, args.image_size)
        return assemble(train, test, args, device, *names, split=split, anybodys=anybodys)
    return load


def task_of(read: Callable, functions: dict, net: Callable, split: type[Split] = Split, **options) -> Task:
    load = load_with(read, split, options.get("anybodys", False))
    return Task(read=read, load=load, net=net, build=build_with(net), **functions, **options)


def dense(read: Callable) -> Callable:
    """A reader (data_dir, --image-size) -> arrays of a task that sets no examples apart by classes: they all have class 0."""
    def arrays(data_dir, image_size):
        *both, names = read(data_dir, sides(image_size))
        return *((images, *np.zeros((2, len(images)), np.int64), target) for images, target in both), names
    return arrays


CLASSES = {"loss": cross_entropy, "distill": soft_cross_entropy, "mean": mean_output, "stats": classification_stats,
           "evaluate": evaluate_classifier}
PIXELS = {"loss": pixel_cross_entropy, "distill": pixel_distill, "mean": mean_on_finest, "stats": pixel_stats,
          "evaluate": evaluate_segmenter, "picture": segmented, "predicts": "pixels", "score": "miou"}
BOXES = {"mean": detection_mean, "picture": detected, "predicts": "boxes", "score": "map"}
COUNTED = {"loss": detection_loss, "distill": detection_distill, "stats": detection_stats, "evaluate": evaluate_detector}


def image_files(read: Callable, **options) -> Task:
    """A task of image files, resized to 64 pixels unless asked otherwise, a class of which may have many more than another."""
    return task_of(read, CLASSES | {"evaluate": partial(evaluate_classifier, per_class=True)}, models.build, **options, defaults={
        "model": "resnet20", "epochs": 30.0, "batch_size": 64, "lr": 0.2, "weight_decay": 5e-4, "image_size": 64})


def segmentation(read: Callable, **defaults) -> Task:
    return task_of(dense(read), PIXELS, build_segmenter, MapSplit, defaults={
        "model": "resnet8", "epochs": 30.0, "batch_size": 16, "lr": 0.2, "weight_decay": 5e-4} | defaults)


def detection(read: Callable, per_image: float, **defaults) -> Task:
    """per_image: objects that train, an image of the training set; what losses are divided by."""
    counted = {name: partial(function, per_image=per_image) for name, function in COUNTED.items()}
    return task_of(dense(read), BOXES | counted, build_detector, BoxSplit, defaults={
        "model": "resnet8", "epochs": 30.0, "batch_size": 16, "lr": 0.05, "weight_decay": 5e-4} | defaults)


TASKS = {
    "shapes": task_of(read_shapes, CLASSES, models.build, defaults={
        "model": "resnet8", "epochs": 3.0, "batch_size": 32, "lr": 0.2, "weight_decay": 5e-4, "image_size": 32}),
    "cifar100": task_of(read_cifar100, CLASSES, models.build, defaults={
        "model": "resnet56", "epochs": 40.0, "batch_size": 128, "lr": 0.3, "weight_decay": 5e-4, "image_size": 32}),
    "caltech101": image_files(read_caltech101),
    "folder": image_files(read_folder, anybodys=True),
    "shapes-seg": segmentation(read_shapes_seg, epochs=3.0, batch_size=32, image_size=32),
    "camvid": segmentation(read_camvid, batch_size=2, image_size="128x160"),
    "voc-seg": segmentation(read_voc_seg, image_size=128),
    "shapes-det": detection(read_shapes_det, 1.0, epochs=3.0, batch_size=32, image_size=32),
    "bccd": detection(read_bccd, 13.5, batch_size=4, lr=0.1, weight_decay=2e-3, image_size="128x160"),
    "voc-det": detection(read_voc_det, 2.5, image_size=128),
}
