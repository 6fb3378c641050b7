"""What depends on the task and not on the method: a record of plain functions for each."""
import fcntl
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import models, shapes
from common.amp import autocast
from common.data import Data, Split, all_batches, assemble
from common.files import Refused
from common.seeding import generator


@dataclass(frozen=True)
class Task:
    """load(args, device) -> Data; build(args, data) -> model; the others are documented where they are defined below."""

    read: Callable
    load: Callable
    build: Callable
    loss: Callable
    distill: Callable
    mean: Callable
    stats: Callable
    evaluate: Callable
    defaults: dict                                            # arguments whose default the task sets


def build_classifier(args, data: Data) -> nn.Module:
    """The --model with a head of the run's classes; initial weights are a function of --seed."""
    return models.build(args.model, len(data.classes), generator(args.seed, "weights"), data.train.device)


def cross_entropy(output: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Logits [B, C], classes [B] -> [B] nats; `smoothing` is the share of each target that goes to all classes alike."""
    return F.cross_entropy(output.float(), target, reduction="none", label_smoothing=smoothing)


def soft_cross_entropy(output: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """Hinton's term: T^2 KL(softmax(soft / T) || softmax(output / T)); student [B, C], teacher [B, C] logits -> [B] nats.

    T^2 keeps the size of its gradient when T changes (Hinton et al. 2015, section 2.1).
    """
    student = F.log_softmax(output.float() / temperature, 1)
    teacher = F.log_softmax(soft.float() / temperature, 1)
    return temperature ** 2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def mean_output(outputs: list[Tensor], temperature: float) -> Tensor:
    """P teachers' logits [B, C] -> logits [B, C] whose softmax at `temperature` is the mean of theirs."""
    stacked = torch.stack(outputs).float()                    # [P, B, C]
    log_mean = F.log_softmax(stacked / temperature, 2).logsumexp(0) - math.log(len(outputs))
    return temperature * log_mean


def classification_stats(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What is recorded of each example [B]: plain cross-entropy, whether correct, EL2N |p - y| (arXiv:2107.07075)."""
    output = output.detach().float()
    p = output.softmax(1)
    return {"loss": F.cross_entropy(output, target, reduction="none"),
            "correct": (output.argmax(1) == target).float(),
            "el2n": (p - F.one_hot(target, p.shape[1])).norm(dim=1)}


@torch.no_grad()
def evaluate_classifier(model: nn.Module, split: Split, batch: int = 500) -> dict[str, float]:
    """Accuracy (fraction) and loss (nats) over the whole split; the model is left in the mode it came in."""
    training = model.training
    model.eval()
    loss = correct = torch.zeros((), device=split.device)
    for examples in all_batches(split, batch):
        with autocast(split.amp, split.device):
            output = model(examples.image).float()
        loss = loss + F.cross_entropy(output, examples.target, reduction="sum")
        correct = correct + (output.argmax(1) == examples.target).sum()
    model.train(training)
    return {"test/accuracy": correct.item() / len(split), "test/loss": loss.item() / len(split)}


@lru_cache(maxsize=2)
def rendered(n: int, seed: int) -> tuple:
    """Images [N, H, W, 3] uint8, fine [N], coarse [N]; kept, for the runs of a study that are forked from one process."""
    split = shapes.render(n, seed)
    return split["image"].transpose(0, 2, 3, 1), split["fine"], split["coarse"]


def read_shapes(data_dir: str) -> tuple:
    """The embedded data set, train and test: rendered in about a second, nothing is downloaded."""
    return rendered(shapes.TRAIN_SIZE, shapes.TRAIN_SEED), rendered(shapes.TEST_SIZE, shapes.TEST_SEED)


@lru_cache(maxsize=1)
def read_cifar100(data_dir: str) -> tuple:
    """CIFAR-100 (Krizhevsky 2009), train and test as `rendered`; downloaded to `data_dir` where it is not there. Kept, too."""
    from torchvision.datasets import CIFAR100  # costs a second; `shapes` needs none of it

    def arrays(train):
        try:
            found = CIFAR100(data_dir, train=train)
        except RuntimeError:                                  # not there, or not with the official MD5 sums
            found = download(train)
        except Exception as error:                            # unpickling damaged files can raise anything
            raise Refused(f"{folder} is damaged ({type(error).__name__}): delete it, and it is downloaded again.") from None
        with open(folder / ("train" if train else "test"), "rb") as file:
            coarse = pickle.load(file, encoding="latin1")["coarse_labels"]       # MD5 checked above: the official file
        return found.data, np.array(found.targets), np.array(coarse)

    def download(train):
        if folder.exists():
            raise Refused(f"{folder} is incomplete or damaged: its files do not have CIFAR-100's official MD5 sums. "
                          "Delete it, and it is downloaded again.")
        try:
            return CIFAR100(data_dir, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise Refused(f"CIFAR-100 is not in {folder}, and its download failed ({error}). Put cifar-100-python.tar.gz "
                          f"from https://www.cs.toronto.edu/~kriz/cifar.html, unpacked, into {data_dir}, or name "
                          "the folder that holds cifar-100-python/ with --data-dir.") from None

    folder = Path(data_dir) / "cifar-100-python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / ".cifar100.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)                      # one run downloads, those beside it wait
        return arrays(True), arrays(False)


def load_with(read: Callable) -> Callable:
    """load(args, device) -> Data of a task whose `read(data_dir)` returns the arrays of both splits."""
    return lambda args, device: assemble(*read(args.data_dir), args, device)


CLASSIFICATION = {"build": build_classifier, "loss": cross_entropy, "distill": soft_cross_entropy, "mean": mean_output,
                  "stats": classification_stats, "evaluate": evaluate_classifier}
TASKS = {
    "shapes": Task(read=read_shapes, load=load_with(read_shapes), **CLASSIFICATION,
                   defaults={"model": "resnet8", "epochs": 3.0, "batch_size": 32, "lr": 0.2, "weight_decay": 5e-4}),
    "cifar100": Task(read=read_cifar100, load=load_with(read_cifar100), **CLASSIFICATION,
                     defaults={"model": "resnet56", "epochs": 40.0, "batch_size": 128, "lr": 0.3, "weight_decay": 5e-4}),
}
