"""Layer freezing: start from a past run's weights, and stop training the layers from the front as training goes on.

Reuses   final weights of --past
Pays     nothing; frozen layers save their backward pass
Source   Brock et al. 2017, arXiv:1706.04983 (FreezeOut, linear schedule), from past weights instead of from scratch
Differs  whole stages freeze, between epochs, all of them by --last, batch norm too; their learning rates are not annealed before,
         so that by default the first freeze near the schedule's peak, far from the past weights (--first 0: at those)
Neutral  --first 1 is baselines/warm_start.py, bit for bit

    python methods/layer_freeze.py --past results/cifar100-mini/past
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from torch import nn

from common.args import arguments, share
from common.data import train_batches
from common.run import Run
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS


def parser():
    parser = arguments(__file__, __doc__, past=True)
    parser.add_argument("--first", type=share, default=0.25, help="progress (0..1) at which the first layers freeze")
    parser.add_argument("--last", type=share, default=0.75, help="progress (0..1) at which all but the head are frozen")
    return parser


def groups(model):
    """Lists of layers that freeze together, from the front, without the head: a stage each, the stem with the first."""
    while len(list(model.children())) == 1:                   # a wrapper of torchvision's
        model = next(model.children())
    layers = list(model.children())[:-1]
    begins = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Sequential)]
    if len(begins) == 1:                                      # one list of blocks, as in MobileNets
        return [[block] for block in layers[begins[0]]]
    edges = [0, *begins[1:], len(layers)]
    return [layers[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]


def count_frozen(progress, layers, args):
    """How many of the front's `layers` groups are frozen: 1 from `first` on, all of them from `last` on, evenly between."""
    if progress < args.first:
        return 0
    between = (progress - args.first) / (args.last - args.first) if progress < args.last else 1
    return 1 + int(between * (layers - 1) + 1e-9)


def main(args):
    run = Run(args)                                           # the clock runs from here; only untimed() stops it
    task = TASKS[args.task]
    with run.untimed("data"):
        data = task.load(args, run.device)
    model = task.build(args, data)
    model.load_state_dict(run.past(data)[0].weights(model))
    front = groups(model)

    def another():                                            # a loss function for each count of frozen layers: its FLOPs differ
        def plain(model, batch):                              # one loss per example, and its named parts
            output = model(batch.image)                       # [B, C]
            loss = task.loss(output, batch.target)            # [B]
            return loss, task.stats(output, batch.target)
        return plain

    losses = [another() for _ in range(len(front) + 1)]
    step = Step(run, model, sgd(model, args))
    for epoch in run.epochs(args.epochs, data, step=step):    # 0 is before training; restores a killed run
        frozen = count_frozen((epoch - 1) / args.epochs, len(front), args)
        for layer in sum(front[:frozen], []):
            layer.requires_grad_(False).eval()                # batch norm keeps its statistics
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, losses[frozen], lr=args.lr * one_cycle(progress))
        with run.untimed("eval"):
            run.log(epoch, step.means() | task.evaluate(model, data.test))
    run.finish(model)


if __name__ == "__main__":
    main(parser().parse_args())
