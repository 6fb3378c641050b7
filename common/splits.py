"""The images of a data set on the device as uint8, and what is to be predicted of them, under any view.

A view is the number of one augmentation, `(flip * 9 + y) * 9 + x` for `crop-flip` (pad 4, crop back, flip): 162 of them.
"""
from copy import copy

import numpy as np
import torch
from torch import Tensor

from common.machine import free_memory

PAD = 4
SHIFTS = 2 * PAD + 1
VIEWS = 2 * SHIFTS * SHIFTS
CENTER = PAD * SHIFTS + PAD                                   # the view that changes nothing
VOID = 255                                                    # class of a pixel that counts nowhere


def sides(size: int | str) -> tuple[int, int]:
    """--image-size, 64 or "128x160" -> height and width in pixels."""
    height, _, width = str(size).partition("x")
    return int(height), int(width or height)


def pad(images: np.ndarray) -> Tensor:
    """[n, H, W, 3] -> [n, H+8, W+8, 3], black around, as torchvision's RandomCrop pads."""
    return torch.from_numpy(np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0))))


def fits(images: np.ndarray, device: torch.device) -> bool:
    """Whether the images, padded, take at most half of the free memory of the device, and of the host, where they are padded."""
    padded = images.nbytes * (1 + 2 * PAD / images.shape[1]) ** 2
    return not isinstance(images, np.memmap) or 2 * padded < min(map(free_memory, (device, torch.device("cpu"))))


class Split:
    """One half of a data set on the device: all images, of which `index` are in use. The target of an example is its class."""

    def __init__(self, images: np.ndarray, target: np.ndarray, index: np.ndarray, mean: Tensor, std: Tensor,
                 device: torch.device, amp: torch.dtype | None, augment: str = "none"):
        """images [N, H, W, 3] uint8; target [N, ...]; index [n] the examples in use, sorted."""
        self.height, self.width = images.shape[1:3]           # pixels
        self.size = min(self.height, self.width)
        self.augment = augment
        # on the device, padded, [N * (H+8) * (W+8), 3]; or images [N, H, W, 3] on disk, where they do not fit
        self.pixels = pad(images).to(device).view(-1, 3) if fits(images, device) else None
        self.disk = images
        self.rows = torch.arange(self.height, device=device)                    # [H]
        self.columns = torch.arange(self.width, device=device)                  # [W]
        self.target = self.keep(target, index).to(device)                       # [N, ...]
        self.index = torch.from_numpy(index.astype(np.int64))                   # [n] on the CPU, where order is made
        self.mean, self.std = mean.to(device), std.to(device)                   # [3] in 0..255
        self.parts: dict[str, Tensor] = {}                                      # name -> [N] bool, which are scored apart
        self.classes: list[int] | list[str] = []                                # names, where classes are scored apart
        self.device, self.amp = device, amp

    def __len__(self) -> int:
        return len(self.index)

    def only(self, mask: Tensor) -> "Split":
        """The same split with fewer examples in use: those where mask [N] is true."""
        fewer = copy(self)
        fewer.index = self.index[mask.cpu()[self.index]]
        return fewer

    def keep(self, target: np.ndarray, index: np.ndarray) -> Tensor:
        """How targets [N] are kept: classes, -1 where not in use."""
        used = np.full(len(target), -1)
        used[index] = target[index]
        return torch.from_numpy(used)

    def targets(self, index: Tensor, view: Tensor) -> Tensor:
        """Of examples `index` [B] under `view` [B]: their classes [B]."""
        return self.target[index]

    def places(self, index: Tensor, view: Tensor) -> Tensor:
        """[B, H, W] where the pixels of images `index` [B] under `view` [B] (0..161) lie among all padded pixels, laid flat."""
        flip, y, x = view // SHIFTS ** 2, view // SHIFTS % SHIFTS, view % SHIFTS
        row = y[:, None] + self.rows                                            # [B, H]
        column = x[:, None] + torch.where(flip[:, None] == 1, self.columns.flip(0), self.columns)       # [B, W]
        first = index[:, None, None] * (self.height + 2 * PAD)
        return (first + row[:, :, None]) * (self.width + 2 * PAD) + column[:, None, :]

    def images(self, index: Tensor, view: Tensor) -> Tensor:
        """Augmented and normalised images [B, 3, H, W] of examples `index` [B] under `view` [B] (0..161)."""
        source = self.pixels
        if source is None:                                    # read what the batch needs
            source = pad(self.disk[index.cpu().numpy()]).to(self.device).view(-1, 3)
            index = torch.arange(len(index), device=self.device)
        place = self.places(index, view)
        pixels = source.index_select(0, place.view(-1)).view(*place.shape, 3)
        return pixels.float().sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)    # channels-last without a copy


class MapSplit(Split):
    """Images with label maps: the target of an example is the class of each of its pixels, VOID where nobody says."""

    def keep(self, target: np.ndarray, index: np.ndarray) -> Tensor:
        """Label maps [N, H, W], padded with VOID."""
        return torch.from_numpy(np.pad(target.astype(np.uint8), ((0, 0), (PAD, PAD), (PAD, PAD)), constant_values=VOID))

    def targets(self, index: Tensor, view: Tensor) -> Tensor:
        """Classes [B, H, W] of the pixels of `images(index, view)`."""
        place = self.places(index, view)
        return self.target.view(-1).index_select(0, place.view(-1)).view(place.shape).long()
