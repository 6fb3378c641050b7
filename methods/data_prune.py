"""Data pruning: train only on the examples that past runs found worth it, a fixed subset.

Reuses   what all --past recorded about each example: el2n, correct of every epoch, or loss
Pays     nothing; an epoch is shorter
Source   Paul et al. 2021, arXiv:2107.07075 (EL2N); Toneva et al. 2019, arXiv:1812.05159 (forgetting events)
Differs  EL2N is averaged over all epochs of complete runs under augmentation, not measured once early in many short runs;
         what no past run has seen is kept before all else
Neutral  --prune 0 is baselines/scratch.py, bit for bit

    python methods/data_prune.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, share
from common.data import train_batches
from common.files import Refused
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--prune", type=share, default=0.25, help="share (0..1) of the training set to leave out, lowest scores")
    parser.add_argument("--score", choices=("el2n", "forgetting", "loss"), default="el2n", help="norm of p - y; how often "
                        "correct turned into wrong, never correct counting most; cross-entropy; averaged over the past runs")
    return parser


def forgetting(correct):
    """correct [E, N] of 0, 1, NaN where not shown -> [N] times that 1 was followed by 0; E if never 1; NaN if never shown."""
    if ((correct > 0) & (correct < 1)).any():
        raise Refused("--score forgetting needs examples that are right or wrong, and here they are right in part: choose "
                      "el2n or loss.")
    latest, events = correct[0], torch.zeros(correct.shape[1], device=correct.device)
    for row in correct[1:]:
        events += (latest == 1) & (row == 0)
        latest = torch.where(row.isnan(), latest, row)        # not shown in this epoch: as it was
    events = torch.where((correct == 1).any(0), events, float(len(correct)))
    return torch.where(latest.isnan(), torch.nan, events)


def score(past, name):
    """[N], high where the example is worth keeping; equal counts of forgetting in an order drawn by lot."""
    if name != "forgetting":
        return past.examples(name)
    events = forgetting(past.examples("correct", every_epoch=True))
    return events + 1e-3 * torch.rand(len(events), generator=generator(past.seed, "ties")).to(events.device)


def highest(scores, index, prune):
    """[n'] the examples `index` [n] without the `prune` share of lowest scores [N]; unseen ones are kept first."""
    order = scores[index].nan_to_num(torch.inf).argsort(stable=True)
    return index[order[round(prune * len(index)):].sort().values]


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    scores = torch.stack([score(past, args.score) for past in run.past(data)]).nanmean(0)           # [N], NaN where nobody saw it
    keep = highest(scores.cpu(), data.train.index, args.prune)

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch, keep=keep):
            step(batch, plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
