"""Warm start: go on from the last weights of a past run, batch norm's statistics included.

Reuses   final weights of --past
Pays     nothing
Source   what people do; its known loss of accuracy on new data: Ash and Adams 2020, arXiv:1910.08475
Differs  fresh optimizer state and the full learning-rate schedule
Neutral  none; from the same initial weights it is baselines/scratch.py

    python baselines/warm_start.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from common.args import arguments
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--part", choices=("all", "trunk"), default="all", help="all weights, of the same model and task; or "
                        "whatever fits but the head, from any task")
    return parser


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    model.load_state_dict(run.past(data)[0].weights(model, args.part))

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
