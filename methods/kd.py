"""Knowledge distillation: match the softened class probabilities of an earlier run.

Reuses   final weights of --past
Pays     one teacher forward pass per step, on the clock
Source   Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2
Differs  the teacher sees the student's own view of each image; alpha and temperature are RepDistiller's (Tian et al. 2020);
         labels weigh 1 - alpha also for classes that the teacher does not know (in arXiv:1606.09282 as much as the teacher)
Neutral  --alpha 0 is baselines/scratch.py, bit for bit

    python methods/kd.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, positive, share
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--alpha", type=share, default=0.9, help="weight (0..1) of the teacher's term, 1 - alpha of the labels'")
    parser.add_argument("--temperature", type=positive, default=4.0, help="divides both models' logits (no unit)")
    return parser


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    teacher = run.past(data)[0].model(run.device)             # frozen, eval mode

    def distil(model, batch):                                 # one loss per example, and its named parts
        with torch.no_grad():
            soft = teacher(batch.image)                       # [B, C]
        output = model(batch.image)                           # [B, C]
        hard = task.loss(output, batch.target)                # [B]
        kd = task.distill(output, soft, args.temperature)     # [B]
        return (1 - args.alpha) * hard + args.alpha * kd, {"kd": kd} | task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, distil, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
