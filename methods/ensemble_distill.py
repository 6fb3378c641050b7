"""Ensemble distillation: match the mean class probabilities of all past runs, or of one drawn anew for every step.

Reuses   final weights of all --past
Pays     P teacher forward passes per step, on the clock; one with --sample
Source   Hinton, Vinyals, Dean 2015, arXiv:1503.02531; --sample: Blakeney et al. 2022, arXiv:2211.00683
Differs  teachers see the student's own view of each image; alpha and temperature as in kd
Neutral  --alpha 0 is baselines/scratch.py, bit for bit

    python methods/ensemble_distill.py --past results/cifar100-mini/past --sample
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, positive, share
from common.data import train_batches
from common.files import Refused
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS
from common.teachers import together


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--alpha", type=share, default=0.9, help="weight (0..1) of the teachers' term, 1 - alpha of the labels'")
    parser.add_argument("--temperature", type=positive, default=4.0, help="divides all models' logits (no unit)")
    parser.add_argument("--sample", action="store_true", help="one teacher, drawn anew, for every step instead of all")
    return parser


def distil_from(teachers, task, args):
    """The loss function of a student of these teachers: of the labels, and of the mean of what they predict."""
    ask = together(teachers)                                  # image [B, 3, H, W] -> logits [B, C] of each

    def distil(model, batch):                                 # one loss per example, and its named parts
        with torch.no_grad():
            soft = task.mean(ask(batch.image), args.temperature)          # [B, C]
        output = model(batch.image)                           # [B, C]
        hard = task.loss(output, batch.target)                # [B]
        kd = task.distill(output, soft, args.temperature)     # [B]
        return (1 - args.alpha) * hard + args.alpha * kd, {"kd": kd} | task.stats(output, batch.target)
    return distil


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = run.past(data)
    if not args.sample and any(set(one.classes) != set(past[0].classes) for one in past):
        raise Refused("past runs that know different classes have no mean: classes that only some know would count as unlikely. "
                      "Name runs of the same classes, or add --sample, which asks one at a time.")
    teachers = [one.model(run.device) for one in past]        # P of them, frozen, eval mode
    groups = [[teacher] for teacher in teachers] if args.sample else [teachers]

    losses = [distil_from(group, task, args) for group in groups]
    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        draw = torch.randint(len(losses), (len(data.train),), generator=generator(args.seed, "teacher", epoch)).tolist()
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, losses[draw[run.steps % len(draw)]], lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
