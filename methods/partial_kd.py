"""Partial distillation: ask the teacher at a random share of the steps, or only early, or ever less.

Reuses   final weights of --past
Pays     one teacher forward pass at --share of the steps before --until
Source   Cho and Hariharan 2019, arXiv:1910.01348 (early part); Schmitt et al. 2018, arXiv:1803.03835 (annealed); Liu et al. 2023,
         arXiv:2303.06480 (two ways of asking less often that its abstract does not name; a random share is our reading)
Differs  alpha and temperature are those of kd; a step without a teacher has the labels alone, with their whole weight
Neutral  --share 0 is baselines/scratch.py, bit for bit

    python methods/partial_kd.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, positive, share
from common.data import train_batches
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--alpha", type=share, default=0.9, help="weight (0..1) of the teacher's term, 1 - alpha of the labels'")
    parser.add_argument("--temperature", type=positive, default=4.0, help="divides both models' logits (no unit)")
    parser.add_argument("--share", type=share, default=0.2, help="share of the steps (0..1), drawn at random, with a teacher")
    parser.add_argument("--until", type=share, default=1.0, help="progress (0..1) from which on nobody asks the teacher")
    parser.add_argument("--anneal", action="store_true", help="let alpha fall in a straight line to 0 at --until")
    return parser


def strength(progress, args):
    """The teacher's weight at this progress (0..1), where it is asked."""
    return args.alpha * max(1 - progress / args.until, 0) if args.anneal and args.until else args.alpha


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    teacher = run.past(data)[0].model(run.device)             # frozen, eval mode
    alpha = torch.zeros((), device=run.device)                # of this step

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    def distil(model, batch):
        with torch.no_grad():
            soft = teacher(batch.image)                       # [B, C]
        output = model(batch.image)                           # [B, C]
        hard = task.loss(output, batch.target)                # [B]
        kd = task.distill(output, soft, args.temperature)     # [B]
        return (1 - alpha) * hard + alpha * kd, {"kd": kd} | task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        draw = torch.rand(len(data.train), generator=generator(args.seed, "partial", epoch)).tolist()
        for progress, batch in train_batches(data.train, run, epoch):
            alpha.fill_(strength(progress, args))
            asks = draw[run.steps % len(draw)] < args.share and progress < args.until
            step(batch, distil if asks else plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
