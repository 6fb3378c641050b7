"""Shrink and perturb: start from a past run's weights, made smaller, with a little of a fresh initialization added.

Reuses   final weights of --past
Pays     nothing
Source   Ash and Adams 2020, arXiv:1910.08475, section 4; shrink .4 and perturb .1 are the defaults of their code
Differs  one-cycle SGD, where theirs is at a constant rate until it fits the data; head rows of new classes are shrunk as well.
         Noise is a freshly initialized network and batch norm's statistics are fresh, as in their code
Neutral  --shrink 0 --perturb 1 is baselines/scratch.py, bit for bit

    python methods/shrink_perturb.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, weight
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--shrink", type=weight, default=0.4, help="factor on the past run's weights (no unit)")
    parser.add_argument("--perturb", type=weight, default=0.1, help="factor on the fresh initial weights added to them (no unit)")
    return parser


@torch.no_grad()
def shrink_perturb(model, past, args):
    """A fresh model's parameters become `perturb` times themselves plus `shrink` times the past ones; its buffers stay fresh."""
    for name, parameter in model.named_parameters():
        parameter.mul_(args.perturb).add_(past[name], alpha=args.shrink)


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    shrink_perturb(model, run.past(data)[0].weights(model), args)

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
