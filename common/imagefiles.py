"""Folders of image files as one array on disk: decoded and resized once, memory-mapped from then on."""
import hashlib
import json
import os
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import ranks
from common.files import Refused, listed, lock, read_json, reserve, write_json

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")      # torchvision's ImageFolder's
DECODER = 2                                                   # what files decoded by earlier versions are told from
NAMED = 10                                                    # unreadable files that a message explains


def classes_below(folder: Path) -> list[str]:
    """Names of the folders in `folder`, one a class, sorted as torchvision's ImageFolder sorts them."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_below(folder: Path, endings: Collection[str] = ENDINGS) -> list[Path]:
    """Image files at any depth, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())


def readable() -> set[str]:
    """Endings of all formats that Pillow reads."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey in 16 or 32 bits or in floats as 8 bits, since Pillow clips it to white: the image's own brightest pixel says
    whether white is 1 (floats alone), 255 or 65535."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    grey = np.nan_to_num(np.asarray(image).astype(np.float64))                  # [H, W]
    white = next((white for white in ((1, 255) if image.mode == "F" else (255,)) if grey.max() <= white), 65535)
    return Image.fromarray(np.rint(grey.clip(0, white) * (255 / white)).astype(np.uint8))


def decode(path: Path, size: int) -> np.ndarray | str:
    """[size, size, 3] uint8: the shorter side becomes `size`, the middle of the longer one is kept; or why it cannot be read."""
    try:
        with Image.open(path) as image:
            image = eight_bits(image).convert("RGB")          # from grey, from a palette, from RGBA without its alpha
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side),
                                       reducing_gap=2.0))
    except Exception as error:                                # a damaged image can raise anything
        return f"{type(error).__name__}: {error}"


def decoded(files: Sequence[Path], size: int, root: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Memory-mapped images [n, size, size, 3] uint8 of the readable files, and which of `files` they are [n].

    Made once, with a progress bar, in `cache`/.decoded or, where that cannot be written, in ~/.cache/encore. Sizes, times and
    names of the files below `root`, and whether one may read them, tell whether it is still theirs. Unreadable files are named
    and left out.

    Raises
        Refused: no file can be read, or the disk is full.
    """
    names = [str(path.relative_to(root)) for path in files]
    stat = [(name, (s := path.stat()).st_size, s.st_mtime_ns, *(() if os.access(path, os.R_OK) else ("closed",)))
            for name, path in zip(names, files, strict=True)]
    key = hashlib.sha256(json.dumps([DECODER, size, stat]).encode()).hexdigest()[:16]
    beside, home = cache / ".decoded", Path.home() / ".cache" / "encore"
    made = [folder for folder in (beside, home) if (folder / f"{key}.json").exists() and (folder / f"{key}.npy").exists()]
    folder = made[0] if made else beside if os.access(beside if beside.exists() else cache, os.W_OK) else home
    path, said = folder / f"{key}.npy", folder / f"{key}.json"
    if not made:
        with lock(folder / f"{key}.lock", wait=True):         # one process makes it, the others wait
            if not (path.exists() and said.exists()):
                write(path, said, files, names, size)
    bad = read_json(said).get("unreadable")
    if bad is None:
        raise Refused(f"{said} is damaged: delete it and {path.name}, and both are made again.")
    if bad:
        shown = "\n".join(f"    {listed([name])}: {listed([why])}" for name, why in list(bad.items())[:NAMED])
        ranks.say(f"warning: {len(bad)} of {len(files)} images cannot be read and are left out:\n{shown}"
                  + ("\n    ..." if len(bad) > NAMED else ""))
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Refused(f"{path} is damaged ({error}): delete it, and it is made again.") from None
    readable = np.array([i for i, name in enumerate(names) if name not in bad])
    if len(images) not in (len(files), len(readable)):        # earlier versions left no rows over
        raise Refused(f"{path} does not hold the images that {said.name} says: delete both, and they are made again.")
    return images[:len(readable)], readable


def write(path: Path, said: Path, files: Sequence[Path], names: Sequence[str], size: int) -> None:
    """The array of `decoded`, rows left over at its end, and which files could not be read."""
    partial, bad, n = path.with_suffix(".partial"), {}, 0
    try:
        table = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(files), size, size, 3))
        reserve(partial)
        with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
            warnings.simplefilter("ignore")                   # about odd metadata
            found = threads.map(lambda file: decode(file, size), files)
            for name, image in zip(names, tqdm(found, "decoding", len(files), unit="image", disable=None), strict=True):
                if isinstance(image, str):
                    bad[name] = image
                else:
                    table[n] = image
                    n += 1
        if not n:
            why = listed([next(iter(bad.values()), "nothing")])
            raise Refused(f"none of {len(files)} images can be read, the first because of {why}: "
                          "look whether they are images in a format that Pillow reads.")
        table.flush()
        os.replace(partial, path)
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}. It takes {len(files) * size * size * 3 / 2 ** 30:.2g} GiB: make "
                      f"room, or make {path.parent} a link to a folder that has it.") from None
    finally:
        partial.unlink(missing_ok=True)
    write_json(said, {"unreadable": bad})
