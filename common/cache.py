"""Tables that cost a preparation, kept on disk: made by one process, charged in full to everyone who reads them."""
import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, from_numpy

from common.files import Refused, read_json, unwritable, write_json
from common.ranks import world


def cached_table(run, name: str, key: dict, shape: tuple[int, ...], fill: Callable) -> Tensor:
    """A float16 table on the run's device that `fill(call, table)` has written, now or for an earlier run with the same `key`.

    Args
        key: all that the contents depend on, plain JSON values; its hash names the file below `--results`/cache.
        fill: as in `with run.prepare(name) as call`; `table` is a memory-mapped numpy array.

    Raises
        Refused: the file cannot be written, or holds something else.
    """
    text = json.dumps(key | {"shape": shape}, sort_keys=True)
    path = Path(run.args.results) / "cache" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")
    except OSError as error:
        raise unwritable(path, error) from None
    with lock:
        with run.untimed("data"):                             # while another process makes it: charged below instead
            fcntl.flock(lock, fcntl.LOCK_EX)
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
                    fill(call, table)
                    table.flush()
                    os.replace(partial, path)
                except OSError as error:
                    partial.unlink(missing_ok=True)
                    raise unwritable(path, error) from None
            flops = (run.clock.flops["preparation"] - flops) // world()         # one rank made it for all
            write_json(price, {"seconds": run.clock.counted() - seconds, "flops": flops, "key": key})
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Refused(f"{path} is damaged ({error}): delete it, and it is made again.") from None
    return from_numpy(found).to(run.device)
