"""Tables that cost a preparation, kept on disk: made by one process, charged in full to everyone who reads them."""
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, from_numpy

from common.files import Refused, lock, read_json, reserve, unwritable, write_json
from common.machine import free_memory
from common.ranks import rank, wait, world


def cached_table(run, name: str, key: dict, shape: tuple[int, ...], fill: Callable) -> Tensor:
    """A float16 table on the run's device that `fill(call, table)` has written, now or for an earlier run with the same `key`.

    Args
        key: all that the contents depend on, plain JSON values; its hash names the file below `--results`/cache.
        fill: as in `with run.prepare(name) as call`; `table` is a memory-mapped numpy array.

    Raises
        Refused: the file cannot be written, or holds something else.
    """
    size, free = 2 * math.prod(shape), free_memory(run.device)
    if size > free:
        raise Refused(f"the table of {run.args.method} would take {size / 2 ** 30:.1f} GiB, and {run.device} has "
                      f"{free / 2 ** 30:.1f} free: keep less of it (--views), or use a method that asks the teacher as it goes.")
    text = json.dumps(key | {"shape": shape}, sort_keys=True)
    path = Path(run.args.results) / "cache" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
    with run.untimed("data"):                                 # while another process makes it: charged below instead
        if rank():
            wait()                                            # for rank 0, which makes it for all
        held = lock(path.with_suffix(".lock"), wait=True)
    with held:
        price = path.with_suffix(".json")
        if price.exists() and path.exists():
            paid = read_json(price)
            run.charge(name, paid["seconds"], paid["flops"])
        else:
            seconds, flops = run.clock.counted(), run.clock.flops["preparation"]
            partial = path.with_suffix(".partial")
            with run.prepare(name) as call:
                try:
                    table = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
                    reserve(partial)
                    fill(call, table)
                    table.flush()
                    os.replace(partial, path)
                except OSError as error:
                    raise unwritable(path, error) from None
                finally:
                    partial.unlink(missing_ok=True)
            made = (run.clock.flops["preparation"] - flops) // world()          # counted as if every rank had made it
            run.clock.flops["preparation"] = flops + made
            write_json(price, {"seconds": run.clock.counted() - seconds, "flops": made, "key": key})
        if rank() == 0:
            wait()
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Refused(f"{path} is damaged ({error}): delete it, and it is made again.") from None
    return from_numpy(found).to(run.device)
