"""A queue that makes the runs of a plan: `./run_all.sh [STUDY] [--list] [--jobs N] [--compile] [--graph] [--fastest]`.

On machines without a GPU, runs are forked from this process, which has torch loaded, so that a hundred little runs do
not import it a hundred times; each does what its printed command does with OMP_NUM_THREADS set. Finished runs are
skipped, killed ones go on, failed ones are named and the rest continues, unless what failed is a past run.
"""
import argparse
import importlib
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import warnings
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import torch

import common.step  # noqa: F401                              # with all that the scripts import, before they are forked
from common.files import Refused, lock, read_json, write_json
from common.machine import cores
from common.planning import plan
from common.planparts import ROOT
from common.plans import studies
from common.runfiles import find_runs
from common.speed.fastest import fastest
from common.speed.loops import FLAGS
from common.tasks import TASKS


def threads_each(jobs: int) -> int:
    """Of a run among `jobs`: what OMP_NUM_THREADS says, which may be a list, else an equal part of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdigit() and int(asked) else max(1, cores() // jobs)


class Queue:
    """Makes runs, `jobs` at a time, and says how each ended."""

    def __init__(self, root: Path, jobs: int, total: int, flags: list[str]):
        self.root, self.jobs, self.total, self.flags = root, jobs, total, flags
        self.threads = threads_each(jobs)
        self.running: dict[int, tuple[dict, float]] = {}      # process -> run, start
        self.children: dict[int, tuple[subprocess.Popen, str]] = {}     # kept, else Popen itself waits for one that was dropped
        self.done = 0
        self.failed: list[str] = []
        self.stopping = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number, frame) -> None:
        self.stopping = number
        for process in self.running:
            self._tell(process)

    @staticmethod
    def _tell(process: int) -> None:
        with suppress(ProcessLookupError):                    # it has ended just now
            os.kill(process, signal.SIGTERM)

    def make(self, runs: list[dict]) -> None:
        """Returns when all have ended."""
        for run in {run["folder"]: run for run in runs}.values():           # one may stand in two rows of the report
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
            threads, flags = self.threads, self.flags
            if (folder / "last.pt").exists():                 # a killed run goes on with what it was begun with
                begun = read_json(folder / "config.json")
                threads = begun["device"]["threads"]
                flags = [flag for flag in FLAGS["compiled_graph"] if begun["args"].get(flag.removeprefix("--"))]
            words = [*shlex.split(run["command"])[1:], *flags]
            start = self._fork if torch.version.cuda is None or not torch.cuda.device_count() else self._spawn
            process = start(words, folder, threads)
            self.running[process] = run, time.monotonic()
            if self.stopping:                                 # a signal came before it was among those that are told
                self._tell(process)
        while self.running:
            self._wait()

    def _spawn(self, words: list[str], folder: Path, threads: int) -> int:
        """A process of its own, since CUDA does not survive a fork; its output in console.txt."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
        gpus = [gpu for gpu in visible.split(",") if gpu]
        taken = [gpu for _, gpu in self.children.values()]
        gpu = min(gpus, key=taken.count)                      # where the fewest jobs are
        with open(folder / "console.txt", "w") as console:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": gpu}
            child = subprocess.Popen([sys.executable, *words], stdout=console, stderr=console, env=environment)
        self.children[child.pid] = child, gpu
        return child.pid

    def _fork(self, words: list[str], folder: Path, threads: int) -> int:
        """A child that has everything loaded; its output in console.txt."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)     # of NumPy, asleep
            process = os.fork()
        if process:
            return process
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            console = open(folder / "console.txt", "w", buffering=1)
            for stream in (1, 2):                             # what C code prints, too
                os.dup2(console.fileno(), stream)
            sys.stdout = sys.stderr = console
            torch.set_num_threads(threads)
            sys.argv = words
            module = importlib.import_module(sys.argv[0].removesuffix(".py").replace("/", "."))
            module.main(module.parser().parse_args())
            code = 0
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception:                                     # os._exit would swallow it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _wait(self) -> None:
        process, status = os.wait()
        run, begin = self.running.pop(process)
        self.children.pop(process, None)
        folder, code = self.root / run["folder"], os.waitstatus_to_exitcode(status)
        console = folder / "console.txt"
        lines = (console.read_text(errors="replace").strip().splitlines() if console.exists() else []) or ["no output"]
        if (folder / "summary.json").exists() and (code == 0 or self.stopping):     # a signal may come after the last word
            (folder / "failed.json").unlink(missing_ok=True)
            self._say(run, f"{lines[-1].partition(': ')[2]} ({time.monotonic() - begin:.0f} s)")
        elif self.stopping:
            self._say(run, "stopped; the same command goes on from there")
        else:
            try:
                write_json(folder / "failed.json", {"exit_code": code, "message": lines[-1], "name": run["folder"]})
            except Refused as full:
                print(full, file=sys.stderr)
            self.failed.append(run["command"])
            self._say(run, f"FAILED with exit code {code}: {lines[-1]} (all of it in {folder}/console.txt)")

    def _say(self, run: dict, what: str) -> None:
        self.done += 1
        print(f"[{self.done}/{self.total}] {run['folder']}: {what}", flush=True)


def main(argv: list[str] | None = None) -> None:
    plans = studies()
    known = textwrap.fill(f"Studies, which README.md describes: {', '.join(plans)}", 79, break_on_hyphens=False)
    parser = argparse.ArgumentParser(prog="run_all.sh", description="Makes the runs of a study and its report.", epilog=known,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="demo", choices=plans, metavar="STUDY", help="plan to run (default: demo)")
    parser.add_argument("--list", action="store_true", help="print the commands, one a line, past runs first, a blank line "
                        "between stages that wait for each other, and stop; with --compile and --graph as you give them")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time, the processor's threads divided among them, "
                        "or OMP_NUM_THREADS each (default: one per core, 4 for each GPU)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the runs that begin now: a fifth faster on two "
                        "Xeon cores, needs a C++ compiler, not bit for bit the same (default: not)")
    parser.add_argument("--graph", action="store_true", help="capture the steps of the runs that begin now as CUDA graphs")
    parser.add_argument("--fastest", action="store_true", help="whichever of these, both or neither, ends this study's first run "
                        "the soonest, compiling or capturing included: measured once per machine, kept in results/cache")
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        raise Refused(f"--jobs must be at least 1, got {args.jobs}.")
    if args.fastest and (args.compile or args.graph):
        raise Refused("--fastest chooses between --compile, --graph, both and neither: leave those out.")
    if args.graph and not torch.cuda.device_count():
        raise Refused("--graph is for GPUs, and there is none here: leave it out.")
    os.chdir(ROOT)                                            # commands and folders in a plan are relative to it
    chosen = plan(args.study, plans[args.study])
    everything = chosen["past"] + chosen["runs"]
    flags = [*(["--compile"] if args.compile else []), *(["--graph"] if args.graph else [])]
    if args.list:
        if args.fastest:
            raise Refused("--list prints commands and measures nothing: give it --compile, --graph, both or neither.")
        for number, stage in groupby(everything, key=lambda run: run.get("stage", 1)):      # past runs have none, and come first
            print(*([""] if number > 1 else []), *dict.fromkeys(" ".join([run["command"], *flags]) for run in stage), sep="\n")
        return
    root = Path("results") / args.study
    held = lock(root / ".lock", wait=False)
    if held is None:
        raise Refused(f"{root} is being made by another process: wait for it or stop it.")
    with held:
        write_json(root / "plan.json", chosen)
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")         # runs are enough processes
        jobs = args.jobs or 4 * torch.cuda.device_count() or cores()
        pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
        if jobs > torch.cuda.device_count() > 0 and not pipe.exists():
            print("jobs on one GPU take turns and gain nothing, unless MPS runs: nvidia-cuda-mps-control -d")
        if torch.cuda.device_count() and not flags and not args.fastest:
            print("kernels are launched from Python, and a GPU waits for those of a small model: --graph captures steps "
                  "(ResNet-56 on an H200: four times as fast), --fastest measures")
        if args.fastest:
            loop = fastest(everything[0]["command"], threads_each(jobs))
            print(f"the fastest loop here: {loop}")
            flags = FLAGS[loop]
        make(root, chosen, jobs, flags)


def make(root: Path, chosen: dict, jobs: int, flags: list[str] = FLAGS["eager"]) -> None:
    """Past runs, then the others, then the report.

    Raises
        SystemExit: code 1 where runs failed, 128 + the signal's number where it was stopped.
    """
    importlib.import_module("torch.utils.tensorboard")        # once, for all runs
    if any(not (root / run["folder"] / "summary.json").exists() for run in chosen["past"] + chosen["runs"]):
        TASKS[chosen["task"]].read("data", TASKS[chosen["task"]].defaults["image_size"])      # likewise
    queue = Queue(root, jobs, len({run["folder"] for run in chosen["past"] + chosen["runs"]}), flags)
    queue.make(chosen["past"])
    if lost := [run["folder"] for run in chosen["past"] if not (root / run["folder"] / "summary.json").exists()]:
        if not queue.stopping:
            raise Refused(f"{len(lost)} of {len(chosen['past'])} past runs failed ({', '.join(lost)}), and to reuse the others "
                          "alone is not the plan: mend what their console.txt says, and give the same command again.")
    elif chosen["past"]:
        tops = sorted({str(root / Path(run["folder"]).parents[3]) for run in chosen["past"]})       # .../past, .../folds
        found = {os.path.relpath(path, root) for path in find_runs([top for top in tops if any(Path(top).rglob("config.json"))])}
        if stray := found - {run["folder"] for run in chosen["past"]}:
            raise Refused(f"{root} holds past runs that are not in the plan ({', '.join(sorted(stray))}): move them away, "
                          "every method would reuse them.")
    for stage in sorted({run["stage"] for run in chosen["runs"]}):
        if not queue.stopping:
            queue.make([run for run in chosen["runs"] if run["stage"] == stage])
    if queue.stopping:
        raise SystemExit(128 + queue.stopping)
    from common.report import write_report  # matplotlib is not needed before
    print(f"wrote {write_report(root)}")
    if queue.failed:
        print(f"{len(queue.failed)} of {queue.total} runs failed:", *queue.failed, sep="\n    ", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
