"""Loss replay: reload a past run and finetune on the examples it found hard, mixed with uniform ones against forgetting.

Reuses   final weights of --past, and its loss on each example averaged over its epochs
Pays     nothing: an epoch has as many examples as any other's
Source   this repository; hard examples by past loss as in Jiang et al. 2019, arXiv:1910.00762
Differs  it has no paper; its control is baselines/warm_start.py at the same budget. What the past run was not shown counts as
         hardest, by lot: new examples, and, of a past loss_replay of less than two epochs, what that left out
Neutral  --share 0 is baselines/warm_start.py, bit for bit

    python methods/loss_replay.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, share
from common.data import train_batches
from common.examples import unseen_highest
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--share", type=share, default=0.5, help="share of each epoch's examples (0..1) drawn from the hard ones")
    parser.add_argument("--hardest", type=share, default=0.3, help="share of the training set (0..1) that is called hard")
    return parser


def replay(index, loss, args, epoch):
    """n examples for an epoch: `share` from the `hardest`, each as often as the others; the rest from passes over all examples.

    A pass goes on in the next epoch, so that two epochs at the default share show, and record, every example. index [n] of the
    training examples, loss [N] of the past run; what it has not seen (NaN) counts as hardest, by lot.
    """
    loss = unseen_highest(loss, generator(args.seed, "replay unseen", epoch))
    hard = index[loss[index].argsort(descending=True)][: max(1, round(args.hardest * len(index)))]
    count = round(args.share * len(index))
    turns = [hard[torch.rand(len(hard), generator=generator(args.seed, f"replay {turn}", epoch)).argsort()]
             for turn in range(-(-count // len(hard)))]       # whole passes over the hard ones, the last one cut
    n, rest = len(index), len(index) - count
    begin = (epoch - 1) * rest
    passes = torch.cat([torch.rand(n, generator=generator(args.seed, "replay pass", begin // n + k)).argsort() for k in (0, 1)])
    return torch.cat([index[passes[begin % n:][:rest]], *turns])[:n]


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = run.past(data)[0]
    model.load_state_dict(past.weights(model))
    loss = past.examples("loss").cpu()                        # [N], NaN where the past run saw nothing

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        keep = replay(data.train.index, loss, args, epoch)
        for progress, batch in train_batches(data.train, run, epoch, keep=keep):
            step(batch, plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
