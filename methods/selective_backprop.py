"""Selective backprop with past losses: an example's chance to be trained on grows with the rank of the loss it had before.

Reuses   the loss that --past recorded on each example, averaged over the past run's epochs
Pays     nothing: no pass that scores the examples
Source   Jiang et al. 2019, arXiv:1910.00762, equation 1
Differs  ranks among all examples by past losses, which never change, not among the last ones by current losses; kept ones fill
         full batches, as there; no least chance; examples that the past run never saw are always kept
Neutral  --beta 0 is baselines/scratch.py, bit for bit

    python methods/selective_backprop.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, weight
from common.data import train_batches
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--beta", type=weight, default=1.0, help="selectivity: the chance is the rank (0..1) to this power; "
                        "on average 1 / (1 + beta) of the examples are kept")
    return parser


def chances(loss, index, beta):
    """[N] chance to be kept: share of the examples `index` [n] with no larger loss [N], to the power `beta`; unseen ones: 1."""
    chance = torch.ones_like(loss)
    seen = index[~loss[index].isnan()]
    order = loss[seen].argsort()
    rank = torch.arange(1, len(seen) + 1) / max(len(seen), 1)
    chance[seen[order]] = rank ** beta
    return chance


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    chance = chances(run.past(data)[0].examples("loss").cpu(), data.train.index, args.beta)         # [N]

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        keep = torch.rand(data.examples, generator=generator(args.seed, "keep", epoch)) < chance
        for progress, batch in train_batches(data.train, run, epoch, keep=keep):
            step(batch, plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
