"""Latest weight averaging: evaluates and keeps the mean of the last few snapshots of the weights instead of the last weights.

Reuses   nothing
Pays     one pass over the weights at each snapshot
Source   Kaddour 2022, arXiv:2209.14981
Differs  snapshots are a share of the training apart, not epochs; steps after the last one are in none; batch norm's
         statistics are averaged, too, where their code measures them anew
Neutral  --snapshots 1 --apart 0 is baselines/scratch.py, bit for bit

    python baselines/lawa.py
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, count, share
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__)
    parser.add_argument("--snapshots", type=count, default=5, help="how many of the last snapshots are averaged")
    parser.add_argument("--apart", type=share, default=0.01, help="share of the training (0..1) between two; 0: every step")
    return parser


def flat(model):
    """All parameters and batch norm statistics, one after the other."""
    return torch.cat([tensor.detach().flatten().float() for tensor in model.state_dict().values()])


@torch.no_grad()
def set_mean(average, model, snapshots):
    """The mean of `snapshots` [n, numbers] into `average`; counts of batches are cut to whole ones."""
    sizes = [tensor.numel() for tensor in model.state_dict().values()]
    for mine, values in zip(average.state_dict().values(), snapshots.mean(0).split(sizes), strict=True):
        mine.copy_(values.view(mine.shape))


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    average = task.build(args, data)                          # holds the mean when it is looked at
    latest = torch.stack([flat(model)] * args.snapshots)      # [snapshots, numbers], the newest at `taken` - 1, cyclic
    taken = torch.zeros((), dtype=torch.int64)
    every = max(1, round(args.apart * args.epochs * len(data.train) / args.batch_size))             # steps

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    state = {"step": step, "average": average, "latest": latest, "taken": taken}
    for epoch in run.epochs(args.epochs, data, **state):      # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, plain, lr=args.lr * one_cycle(progress))
            if run.steps % every == 0:
                latest[int(taken) % args.snapshots] = flat(model)
                taken += 1
        set_mean(average, model, latest[: min(int(taken), args.snapshots)] if taken else flat(model)[None])
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(average, data.test))
    run.finish(average)


if __name__ == "__main__":
    main(parser().parse_args())
