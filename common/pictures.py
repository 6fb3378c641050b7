"""What a model predicts for a few test images, beside the truth, as one picture."""
import colorsys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from common.amp import autocast
from common.data import all_batches
from common.detection import BOX, decode
from common.files import write_atomic
from common.segmentation import at_labels
from common.splits import VOID, Split

SHOWN, GAP = 4, 4                                             # test images; pixels between pictures
SURE = 0.3                                                    # score from which on a box is drawn


def colours(n: int) -> np.ndarray:
    """[n, 3] uint8, as far apart in hue as may be, in turns light and dark."""
    return np.array([[255 * c for c in colorsys.hsv_to_rgb(k / n, 0.75, 1 - 0.45 * (k % 2))] for k in range(n)], np.uint8)


@torch.no_grad()
def first_outputs(model: nn.Module, split: Split) -> tuple[np.ndarray, Tensor, Tensor]:
    """Of a few examples spread over the split: images [n, H, W, 3] uint8, targets, outputs. The model's mode stays."""
    training = model.training
    few = split.index[torch.linspace(0, len(split) - 1, min(SHOWN, len(split))).round().long()]
    batch = next(all_batches(split, SHOWN, order=few))
    with autocast(split.amp, split.device):
        output = model.eval()(batch.image).float()
    model.train(training)
    image = (batch.image.permute(0, 2, 3, 1) * split.std + split.mean).round().clamp(0, 255).byte()
    return image.cpu().numpy(), batch.target.cpu(), output.cpu()


def write_picture(path: Path, picture: np.ndarray) -> None:
    """[h, w, 3] uint8 -> a PNG file."""
    write_atomic(path, lambda file: Image.fromarray(picture).save(file, "PNG", optimize=True))


def rows(*columns: np.ndarray) -> np.ndarray:
    """Pictures [n, H, W, 3] uint8 of each column -> one picture, a row for each of n."""
    framed = [np.pad(column, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255) for column in columns]
    return np.concatenate(np.concatenate(framed, 2), 0)[:-GAP, :-GAP]


def segmented(model: nn.Module, split: Split) -> np.ndarray:
    """[h, w, 3] uint8: test images, their label maps, the predicted ones, in the classes' colours; void is black."""
    image, target, output = first_outputs(model, split)
    logits = at_labels(output, target)
    palette = np.zeros((VOID + 1, 3), np.uint8)
    palette[:output.shape[1]] = colours(output.shape[1])
    return rows(image, palette[target.numpy()], palette[logits.argmax(1).numpy()])


def detected(model: nn.Module, split: Split) -> np.ndarray:
    """[h, w, 3] uint8: test images, with their boxes, with those predicted whose score is above .3."""
    image, target, output = first_outputs(model, split)
    found = decode(output)
    true = [one[one[:, 0] >= 0][:, :5].tolist() for one in target]
    mine = [one[(one[:, 0] >= 0) & (one[:, 1] > SURE)][:, [0, 2, 3, 4, 5]].tolist() for one in found]
    classes = output.shape[1] - BOX
    return rows(image, boxed(image, true, classes), boxed(image, mine, classes))


def boxed(image: np.ndarray, boxes: list[list[list[float]]], classes: int) -> np.ndarray:
    """The images [n, H, W, 3] with boxes drawn in, of each image (class, x0, y0, x1, y1)."""
    palette = colours(classes)
    drawn = []
    for pixels, mine in zip(image, boxes, strict=True):
        picture = Image.fromarray(pixels)
        pen = ImageDraw.Draw(picture)
        for label, *(x0, y0, x1, y1) in mine:
            pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=tuple(palette[int(label)].tolist()))
        drawn.append(np.asarray(picture))
    return np.stack(drawn)
