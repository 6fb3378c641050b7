"""Our own loops, and how loops take turns."""
from collections.abc import Iterator

from tqdm import tqdm

from common.amp import autocast
from common.args import arguments
from common.clock import Clock
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS

PHASES = ("data", "forward", "backward", "optimizer")
STEPS = {"cpu": 3, "cuda": 50}                                # of a loop at a time, when loops take turns
FLAGS = {"eager": [], "compiled": ["--compile"], "graph": ["--graph"],           # our loops -> arguments of a script
         "compiled_graph": ["--compile", "--graph"]}
Phases = Iterator[str]                                        # yields each phase's name when it has ended


class Ours:
    """This repository's loop, as baselines/scratch.py has it."""

    def __init__(self, options: list[str]):
        options = [*options, "--epochs", "1000"]
        args = arguments("baselines/scratch.py", "").parse_args(options)
        self.run, self.task = Run(args), TASKS[args.task]
        self.data = self.task.load(args, self.run.device)
        self.model = self.task.build(args, self.data)
        self.optimizer = sgd(self.model, args)
        self.do = Step(self.run, self.model, self.optimizer)
        self.batches = self._forever()

        def plain(model, batch):
            output = model(batch.image)
            return self.task.loss(output, batch.target), self.task.stats(output, batch.target)

        self.loss = plain

    def _forever(self):
        for epoch in self.run.epochs(self.run.args.epochs, self.data, step=self.do):
            yield from train_batches(self.data.train, self.run, epoch)
            with self.run.untimed("eval"):
                self.do.means()

    def step(self) -> None:
        progress, batch = next(self.batches)
        self.do(batch, self.loss, lr=self.run.args.lr * one_cycle(progress))

    def phases(self) -> Phases:
        _, batch = next(self.batches)
        yield "data"
        self.optimizer.zero_grad(set_to_none=True)
        loss_fn, = self.do.functions[self.loss][0].args       # as the update runs it, compiled or not
        with autocast(self.run.amp, self.run.device):
            loss, _ = loss_fn(self.model, batch)
        yield "forward"
        (loss * batch.weight).mean().backward()
        yield "backward"
        self.optimizer.step()
        yield "optimizer"

    def flops(self) -> int:
        return self.do.functions[self.loss][1]


class Graphed(Ours):
    """The same, captured: from the forward pass to the update it has no parts to be timed apart."""

    def phases(self) -> Phases:
        next(self.batches)
        yield "data"


OURS = {"eager": Ours, "compiled": Ours, "graph": Graphed, "compiled_graph": Graphed}


def ours(name: str, options: list[str], folder: str) -> Ours:
    return OURS[name]([*options, *FLAGS[name], "--results", f"{folder}/{name}"])


def take_turns(loops: dict, rounds: int, steps: int, bar: tqdm) -> tuple[dict, dict]:
    """Seconds of a step, name -> [rounds], and of its phases, name -> phase -> [rounds]; `steps` steps a round."""
    clock = Clock(loops["eager"].run.device)                  # its elapsed() waits for the device
    seconds = {name: [] for name in loops}
    parts = {name: {phase: [] for phase in PHASES} for name in loops}
    for loop in loops.values():
        for _ in range(2):
            loop.step()
        bar.update()
    for _ in range(rounds):
        for name, loop in loops.items():
            read = loop.run.clock.counted if hasattr(loop, "run") else clock.elapsed           # ours end epochs, off their clock
            for _ in range(getattr(loop, "ahead", 0)):
                loop.step()
            begin = read()
            for _ in range(steps):
                loop.step()
            seconds[name].append((read() - begin) / steps)
            if hasattr(loop, "phases"):
                before = clock.elapsed()
                for phase in loop.phases():
                    now = clock.elapsed()
                    parts[name][phase].append(now - before)
                    before = now
            bar.update()
    return seconds, parts
