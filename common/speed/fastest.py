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

from common.args import arguments
from common.files import Refused, read_json, write_json
from common.machine import ROOT, device_name
from common.speed.loops import FLAGS, STEPS, build_loops, take_turns

CACHE = ROOT / "results/cache"
SIMPLER = ("eager", "graph", "compiled")                      # which comes first where the difference is a tie
TIE = 0.9                                                     # share of the fastest one's images/s


def fastest(command: str, threads: int) -> str:
    """"eager", "graph" or "compiled", measured on a run of scratch in a process of its own: a parent that forks must not.

    Args
        command: of the run, as a plan has it.
        threads: that it will have.
    """
    words = [sys.executable, "-m", "common.speed.fastest", *shlex.split(command)[2:]]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Refused("which loop is the fastest could not be measured (see above): choose --compile, --graph or neither.")
    return done.stdout.split()[-1]


def choose(speed: dict[str, float]) -> str:
    """The simplest of those that tie with the fastest; images/s of each."""
    return next(name for name in SIMPLER if speed.get(name, 0) >= TIE * max(speed.values()))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments("baselines/scratch.py", __doc__).parse_args(argv)
    device = torch.device(args.device)
    key = {name: getattr(args, name) for name in ("task", "model", "batch_size", "image_size", "no_amp")} | {
        "device": device_name(device), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    path = CACHE / f"fastest-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    if not path.exists():
        names = [name for name in FLAGS if name != "graph" or device.type == "cuda"]
        rounds = 9
        with tempfile.TemporaryDirectory() as folder, tqdm(total=len(names) * (1 + rounds), unit="turn", file=sys.stderr) as bar:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                loops = build_loops(argv, folder, names)
            seconds, _ = take_turns(loops, rounds, STEPS[device.type], bar)
        speed = {name: args.batch_size / statistics.median(seconds[name]) for name in names}
        write_json(path, key | {"images_per_second": speed, "fastest": choose(speed)})
    print(read_json(path)["fastest"])


if __name__ == "__main__":
    main()
