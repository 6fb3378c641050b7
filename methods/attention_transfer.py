"""Attention transfer: look where the past model looks, stage by stage.

Reuses   final weights of --past, its features; any classes, any architecture with the same number of stages
Pays     one forward pass of the teacher's trunk per step, on the clock
Source   Zagoruyko and Komodakis 2017, arXiv:1612.03928, activation-based, p = 2; beta of their code
Differs  mean squared difference times beta, as in their code (on images above 32 x 32 it weighs less); larger maps averaged down;
         maps after batch norm and ReLU, theirs before
Neutral  --beta 0 is baselines/scratch.py, bit for bit

    python methods/attention_transfer.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch
from torch.nn import functional as F

from common.args import arguments, weight
from common.data import train_batches
from common.files import Refused
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--beta", type=weight, default=1000.0, help="weight of the difference of attention maps (no unit)")
    return parser


def attention(feature):
    """[B, c, h, w] -> [B, h * w]: mean square over the channels, of norm 1."""
    return F.normalize(feature.float().pow(2).sum(1).flatten(1))            # of norm 1 the sum is the mean, at half its price


def difference(mine, theirs):
    """Mean over the positions of the squared difference of attention [B]; the larger map is averaged down to the smaller."""
    size = min(mine.shape[2:], theirs.shape[2:])
    mine, theirs = (f if f.shape[2:] == size else F.adaptive_avg_pool2d(f, size) for f in (mine, theirs))
    return (attention(mine) - attention(theirs)).pow(2).mean(1)


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    teacher = run.past(data)[0].model(run.device, features=True)        # frozen, eval mode
    if teacher.model.stages != model.stages:
        raise Refused(f"the past run's model has {teacher.model.stages} stages of features, {args.model} has {model.stages}: "
                      "choose models with equally many, or methods/similarity_kd.py, which needs only the last.")

    def attend(model, batch):                                 # one loss per example, and its named parts
        with torch.no_grad():
            theirs = teacher.trunk(batch.image)               # [B, c, h, w] of each stage
        output, mine = model(batch.image, features=True)      # [B, C], and likewise
        hard = task.loss(output, batch.target)                # [B]
        at = sum(difference(m, t) for m, t in zip(mine, theirs, strict=True))                       # [B]
        return hard + args.beta * at, {"at": at} | task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, attend, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
