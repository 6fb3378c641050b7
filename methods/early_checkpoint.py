"""Early checkpoint: start from weights that a past run had on its way, before it fitted what does not carry over.

Reuses   one checkpoint of --past
Pays     nothing
Source   this repository
Differs  it has no paper; fresh optimizer state and the full learning-rate schedule, like warm_start; by default from weights near
         the peak of the past run's schedule
Neutral  --at 1 is baselines/warm_start.py, bit for bit

    python methods/early_checkpoint.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from common.args import arguments, share
from common.data import train_batches
from common.files import Refused
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--at", type=share, default=0.25, help="progress (0..1) of the past run at which to take its "
                        "weights; the nearest checkpoint it kept")
    return parser


def nearest(checkpoints, at):
    """Name of the checkpoint (name -> progress 0..1) closest to `at`; None for the final weights, whose progress is 1."""
    name = min([*checkpoints.items(), (None, 1.0)], key=lambda item: abs(item[1] - at))[0]
    if name is None and at < 1:
        kept = ", ".join(f"{progress:g}" for progress in checkpoints.values()) or "none"
        raise Refused(f"--at {at:g}: the past run kept no checkpoint nearer to it than its end (kept: {kept}). Choose one of "
                      "those, or run baselines/warm_start.py.")
    return name


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = run.past(data)[0]
    model.load_state_dict(past.weights(model, checkpoint=nearest(past.checkpoints(), args.at)))

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
