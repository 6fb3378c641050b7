"""How fast the training loop is against textbook ones, and what a step of every script costs: `python -m common.speed`.

All loops train the same model on the same images, take turns within one process, and are compared by medians. `convolutions`
is no training: the convolutions of a step alone, forward and backward, as the bound that nothing else in a step can beat.
"""
import argparse
import ctypes
import importlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from common import models
from common.amp import amp_dtype, arithmetic
from common.files import write_json
from common.log import read_rows
from common.machine import code_version, cores, device_name, versions
from common.planparts import ROOT, every_script, needs
from common.report.markdown import table
from common.speed.loops import FLAGS, PHASES, STEPS, take_turns
from common.speed.rivals import build_loops
from common.speed.together import measure_together, work
from common.tasks import TASKS

SECONDS = 4.0                                                 # of several processes at once
THREADS = 2                                                   # of each process that measures memory
LOOPS = ("textbook", "textbook_amp", "eager", "compiled", "graph", "compiled_graph")


def measure_loops(loops: dict, rounds: int, steps: int, bar: tqdm) -> dict[str, dict]:
    """Medians of a step of each loop, over textbook's and over what the convolutions alone take."""
    seconds, parts = take_turns(loops, rounds, steps, bar)
    batch, flops = loops["eager"].run.args.batch_size, loops["eager"].flops()
    found = {}
    for name in loops:
        median = statistics.median(seconds[name])
        found[name] = {"seconds": median, "images_per_second": batch / median, "flops_per_second": flops / median,
                       "milliseconds": {phase: 1e3 * statistics.median(v) for phase, v in parts[name].items() if v}}
    for row in found.values():
        row["over_textbook"] = found["textbook"]["seconds"] / row["seconds"]
        row["share_of_convolutions"] = found["convolutions"]["seconds"] / row["seconds"]
    return found


def peak_memory(options: list[str], name: str) -> int:
    """Bytes that steps of a loop add at most to a process of its own: taken on a GPU, else resident; 0 where nobody says."""
    command = [sys.executable, "-m", "common.speed", *options, "--memory-of", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True,
                          env=os.environ | {"OMP_NUM_THREADS": str(THREADS)})
    return int(done.stdout.splitlines()[-1])


def print_memory(options: list[str], name: str) -> None:
    def resident(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    with tempfile.TemporaryDirectory() as folder:
        loop = build_loops(options, folder, list(dict.fromkeys(["eager", name])))[name]
        on_linux = Path("/proc/self/clear_refs").exists()
        if on_linux:
            ctypes.CDLL(None).malloc_trim(0)                  # what loading the data has left free
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")     # the peak counts from here
        on_gpu = torch.device(options[-1]).type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_reserved()             # not allocated: a captured graph allocates at its capture alone
        for _ in range(3):
            loop.step()
        print(torch.cuda.max_memory_reserved() - before if on_gpu else resident("VmHWM") - before if on_linux else 0)


def measure_steps(options: list[str], folder: str, scripts: list[str], turns: int, bar: tqdm) -> dict[str, dict]:
    """Counted seconds and FLOPs of a step of each script, from short runs that take turns with scratch's; preparation apart."""
    def run(script, name, *more):
        module = importlib.import_module(script.replace("/", "."))
        # so low a rate, since few epochs at the usual one leave past runs that some methods diverge with
        args = module.parser().parse_args([*options, "--holdout", "0.1", "--lr", "0.001", "--results", f"{folder}/{name}", *more])
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):     # evaluated on the few held out: seconds saved
            module.main(args)
        bar.update()
        rows = read_rows(next(Path(folder, name).rglob("metrics.jsonl")).parent)
        pairs = list(zip(rows[1:], rows[2:], strict=False))   # the first epoch warms up
        each = [{key: (b[key] - a[key]) / (b["steps"] - a["steps"]) for key in ("seconds", "flops")} for a, b in pairs]
        return {"seconds": statistics.median(e["seconds"] for e in each), "flops": statistics.mean(e["flops"] for e in each),
                "preparation_flops": rows[0]["flops"]}

    for fold in (1, 2):
        run("baselines/scratch", f"past{fold}", "--seed", str(99 + fold), "--epochs", "2")
        run("baselines/scratch", f"folds{fold}", "--seed", str(99 + fold), "--epochs", "2", "--subset", f"not:{fold}/2")
    reuse = {kind: ["--past", f"{folder}/{kind}1", f"{folder}/{kind}2"] for kind in ("past", "folds")} | {"": []}
    found, length = {}, ["--epochs", "4"]
    before = run("baselines/scratch", "scratch", *length)
    for number, script in enumerate(scripts):
        more = reuse[needs(script)]
        ratios = []
        for turn in range(turns):
            mine = run(script, f"steps{number}-{turn}", *length, *more)
            after = run("baselines/scratch", f"scratch{number}-{turn}", *length)
            ratios.append(2 * mine["seconds"] / (before["seconds"] + after["seconds"]))     # over those just before and after
            before = after
        found[script.split("/")[1]] = mine | {"over_scratch": statistics.median(ratios), "turns": ratios,
                                              "flops_over_scratch": mine["flops"] / before["flops"]}
    return found


