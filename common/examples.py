"""What a run records about each training example: one file an epoch while it trains, examples.npz when it ends."""
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.amp import autocast
from common.data import all_batches
from common.files import write_atomic
from common.splits import Split


def unseen_highest(table: Tensor, generator: torch.Generator) -> Tensor:
    """[N] with NaN, of examples never seen, replaced by numbers above all others, in an order drawn at random."""
    return torch.where(table.isnan(), table.nan_to_num(0).max() + 1 + torch.rand(len(table), generator=generator), table)


@torch.no_grad()
def parts_right(model: nn.Module, stats: Callable, split: Split, batch: int = 100) -> dict[str, float]:
    """Share of right examples in each of a split's parts, {"old": 0.9, ...}, in the middle view; the model's mode stays.

    stats: a task's; its `correct` [B] is averaged.
    """
    training = model.training
    model.eval()
    right = torch.full_like(next(iter(split.parts.values())), torch.nan, dtype=torch.float32)       # [N]
    for examples in all_batches(split, batch):
        with autocast(split.amp, split.device):
            output = model(examples.image)
        right[examples.index] = stats(output, examples.target)["correct"].float()
    model.train(training)
    return {name: right[mask].nanmean().item() for name, mask in split.parts.items() if not right[mask].isnan().all()}


def write_epoch(folder: Path, epoch: int, tables: dict[str, Tensor]) -> None:
    """Statistics of one epoch: name -> [N], NaN where unseen."""
    half = {name: table.cpu().numpy().astype(np.float16) for name, table in tables.items()}
    write_atomic(folder / f"examples/{epoch:04d}.npz", lambda out: np.savez(out, **half))


def merge(folder: Path, examples: int, slim: bool) -> None:
    """examples.npz of all epochs: name -> [E, N] float16, NaN where unseen or not recorded.

    With `slim` name.mean -> [1, N] instead, but for `correct`: zeros and ones pack to bits, and forgetting needs them all.
    """
    epochs = []
    for path in sorted((folder / "examples").glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            epochs.append({name: file[name] for name in file.files})
    unseen = np.full(examples, np.nan, np.float16)
    merged = {}
    for name in sorted({name for epoch in epochs for name in epoch}):
        table = np.stack([epoch.get(name, unseen) for epoch in epochs])         # [E, N]
        if slim and name != "correct":
            seen = ~np.isnan(table)
            total = np.where(seen, table, 0).sum(0, dtype=np.float32)
            merged[f"{name}.mean"] = (total / np.maximum(seen.sum(0), 1)).astype(np.float16)[None]
            merged[f"{name}.mean"][0, ~seen.any(0)] = np.nan
        else:
            merged[name] = table
    write_atomic(folder / "examples.npz", lambda out: np.savez_compressed(out, **merged))
