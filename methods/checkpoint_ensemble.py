"""Checkpoint ensemble: several checkpoints of one past run teach together, so that nobody needs five runs for an ensemble.

Reuses   checkpoints and final weights of one of --past
Pays     one teacher forward pass per checkpoint and step, on the clock; one in all with --sample
Source   Wang et al. 2022, arXiv:2210.06458 (intermediate checkpoints teach well); Huang et al. 2017, arXiv:1704.00109
Differs  mean of probabilities, alpha and temperature as in kd, no choice of checkpoints by mutual
         information; the past run's schedule falls once to zero, neither in cycles nor in steps, so that checkpoints on the
         way are far less accurate than its end
Neutral  --alpha 0 is baselines/scratch.py, bit for bit

    python methods/checkpoint_ensemble.py --past results/cifar100-mini/past
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
from methods.ensemble_distill import distil_from


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--alpha", type=share, default=0.9, help="weight (0..1) of the teachers' term, 1 - alpha of the labels'")
    parser.add_argument("--temperature", type=positive, default=4.0, help="divides all models' logits (no unit)")
    parser.add_argument("--after", type=share, default=0.5, help="progress (0..1) of the past run from which checkpoints teach")
    parser.add_argument("--sample", action="store_true", help="one teacher, drawn anew, for every step instead of all")
    return parser


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = run.past(data)[0]
    names = [name for name, progress in past.checkpoints().items() if progress >= args.after]
    if not names:
        raise Refused(f"--after {args.after:g}: {past.name} kept no checkpoint from then on. Choose a smaller one, or run "
                      "methods/kd.py.")
    teachers = [past.model(run.device, checkpoint=name) for name in [*names, None]]     # frozen, eval mode; None: the last
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
