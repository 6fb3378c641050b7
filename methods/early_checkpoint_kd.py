"""Early checkpoint with partial distillation: start from where a past run once was, and ask where it ended.

Reuses   one checkpoint of --past as a start, its final weights as a teacher
Pays     one teacher forward pass at --share of the steps
Source   this repository; Liu et al. 2023, arXiv:2303.06480, for asking at a share of the steps, as read in partial_kd
Differs  see early_checkpoint and partial_kd
Neutral  --share 0 is methods/early_checkpoint.py, bit for bit

    python methods/early_checkpoint_kd.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, positive, share
from common.data import train_batches
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS
from methods.early_checkpoint import nearest


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--at", type=share, default=0.25, help="progress (0..1) of the past run at which to take its "
                        "weights; the nearest checkpoint it kept")
    parser.add_argument("--alpha", type=share, default=0.9, help="weight (0..1) of the teacher's term, 1 - alpha of the labels'")
    parser.add_argument("--temperature", type=positive, default=4.0, help="divides both models' logits (no unit)")
    parser.add_argument("--share", type=share, default=0.2, help="share of the steps (0..1), drawn at random, with a teacher")
    return parser


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = run.past(data)[0]
    teacher = past.model(run.device)                          # frozen, eval mode
    model.load_state_dict(past.weights(model, checkpoint=nearest(past.checkpoints(), args.at)))

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    def distil(model, batch):
        with torch.no_grad():
            soft = teacher(batch.image)                       # [B, C]
        output = model(batch.image)                           # [B, C]
        hard = task.loss(output, batch.target)                # [B]
        kd = task.distill(output, soft, args.temperature)     # [B]
        return (1 - args.alpha) * hard + args.alpha * kd, {"kd": kd} | task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        draw = torch.rand(len(data.train), generator=generator(args.seed, "partial", epoch)).tolist()
        for progress, batch in train_batches(data.train, run, epoch):
            asks = draw[run.steps % len(draw)] < args.share
            step(batch, distil if asks else plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
