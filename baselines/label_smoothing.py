"""Label smoothing: a share of every target goes to all classes alike. Distillation must beat it to be worth a teacher.

Reuses   nothing
Pays     nothing
Source   Szegedy et al. 2016, arXiv:1512.00567, section 7
Differs  nothing
Neutral  --smoothing 0 is baselines/scratch.py, bit for bit

    python baselines/label_smoothing.py
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from common.args import arguments, share
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, predicts=["classes", "pixels"])
    parser.add_argument("--smoothing", type=share, default=0.1, help="share of the target (0..1) spread over all classes")
    return parser


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)

    def smoothed(model, batch):                               # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target, args.smoothing)                  # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, smoothed, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
