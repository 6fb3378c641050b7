"""Fixed plans of runs, and a queue that makes them: `./run_all.sh [STUDY] [--list] [--jobs N]`.

Runs are forked from this process, which has torch loaded, so that a hundred little runs do not import it a hundred
times; each does exactly what its printed command does. Finished runs are skipped, killed ones go on, failed ones are
named and the rest continues.
"""
import argparse
import importlib
import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import common.step  # noqa: F401                              # with all that the scripts import, before they are forked
from common.args import folder_name
from common.files import Refused, write_json

ROOT = Path(__file__).resolve().parents[1]
PAST_SEEDS = range(100, 105)


@dataclass(frozen=True)
class Runs:
    """One script at several budgets and seeds."""

    script: str                                               # "methods/kd"
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    options: tuple[str, ...] = ()
    tag: str = ""


@dataclass(frozen=True)
class Study:
    """A fixed plan; a budget is a share of the past runs' epochs."""

    task: str
    model: str
    past_epochs: float
    runs: tuple[Runs, ...]
    settings: dict[float, tuple[float, float]] = field(default_factory=dict)    # budget -> learning rate, weight decay
    scenario: str = "same"
    recommend: bool = True
    tuning: bool = False                                      # no past runs; the report is a table of settings


def every_script() -> list[str]:
    """"baselines/ema", ..., scratch first."""
    found = [f"{folder}/{path.stem}" for folder in ("baselines", "methods") for path in sorted((ROOT / folder).glob("*.py"))]
    return sorted(found, key=lambda script: script != "baselines/scratch")


def settings(lr: float, decay: float) -> tuple[str, ...]:
    return "--lr", f"{lr:g}", "--weight-decay", f"{decay:.5f}".rstrip("0")


def tuning(budget: float, rates: tuple[float, ...], decays: tuple[float, ...]) -> tuple[Runs, ...]:
    return tuple(Runs("baselines/scratch", (budget,), (0,), ("--holdout", "0.1", *settings(lr, decay)))
                 for lr in rates for decay in decays)


THREE = (0, 1, 2)
MINI = {0.25: (0.8, 2e-4), 0.5: (0.8, 5e-4), 1: (0.8, 2e-4), 2: (0.8, 2e-4)}    # chosen by cifar100-mini-tuning
SAMPLE = {"options": ("--sample",), "tag": "sample"}


def studies() -> dict[str, Study]:
    """The plans of results/, by name."""
    def full(script):
        budgets = (0.125, 0.25, 0.5, 1, 2) if script == "baselines/scratch" else (0.125, 0.25, 0.5, 1)
        return Runs(script, budgets, tuple(range(5)))

    quarter = (0.25, 0.5, 1)
    return {
        "demo": Study("shapes", "resnet8", 3, recommend=False, runs=tuple(
            Runs(script, (0.5, 1), THREE if script == "baselines/scratch" else (0, 1)) for script in every_script())),
        "cifar100-mini-tuning": Study("cifar100", "resnet8", 8, tuning=True, runs=(
            *tuning(0.25, (0.1, 0.2, 0.4, 0.8), (2e-4, 1e-3)), *tuning(0.25, (1.6,), (2e-4,)), *tuning(0.25, (0.8,), (5e-5,)),
            *(runs for budget in (0.5, 1) for runs in (
                *tuning(budget, (0.4, 0.8, 1.6), (2e-4,)), *tuning(budget, (0.8,), (5e-5, 5e-4)))),
            *tuning(2, (0.4, 0.8), (2e-4,)), *tuning(2, (0.8,), (5e-4,)))),
        "cifar100-mini": Study("cifar100", "resnet8", 8, settings=MINI, runs=(
            Runs("baselines/scratch", (0.25, 0.5, 1, 2), THREE),
            Runs("methods/kd", quarter, THREE),
            Runs("methods/ensemble_distill", quarter, THREE, **SAMPLE),
            Runs("baselines/warm_start", quarter, THREE),
            Runs("methods/loss_replay", quarter, THREE),
            Runs("baselines/label_smoothing", quarter, THREE),
            Runs("baselines/ema", quarter, THREE),
            Runs("methods/ensemble_distill", (0.5, 1), THREE))),
        "cifar100-short": Study("cifar100", "resnet56", 40, runs=(
            Runs("baselines/scratch", (0.25, 0.5, 1, 2), THREE),
            Runs("methods/kd", (0.25, 0.5), THREE),
            Runs("methods/ensemble_distill", (0.25, 0.5), THREE, **SAMPLE),
            Runs("methods/loss_replay", (0.25, 0.5), THREE))),
        "cifar100": Study("cifar100", "resnet56", 200, runs=tuple(map(full, every_script()))),
    }


