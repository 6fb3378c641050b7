"""Exponential moving average of the weights: evaluates and keeps the average instead of the last weights.

Reuses   nothing
Pays     one pass over the weights per step
Source   Polyak and Juditsky 1992; torch.optim.swa_utils, batch norm's statistics averaged too
Differs  the horizon is a share of the training, not a number of steps, so that it fits every budget
Neutral  --horizon 0 is baselines/scratch.py, bit for bit

    python baselines/ema.py
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common.args import arguments, share
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__)
    parser.add_argument("--horizon", type=share, default=0.02,
                        help="share of the training (0..1) over which the average forgets; the decay is 1 - 1 / its steps")
    return parser


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    horizon = args.horizon * args.epochs * len(data.train) / args.batch_size    # steps
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / max(horizon, 1)), use_buffers=True)

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step, ema=ema):     # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, plain, lr=args.lr * one_cycle(progress))
            ema.update_parameters(model)
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(ema.module, data.test))
    run.finish(ema.module)


if __name__ == "__main__":
    main(parser().parse_args())
