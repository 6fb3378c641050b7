"""A run's folder: one process in it at a time, and only the run that it belongs to."""
import math
import shlex
import sys
import time
from pathlib import Path
from typing import TextIO

import torch
from torch import nn

from common import ranks
from common.amp import amp_dtype, arithmetic
from common.examples import parts_right
from common.files import Refused, lock, read_json, write_torch
from common.machine import code_version, device_name, versions
from common.naming import PLACE, recorded


def describe(args, name: str, past_names: list[str], device: torch.device) -> dict:
    """config.json of a run that begins here and now; its data is added when that is loaded."""
    return {"method": args.method, "name": name, "args": recorded(args, past_names), "command": shlex.join(["python", *sys.argv]),
            **code_version(), "versions": versions(),
            "device": {"type": device.type, "name": device_name(device), "threads": torch.get_num_threads(),
                       "arithmetic": arithmetic(amp_dtype(args.no_amp, device)), "ranks": ranks.world()},
            "past": past_names, "created": time.time()}


def take(folder: Path) -> TextIO:
    """Makes the folder; keep what it returns open to the end: the system drops the lock with the process.

    Raises
        Refused: the folder cannot be made, or another process works in it.
    """
    held = lock(folder / ".lock", wait=False)
    if held is None:
        raise Refused(f"{folder} is in use by another process: wait for it, or give this run a --tag.")
    return held


def opened(folder: Path, config: dict) -> tuple[dict, dict | None]:
    """What config.json shall say, and the summary where this very run is finished already.

    It is written when training begins: a refused run leaves none. A killed run keeps its own, and who went on is added.

    Raises
        Refused: the folder holds a run with other arguments.
    """
    if not (folder / "config.json").exists():
        return config, None
    old = read_json(folder / "config.json")
    for name, value in config["args"].items():
        if name not in PLACE and old.get("args", {}).get(name, value) != value:     # an argument it did not know: its default
            raise Refused(f"{folder} holds a run with another --{name.replace('_', '-')} ({old.get('args', {}).get(name)!r}, now "
                          f"{value!r}): give this run a --tag or other --results.")
    if (folder / "summary.json").exists():
        return old, read_json(folder / "summary.json")
    if not (folder / "last.pt").exists():
        return config, None                                   # made anew, by this code
    if old.get("commit") != config["commit"]:
        ranks.say(f"warning: {folder} was begun at commit {old.get('commit')}, now it is {config['commit']}.", file=sys.stderr)
    here = {"commit": config["commit"], "dirty": config["dirty"]}
    return old | {"resumed": [*old.get("resumed", []), here]}, None


def write_weights(path: Path, model: nn.Module, slim: bool) -> None:
    """The state dict on the CPU; slim: as float16, but for batch norm's tensors, which are small and keep their range."""
    weights = {k: w.detach().cpu() for k, w in model.state_dict().items()}
    if slim:
        weights = {k: w.half() if w.is_floating_point() and w.ndim > 1 else w for k, w in weights.items()}
    write_torch(path, weights)


def summary(run, model: nn.Module, counted: float, preparation: float) -> dict:
    """summary.json of a finished `common.run.Run`; counted seconds, and of these preparation, of the slowest rank."""
    last = {kind: {k.partition("/")[2]: v for k, v in run.rows[-1].items() if k.startswith(kind + "/")}
            for kind in ("test", "train")}
    return {**{name: getattr(run.args, name) for name in ("method", "tag", "task", "model", "epochs", "seed")},
            "steps": run.steps, "examples": run.examples, **last,
            "seconds": {"counted": counted, "preparation": preparation,
                        "untimed": run.clock.untimed_seconds},
            "flops": run.clock.flops, "past": [past.name for past in run.past_runs if past.reused],
            "reused": sorted(set().union(*(past.reused for past in run.past_runs))),
            "past_bytes": sum(sum(past.kept.values()) for past in run.past_runs),
            "parameters": sum(p.numel() for p in model.parameters())}


def last_look(model: nn.Module, task, data) -> dict:
    """What summary.json adds of the model that is left.

    final_test, under --holdout: its score on the test set, which has chosen nothing. train_parts, with --parts by which all
    classes are old: the share of right ones among old and new training examples, without augmentation.
    """
    found = {}
    if data.final:                                            # None without --holdout, empty where no class has a test image
        scores = task.evaluate(model, data.final)
        found["final_test"] = {name.partition("/")[2]: value for name, value in scores.items() if math.isfinite(value)}
    if data.train.parts:
        found["train_parts"] = parts_right(model, task.stats, data.train)
    return found
