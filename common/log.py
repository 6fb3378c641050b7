"""Metrics of a run: JSON lines, TensorBoard, and a progress bar."""
import json
import logging
import math
import shutil
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.files import Refused, read_json, write_atomic


def read_rows(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []
    except ValueError:
        raise Refused(f"{path} is damaged: a line of it is no JSON. Delete its folder and run that command again.") from None


def write_rows(folder: Path, rows: list[dict]) -> None:
    write_atomic(folder / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


class TensorBoard:
    """One event file under `tb/`; the time of an event is the run's start plus its counted seconds."""

    def __init__(self, folder: Path, config: dict, rows: list[dict]):
        """Starts the file anew with `rows`, so that a resumed run shows no row twice."""
        from torch.utils.tensorboard import SummaryWriter  # costs a second, which --help should not
        from torch.utils.tensorboard.summary import hparams

        shutil.rmtree(folder / "tb", ignore_errors=True)
        self.created = config["created"]
        self.writer = SummaryWriter(str(folder / "tb"))
        args = {k: ", ".join(map(str, v)) if isinstance(v, list) else v if isinstance(v, bool | int | float) else str(v)
                for k, v in config["args"].items()}
        table = "\n".join(f"| {name} | {value} |" for name, value in args.items())
        self.writer.add_text("arguments", f"| argument | value |\n|---|---|\n{table}\n\n`{config['command']}`",
                             0, walltime=self.created)
        score = config["data"].get("score", "accuracy")       # runs made before there were other scores do not say
        for summary in hparams(args, {f"test/{score}": 0, "test/loss": 0}):
            self.writer.file_writer.add_summary(summary, walltime=self.created)
        for row in rows:
            self.add(row)

    def add(self, row: dict) -> None:
        time = self.created + row["seconds"]
        for name, value in row.items():
            if name not in ("epoch", "steps"):
                tag = name if "/" in name else f"cost/{name}"
                self.writer.add_scalar(tag, value, row["steps"], walltime=time)
        self.writer.flush()

    def picture(self, path: Path, row: dict) -> None:
        """Shows the picture of a run's predictions beside its last row."""
        from PIL import Image  # not every task has any

        self.writer.add_image("predictions", np.asarray(Image.open(path)), row["steps"], self.created + row["seconds"], "HWC")

    def close(self) -> None:
        self.writer.close()


def rebuild_tensorboard(folder: Path) -> None:
    """Makes `tb/` of a run from its config.json and metrics.jsonl."""
    rows = read_rows(folder)
    board = TensorBoard(folder, read_json(folder / "config.json"), rows)
    if (folder / "pictures.png").exists() and rows:
        board.picture(folder / "pictures.png", rows[-1])
    board.close()


class Bar:
    """Progress of a run on the terminal: examples, images/s, time left, last loss and score; nothing elsewhere."""

    def __init__(self, name: str, batch: int, hidden: bool = False):
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        self.batch = batch
        self.bar = tqdm(desc=name, unit=" images", unit_scale=True, dynamic_ncols=True, leave=False, file=sys.stderr,
                        disable=hidden or None)               # None: where standard error is no terminal

    def start(self, examples: int, progress: float) -> None:
        self.bar.total = round(examples / progress) if progress else None
        self.bar.initial = self.bar.n = examples

    def advance(self, progress: float) -> None:
        """One step more; `progress` (0..1) is the run's before it."""
        if not self.bar.disable:
            if progress > 0:
                self.bar.total = round(self.bar.n / progress)
            self.bar.update(self.batch)

    def show(self, row: dict) -> None:
        score = next((name for name in row if name.startswith("test/")), "test/accuracy")     # a task's evaluate gives it first
        shown = {"loss": row.get("train/loss", math.nan), score.replace("/", " "): row.get(score, math.nan)}
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items() if math.isfinite(v)})

    def close(self) -> None:
        self.bar.close()
