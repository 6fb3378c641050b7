"""All randomness is a function of (seed, name, epoch), so that neither history nor other methods can shift it."""
import hashlib

import torch


def generator(seed: int, name: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator of its own for every purpose: `generator(args.seed, "order", epoch)`.

    On the CPU whatever the run's device, so that a GPU run sees the same examples as a CPU run.
    """
    digest = hashlib.sha256(f"{seed} {name} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
