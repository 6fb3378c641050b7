"""Similarity-preserving distillation: pairs of images that excite the past model alike shall excite the new one alike.

Reuses   final weights of --past, its last features (for pixels and boxes the trunk's last, the third of five stages); any
         classes, any architecture
Pays     one forward pass of the teacher's trunk per step, on the clock, and a B x B matrix of each model
Source   Tung and Mori 2019, arXiv:1907.09682, equations 2 to 4; gamma 3000 as there
Differs  only the last stage's features, as in RepDistiller's published numbers; under torchrun, pairs within a rank's part
Neutral  --gamma 0 is baselines/scratch.py, bit for bit

    python methods/similarity_kd.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch
from torch.nn import functional as F

from common.args import arguments, weight
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--gamma", type=weight, default=3000.0, help="weight of the squared difference of similarities (no unit)")
    return parser


def similarity(feature):
    """[B, c, h, w] -> [B, B]: inner products of all pairs, each row of norm 1."""
    flat = feature.float().flatten(1)
    return F.normalize(flat @ flat.T)


def difference(mine, theirs):
    """[B] mean squares of the rows of the similarities' difference; its mean is the paper's squared Frobenius norm over B^2."""
    return (similarity(mine) - similarity(theirs)).pow(2).mean(1)


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    teacher = run.past(data)[0].model(run.device, features=True)        # frozen, eval mode

    def preserve(model, batch):                               # one loss per example, and its named parts
        with torch.no_grad():
            theirs = teacher.trunk(batch.image)               # [B, c, h, w] of each stage
        output, mine = model(batch.image, features=True)      # [B, C], and likewise
        hard = task.loss(output, batch.target)                # [B]
        with torch.autocast(batch.image.device.type, enabled=False):            # a difference of two products: float32
            sp = difference(mine[-1], theirs[-1])             # [B]
        return hard + args.gamma * sp, {"sp": sp} | task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, preserve, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
