"""What our loop is compared with: a textbook's, and the convolutions alone."""
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from common import models
from common.amp import autocast
from common.seeding import generator
from common.speed.loops import OURS, Ours, Phases, ours
from common.splits import PAD


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


def build_loops(options: list[str], folder: str, names: list[str]) -> dict:
    """The loops called `names`, in a process of their own or beside each other."""
    loops = {name: ours(name, options, folder) for name in OURS if name in {"eager", *names}}
    for name in ("textbook", "textbook_amp"):
        if name in names:
            loops[name] = Textbook(loops["eager"], amp=name == "textbook_amp")
    if "convolutions" in names:
        loops["convolutions"] = Convolutions(loops["eager"])
    return {name: loops[name] for name in names}
