"""The arguments that every script takes, and what is refused among them."""
import argparse
import math
import re
import shlex
from collections.abc import Collection
from pathlib import Path

import torch

from common.detection import STRIDE
from common.files import Refused
from common.models import model_name
from common.naming import fill
from common.ranks import device_of
from common.runfiles import find_runs, labels_of, read_config
from common.splits import sides
from common.tasks import TASKS

INHERITED = ("task", "model", "labels", "augment", "epochs", "batch_size", "lr", "weight_decay", "image_size")
PREDICTS = ("classes", "pixels", "boxes")
AUGMENT, LABELS = ("crop-flip", "none"), ("fine", "coarse")


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


def positive(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def count(text: str) -> int:
    """argparse type: a whole number, 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def weight(text: str) -> float:
    """argparse type: a finite number, 0 or more."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def image_size(text: str) -> int | str:
    """argparse type: pixels of a side, or height and width as in 128x160."""
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be a number of pixels, or two as in 128x160, got {text}")
    height, width = sides(text)
    if not all(8 <= side <= 1024 for side in (height, width)):
        raise argparse.ArgumentTypeError(f"must be from 8 to 1024 pixels, got {text}")
    return height if height == width else f"{height}x{width}"


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines, prints each default."""


class Parser(argparse.ArgumentParser):
    """parse_args() looks at past runs and refuses what cannot work; parse_only() is for plans of runs to come."""

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        return resolve(self._parse(args))

    def parse_only(self, args: list[str]) -> argparse.Namespace:
        return fill(self._parse(args))

    def _parse(self, args: list[str] | None) -> argparse.Namespace:
        parsed = super().parse_args(args)
        parsed.own_defaults = {name: self.get_default(name) for name in vars(parsed)}
        return parsed


def by_task(name: str) -> str:
    """Defaults of an argument: "0.2 for shapes, shapes-seg, 0.3 for cifar100"."""
    tasks: dict[str, list[str]] = {}
    for task, record in TASKS.items():
        value = record.defaults[name]
        tasks.setdefault(f"{value:g}" if isinstance(value, float) else str(value), []).append(task)
    return ", ".join(f"{value} for {', '.join(names)}" for value, names in tasks.items())


def arguments(file: str, doc: str, past: bool | str = False, predicts: Collection[str] = PREDICTS) -> Parser:
    """A parser with the shared arguments; the script adds its own.

    Args
        file: the script's `__file__`; its stem is the method's name.
        past: whether the script reuses past runs, and refuses to start without --past; "folds" if each of them must have left
            out another part of the data.
        predicts: what a task may predict for the script to make sense: "classes" of images, "pixels", "boxes".
    """
    per_task = {name: by_task(name) for name in next(iter(TASKS.values())).defaults}
    inherited = "default: that of --past, else "
    parser = Parser(description=doc, formatter_class=Formatter)
    parser.set_defaults(method=Path(file).stem, needs_past="past" if past is True else past or "", predicts=tuple(predicts))
    add = parser.add_argument

    def own(*names, help, **kwargs):                          # a default that depends on the task or on --past
        add(*names, default=argparse.SUPPRESS, help=help, **kwargs)

    own("--task", choices=TASKS, help=f"data set with its loss and score ({inherited}shapes)")
    add("--data-dir", default="data", metavar="DIR", help="folder of the data sets, as torchvision lays them out; of --task "
        "folder the images themselves, by default those of --past")
    own("--model", type=model_name, metavar="NAME", help="architecture: resnet8 to resnet110, one of these at another width "
        f"(resnet56x2), or torchvision's (tv:resnet18) ({inherited}{per_task['model']})")
    own("--epochs", type=float, metavar="E", help="budget: passes over the examples kept, a fraction is allowed; the "
        f"learning rate is annealed to exactly that ({inherited}{per_task['epochs']})")
    own("--batch-size", type=int, metavar="B", help=f"examples in a step ({inherited}{per_task['batch_size']})")
    own("--lr", type=float, metavar="LR", help="peak learning rate of SGD, loss averaged over the batch "
        f"({inherited}{per_task['lr']})")
    own("--weight-decay", type=float, metavar="WD", help="L2 penalty on the weights of convolutions and linear layers, "
        f"added to the gradient ({inherited}{per_task['weight_decay']})")
    add("--seed", type=int, default=0, metavar="K", help="of initial weights, data order and views; past runs have 100, "
        "101, ...; where one is reused, seed k takes number 100 + k if it is there, else the runs in turn")
    own("--augment", choices=AUGMENT, help="pad 4 pixels, crop, flip; or nothing "
        f"({inherited}crop-flip)")
    own("--labels", choices=LABELS, help=f"classes or superclasses ({inherited}fine)")
    own("--image-size", type=image_size, metavar="PIXELS", help="side to which image files are resized once, the middle of the "
        "longer side kept; where pixels or boxes are predicted, height x width as in 128x160, the whole image "
        f"({inherited}{per_task['image_size']})")
    add("--subset", default="all", metavar="TEXT", help="part of the training set, of each class alike: all, half, share:0.2, "
        "first:0.5 (in the data set's order), not:3/5, classes:80, members:3/5")
    add("--parts", default="", metavar="TEXT", help="score apart what --subset TEXT would keep, as old, and the rest, as new: "
        "the test examples of its classes, or, where it keeps all classes, the training examples")
    add("--holdout", type=float, default=0.0, metavar="SHARE", help="share of the training examples (0..1) to leave out "
        "and to evaluate on instead of the test set, for choosing hyperparameters")
    add("--past", nargs="+", default=[], metavar="PATH", help="finished runs to reuse: run folders or folders of them")
    add("--pick", choices=("own", "best"), default="own", help="which past run is reused where only one is: this seed's own "
        "(100 + seed), or the one with the best last score on its holdout")
    add("--results", default="results", metavar="DIR", help="folder below which the run's folder is made")
    add("--tag", default="", metavar="TEXT", help="appended to the method's name in the run's folder")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", metavar="NAME", help="torch device")
    add("--no-amp", action="store_true", help="compute in float32 rather than in bf16 (GPUs without bf16: in fp16; "
        "CPUs without it compute in float32 anyway)")
    add("--compile", action="store_true", help="torch.compile the loss function; its time is not counted")
    add("--graph", action="store_true", help="capture a step as one CUDA graph, for small models on a GPU; that time is "
        "not counted")
    add("--sync-batch-norm", action="store_true", help="on GPUs under torchrun, let batch norm see the whole batch instead of "
        "each rank's part")
    add("--slim", action="store_true", help="leave weights in float16 and statistics per example averaged over epochs: "
        "small enough to commit, enough to be a past run")
    add("--force", action="store_true", help="resume although device, thread count or versions differ")
    return parser


def resolve(args: argparse.Namespace) -> argparse.Namespace:
    """Fills in what depends on --past and the task, and refuses what cannot work.

    Raises
        Refused: naming the argument, what was expected and what came.
    """
    args.past_folders = find_runs(args.past)
    if args.needs_past and not args.past_folders:
        task, where = getattr(args, "task", "shapes"), shlex.quote(args.data_dir)
        more = f" --data-dir {where}" if args.data_dir != args.own_defaults["data_dir"] else ""
        more += " --subset not:1/5" if args.needs_past == "folds" else ""
        raise Refused(f"{args.method} reuses past runs, and --past names none. This makes one:\n    python baselines/scratch.py "
                      f"--task {task}{more} --seed 100 --results results/by-hand/past\n"
                      "Then add: --past results/by-hand/past")
    first = read_config(args.past_folders[0]) if args.past_folders else {}
    theirs = first["args"] | {"labels": labels_of(first)} if first else {}
    inherited = {}
    for name in INHERITED:
        if name in theirs and not hasattr(args, name) and (name == "task" or theirs["task"] == args.task):
            inherited[name] = theirs[name]
            setattr(args, name, theirs[name])
        elif name == "task" and not hasattr(args, name):
            args.task = "shapes"
    fill(args).inherited = inherited
    if args.task in TASKS and TASKS[args.task].anybodys and theirs.get("task") == args.task \
            and args.data_dir == args.own_defaults["data_dir"]:
        args.data_dir = inherited["data_dir"] = theirs.get("data_dir", args.data_dir)
    if args.task in TASKS and TASKS[args.task].anybodys and args.data_dir == args.own_defaults["data_dir"]:
        raise Refused(f"--task {args.task} is for images of your own: name the folder that holds them with --data-dir "
                      f"({args.data_dir}/ holds the other tasks' data).")
    if args.task in TASKS and TASKS[args.task].anybodys:
        args.data_dir = str(Path(args.data_dir).resolve())    # as recorded, so that who inherits it finds it from any folder
    if args.task not in TASKS:
        raise Refused(f"--task {args.task} is unknown here; choose from {', '.join(TASKS)}.")
    if (kind := TASKS[args.task].predicts) not in args.predicts:
        able = ", ".join(name for name, task in TASKS.items() if task.predicts in args.predicts)
        raise Refused(f"{args.method} needs a task that predicts {' or '.join(args.predicts)}, and --task {args.task} predicts "
                      f"{kind}: choose another method, or --task {able}.")
    if TASKS[args.task].predicts != "classes":
        refuse_classes(args)
    model_name(args.model)                                    # a past run's may be unknown here
    for name, fits, must in (("epochs", args.epochs > 0, "be above 0"), ("batch_size", args.batch_size > 1, "be above 1"),
                             ("lr", args.lr > 0, "be above 0"), ("weight_decay", args.weight_decay >= 0, "be 0 or more"),
                             ("holdout", 0 <= args.holdout < 1, "be at least 0 and below 1"),
                             ("seed", args.seed >= 0, "be 0 or more"),
                             ("image_size", isinstance(args.image_size, int) or TASKS[args.task].predicts != "classes",
                              "be one number: images to be classified are square"),
                             ("labels", args.labels in LABELS, f"be one of {', '.join(LABELS)}"),
                             ("augment", args.augment in AUGMENT, f"be one of {', '.join(AUGMENT)}"),
                             ("tag", all(c.isalnum() or c in "_.-" for c in args.tag), "have letters, digits, '.', '_', '-'")):
        value = getattr(args, name)
        if not fits or isinstance(value, float) and not math.isfinite(value):
            raise Refused(f"--{name.replace('_', '-')} must {must}, got {value!r}.")
    try:
        if torch.device(args.device).type not in ("cpu", "cuda"):
            raise RuntimeError("it is neither cpu nor cuda.")
        torch.empty(1, device=device_of(args.device))
    except (RuntimeError, AssertionError) as error:
        raise Refused(f"--device {args.device} cannot be used: {str(error).splitlines()[0]} Use another, such as cpu.") from None
    for name in ("graph", "sync_batch_norm"):
        if getattr(args, name) and torch.device(args.device).type != "cuda":
            raise Refused(f"--{name.replace('_', '-')} is for GPUs, and --device is {args.device}: leave it out here.")
    return args


def refuse_classes(args: argparse.Namespace) -> None:
    """What makes no sense where pixels or boxes are predicted.

    Raises
        Refused: naming the argument.
    """
    for name, text in (("subset", args.subset), ("parts", args.parts)):
        if text.partition(":")[0] not in ("", "all", "half", "share", "first", "not"):
            raise Refused(f"--{name} {text} goes by the class of an image, and --task {args.task} predicts "
                          f"{TASKS[args.task].predicts}: choose half, share:0.2, first:0.5 or not:3/5.")
    if args.labels != "fine":
        raise Refused(f"--labels {args.labels} are superclasses of images: leave it out with --task {args.task}.")
    if TASKS[args.task].predicts == "boxes" and any(side % STRIDE for side in sides(args.image_size)):
        raise Refused(f"--image-size {args.image_size}: where boxes are predicted, sides must be multiples of {STRIDE} pixels.")
