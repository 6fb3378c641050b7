"""The loops that are compared: ours, a textbook's, and the convolutions alone."""
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from common import models
from common.amp import autocast
from common.args import arguments
from common.clock import Clock
from common.data import train_batches
from common.run import Run
from common.seeding import generator
from common.splits import PAD
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS

PHASES = ("data", "forward", "backward", "optimizer")
STEPS = {"cpu": 3, "cuda": 50}                                # of a loop at a time, when loops take turns
FLAGS = {"eager": [], "compiled": ["--compile"], "graph": ["--graph"]}           # our loops -> arguments of a script
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


class Textbook:
    """A DataLoader with PIL transforms, a contiguous model in float32 or under autocast, a loss whose value is read each step.

    On a GPU its float32 convolutions are TF32, which is torch's default.
    """

    def __init__(self, ours: Ours, amp: bool):
        from torchvision import transforms  # a second, and only here

        args, split = ours.run.args, ours.data.train
        side = split.size + 2 * PAD
        images = split.pixels.view(-1, side, side, 3)[:, PAD:-PAD, PAD:-PAD].cpu().numpy()
        mean, std = (moment.cpu() / 255 for moment in (split.mean, split.std))
        transform = transforms.Compose([
            transforms.ToPILImage(), transforms.RandomCrop(split.size, padding=PAD), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(mean.tolist(), std.tolist())])
        target = split.target.cpu().tolist()
        examples = [(images[i], target[i]) for i in split.index.tolist()]

        class Examples(torch.utils.data.Dataset):
            def __len__(self):
                return len(examples)

            def __getitem__(self, i):
                return transform(examples[i][0]), examples[i][1]

        # beside a model on the same cores they gain nothing
        workers = 4 if ours.run.device.type == "cuda" else 0
        self.ahead = 2 * workers + 2                          # batches that workers make while other loops have their turn
        everything = Examples()
        sampler = torch.utils.data.RandomSampler(everything, num_samples=1000 * len(examples),         # workers never start anew
                                                 generator=generator(args.seed, "textbook"))
        self.loader = torch.utils.data.DataLoader(everything, args.batch_size, sampler=sampler, drop_last=True,
                                                  num_workers=workers, pin_memory=workers > 0)
        self.device, self.amp = ours.run.device, ours.run.amp if amp else None
        self.model = models.build(args.model, len(ours.data.classes), generator(args.seed, "weights"), self.device)
        self.model = self.model.to(memory_format=torch.contiguous_format)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=args.lr, momentum=0.9, nesterov=True,
                                         weight_decay=args.weight_decay)
        self.batches = self._forever()

    def _forever(self):
        while True:
            yield from self.loader

    def phases(self) -> Phases:
        image, target = (tensor.to(self.device, non_blocking=True) for tensor in next(self.batches))
        yield "data"
        self.optimizer.zero_grad()
        with autocast(self.amp, self.device):
            loss = F.cross_entropy(self.model(image), target)
        yield "forward"
        loss.backward()
        yield "backward"
        self.optimizer.step()
        loss.item()
        yield "optimizer"

    def step(self) -> None:
        for _ in self.phases():
            pass


class Convolutions:
    """The convolutions of one step of `ours` and nothing else, on inputs of the same shapes, type and layout."""

    def __init__(self, ours: Ours):
        self.calls: list[Callable] = []
        kind = ours.run.amp or torch.float32
        hooks = [module.register_forward_hook(lambda module, inputs, _: self._add(module, inputs[0], kind))
                 for module in ours.model.modules() if isinstance(module, nn.Conv2d)]
        _, batch = next(ours.batches)
        with torch.no_grad(), autocast(ours.run.amp, ours.run.device):
            ours.model(batch.image)
        for hook in hooks:
            hook.remove()
        self.graph = None
        if ours.run.device.type == "cuda":                    # else launching them would take longer than they do
            self.graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._call()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
                self._call()

    def _add(self, module: nn.Conv2d, like, kind: torch.dtype) -> None:
        image = torch.randn_like(like, dtype=kind, memory_format=torch.channels_last)
        weight = module.weight.detach().to(kind)
        strides, padding, dilation = list(module.stride), list(module.padding), list(module.dilation)
        mask = [len(self.calls) > 0, True, False]             # nobody asks for the gradient of the images

        def call():
            output = F.conv2d(image, weight, None, strides, padding, dilation, module.groups)
            torch.ops.aten.convolution_backward(output, image, weight, None, strides, padding, dilation, False, [0, 0],
                                                module.groups, mask)
        self.calls.append(call)

    def _call(self) -> None:
        for call in self.calls:
            call()

    def step(self) -> None:
        self.graph.replay() if self.graph else self._call()


OURS = {"eager": Ours, "compiled": Ours, "graph": Graphed}


def ours(name: str, options: list[str], folder: str) -> Ours:
    return OURS[name]([*options, *FLAGS[name], "--results", f"{folder}/{name}"])


def build_loops(options: list[str], folder: str, names: list[str]) -> dict:
    """The loops called `names`, in a process of their own or beside each other."""
    loops = {name: ours(name, options, folder) for name in OURS if name in {"eager", *names}}
    for name in ("textbook", "textbook_amp"):
        if name in names:
            loops[name] = Textbook(loops["eager"], amp=name == "textbook_amp")
    if "convolutions" in names:
        loops["convolutions"] = Convolutions(loops["eager"])
    return {name: loops[name] for name in names}


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
