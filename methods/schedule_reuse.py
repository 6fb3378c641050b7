"""Schedule reuse: the best past run's hyperparameters, and a schedule that begins where that run's loss began to fall.

Reuses   the curves and hyperparameters of all --past
Pays     nothing
Source   this repository
Differs  it has no paper; initial weights are fresh, so only the schedule's beginning is skipped
Neutral  --fall 0 is baselines/scratch.py with the best past run's --lr and --weight-decay, bit for bit

    python methods/schedule_reuse.py --past results/cifar100-mini/past
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
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--fall", type=share, default=0.1, help="how much of its whole fall (0..1) the past run's train loss "
                        "must have made: the schedule begins at that progress")
    return parser


def beginning(rows, fall):
    """Progress (0..1) at which the train loss of `rows`, one per epoch, made that share of its fall; straight between epochs."""
    rows = [row for row in rows if "train/loss" in row]
    first, last = rows[0]["train/loss"], rows[-1]["train/loss"]
    goal, end = first - fall * (first - last), rows[-1]["epoch"]
    for before, after in zip(rows, rows[1:], strict=False):
        if after["train/loss"] <= goal < before["train/loss"]:
            part = (before["train/loss"] - goal) / (before["train/loss"] - after["train/loss"])
            return (before["epoch"] + part * (after["epoch"] - before["epoch"])) / end
    return 0.0


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = run.past(data)
    curves = [p.curve() for p in past]
    best = min(range(len(past)), key=lambda i: curves[i][-1]["train/loss"])     # not by test accuracy: that would be peeking
    args.lr, args.weight_decay = (past[best].config["args"][name] for name in ("lr", "weight_decay"))
    begin = beginning(curves[best], args.fall)
    print(f"from {past[best].name}: --lr {args.lr:g} --weight-decay {args.weight_decay:g}, schedule from {begin:.0%} on")

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, plain, lr=args.lr * one_cycle(begin + (1 - begin) * progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
