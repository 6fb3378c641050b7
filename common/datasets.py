"""Data sets as arrays: images [N, H, W, 3] uint8, fine [N], coarse [N] of train and of test, read once per process."""
import os
import pickle
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np

from common import shapes
from common.files import Refused, lock


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
    finished = folder.exists() and not os.access(folder.parent, os.W_OK)        # somebody else's, nothing is downloaded
    with nullcontext() if finished else lock(folder.parent / ".cifar100.lock", wait=True):      # the others wait for one
        return arrays(True), arrays(False)
