"""InfoBatch, seeded: leave out a random half of the easy examples, and weigh the others of them up, from the first epoch on.

Reuses   the loss that --past recorded on each example, averaged over its epochs, as a score until the first visit
Pays     nothing
Source   Qin et al. 2024, arXiv:2303.04947, section 2; ratio .5 and delta .875 as there
Differs  scores begin as past losses and not all alike, so that leaving out starts at once, and what is left out keeps a past
         run's score (lower than current ones at first, so that it stays easy, where theirs comes back as hard); examples that it
         never saw are not left out before their first visit; full epochs begin with the one whose middle is at --delta or beyond
Neutral  --ratio 0 is baselines/scratch.py, bit for bit

    python methods/infobatch.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, share
from common.data import middle, train_batches
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--ratio", type=share, default=0.5, help="share (0..1) of the examples below the mean loss to leave out")
    parser.add_argument("--delta", type=share, default=0.875, help="progress (0..1) from which on nothing is left out")
    return parser


def prune(scores, index, ratio, generator):
    """keep [N], weight [N]: of those in `index` [n] below their mean score [N], `ratio` are left out, the others weigh more."""
    keep, weight = torch.ones_like(scores, dtype=torch.bool), torch.ones_like(scores)
    known = scores[index][scores[index].isfinite()]
    easy = index[scores[index] < known.mean()]
    out = torch.randperm(len(easy), generator=generator) < int(ratio * len(easy))
    keep[easy[out]] = False
    weight[easy[~out]] = 1 / (1 - ratio) if ratio < 1 else 0.0
    return keep, weight


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    scores = run.past(data)[0].examples("loss").nan_to_num(torch.inf)   # [N] newest known loss; unseen: never left out

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step, scores=scores):       # 0 is before training; restores a killed run
        ratio = args.ratio if middle(epoch, args.epochs) < args.delta else 0.0
        keep, weight = prune(scores.cpu(), data.train.index, ratio, generator(args.seed, "prune", epoch))
        for progress, batch in train_batches(data.train, run, epoch, keep=keep, weight=weight):
            step(batch, plain, lr=args.lr * one_cycle(progress))
        seen = step.table("loss")                             # [N] of this epoch, NaN where left out
        scores.copy_(torch.where(seen.isnan(), scores, seen))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
