"""Several processes on one run, as `torchrun` starts them; alone, each of these functions changes nothing.

The global batch is composed on every rank and each takes its part, so that any number of ranks sees the same examples.
"""
import os
from datetime import timedelta
from typing import TextIO

import torch
import torch.distributed as dist
from torch import Tensor

from common.files import Refused


def device_of(name: str) -> torch.device:
    """The device of that name; of a GPU without a number each rank's own, which becomes the current one."""
    found = torch.device(name)
    if found.type == "cuda":
        if found.index is None:
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(found)                          # else other ranks open a context on the first GPU, too
    return found


def begin(device: str) -> torch.device:
    """Joins the other ranks where torchrun has started this process; returns its device."""
    found = device_of(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
            raise Refused("WORLD_SIZE says that there are several ranks, but RANK or MASTER_ADDR is not set: start them with "
                          "torchrun, or unset WORLD_SIZE.")
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
        except RuntimeError as error:
            raise Refused(f"the ranks did not find each other ({str(error).splitlines()[0][:120]}): where machines have several "
                          "networks, name theirs in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME (eth0, ib0).") from None
    return found


def end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """0 to world() - 1; only 0 writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def say(text: str, file: TextIO | None = None) -> None:
    """Prints once what every rank knows; to stdout, if no file is named."""
    if rank() == 0:
        print(text, file=file)


def own(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor [B, ...] that every rank has whole; B is a multiple of world()."""
    rows = len(tensor) // world()
    return tensor[rank() * rows:(rank() + 1) * rows]


def everyone(tensor: Tensor) -> Tensor:
    """The rows [B / world(), ...] of all ranks, one after the other: [B, ...]; no gradient flows through it."""
    if world() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world())]
    _together(dist.all_gather, parts, tensor.detach().contiguous())
    return torch.cat(parts)


def average_(tensors: list[Tensor]) -> None:
    """Each tensor becomes its mean over the ranks, in one exchange."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([t.detach().flatten() for t in tensors])
    _together(dist.all_reduce, flat)
    flat /= world()
    means = flat.split([t.numel() for t in tensors])
    torch._foreach_copy_([t.detach() for t in tensors], [m.view_as(t) for t, m in zip(tensors, means, strict=True)])


def largest(value: float) -> float:
    """The largest of the ranks' numbers; on the host, so that no device is waited for."""
    if world() == 1:
        return value
    number = torch.tensor(value, dtype=torch.float64)
    _together(dist.all_reduce, number, dist.ReduceOp.MAX)
    return number.item()


def merged(table: Tensor) -> Tensor:
    """[N] with NaN where this rank has recorded nothing -> [N] of what any has; the mean where several have."""
    if world() == 1:
        return table
    both = torch.stack([table.nan_to_num(0.0), (~table.isnan()).float()])
    _together(dist.all_reduce, both)
    return both[0] / both[1]                                  # 0 / 0 is NaN: nobody's


def wait() -> None:
    """Until all ranks are here."""
    largest(0.0)


def _together(exchange, *args) -> None:
    try:
        exchange(*args)
    except RuntimeError as error:
        raise Refused(f"rank {rank()}: another rank of this job is gone ({str(error).splitlines()[0][:120]}). Start the same "
                      "torchrun command again, with as many ranks: it goes on from the last checkpoint.") from None