def report(found: dict) -> str:
    """What was measured so far, as Markdown."""
    def line(name, row):
        phases = [f"{row['milliseconds'][phase]:.1f}" if phase in row["milliseconds"] else "" for phase in PHASES]
        peak = f"{row['peak_bytes'] / 2 ** 20:,.0f}" if "peak_bytes" in row else ""
        return [f"`{name}`", f"{row['images_per_second']:,.0f}", f"{row['over_textbook']:.2f}",
                f"{row['flops_per_second'] / 1e9:,.0f}", f"{row['share_of_convolutions']:.0%}", *phases, peak]

    head = ["Loop", "Images/s", "Over textbook", "GFLOP/s", "Of the convolutions' speed"]
    text = table([*head, *(f"{phase.capitalize()}, ms" for phase in PHASES), "Peak memory, MiB"],
                 [line(*item) for item in found["loops"].items()])
    if found["steps"]:
        text += "\n\n" + table(["Script", "Step over scratch, seconds", "Lowest and highest turn", "Step over scratch, FLOPs"], [
            [f"`{name}`", f"{row['over_scratch']:.2f}", f"{min(row['turns']):.2f} to {max(row['turns']):.2f}",
             f"{row['flops_over_scratch']:.2f}"] for name, row in found["steps"].items()])
    for name, rates in found["together"].items():
        alone = next(iter(rates.values()))
        text += f"\n\n`{name}`\n\n" + table(["Processes at once", "Images/s together", "Over the first row"], [
            [str(number), f"{rate:,.0f}", f"{rate / alone:.2f}"] for number, rate in rates.items()])
    where = found["machine"]
    return text + (f"\n\n{found['model']}, batch {found['batch_size']}, {where['device']}, {where['threads']} thread(s), "
                   f"{where['arithmetic']} under autocast, torch {where['torch']}, "
                   f"commit {where['commit'][:10]}{', changed' if where['dirty'] else ''}.\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m common.speed", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="resnet56", type=models.model_name, help="architecture (default: resnet56)")
    add("--batch-size", type=int, default=128, metavar="B", help="examples in a step (default: 128)")
    add("--task", default="shapes", choices=[name for name, task in TASKS.items() if task.predicts == "classes"],
        help="data set (default: shapes)")
    add("--data-dir", default="data", metavar="DIR", help="folder of the data sets (default: data)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", metavar="NAME", help="torch device")
    add("--rounds", type=int, default=9, help="turns of each loop, of which the median counts (default: 9)")
    add("--steps", type=int, metavar="N", help="steps in a turn (default: 3, on a GPU 50)")
    add("--loops", nargs="+", choices=LOOPS, metavar="NAME", help="loops to measure (default: all; captured ones only on a GPU)")
    add("--scripts", nargs="*", metavar="NAME", help="scripts whose step to measure, such as kd (default: all)")
    add("--turns", type=int, default=3, help="turns of each script between scratch's, of which the median counts (default: 3)")
    add("--jobs", nargs="+", type=int, default=[], metavar="N", help="also images/s of so many processes at once, one after the "
        "other, such as 1 2 4 (default: not)")
    add("--json", metavar="FILE", help="also write there what is measured, part by part")
    add("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    add("--beside-others", nargs="+", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    options = ["--model", args.model, "--batch-size", str(args.batch_size), "--task", args.task, "--data-dir", args.data_dir,
               "--device", args.device]
    if args.jobs and min(args.jobs) < 1:
        parser.error("argument --jobs: at least 1 process at a time")
    if args.memory_of:
        return print_memory(options, args.memory_of)
    if args.beside_others:
        return work(options, args.beside_others)
    known = every_script()
    scripts = known if args.scripts is None else [s for s in known if s in args.scripts or s.split("/")[1] in args.scripts]
    asked = args.loops or [name for name in LOOPS if "graph" not in name or torch.device(args.device).type == "cuda"]
    names = [*(name for name in LOOPS if name in {"textbook", "eager", *asked}), "convolutions"]
    runs = [name for name in names if name in FLAGS] if args.jobs else []
    total = (len(names) * (2 + args.rounds) - 1 + len(runs) * len(args.jobs)
             + (5 + 2 * len(scripts) * args.turns if scripts else 0))
    device = torch.device(args.device)
    found = {"model": args.model, "batch_size": args.batch_size, "task": args.task, "loops": {}, "together": {}, "steps": {},
             "machine": {"device": device_name(device), "arithmetic": arithmetic(amp_dtype(False, device)),
                         "threads": torch.get_num_threads()} | versions() | code_version()}
    begin = time.perf_counter()

    def keep():
        found["minutes"] = (time.perf_counter() - begin) / 60
        if args.json:
            write_json(Path(args.json), found)

    with tempfile.TemporaryDirectory() as folder, tqdm(total=total, unit="turn", file=sys.stderr) as bar:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            built = build_loops(options, folder, names)
        found["loops"] = measure_loops(built, args.rounds, args.steps or STEPS[device.type], bar)
        keep()
        if runs:
            found["together"] = measure_together(options, runs, args.jobs, SECONDS, bar)
            keep()
        with ThreadPoolExecutor(max(1, cores() // THREADS)) as several:         # of processes in which nothing is timed
            for name, peak in zip(names[:-1], several.map(partial(peak_memory, options), names[:-1]), strict=True):
                found["loops"][name]["peak_bytes"] = peak
                bar.update()
        keep()
        some = 55.5 if "graph" in names else 5.5              # steps of an epoch, a tenth being held out
        few = some * args.batch_size / built["eager"].data.examples / 0.9
        small = [*options, "--subset", f"share:{min(1, few):.4f}", *(FLAGS["graph"] if "graph" in names else [])]
        if scripts:
            found["steps"] = measure_steps(small, folder, scripts, args.turns, bar)
    keep()
    print(report(found))


if __name__ == "__main__":
    main()
