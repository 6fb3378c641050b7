"""Which of our loops is the fastest for a run on this machine: `python -m common.speed.fastest` with the run's arguments."""
import hashlib
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout

import torch
from tqdm import tqdm

from common.amp import amp_dtype, arithmetic
from common.args import arguments
from common.files import Refused, read_json, write_json
from common.machine import ROOT, device_name
from common.speed.loops import OURS, STEPS, ours, take_turns

CACHE = ROOT / "results/cache"
SIMPLER = ("eager", "graph", "compiled", "compiled_graph")    # which comes first where the difference is a tie
TIE = 0.9                                                     # of its seconds, by which another must be faster


def fastest(command: str, threads: int) -> str:
    """"eager", "graph", "compiled" or "compiled_graph": which ends that run of scratch first.

    In a process of its own, as its parent may fork.

    Args
        command: of the run, as a plan has it.
        threads: that it will have.
    """
    words = [sys.executable, "-m", "common.speed.fastest", *shlex.split(command)[2:]]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Refused("which loop is the fastest could not be measured (see above): choose --compile, --graph, both or neither.")
    return done.stdout.split()[-1]


def choose(seconds: dict[str, float]) -> str:
    """The simplest of those that tie with the fastest; seconds that the whole run takes with each."""
    return next(name for name in SIMPLER if name in seconds and TIE * seconds[name] <= min(seconds.values()))


def measure(argv: list[str], args) -> dict[str, float]:
    """Seconds of the run's steps in each loop that works here, with what compiling or capturing takes, which no clock counts."""
    rounds, names = 9, [name for name in OURS if "graph" not in name or torch.device(args.device).type == "cuda"]
    loops = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(names) * (1 + rounds), unit="turn", file=sys.stderr) as bar:
        for name in names:
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    loop = ours(name, argv, folder)
                    loop.step()                               # compiled, or captured
                loops[name] = loop
            except Exception as error:                        # no compiler, say
                tqdm.write(f"{name} does not work here: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
                           file=sys.stderr)
                bar.update(1 + rounds)
        seconds, _ = take_turns(loops, rounds, STEPS[torch.device(args.device).type], bar)
    steps = args.epochs * len(loops["eager"].data.train) / args.batch_size
    return {name: loop.run.clock.untimed_seconds["compile"] + steps * statistics.median(seconds[name])
            for name, loop in loops.items()}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments("baselines/scratch.py", __doc__).parse_args(argv)
    run = ("task", "model", "epochs", "subset", "batch_size", "image_size", "no_amp")
    device = torch.device(args.device)
    key = {name: getattr(args, name) for name in run} | {
        "device": device_name(device), "arithmetic": arithmetic(amp_dtype(args.no_amp, device)),
        "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    path = CACHE / f"fastest-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    if not path.exists():
        seconds = measure(argv, args)
        write_json(path, key | {"seconds": seconds, "fastest": choose(seconds)})
    print(read_json(path)["fastest"])


if __name__ == "__main__":
    main()
