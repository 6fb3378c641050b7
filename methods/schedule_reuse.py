"""Schedule reuse: the best past run's hyperparameters, and a schedule that begins where that run's loss began to fall.

Reuses   the curves and hyperparameters of all --past
Pays     nothing
Source   this repository
Differs  it has no paper; best is the lowest last loss, held-out where there is a holdout, else on the training data
Neutral  --fall 0 is baselines/scratch.py with that run's --lr, --weight-decay and --batch-size, bit for bit

    python methods/schedule_reuse.py --past results/cifar100-mini/past
"""
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from common.args import arguments, share
from common.data import train_batches
from common.files import Refused
from common.log import read_rows
from common.run import Run
from common.runfiles import read_config
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True, predicts=["classes", "pixels"])
    parser.add_argument("--fall", type=share, default=0.1, help="how much of its whole fall (0..1) the past run's train loss "
                        "must have made: the schedule begins at that progress")
    return parser


def best(folders):
    """The folder of the past run with the lowest last loss: held-out where it has a holdout, else on its training data.

    Raises
        Refused: runs of several tasks, whose losses say nothing of each other.
    """
    if len({read_config(folder)["args"]["task"] for folder in folders}) > 1:
        raise Refused("--past names runs of several tasks, whose losses do not compare: name those of one.")
    whole = [folder for folder in folders if (folder / "summary.json").exists()] or folders     # a search may have failed trials
    held = read_config(whole[0])["args"]["holdout"] > 0       # not by test accuracy: that would be peeking
    return min(whole, key=lambda folder: trained(read_rows(folder))[-1]["test/loss" if held else "train/loss"])


def trained(rows):
    """The rows of epochs that had a step."""
    found = [row for row in rows if "train/loss" in row]
    if not found:
        raise Refused("a past run has not finished an epoch, so its curve says nothing: run its command to the end first.")
    return found


def beginning(start, rows, fall):
    """Progress (0..1) at which the loss has made the share `fall` of its way from `start`, before training, to its last value.

    A row's mean train loss stands for the middle of its epoch; straight between.
    """
    ends = [0.0, *(row["epoch"] for row in rows)]             # the last epoch may be one in part
    middles = [(begin + end) / 2 for begin, end in zip(ends, ends[1:], strict=False)]
    points = [(0.0, start), *((middle, row["train/loss"]) for middle, row in zip(middles, rows, strict=True))]
    goal = start - fall * (start - points[-1][1])
    for (x, before), (next_x, after) in zip(points, points[1:], strict=False):
        if fall and after <= goal <= before:
            return (x + (next_x - x) * (before - goal) / max(before - after, 1e-12)) / rows[-1]["epoch"]
    return 0.0


def main(args):
    start = time.perf_counter()
    folder = best(args.past_folders)
    for name in {"lr", "weight_decay", "batch_size"} & set(args.inherited):     # not where the command line says otherwise
        args.inherited[name] = read_config(folder)["args"][name]
        setattr(args, name, args.inherited[name])
    seconds = time.perf_counter() - start
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    run.charge("settings", seconds, 0)                        # what they are decides which run this is
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = next(past for past in run.past(data) if past.folder == folder)
    begin = beginning(math.log(len(past.classes)), trained(past.curve()), args.fall)        # from the nats of a guess
    if run.writes:
        print(f"the schedule begins at {begin:.1%}, by the curve of {past.name}")

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
