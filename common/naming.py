"""What makes two runs the same run: the arguments that count, and the folder that they name."""
import argparse
import hashlib
import json
from pathlib import Path

from common.tasks import TASKS

# Where a run is made, on what, and what of it is looked at, does not make it another run; task ... seed stand in the
# folder's name already.
PLACE = ("data_dir", "results", "device", "compile", "graph", "slim", "force", "parts")
NAMED = ("task", "model", "method", "tag", "epochs", "seed")


def fill(args: argparse.Namespace) -> argparse.Namespace:
    """Sets what is not set yet to the task's defaults."""
    for name, value in defaults(args.task).items():
        if not hasattr(args, name):
            setattr(args, name, value)
    return args


def defaults(task: str) -> dict:
    """Fixed defaults of the arguments that may be inherited: what a run's folder is named against."""
    return {"task": "shapes", "labels": "fine", "augment": "crop-flip", **TASKS[task].defaults} if task in TASKS else {}


def recorded(args: argparse.Namespace, past: list[str]) -> dict:
    """What config.json keeps: every argument, past runs by their names."""
    hidden = ("past_folders", "inherited", "needs_past", "own_defaults", "predicts")
    return {k: v for k, v in sorted(vars(args).items()) if k not in hidden} | {"past": past}


def folder_name(args: argparse.Namespace, past: list[str]) -> str:
    """`<task>-<model>/<method>[-<tag>]/e<epochs>[-<8 hex>]/seed<k>`; the hex digits are of the other arguments that
    differ from their defaults, past runs counting by name and not by path."""
    fixed = args.own_defaults | defaults(args.task) | {"past": []}
    others = {k: v for k, v in recorded(args, past).items() if k not in PLACE + NAMED and v != fixed.get(k)}
    if args.task in TASKS and TASKS[args.task].anybodys:
        others["data_dir"] = str(Path(args.data_dir).resolve())
    digest = "-" + hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()[:8] if others else ""
    method = args.method + (f"-{args.tag}" if args.tag else "")
    return f"{args.task}-{args.model}/{method}/e{args.epochs:g}{digest}/seed{args.seed}"
