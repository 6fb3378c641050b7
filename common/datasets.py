"""Data sets as arrays: images [N, H, W, 3] uint8, fine [N], coarse [N] of train and of test, read once per process.

Every `read_X(data_dir, size)` returns train, test and, where classes have no fixed numbers, their names; `size` is the side
to which image files are resized, in pixels.
"""
import hashlib
import os
import pickle
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np

from common import ranks, shapes
from common.files import Refused, listed, lock
from common.imagefiles import ENDINGS, classes_below, decoded, files_below

TRAIN_PER_CLASS = 30                                          # of Caltech-101, as in most of its literature
TEST_SHARE = 0.2                                              # of a tree that has no test set of its own
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")      # folders, in any case


@lru_cache(maxsize=2)
def rendered(n: int, seed: int) -> tuple:
    """Images [N, H, W, 3] uint8, fine [N], coarse [N]; kept, for the runs of a study that are forked from one process."""
    split = shapes.render(n, seed)
    return split["image"].transpose(0, 2, 3, 1), split["fine"], split["coarse"]


def read_shapes(data_dir: str, size: int) -> tuple:
    """The embedded data set, train and test: rendered in about a second, nothing is downloaded."""
    fixed("shapes", size)
    return rendered(shapes.TRAIN_SIZE, shapes.TRAIN_SEED), rendered(shapes.TEST_SIZE, shapes.TEST_SEED)


def fixed(task: str, size: int) -> None:
    if size != 32:
        raise Refused(f"images of {task} are 32 pixels wide: leave --image-size {size} out.")


@lru_cache(maxsize=1)
def read_cifar100(data_dir: str, size: int) -> tuple:
    """CIFAR-100 (Krizhevsky 2009), train and test as `rendered`; downloaded to `data_dir` where it is not there. Kept, too."""
    from torchvision.datasets import CIFAR100  # costs a second; `shapes` needs none of it

    fixed("cifar100", size)

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


@lru_cache(maxsize=1)
def read_caltech101(data_dir: str, size: int) -> tuple:
    """Caltech-101 (Fei-Fei et al. 2004) without its background class: 30 images of each class to train, the rest to test.

    Those 30 whose files' names have the lowest hashes, so that a file more or less moves one image of its class at most. There
    are no superclasses: coarse is fine.
    """
    root = Path(data_dir) / "caltech101" / "101_ObjectCategories"
    if not root.is_dir():
        with lock(Path(data_dir) / ".caltech101.lock", wait=True):
            download_caltech101(data_dir, root)
    names = [name for name in classes_below(root) if name != "BACKGROUND_Google"]
    if len(names) != 101:
        ranks.say(f"warning: {root} holds {len(names)} categories, Caltech-101 has 101: unpack it again if you did "
                  "not choose them.")
    files, label = labelled(root, names)
    number, chosen = by_name(files, root), np.zeros(len(files), bool)
    for c in range(len(names)):
        mine = np.flatnonzero(label == c)
        chosen[mine[number[mine].argsort()[:TRAIN_PER_CLASS]]] = True
    return splits(root, Path(data_dir), names, [(pick(files, mine), label[mine]) for mine in (chosen, ~chosen)], size)


def download_caltech101(data_dir: str, root: Path) -> None:
    from torchvision.datasets import Caltech101
    try:
        if not root.is_dir():                                 # while this process waited
            Caltech101(data_dir, download=True)
    except Exception as error:                                # of the network, of archives
        raise Refused(f"Caltech-101 is not in {root}, and its download failed ({error}). Unpack 101_ObjectCategories.tar.gz from "
                      f"https://data.caltech.edu/records/mzrjq-6wc02 into {root.parent}, or name the folder that holds "
                      "caltech101/ with --data-dir.") from None


