"""RHO-loss: of each large batch, train on what is learnable but not yet learnt: current loss minus a past model's loss.

Reuses   final weights of --past, each on the examples it has not seen: runs made with --subset not:1/5, not:2/5, ...
Pays     preparation: those runs, which nothing else needs, and one scoring pass; a forward pass over each large batch
Source   Mindermann et al. 2022, arXiv:2206.07137, algorithm 1
Differs  a past model of the same size, its last weights, by cross-fitting, on the middle view; half of --batch-size is kept
         and trained on, at scratch's learning rate; theirs keeps a tenth of ten batches (selection is in train mode, as in
         their code, so that it updates batch norm's statistics too)
Neutral  --keep 1 is baselines/scratch.py, bit for bit

    python methods/rho_loss.py --past results/cifar100-mini/folds
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch

from common import ranks
from common.amp import autocast
from common.args import arguments, share
from common.data import all_batches, train_batches
from common.files import Refused
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past="folds")
    parser.add_argument("--keep", type=share, default=0.5, help="share (0..1) of each batch to train on")
    return parser


@torch.no_grad()
def unseen_loss(call, past, data, task, run):
    """[N] loss of each training example under the past models that have not seen it, averaged over them."""
    total, count = torch.zeros(data.examples, device=run.device), torch.zeros(data.examples, device=run.device)
    for fold in past:
        unseen, model = fold.examples("loss").isnan(), fold.model(run.device, every_class=True)
        for batch in all_batches(data.train.only(unseen), run.args.batch_size):
            with autocast(run.amp, run.device):
                total[batch.index] += task.loss(call(model, batch.image), batch.target)
            count[batch.index] += 1
    if (count[data.train.index.to(run.device)] == 0).any():
        raise Refused("every past run has seen some of the training examples: nobody can say what is learnable about them. "
                      "Name past runs that left them out in turn: baselines/scratch.py --subset not:1/5, not:2/5, ... not:5/5.")
    return total / count


def select(loss, irreducible, kept):
    """[kept] rows of largest loss - irreducible loss, both [B]: what is learnable and not yet learnt; the largest first."""
    return (loss - irreducible).topk(kept).indices


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    past = run.past(data)
    for fold in past:                                         # made for this method alone, so it pays for them
        if fold.summary["past"]:
            raise Refused(f"{fold.name} has itself reused {', '.join(fold.summary['past'])}, so that it may know what it left "
                          "out: use runs of baselines/scratch.py.")
        if fold.config["device"]["name"] != run.config["device"]["name"]:
            ranks.say(f"warning: {fold.name} was made on a {fold.config['device']['name']}, and its seconds are charged here.",
                      file=sys.stderr)
        run.charge("past runs", fold.summary["seconds"]["counted"], sum(fold.summary["flops"].values()))
    with run.prepare("scores") as call:
        irreducible = unseen_loss(call, past, data, task, run)                  # [N]
    kept = max(1, round(args.keep * args.batch_size / ranks.world())) * ranks.world()

    def plain(model, batch):                                  # one loss per example, and its named parts
        output = model(batch.image)                           # [B, C]
        loss = task.loss(output, batch.target)                # [B]
        return loss, task.stats(output, batch.target)

    def reducible(model, batch):                              # of the K examples kept
        with torch.no_grad():
            loss = task.loss(model(batch.image), batch.target)                  # [B]
        rows = select(ranks.everyone(loss), ranks.everyone(irreducible[batch.index]), kept)
        at = rows[ranks.rank()::ranks.world()]                # [K] in the batch of all ranks, to each some of the largest
        index, view = ranks.everyone(batch.index)[at], ranks.everyone(batch.view)[at]               # [K] each
        target = data.train.targets(index, view)              # [K]
        output = model(data.train.images(index, view))        # [K, C]
        loss = task.loss(output, target)                      # [K]
        return loss, {"index": index} | task.stats(output, target)

    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, reducible if kept < args.batch_size else plain, lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
