"""Images with boxes: `read_X(data_dir, (H, W))` -> (images [N, H, W, 3] uint8, boxes [N, M, 6] float32) of train and test, names.

A box is class, x0, y0, x1, y1 (pixels of the resized image, half-open), difficult (0 or 1); rows of class -1 are padding.
"""
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import ranks, shapes
from common.detection import LEAST
from common.files import Refused, lock
from common.imagefiles import eight_bits, files_below, readable

BCCD = ("RBC", "WBC", "Platelets")
VOC = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
       "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
NAMED = 10                                                    # files that a message names


def objects(path: Path, classes: Sequence[str]) -> np.ndarray:
    """Boxes [n, 6] of a Pascal VOC file as in its image, 0-based and half-open: the file's are 1-based and inclusive.

    Raises
        ValueError, ElementTree.ParseError, OSError: what is wrong with the file.
    """
    rows = []
    for found in ElementTree.parse(path).getroot().findall("object"):
        name = (found.findtext("name") or "").strip()
        if name not in classes:
            raise ValueError(f"it holds class {name!r}, known are {', '.join(classes)}")
        texts = [found.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        sides = [float(text or "nan") for text in texts]
        if not np.isfinite(sides).all():
            raise ValueError(f"a box of class {name!r} has sides {texts}, expected four numbers")
        x0, y0, x1, y1 = sides
        if x0 > x1 or y0 > y1:
            raise ValueError(f"a box of class {name!r} has xmin above xmax or ymin above ymax: {texts}")
        rows.append((classes.index(name), x0 - 1, y0 - 1, x1, y1, float(found.findtext("difficult") or 0) != 0))
    return np.array(rows, np.float64).reshape(-1, 6)


def read_voc(folder: Path, image_set: str, classes: Sequence[str], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """`ImageSets/Main/SET.txt` names images `JPEGImages/NAME.*` with boxes in `Annotations/NAME.xml`.

    Images are brought to exactly H x W; boxes are scaled likewise and clipped. Those outside of the image are left out, those of
    less than LEAST pixels either way are difficult, whatever the file says, with a warning. M is the largest number of boxes,
    at least 1.

    Raises
        Refused: a file that is missing or cannot be read, or a class that is none of `classes`; the first of them are named.
    """
    listed = folder / "ImageSets" / "Main" / f"{image_set}.txt"
    try:
        names = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {listed} ({error}): expected the name of an image in each line.") from None
    if not names:
        raise Refused(f"{listed} names no image: expected the name of one in each line.")
    photos = {path.stem: path for path in files_below(folder / "JPEGImages", readable())}
    images, found, bad, lost = np.empty((len(names), *size, 3), np.uint8), [], [], {}
    for n, name in enumerate(tqdm(names, "decoding", unit="image", disable=None, leave=False)):
        path = folder / "Annotations" / f"{name}.xml"
        try:
            boxes = objects(path, classes)
            path = photos.get(name, folder / "JPEGImages" / name)
            with Image.open(path) as image:
                scale = np.array(size[::-1]) / image.size     # x, y; the file's own size element can be wrong
                images[n] = eight_bits(image).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
        except Exception as error:                            # a damaged image can raise anything
            bad.append(f"    {path}: {type(error).__name__}: {error}")
            continue
        boxes[:, 1:5] = np.clip(boxes[:, 1:5] * np.tile(scale, 2), 0, np.tile(size[::-1], 2))
        sides = boxes[:, 3:5] - boxes[:, 1:3]
        kept, small = (sides > 0).all(1), (sides < LEAST).any(1)
        boxes[small, 5] = 1
        if small.any():
            lost[f"{name}.xml"] = int(small.sum())
        found.append(boxes[kept])
    if bad:
        raise Refused(f"{len(bad)} of {len(names)} images of {listed} cannot be used, mend them or take them out of it:\n"
                      + "\n".join(bad[:NAMED]) + ("\n    ..." if len(bad) > NAMED else ""))
    if lost:
        ranks.say(f"warning: {sum(lost.values())} boxes of {listed} are outside of their image and left out, or less than "
                  f"{LEAST} pixels wide or high at {size[1]} x {size[0]} and count as difficult, of "
                  f"{', '.join(list(lost)[:NAMED])}" + (", ..." if len(lost) > NAMED else "."))
    return images, padded(found)


def padded(found: Sequence[np.ndarray]) -> np.ndarray:
    """N arrays [n, 6] -> [N, M, 6] float32, filled up with rows of class -1."""
    boxes = np.zeros((len(found), max(1, *map(len, found)), 6), np.float32)
    boxes[..., 0] = -1
    for row, one in zip(boxes, found, strict=True):
        row[:len(one)] = one
    return boxes


@lru_cache(maxsize=1)
def read_bccd(data_dir: str, size: tuple[int, int]) -> tuple:
    """Blood cells (BCCD, Shenggan 2017): 292 photographs to train, 72 to test, of red and white cells and platelets."""
    roots = Path(data_dir) / "BCCD", Path(data_dir) / "BCCD_Dataset" / "BCCD"
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        raise Refused(f"BCCD is neither in {roots[0]} nor in {roots[1]}: run git clone https://github.com/Shenggan/BCCD_Dataset "
                      f"in {data_dir}, or name the folder that holds BCCD/ with --data-dir.")
    return *(read_voc(root, part, BCCD, size) for part in ("trainval", "test")), list(BCCD)


@lru_cache(maxsize=1)
def read_voc_det(data_dir: str, size: tuple[int, int]) -> tuple:
    """PASCAL VOC 2007 (Everingham et al. 2010): the 5,011 images of `trainval` to train, 4,952 of `test` to test."""
    root = Path(data_dir) / "VOCdevkit" / "VOC2007"
    parts = "trainval", "test"
    if not all((root / f"ImageSets/Main/{part}.txt").exists() for part in parts):
        with lock(Path(data_dir) / ".voc2007.lock", wait=True):
            download_voc(data_dir, root, parts)
    return *(read_voc(root, part, VOC, size) for part in parts), list(VOC)


def download_voc(data_dir: str, root: Path, parts: Sequence[str]) -> None:
    from torchvision.datasets import VOCDetection  # costs a second; other tasks need none of it
    for part in parts:
        try:
            if not (root / f"ImageSets/Main/{part}.txt").exists():          # nor while this process waited
                VOCDetection(data_dir, "2007", part, download=True)
        except Exception as error:                            # of the network, of archives
            raise Refused(f"{part} of VOC 2007 is not in {root}, and its download failed ({error}). Unpack "
                          "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from "
                          f"http://host.robots.ox.ac.uk/pascal/VOC/voc2007/ into {data_dir}, or name the folder that holds "
                          "VOCdevkit/ with --data-dir.") from None


@lru_cache(maxsize=1)
def read_shapes_det(data_dir: str, size: tuple[int, int]) -> tuple:
    """The embedded data set with a box about its object, of one of five shapes, whatever its texture."""
    def split(n, seed):
        found = shapes.render(n, seed, size[0])
        boxes = np.column_stack([found["coarse"], found["box"], np.zeros(n)]).astype(np.float32)
        return found["image"].transpose(0, 2, 3, 1), boxes[:, None]

    if size[0] != size[1]:
        raise Refused(f"images of shapes-det are square: give --image-size {min(size)}.")
    return split(shapes.TRAIN_SIZE, shapes.TRAIN_SEED), split(shapes.TEST_SIZE, shapes.TEST_SEED), list(shapes.SHAPES)