def plan(name: str, study: Study) -> dict:
    """plan.json: every run with its command and its folder, past runs first."""
    results = f"results/{name}"

    def command(script, epochs, seed, where, budget, options=(), past=(), tag=""):
        line = [f"{script}.py", "--task", study.task, "--model", study.model, "--epochs", f"{epochs:g}", "--seed", str(seed)]
        line += settings(*study.settings[budget]) if budget in study.settings else []
        line += list(options) + (["--tag", tag] if tag else []) + ["--results", where]
        parser = importlib.import_module(script.replace("/", ".")).parser()
        args = parser.parse_only([*line[1:], *(["--past", f"{results}/past"] if parser.get_default("needs_past") else [])])
        line += ["--past", f"{results}/past"] if args.needs_past else []
        return {"seed": seed, "folder": folder_name(args, list(past) if args.needs_past else []),
                "command": shlex.join(["python", *line])}

    past = [] if study.tuning else [
        command("baselines/scratch", study.past_epochs, seed, f"{results}/past", 1, ("--slim",)) for seed in PAST_SEEDS]
    names = [run["folder"] for run in past]
    runs = [{"method": r.script.split("/")[1], "tag": r.tag, "budget": budget} |
            command(r.script, budget * study.past_epochs, seed, results, budget, r.options, names, r.tag)
            for r in study.runs for budget in r.budgets for seed in r.seeds]
    return {"study": name, "task": study.task, "model": study.model, "scenario": study.scenario, "past_epochs": study.past_epochs,
            "recommend": study.recommend, "tuning": study.tuning,
            "past": [run | {"folder": "past/" + run["folder"]} for run in past], "runs": runs}


class Queue:
    """Makes runs, `jobs` at a time, and says how each ended."""

    def __init__(self, root: Path, jobs: int, total: int):
        self.root, self.jobs, self.total = root, jobs, total
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.running: dict[int, tuple[dict, float]] = {}      # process -> run, start
        self.done = 0
        self.failed: list[str] = []
        self.stopping = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number, frame) -> None:
        self.stopping = number
        for process in self.running:
            os.kill(process, signal.SIGTERM)

    def make(self, runs: list[dict]) -> None:
        """Returns when all have ended."""
        for run in runs:
            folder = self.root / run["folder"]
            if (folder / "summary.json").exists():
                self._say(run, "finished before")
                continue
            while len(self.running) >= self.jobs:
                self._wait()
            if self.stopping:
                break
            folder.mkdir(parents=True, exist_ok=True)
            sys.stdout.flush()
            process = os.fork()
            if process == 0:
                self._child(run, folder)
            self.running[process] = run, time.monotonic()
        while self.running:
            self._wait()

    def _child(self, run: dict, folder: Path) -> None:
        """Never returns: becomes the run, its output in console.txt."""
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            console = open(folder / "console.txt", "w", buffering=1)
            for stream in (1, 2):                             # what C code prints, too
                os.dup2(console.fileno(), stream)
            sys.stdout = sys.stderr = console
            torch.set_num_threads(self.threads)
            sys.argv = shlex.split(run["command"])[1:]
            module = importlib.import_module(sys.argv[0].removesuffix(".py").replace("/", "."))
            module.main(module.parser().parse_args())
            code = 0
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:                                 # shown as Python would, then the exit code says it
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _wait(self) -> None:
        process, status = os.wait()
        run, begin = self.running.pop(process)
        folder, code = self.root / run["folder"], os.waitstatus_to_exitcode(status)
        lines = (folder / "console.txt").read_text(errors="replace").strip().splitlines() or [""]
        if code == 0:
            (folder / "failed.json").unlink(missing_ok=True)
            self._say(run, f"{lines[-1].partition(': ')[2]} ({time.monotonic() - begin:.0f} s)")
        elif self.stopping:
            self._say(run, "stopped; the same command goes on from there")
        else:
            write_json(folder / "failed.json", {"exit_code": code, "message": lines[-1]})
            self.failed.append(run["command"])
            self._say(run, f"FAILED with exit code {code}: {lines[-1]} (all of it in {folder}/console.txt)")

    def _say(self, run: dict, what: str) -> None:
        self.done += 1
        print(f"[{self.done}/{self.total}] {run['folder']}: {what}", flush=True)


def main(argv: list[str] | None = None) -> None:
    plans = studies()
    parser = argparse.ArgumentParser(prog="run_all.sh", description="Makes the runs of a study and its report.")
    parser.add_argument("study", nargs="?", default="demo", choices=plans, help="plan to run (default: demo)")
    parser.add_argument("--list", action="store_true", help="print the commands, one a line, past runs first, and stop")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time, the processor's threads divided among them "
                        "(default: one per core, 4 where there is a GPU)")
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        raise Refused(f"--jobs must be at least 1, got {args.jobs}.")
    os.chdir(ROOT)                                            # commands and folders in a plan are relative to it
    chosen = plan(args.study, plans[args.study])
    everything = chosen["past"] + chosen["runs"]
    if args.list:
        print(*(run["command"] for run in everything), sep="\n")
        return
    root = Path("results") / args.study
    write_json(root / "plan.json", chosen)
    jobs = args.jobs or (4 if torch.cuda.device_count() else os.cpu_count() or 1)
    importlib.import_module("torch.utils.tensorboard")        # once, for all runs
    queue = Queue(root, jobs, len(everything))
    for runs in (chosen["past"], chosen["runs"]):
        queue.make(runs)
        if queue.stopping:
            raise SystemExit(128 + queue.stopping)
    from common.report import write_report  # matplotlib is not needed before
    print(f"wrote {write_report(root)}")
    if queue.failed:
        print(f"{len(queue.failed)} of {len(everything)} runs failed:", *queue.failed, sep="\n    ", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
