"""Curriculum with early decoupled distillation: easy examples first, and a teacher while they are few.

Reuses   final weights of --past, and its loss on each example
Pays     one teacher forward pass per step until --until
Source   Wu et al. 2021, arXiv:2012.03107; Zhao et al. 2022, arXiv:2203.08679; put together here
Differs  see curriculum and dkd; the teacher is asked no more once all examples are in use; examples that the past run
         never saw come last, in random order
Neutral  --until 0 is methods/curriculum.py, bit for bit

    python methods/curriculum_dkd.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, positive, share, weight
from common.data import middle, train_batches
from common.examples import unseen_highest
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS
from methods.curriculum import pool
from methods.dkd import decoupled


def parser():
    parser = arguments(__file__, __doc__, past=True, predicts=["classes"])
    parser.add_argument("--start", type=share, default=0.2, help="share of the training set (0..1), the easiest, to begin with")
    parser.add_argument("--full", type=share, default=0.5, help="progress (0..1) from which on all of it is used")
    parser.add_argument("--until", type=share, default=0.5, help="progress (0..1) from which on nobody asks the teacher")
    parser.add_argument("--alpha", type=weight, default=1.0, help="weight of the term on the label's class (no unit)")
    parser.add_argument("--beta", type=weight, default=2.0, help="weight of the term on the other classes (no unit)")
    parser.add_argument("--temperature", type=positive, default=4.0, help="divides both models' logits (no unit)")
    parser.add_argument("--warmup", type=share, default=20 / 240, help="share of the training (0..1) in which both weights rise")
    return parser


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = run.past(data)[0]
    teacher = past.model(run.device, every_class=True)        # frozen, eval mode
    loss = past.examples("loss").cpu()                        # [N], NaN where the past run saw nothing
    loss = unseen_highest(loss, generator(args.seed, "unseen"))
    warm = torch.zeros((), device=run.device)                 # 0..1 during the warm-up

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    def distil(model, batch):
        with torch.no_grad():
            soft = teacher(batch.image)                       # [B, C]
        output = model(batch.image)                           # [B, C]
        hard = task.loss(output, batch.target)                # [B]
        label, others = decoupled(output, soft, batch.target, args.temperature)                     # [B] each
        parts = {"kd_label": label, "kd_others": others} | task.stats(output, batch.target)
        return hard + warm * (args.alpha * label + args.beta * others), parts

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        keep = pool(data.train.index, loss, middle(epoch, args.epochs), args, epoch)
        for progress, batch in train_batches(data.train, run, epoch, keep=keep):
            warm.fill_(min(progress / args.warmup, 1) if args.warmup else 1)
            step(batch, distil if progress < args.until else plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
