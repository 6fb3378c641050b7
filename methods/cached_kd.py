"""Cached distillation: the teacher looks once at a few fixed views of every image; the student trains on those very views.

Reuses   final weights of --past
Pays     preparation: V teacher forward passes over the training set (one without augmentation), dearer than kd up to V epochs;
         nothing per step
Source   Shen and Xing 2022, arXiv:2112.01528 (FKD); views must match, Beyer et al. 2021, arXiv:2106.05237
Differs  4 views of an image, not hundreds; crops and flips, not random resized crops; all logits in float16, not the five
         largest probabilities; one view of an image in a batch; the labels too, alpha and temperature as in kd
Neutral  --alpha 0 is its control, scratch on the same views; with --views 162 too it is baselines/scratch.py, bit for bit

    python methods/cached_kd.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common.args import arguments, positive, share
from common.cache import cached_table
from common.data import CENTER, VIEWS, all_batches, train_batches
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--alpha", type=share, default=0.9, help="weight (0..1) of the teacher's term, 1 - alpha of the labels'")
    parser.add_argument("--temperature", type=positive, default=4.0, help="divides both models' logits (no unit)")
    parser.add_argument("--views", type=int, choices=range(1, VIEWS + 1), metavar="V", default=4,
                        help=f"fixed views of each image, 1 to {VIEWS}, that stand in for fresh ones")
    return parser


def choose(examples, args):
    """[N, V] the fixed views of each example, in order, drawn without replacement; without augmentation [N, 1], the middle."""
    if args.augment == "none":
        return torch.full((examples, 1), CENTER)
    order = torch.rand(examples, VIEWS, generator=generator(args.seed, "fixed views")).argsort(1)
    return order[:, : args.views].sort(1).values


def cached_outputs(run, data, views):
    """[N, V, ...] the past run's outputs for each example under its `views` [N, V], from disk where already paid."""
    past, args = run.past(data)[0], run.args
    teacher = past.model(run.device)                          # frozen, eval mode

    @torch.no_grad()
    def ask(call, table):
        for column in range(views.shape[1]):
            for batch in all_batches(data.train, args.batch_size, views[:, column]):
                table[batch.index.cpu().numpy(), column] = call(teacher, batch.image).half().cpu().numpy()

    key = {"teacher": past.digest(), "data": data.fingerprint, "subset": args.subset, "holdout": args.holdout,
           "labels": args.labels, "augment": args.augment, "views": views.shape[1], "seed": args.seed, "amp": str(run.amp),
           "device": run.config["device"]}
    with run.prepare("cache") as call, torch.no_grad():
        shape = call(teacher, next(all_batches(data.train, 2)).image).shape[1:]     # how large an output is
    return cached_table(run, "cache", key, (*views.shape, *shape), ask)


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    views = choose(data.examples, args).to(run.device)        # [N, V]
    if args.alpha:
        cache = cached_outputs(run, data, views)              # [N, V, C]

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    def distil(model, batch):
        soft = cache[batch.index, batch.view]                 # [B, C]
        output = model(batch.image)                           # [B, C]
        hard = task.loss(output, batch.target)                # [B]
        kd = task.distill(output, soft, args.temperature)     # [B]
        return (1 - args.alpha) * hard + args.alpha * kd, {"kd": kd} | task.stats(output, batch.target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch, views=views):
            step(batch, distil if args.alpha else plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