@lru_cache(maxsize=1)
def read_folder(data_dir: str, size: int) -> tuple:
    """Anybody's images as torchvision's ImageFolder wants them: `train/CLASS/*` and `test/CLASS/*` (see TEST), or one tree.

    Of one tree `CLASS/*` about a fifth becomes the test set, by a hash of each file's name, so that more images do not move
    those that were there; but a class of few images that would be left with none to train on keeps one until it has more.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise Refused(f"--data-dir {root} is no folder. It should hold train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg.")
    train, test = half(root, TRAIN), half(root, TEST)
    if train and test:
        names = sorted({*classes_below(train), *classes_below(test)})
        return splits(root, root, names, [labelled(tree, names) for tree in (train, test)], size)
    if train:
        raise Refused(f"{root} holds {train.name}/ with folders of classes, but no such test set ({', '.join(TEST)}). Name "
                      f"--data-dir {train} to take a fifth of that as test set; if {train.name} is a class itself, put its "
                      "images into it without folders.")
    names = classes_below(root)
    files, label = labelled(root, names)
    number = by_name(files, root)
    held = number < TEST_SHARE
    for c in np.setdiff1d(label, label[~held]):
        mine = np.flatnonzero(label == c)
        held[mine[number[mine].argmax()]] = False
    return splits(root, root.resolve().parent, names, [(pick(files, mine), label[mine]) for mine in (~held, held)], size)


def half(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder below `root` that has the first of these names, in any case, and folders of its own: one a class."""
    found = {name.lower(): root / name for name in classes_below(root) if classes_below(root / name)}
    return next((found[name] for name in names if name in found), None)


def labelled(tree: Path, names: list[str]) -> tuple[list[Path], np.ndarray]:
    """Image files of the class folders `names` of `tree`, and the class of each [n].

    Raises
        Refused: fewer than two classes, or no image.
    """
    if len(names) < 2:
        raise Refused(f"{tree} holds {len(names)} class folders, expected two or more: CLASS/*.jpg.")
    found = [(path, label) for label, name in enumerate(names) if (tree / name).is_dir() for path in files_below(tree / name)]
    if not found:
        raise Refused(f"{tree} holds no image: its class folders ({listed(names, 5)}) have no .jpg, .png or the like.")
    return [path for path, _ in found], np.array([label for _, label in found])


def by_name(files: list[Path], root: Path) -> np.ndarray:
    """[n] in [0, 1): a hash of each file's path below `root`."""
    return np.array([int(hashlib.sha256(os.fsencode(path.relative_to(root))).hexdigest()[:8], 16) for path in files]) / 16 ** 8


def pick(files: list[Path], mine: np.ndarray) -> list[Path]:
    return [files[i] for i in np.flatnonzero(mine)]


def splits(root: Path, cache: Path, names: list[str], found: list[tuple[list[Path], np.ndarray]], size: int) -> tuple:
    """Train and test of their files and classes, and the names of the classes; what one split lacks is said.

    Only classes that have training images count, and test images of others are left out.

    Raises
        Refused: fewer than two classes to train on, or no image to test with.
    """
    (files, label), (test_files, test_label) = found
    images, target = decode_split(root, cache, files, label, size)
    kept = np.unique(target)
    if len(kept) < 2:
        raise Refused(f"{root} has training images of one class alone ({listed([names[kept[0]]])}): add images of another.")
    known = np.isin(test_label, kept)
    if not known.all():
        lacking = sorted({names[c] for c in test_label[~known]})
        ranks.say(f"warning: {len(lacking)} classes have no training image, their test images are left out: {listed(lacking)}.")
    if len(known) and not known.any():
        raise Refused(f"{root} has no test image of any class that it has training images of "
                      f"({listed([names[c] for c in kept], 5)}): use the same class folders in both.")
    test_images, test_target = decode_split(root, cache, pick(test_files, known), test_label[known], size)
    unseen = sorted(names[c] for c in np.setdiff1d(kept, test_target))
    if unseen:
        ranks.say(f"warning: {len(unseen)} classes have no test image: {listed(unseen)}.")
    empty = [name for c, name in enumerate(names) if c not in kept and c not in test_label]
    if empty:
        ranks.say(f"warning: {len(empty)} class folders have no image ({' '.join(ENDINGS)}) that can be read: {listed(empty)}.")
    ranks.say(f"{root}: {len(kept)} classes ({listed([names[c] for c in kept], 3)}), {len(target)} images to train, "
              f"{len(test_target)} to test.")
    number = {c: i for i, c in enumerate(kept.tolist())}
    target, test_target = (np.array([number[c] for c in labels.tolist()]) for labels in (target, test_target))
    return (images, target, target), (test_images, test_target, test_target), [names[c] for c in kept]


def decode_split(root: Path, cache: Path, files: list[Path], label: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and classes of the files of one split that can be read."""
    if not len(files):
        raise Refused(f"{root} has too few images for a test set of its own: add some, or make train/ and test/ folders.")
    images, readable = decoded(files, size, root, cache)
    return images, label[readable]
