"""Decoupled distillation: the teacher's confidence in the label and its ranking of the other classes, weighted apart.

Reuses   final weights of --past
Pays     one teacher forward pass per step, on the clock
Source   Zhao et al. 2022, arXiv:2203.08679, equations 7 and 8; their settings for ResNet-56 and ResNet-20
Differs  its warm-up of 20 of 240 epochs is that share of the training, and rises with every step instead of every epoch;
         --until below 1 is not theirs: ending a teacher's term early is Cho and Hariharan 2019, arXiv:1910.01348
Neutral  --alpha 0 --beta 0 is baselines/scratch.py, bit for bit

    python methods/dkd.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch
from torch.nn import functional as F

from common.args import arguments, positive, share, weight
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True, predicts=["classes"])
    parser.add_argument("--alpha", type=weight, default=1.0, help="weight of the term on the label's class (no unit)")
    parser.add_argument("--beta", type=weight, default=2.0, help="weight of the term on the other classes (no unit)")
    parser.add_argument("--temperature", type=positive, default=4.0, help="divides both models' logits (no unit)")
    parser.add_argument("--warmup", type=share, default=20 / 240, help="share of the training (0..1) in which both weights rise")
    parser.add_argument("--until", type=share, default=1.0, help="progress (0..1) from which on nobody asks the teacher")
    return parser


def decoupled(output, soft, target, temperature):
    """T^2 KL(teacher || student) of (label, all others) [B], and among the others alone [B]; logits [B, C], classes [B]."""
    student, teacher = (F.log_softmax(logits.float() / temperature, 1) for logits in (output, soft))
    label = F.one_hot(target, output.shape[1]).bool()         # [B, C]

    def halves(log_p):                                        # log probability of the label and of all others, [B, 2]
        return torch.stack([log_p.gather(1, target[:, None])[:, 0], log_p.masked_fill(label, -torch.inf).logsumexp(1)], 1)

    def among_others(log_p):                                  # [B, C], the label with a probability of 0
        return F.log_softmax(log_p - 1000.0 * label, 1)

    return tuple(temperature ** 2 * F.kl_div(part(student), part(teacher), reduction="none", log_target=True).sum(1)
                 for part in (halves, among_others))


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    teacher = run.past(data)[0].model(run.device, every_class=True)     # frozen, eval mode
    warm = torch.zeros((), device=run.device)                 # 0..1 during the warm-up

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    def distil(model, batch):
        with torch.no_grad():
            soft = teacher(batch.image)                       # [B, C]
        output = model(batch.image)                           # [B, C]
        hard = task.loss(output, batch.target)                # [B]
        label, others = decoupled(output, soft, batch.target, args.temperature)                     # [B] each
        parts = {"kd_label": label, "kd_others": others} | task.stats(output, batch.target)
        return hard + warm * (args.alpha * label + args.beta * others), parts

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            warm.fill_(min(progress / args.warmup, 1) if args.warmup else 1)
            step(batch, distil if progress < args.until else plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
