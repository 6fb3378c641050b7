"""Direction-aware shrinking: start from a past run's weights, each kernel shrunk unless the data's gradient still wants it.

Reuses   final weights of --past, and which examples it has seen
Pays     preparation: one pass over the training set, forward and backward
Source   Shin et al. 2024, arXiv:2410.23495, algorithm 1; alpha and threshold of their code
Differs  middle views; chunks in a seeded order, what the past run has not seen last, and through batch norm by --batch-size,
         with the batch's statistics where their code has the running ones; of a 1x1 kernel the sign alone decides
Neutral  --threshold 1 is baselines/warm_start.py, bit for bit

    python methods/dash.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional as F

from common import ranks
from common.amp import autocast
from common.args import arguments, count, share
from common.data import all_batches, train_batches
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--threshold", type=share, default=0.3, help="smallest factor (0..1) on a kernel; lambda in the paper")
    parser.add_argument("--alpha", type=share, default=0.3, help="share (0..1) of each chunk in the running mean of gradients")
    parser.add_argument("--chunk", type=count, default=1000, help="examples in a chunk, of which one gradient is taken")
    return parser


def gradients(call, model, data, order, task, args, run):
    """Running mean over chunks of the examples `order` [n] of each parameter's negative gradient, summed; `model` is a copy."""
    negative = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def backward(image, target):
        with autocast(run.amp, run.device):
            loss = task.loss(model(image), target)            # [B]
        loss.sum().backward()                                 # cosines do not ask for the scale, and fp16 likes it large

    for chunk in order.split(args.chunk):
        model.zero_grad()
        for batch in all_batches(data.train, args.batch_size, order=chunk):
            call(backward, batch.image, batch.target)
        for name, p in model.named_parameters():
            negative[name].lerp_(-p.grad * (args.chunk / len(chunk)), args.alpha)       # the last chunk may be a small one
    ranks.average_(list(negative.values()))                   # all have the same but for rounding, and weights come of it
    return negative


@torch.no_grad()
def shrink(model, negative, threshold):
    """Scales each kernel of a convolution, each row of a linear layer and each bias by its cosine with the negative gradient."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            for kind, p in module.named_parameters(recurse=False):
                group = {4: 2, 2: 1, 1: 0}[p.ndim]            # the first dimensions number kernels, rows, or one bias
                cosine = F.cosine_similarity(p.flatten(group), negative[f"{name}.{kind}"].flatten(group), dim=-1)
                p.mul_(cosine.clamp(threshold, 1).view(p.shape[:group] + (1,) * (p.ndim - group)))


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = run.past(data)[0]
    model.load_state_dict(past.weights(model))
    with run.prepare("gradient") as call:
        index = data.train.index[torch.randperm(len(data.train), generator=generator(args.seed, "chunks"))]
        new = past.examples("loss").cpu()[index].isnan() if past.fingerprint == data.fingerprint else index >= 0
        negative = gradients(call, deepcopy(model), data, torch.cat([index[~new], index[new]]), task, args, run)
        shrink(model, negative, args.threshold)

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
