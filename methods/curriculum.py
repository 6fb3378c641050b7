"""Curriculum: begin with the examples that the past run found easy, all of them from half of the training on.

Reuses   the loss that --past recorded on each example, averaged over its epochs
Pays     nothing: an epoch has as many examples as any other's
Source   Wu et al. 2021, arXiv:2012.03107, linear pacing
Differs  the easiest of all classes together, where their code balances classes; by train loss averaged over epochs, not a
         held-out score; the pool is fixed within an epoch, as its middle has it; a smaller one is passed over more than once;
         examples that the past run never saw count as the hardest, in random order
Neutral  --start 1 is baselines/scratch.py, bit for bit

    python methods/curriculum.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, share
from common.data import middle, train_batches
from common.examples import unseen_highest
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--start", type=share, default=0.2, help="share of the training set (0..1), the easiest, to begin with")
    parser.add_argument("--full", type=share, default=0.5, help="progress (0..1) from which on all of it is used")
    return parser


def pool(index, loss, progress, args, epoch):
    """n indices for an epoch: passes over the easiest of the examples `index` [n] by loss [N], the last one cut at random."""
    share = min(1, args.start + (1 - args.start) * max(progress, 0) / args.full) if args.full else 1
    easiest = index[loss[index].argsort(stable=True)][: max(1, round(share * len(index)))]
    whole, cut = divmod(len(index), len(easiest))
    again = torch.randperm(len(easiest), generator=generator(args.seed, "pool", epoch))[:cut]
    return torch.cat([easiest.repeat(whole), easiest[again]])


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    loss = run.past(data)[0].examples("loss").cpu()           # [N], NaN where the past run saw nothing
    loss = unseen_highest(loss, generator(args.seed, "unseen"))

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        keep = pool(data.train.index, loss, middle(epoch, args.epochs), args, epoch)
        for progress, batch in train_batches(data.train, run, epoch, keep=keep):
            step(batch, plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
