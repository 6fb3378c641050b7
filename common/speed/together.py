"""What several runs train at once, a process each, as `run_all.sh --jobs` makes them."""
import subprocess
import sys
import tempfile

import torch
from tqdm import tqdm

from common.data import CENTER, Batch
from common.files import Refused
from common.machine import ROOT
from common.speed.loops import Ours, ours

AT_A_TIME = 10                                                # steps between looks at the time, which wait for the device


def measure_together(options: list[str], names: list[str], jobs: list[int], seconds: float, bar: tqdm) -> dict[str, dict]:
    """Images/s of all processes together: name of a loop -> number of processes -> images/s.

    Raises
        Refused: a process did not get as far as its first step.
    """
    command = [sys.executable, "-m", "common.speed", *options, "--beside-others", *names]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                 for _ in range(max(jobs))]
    try:
        for process in processes:
            if process.stdout.readline() != "ready\n":
                raise Refused(f"one of {max(jobs)} processes did not get to its first step (see above): try fewer --jobs.")
        found = {name: {} for name in names}
        for name in names:
            for number in jobs:
                for process in processes[:number]:
                    print(name, seconds, max(1, torch.get_num_threads() // number), file=process.stdin, flush=True)
                found[name][number] = sum(float(process.stdout.readline()) for process in processes[:number])
                bar.update()
        return found
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def work(options: list[str], names: list[str]) -> None:
    """One of the processes: reads "NAME SECONDS THREADS" a line, trains for so long and prints its images/s."""
    with tempfile.TemporaryDirectory() as folder:
        say, sys.stdout = sys.stdout, sys.stderr
        loops = {name: ours(name, options, folder) for name in names}
        for loop in loops.values():
            loop.step()                                       # compiled, or captured
        print("ready", file=say, flush=True)
        for line in sys.stdin:
            name, seconds, count = line.split()
            torch.set_num_threads(int(count))
            print(images_per_second(loops[name], float(seconds)), file=say, flush=True)


def images_per_second(loop: Ours, seconds: float) -> float:
    """Steps on the same examples, composed anew each time, without the ends of epochs."""
    split, size = loop.data.train, loop.run.args.batch_size
    index = split.index[:size].to(split.device)
    view, weight = torch.full_like(index, CENTER), torch.ones(size, device=split.device)
    clock, steps = loop.run.clock, 0
    begin = now = clock.elapsed()
    while now - begin < seconds:
        for _ in range(AT_A_TIME):
            loop.do(Batch(split.images(index, view), split.targets(index, view), index, view, weight), loop.loss, lr=0.01)
        steps += AT_A_TIME
        now = clock.elapsed()
    return steps * size / (now - begin)
