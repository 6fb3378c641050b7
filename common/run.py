"""A run: its folder, its clock, its checkpoints, and what it leaves for later runs."""
import math
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from common import folder, ranks, resume
from common.amp import amp_dtype
from common.clock import Clock
from common.data import Data
from common.examples import merge, write_epoch
from common.files import Refused, unwritable, write_json
from common.log import Bar, write_rows
from common.machine import device_name, keep_memory, versions, warm_up
from common.naming import folder_name
from common.past import PastRun, finished
from common.pictures import write_picture
from common.runfiles import names
from common.tasks import TASKS

AGREE = 20                                                    # steps after which ranks ask each other for signals
CHECKPOINTS = (0.1, 0.25, 0.5, 0.75)                          # weights kept at the first epoch's end at or after these


def identity(data: Data) -> dict:
    """What tells data sets apart, for config.json."""
    return {"fingerprint": data.fingerprint, "test_fingerprint": data.test_fingerprint, "classes": data.classes}


class Run:
    """Starts the clock, takes the run's folder, and refuses one that holds another run or is in use.

    Raises
        Refused: the folder cannot be made, holds a run with other arguments, or another process works in it.
        SystemExit: with code 0, after a message, where this very run is finished already.
    """

    def __init__(self, args):
        self.args, self.device = args, ranks.begin(args.device)
        keep_memory()
        self.amp = amp_dtype(args.no_amp, self.device)
        warm_up(self.device, self.amp)
        self.clock = Clock(self.device)
        self.writes = ranks.rank() == 0
        self.untimed, self.prepare, self.charge = self.clock.untimed, self.clock.prepare, self.clock.charge
        self.past_names = names(args.past_folders, args.past)
        self.name = folder_name(args, self.past_names)
        self.folder = Path(args.results) / self.name
        self.steps = self.examples = self.epoch = 0
        self.data: Data | None = None
        self.past_runs: list[PastRun] = []
        self.rest: dict | None = None                         # the order of the epoch under way
        self.leftover = {"index": torch.empty(0, dtype=torch.int64), "view": torch.empty(0, dtype=torch.int64),
                         "weight": torch.empty(0)}            # examples that go first in the next epoch
        self.state: dict = {}                                 # what the script asked to checkpoint
        self.rows: list[dict] = []
        self.asked_to_stop = 0                                # number of the signal that did
        # of GPUs the name: no clock adds up the seconds of two kinds
        card = device_name(self.device) if self.device.type == "cuda" else self.device.type
        self.where = {"device": card, "threads": torch.get_num_threads(), "compile": args.compile,
                      "graph": args.graph, "amp": str(self.amp), "ranks": ranks.world()} | versions()
        if args.batch_size % ranks.world():
            raise Refused(f"--batch-size {args.batch_size} cannot be shared equally by {ranks.world()} ranks: choose a multiple.")
        if args.graph and (ranks.world() > 1 or self.amp == torch.float16):
            raise Refused("--graph captures the steps of one process in bf16 or float32; here are "
                          f"{ranks.world()} rank(s) and {self.amp}: leave it out.")
        self.config = self._open()
        self.bar = Bar(self.name, args.batch_size, hidden=not self.writes)
        self.handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        if args.inherited:
            ranks.say("from --past: " + ", ".join(f"--{k.replace('_', '-')} {v}" for k, v in args.inherited.items()))
        if f"seed{args.seed}" in {name.rpartition("/")[2] for name in self.past_names}:
            ranks.say(f"warning: a past run has this run's own seed {args.seed}, so the same initial weights and data order; "
                      "give past runs seeds of their own (100, 101, ...).", file=sys.stderr)

    def _open(self) -> dict:
        """Takes the folder; what config.json shall say, or says already."""
        config = folder.describe(self.args, self.name, self.past_names, self.device)
        if self.writes:
            self.lock = folder.take(self.folder)
        ranks.wait()
        config, summary = folder.opened(self.folder, config)
        if summary:
            self._refuse_changed(config["data"])
            if self.writes:
                (self.folder / "last.pt").unlink(missing_ok=True)     # of a run killed between its summary and this line
                print(f"{self.folder} is finished already ("
                      f"{', '.join(f'test {k} {v:.4g}' for k, v in summary['test'].items())}): nothing is done. To run it "
                      "again, delete it or give a --tag.")
            raise SystemExit(0)
        return config

    def _refuse_changed(self, then: dict) -> None:
        """Of a finished run: whoever trains on files that come and go must not take it for one of today's."""
        task = TASKS[self.args.task]
        if task.anybodys:
            data = task.load(self.args, self.device)
            if any(then.get(name, value) != value for name, value in identity(data).items()):       # or not known then
                raise Refused(f"{self.folder} is finished already, and {self.args.data_dir} has other images since: give this "
                              "run a --tag, such as a date, or delete that folder.")

    def past(self, data: Data) -> list[PastRun]:
        """The runs named by --past, this seed's own first: seed k begins with past run 100 + k, or wraps around.

        Under --pick best the one with the best score on its holdout, of those that have finished.
        """
        best = self.args.pick == "best"
        runs = [PastRun(past, self.args, data) for past in (
            finished(self.args.past_folders) if best else self.args.past_folders)]
        own = [i for i, past in enumerate(runs) if past.seed == 100 + self.args.seed]
        first = own[0] if own else self.args.seed % len(runs)
        if best:
            first = max(range(len(runs)), key=lambda i: runs[i].held_out())
        self.past_runs = runs[first:] + runs[:first]
        mine = self.past_runs[0]
        ranks.say(f"past run of seed {self.args.seed}: {mine.name}" + f", of {len(runs)}" * (len(runs) > 1))
        tuned = [f"--{name.replace('_', '-')}" for name in ("lr", "weight_decay") if name in self.args.inherited]
        if tuned and mine.task == self.args.task and mine.architecture != self.args.model:
            ranks.say(f"note: {' and '.join(tuned)} from --past go with {mine.architecture}; {self.args.model} may need others.")
        return self.past_runs

    def epochs(self, count: float, data: Data, **state) -> Iterator[int]:
        """Epoch 0 (before training: it has no batches), 1, ..., up to `count`; goes on where a killed run stopped.

        Checkpoints after every turn. State: whatever changes while training and has state_dict() or is a tensor;
        `step` must be among it.
        """
        self.data, self.state = data, state
        self.where["data"] = data.fingerprint
        self.config["data"] = {"task": self.args.task, **identity(data), "score": TASKS[self.args.task].score,
                               "labels": data.labels,
                               "train_examples": len(data.train), "test_examples": len(data.test)}
        for epoch in range(resume.restore(self), math.ceil(count) + 1):
            self.epoch = epoch
            yield epoch
            with self.untimed("checkpoint"):
                before, after = (e / self.args.epochs for e in (epoch - 1, epoch))
                if self.writes and after < 1 and any(before < share <= after for share in CHECKPOINTS):
                    folder.write_weights(self.folder / f"checkpoints/e{epoch}.pt", state["step"].model, self.args.slim)
                resume.save(self, epoch + 1)
                ranks.wait()                                  # for rank 0's files, off the clock

    def _on_signal(self, number, frame) -> None:
        self.asked_to_stop = number
        if number == signal.SIGINT:                           # a second Ctrl-C does not wait
            signal.signal(number, self.handlers[number] or signal.SIG_DFL)

    def stop_if_asked(self) -> None:
        """Called between steps: after SIGTERM or Ctrl-C, checkpoints within the epoch and ends with exit code 143 or 130."""
        number = self.asked_to_stop
        if ranks.world() > 1:                                 # all stop at the same step
            number = int(ranks.largest(number)) if self.steps % AGREE == 0 else 0
        if number:
            with self.untimed("checkpoint"):
                resume.save(self, self.epoch)
                ranks.wait()                                  # torchrun kills what is left when one has ended
            self._close()
            if self.writes:
                print(f"stopped by {signal.Signals(number).name} after {self.steps} steps; the same command goes on from there.",
                      file=sys.stderr)
            raise SystemExit(128 + number)

    def _close(self) -> None:
        self.bar.close()
        self.state["step"].forget()                           # a captured graph's memory must not wait for garbage collection
        if self.writes:
            self.board.close()
            self.lock.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def count(self, flops: int, examples: int) -> None:
        """One step's FLOPs and examples."""
        self.clock.flops["training"] += flops * ranks.world()
        self.steps += 1
        self.examples += examples * ranks.world()

    def record_examples(self, tables: dict[str, Tensor]) -> None:
        """Statistics of this epoch: name -> [N], NaN where unseen."""
        if tables and self.writes:                            # none before training
            write_epoch(self.folder, self.epoch, tables)

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """One row: metrics.jsonl, TensorBoard, progress bar.

        Raises
            Refused: a metric is infinite or NaN.
        """
        with self.untimed("eval"):
            row = {"epoch": min(epoch, self.args.epochs), "steps": self.steps, "examples": self.examples,
                   "seconds": round(ranks.largest(self.clock.counted()), 4), "flops": sum(self.clock.flops.values())}
            row |= {name: float(value) for name, value in metrics.items()}
            for name, value in row.items():
                if not math.isfinite(value):
                    raise Refused(f"{name} became {value} in epoch {epoch} of {self.folder}: lower --lr (it is "
                                  f"{self.args.lr:g}) or run with --no-amp.")
            row |= {f"time/{kind}": round(value, 4) for kind, value in self.clock.untimed_seconds.items()}
            self.rows.append(row)
            if not self.writes:
                return
            write_rows(self.folder, self.rows)
            try:
                self.board.add(row)
            except OSError as error:
                raise unwritable(self.folder / "tb", error) from None
            self.bar.show(row)

    def finish(self, model: nn.Module) -> None:
        """Leaves final.pt, examples.npz and, last of all, summary.json; prints one line.

        Raises
            Refused: the run has not made a single step.
        """
        if not self.steps:
            raise Refused(f"{self.folder} has not made a step: what its epochs kept does not fill one batch of --batch-size "
                          f"{self.args.batch_size}. Keep more, or lower it.")
        with self.untimed("eval"):
            last = folder.last_look(model, TASKS[self.args.task], self.data) if self.writes else {}
        with self.untimed("checkpoint"):
            counted = ranks.largest(self.clock.counted())
            preparation = ranks.largest(sum(self.clock.preparation_seconds.values()))
            if not self.writes:
                self._close()
                return ranks.end()
            folder.write_weights(self.folder / "final.pt", model, self.args.slim)
            merge(self.folder, self.data.examples, self.args.slim)
            if picture := TASKS[self.args.task].picture:
                write_picture(self.folder / "pictures.png", picture(model, self.data.test))
                self.board.picture(self.folder / "pictures.png", self.rows[-1])
            summary = folder.summary(self, model, counted, preparation) | last
            write_json(self.folder / "summary.json", summary)
        self._close()
        ranks.end()
        (self.folder / "last.pt").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "examples", ignore_errors=True)
        scores = ", ".join(f"test {name} {value:.4f}" for name, value in summary["test"].items() if "/" not in name)
        print(f"{self.folder}: {scores}, {counted:.1f} counted seconds, {self.steps} steps, "
              f"{sum(self.clock.flops.values()):.3g} FLOPs")
