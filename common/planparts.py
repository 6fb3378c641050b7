"""What a fixed plan consists of; the plans themselves stand in common/plans.py."""
import importlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Runs:
    """One script at several budgets and seeds."""

    script: str                                               # "methods/kd"
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    options: tuple[str, ...] = ()
    tag: str = ""
    past: str = ""                                            # kind of past runs, if not what the script needs


@dataclass(frozen=True)
class Study:
    """A fixed plan; a budget is a share of `epochs`."""

    task: str
    model: str
    past_epochs: float
    runs: tuple[Runs, ...]
    epochs: float | None = None                               # of budget 1; the past runs' where there is none
    past_options: tuple[str, ...] = ()                        # of the past runs; with --lr their settings, else those of budget 1
    options: tuple[str, ...] = ()                             # of all new runs
    past_of: str = ""                                         # the study whose past runs these are, if not its own
    scratch_of: str = ""                                      # the study whose runs of scratch these are, likewise
    confirms: str = ""                                        # the study that chose these methods, on other seeds
    past_seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    generations: int = 0                                      # length of chains in which each run reuses the one before
    portions: int = 0                                         # in which the data arrive; each run reuses the one before
    trials: int = 0                                           # of random searches in which each run reuses the best so far
    holdout: float = 0.1                                      # share of the training examples that chooses among trials
    others: dict[str, tuple[float, tuple[str, ...]]] = field(default_factory=dict)      # kind of past runs -> epochs, options
    settings: dict[float, tuple[float, float]] = field(default_factory=dict)    # budget -> learning rate, weight decay
    scenario: str = "same"
    recommend: bool = True
    tuning: bool = False                                      # the report is a table of settings


def every_script() -> list[str]:
    """"baselines/ema", ..., scratch first."""
    found = [f"{folder}/{path.stem}" for folder in ("baselines", "methods") for path in sorted((ROOT / folder).glob("*.py"))]
    return sorted(found, key=lambda script: script != "baselines/scratch")


@cache
def needs(script: str) -> str:
    """"past" if a script reuses past runs, "folds" if each of those must have left out another part of the data, "" if none."""
    return importlib.import_module(script.replace("/", ".")).parser().get_default("needs_past")


@cache
def works_on(script: str, predicts: str) -> bool:
    """Whether a script makes sense where a task predicts that: classes, pixels, boxes."""
    return predicts in importlib.import_module(script.replace("/", ".")).parser().get_default("predicts")
