"""How a killed run goes on: last.pt, everything that is needed to repeat the rest bit for bit."""
import shutil
from pathlib import Path

import torch
from torch import Tensor

from common import ranks
from common.files import Refused, write_json, write_torch
from common.log import TensorBoard, read_rows, write_rows


def save(run, next_epoch: int) -> None:
    """Writes last.pt of a `common.run.Run`, from which it goes on with `next_epoch`; every rank must call it."""
    state = {name: value if isinstance(value, Tensor) else value.state_dict() for name, value in run.state.items()}
    if not run.writes:
        return
    own = {"steps": run.steps, "examples": run.examples, "leftover": run.leftover, "rest": run.rest}
    write_torch(run.folder / "last.pt", {"epoch": next_epoch, "rows": len(run.rows), "run": own, "state": state,
                                         "clock": run.clock.state_dict(), "where": run.where})


def restore(run) -> int:
    """Loads last.pt where there is one, makes the folder anew where there is none; returns the epoch to go on with."""
    with run.untimed("checkpoint"):
        path = run.folder / "last.pt"
        begun = path.exists()
        ranks.wait()                                          # before rank 0 writes anything
        if not begun:
            if run.writes:
                clear(run.folder)
                write_json(run.folder / "config.json", run.config)
                run.board = TensorBoard(run.folder, run.config, [])
            ranks.wait()
            return 0
        last = read_last(path, run.where, run.args.force)
        for name, value in run.state.items():
            value.copy_(last["state"][name]) if isinstance(value, Tensor) else value.load_state_dict(last["state"][name])
        for name, value in last["run"].items():
            setattr(run, name, value)
        run.clock.load_state_dict(last["clock"])
        run.rows = read_rows(run.folder)[:last["rows"]]
        ranks.wait()                                          # until all have read
        if run.writes:
            write_json(run.folder / "config.json", run.config)
            write_rows(run.folder, run.rows)
            run.board = TensorBoard(run.folder, run.config, run.rows)
        ranks.wait()
        run.bar.start(run.examples, max((last["epoch"] - 1) / run.args.epochs, 0))
        return last["epoch"]


def clear(folder: Path) -> None:
    """Removes what a run left that was killed before its first checkpoint."""
    for stale in ("tb", "examples", "checkpoints"):
        shutil.rmtree(folder / stale, ignore_errors=True)


def read_last(path: Path, where: dict, force: bool) -> dict:
    """last.pt: {"epoch", "rows", "run", "state", "clock", "where"}.

    Raises
        Refused: it is damaged, or it was begun elsewhere (`where`: device, threads, versions), unless `force`.
    """
    try:
        last = torch.load(path, map_location="cpu", weights_only=True)
        begun = {name: last[name] for name in ("epoch", "rows", "run", "state", "clock", "where")}["where"]
    except Exception as error:                                # a damaged zip can raise anything
        raise Refused(f"{path} is damaged ({type(error).__name__}): delete it to start this run again.") from None
    for name, value in where.items():
        if begun.get(name, value) != value and (not force or name in ("ranks", "data")):
            raise Refused(f"{path.parent} was begun with {name} {begun.get(name)}, here it is {value}: the result would "
                          "not be bit-exact. Set it as it was (OMP_NUM_THREADS for threads)" + (
                              "." if force else ", or, but for ranks and data, add --force."))
    return last
