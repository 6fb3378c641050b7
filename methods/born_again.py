"""Born-again network: the next generation learns from the last one's probabilities, or from one of the two halves of them.

Reuses   final weights of --past
Pays     one teacher forward pass per step, on the clock
Source   Furlanello et al. 2018, arXiv:1805.04770, sections 3.1 and 3.2
Differs  nothing in the loss; one generation per run, the next one names it as its --past
Neutral  --alpha 0 --hard 1 is baselines/scratch.py, bit for bit

    python methods/born_again.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch
from torch.nn import functional as F

from common import ranks
from common.args import arguments, weight
from common.data import train_batches
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True, predicts=["classes"])
    parser.add_argument("--term", choices=("ban", "cwtm", "dkpp"), default="ban", help="what to learn from the teacher: its "
                        "probabilities; labels weighted by its confidence; its probabilities, all but the largest permuted")
    parser.add_argument("--alpha", type=weight, default=1.0, help="weight of that term (no unit)")
    parser.add_argument("--hard", type=weight, default=0.0, help="weight of the labels (no unit); 1 is BAN+L")
    return parser


def soft_cross_entropy(output, p):
    """Logits [B, C], probabilities [B, C] -> [B] nats."""
    return -(p * F.log_softmax(output.float(), 1)).sum(1)


def confidence_weighted(hard, p):
    """Cross-entropy [B] on the labels times the teacher's largest probability, weights of mean 1."""
    confidence = p.max(1).values
    return hard * confidence / ranks.everyone(confidence).mean()


def permuted(p, noise):
    """Probabilities [B, C] with all but each row's largest one in an order given by `noise` [B, C] in 0..1."""
    first = F.one_hot(p.argmax(1), p.shape[1])                # [B, C]
    place = (1 - first).argsort(dim=1, stable=True)             # the largest one's place, then the others' from left to right
    source = (noise - 2.0 * first).argsort(1)                 # likewise, the others shuffled
    return torch.zeros_like(p).scatter(1, place, p.gather(1, source))


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    teacher = run.past(data)[0].model(run.device, every_class=True)     # frozen, eval mode
    noise = torch.zeros(args.batch_size // ranks.world(), len(data.classes), device=run.device)

    def distil(model, batch):                                 # one loss per example, and its named parts
        with torch.no_grad():
            p = teacher(batch.image).float().softmax(1)       # [B, C]
        output = model(batch.image)                           # [B, C]
        hard = task.loss(output, batch.target)                # [B]
        if args.term == "cwtm":
            term = confidence_weighted(hard, p)
        else:
            term = soft_cross_entropy(output, permuted(p, noise) if args.term == "dkpp" else p)
        return args.hard * hard + args.alpha * term, {"kd": term} | task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            if args.term == "dkpp":
                drawn = torch.rand(args.batch_size, len(data.classes), generator=generator(args.seed, "permute", run.steps))
                own = ranks.own(drawn)
                noise.copy_(own.pin_memory() if noise.is_cuda else own, non_blocking=True)          # pinned: nothing waits
            step(batch, distil, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
