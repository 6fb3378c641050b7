"""Weight average: start from the mean of all past runs' weights, with or without matching their neurons first.

Reuses   final weights of all --past
Pays     preparation: matching, and batch norm's statistics measured anew on --refresh batches
Source   Ainsworth et al. 2023, arXiv:2209.04836, algorithm 1 (weight matching); statistics: Jordan et al. 2023, arXiv:2211.08403
Differs  each past run is matched to the first one, not all to each other; statistics are re-estimated on middle
         views, not repaired
Neutral  none: of one past run alone it is baselines/warm_start.py with other batch norm statistics

    python methods/weight_average.py --past results/cifar100-mini/past --match
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from common.amp import autocast
from common.args import arguments, count
from common.data import all_batches, train_batches
from common.files import Refused
from common.models import ResNet
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--match", action="store_true", help="permute the neurons of each past run to fit the first one's")
    parser.add_argument("--refresh", type=count, default=50, help="batches for batch norm's statistics, at most one pass")
    return parser


def neurons(model):
    """Which axes of which tensors number the same neurons: group -> {tensor: axis}. A stage's blocks share their outputs."""
    if type(model) is not ResNet:                             # those for pixels and boxes are wired otherwise
        raise Refused("--match knows the neurons of this repository's ResNets for classes only: choose --model resnet8 to "
                      "resnet110, or leave --match out.")

    def norm(name):
        return {f"{name}.{part}": 0 for part in ("weight", "bias", "running_mean", "running_var")}

    groups, stream = {}, {"conv.weight": 0} | norm("bn")      # what flows between blocks; stage1 goes on with the stem's
    for stage in ("stage1", "stage2", "stage3"):
        for block, module in getattr(model, stage).named_children():
            at = f"{stage}.{block}"
            grows = not isinstance(module.shortcut, nn.Identity)
            if grows:                                         # reads the last stream, begins another
                groups[f"before {stage}"] = stream | {f"{at}.conv1.weight": 1, f"{at}.shortcut.0.weight": 1}
                stream = {f"{at}.shortcut.0.weight": 0} | norm(f"{at}.shortcut.1")
            groups[at] = {f"{at}.conv1.weight": 0, f"{at}.conv2.weight": 1} | norm(f"{at}.bn1")
            stream |= {f"{at}.conv2.weight": 0} | norm(f"{at}.bn2") | ({} if grows else {f"{at}.conv1.weight": 1})
    return groups | {"before head": stream | {"head.weight": 1}}


def match(call, target, other, groups, seed, most=100):
    """`other` with its neurons permuted, group after group, to the largest inner product with `target`, until nothing moves."""
    other = dict(other)
    for turn in range(most):
        moved = False
        for group in torch.randperm(len(groups), generator=generator(seed, "match", turn)).tolist():
            axes = list(groups.values())[group]
            gain = sum(call(torch.matmul, rows(target[name], axis), rows(other[name], axis).T)       # [n, n]
                       for name, axis in axes.items() if "running" not in name)
            found = linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1]
            order = torch.from_numpy(found).to(gain.device)   # [n] neuron of other
            if gain.gather(1, order[:, None]).sum() > gain.trace() + 1e-6:
                moved = True
                other |= {name: other[name].index_select(axis, order) for name, axis in axes.items()}
        if not moved:
            break
    return other


@torch.no_grad()
def refresh(call, model, batches):
    """Batch norm's statistics become their plain means over the batches."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None                                  # a plain mean
    for batch in batches:
        call(model, batch.image)
    for norm, old in zip(norms, momentum, strict=True):
        norm.momentum = old


def rows(tensor, axis):
    """[n, everything else] of a tensor whose `axis` numbers n neurons."""
    return tensor.movedim(axis, 0).flatten(1).double() if tensor.ndim > 1 else tensor[:, None].double()


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    weights = [past.weights(model) for past in run.past(data)]
    with run.prepare("average") as call:
        if args.match:
            groups = neurons(model)
            weights = [weights[0], *(match(call, weights[0], other, groups, args.seed) for other in weights[1:])]
        model.load_state_dict({name: torch.stack([w[name].double() for w in weights]).mean(0) for name in weights[0]})
        order = data.train.index[torch.randperm(len(data.train), generator=generator(args.seed, "refresh"))]
        batches = all_batches(data.train, args.batch_size, order=order[: args.refresh * args.batch_size])
        with autocast(run.amp, run.device):
            refresh(call, model, batches)

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
