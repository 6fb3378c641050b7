"""Exponential moving average of the weights: evaluates and keeps the average instead of the last weights.

Reuses   nothing
Pays     one pass over the weights per step
Source   Polyak and Juditsky 1992; batch norm's statistics averaged too, as use_buffers of torch.optim.swa_utils does
Differs  the horizon is a share of the training, not a number of steps, so that it fits every budget
Neutral  --horizon 0 is baselines/scratch.py, bit for bit

    python baselines/ema.py
"""
import sys
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

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


@torch.no_grad()
def follow(average, model, share):
    """Moves weights and statistics by `share` (0..1) of the way to the model's; AveragedModel would wait for the device."""
    for floating in (True, False):                            # batch norm's counts of batches are whole numbers
        mine, theirs = ([tensor for tensor in (*m.parameters(), *m.buffers()) if tensor.is_floating_point() == floating]
                        for m in (average, model))
        if mine:
            torch._foreach_lerp_(mine, theirs, share) if floating else torch._foreach_copy_(mine, theirs)


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    horizon = args.horizon * args.epochs * len(data.train) / args.batch_size    # steps
    ema = deepcopy(model)

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step, ema=ema):     # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, plain, lr=args.lr * one_cycle(progress))
            follow(ema, model, 1 / max(horizon, 1) if run.steps > 1 else 1)     # initial weights take no part
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(ema, data.test))
    run.finish(ema)


if __name__ == "__main__":
    main(parser().parse_args())
