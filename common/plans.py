"""The fixed plans of results/, so that nobody chooses a size that suits a result; made by common/study.py."""
import importlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from common.args import folder_name

ROOT = Path(__file__).resolve().parents[1]
PAST_SEEDS = range(100, 105)
FOLDS = {"methods/rho_loss"}                                  # reuse past runs that each left out another fifth


@dataclass(frozen=True)
class Runs:
    """One script at several budgets and seeds."""

    script: str                                               # "methods/kd"
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    options: tuple[str, ...] = ()
    tag: str = ""


@dataclass(frozen=True)
class Study:
    """A fixed plan; a budget is a share of `epochs`."""

    task: str
    model: str
    past_epochs: float
    runs: tuple[Runs, ...]
    epochs: float | None = None                               # of budget 1; the past runs' where there is none
    past_options: tuple[str, ...] = ()                        # of the past runs
    options: tuple[str, ...] = ()                             # of all new runs
    past_of: str = ""                                         # the study whose past runs these are, if not its own
    settings: dict[float, tuple[float, float]] = field(default_factory=dict)    # budget -> learning rate, weight decay
    scenario: str = "same"
    recommend: bool = True
    tuning: bool = False                                      # no past runs; the report is a table of settings


def every_script() -> list[str]:
    """"baselines/ema", ..., scratch first."""
    found = [f"{folder}/{path.stem}" for folder in ("baselines", "methods") for path in sorted((ROOT / folder).glob("*.py"))]
    return sorted(found, key=lambda script: script != "baselines/scratch")


def settings(lr: float, decay: float) -> tuple[str, ...]:
    return "--lr", f"{lr:g}", "--weight-decay", f"{decay:.5f}".rstrip("0")


def tuning(budget: float, rates: tuple[float, ...], decays: tuple[float, ...]) -> tuple[Runs, ...]:
    return tuple(Runs("baselines/scratch", (budget,), (0,), ("--holdout", "0.1", *settings(lr, decay)))
                 for lr in rates for decay in decays)


THREE = (0, 1, 2)
# Best of cifar100-mini-tuning.
MINI = {0.25: (0.8, 2e-4), 0.5: (0.8, 5e-4), 1: (0.8, 2e-4), 2: (0.8, 2e-4)}
SAMPLE = {"options": ("--sample",), "tag": "sample"}
# Ways to use a script that its paper, or its control, sets beside its default.
VARIANTS = (
    ("methods/partial_kd", "early", ("--share", "1", "--until", "0.5")),
    ("methods/partial_kd", "annealed", ("--share", "1", "--until", "0.5", "--anneal")),
    ("methods/cached_kd", "control", ("--alpha", "0")),
    ("methods/born_again", "cwtm", ("--term", "cwtm")),
    ("methods/born_again", "dkpp", ("--term", "dkpp")),
    ("methods/weight_average", "match", ("--match",)))


def screening(besides: tuple[Runs, ...], budget: float, seeds: tuple[int, ...]) -> tuple[Runs, ...]:
    """Every script that is not among `besides`, then the variants, at one budget."""
    others = [script for script in every_script() if script not in {runs.script for runs in besides}]
    return (*(Runs(script, (budget,), seeds) for script in sorted(others, key=lambda script: script in FOLDS)),
            *(Runs(script, (budget,), seeds, options, tag) for script, tag, options in VARIANTS))


def studies() -> dict[str, Study]:
    """The plans of results/, by name."""
    def full(script):
        budgets = (0.125, 0.25, 0.5, 1, 2) if script == "baselines/scratch" else (0.125, 0.25, 0.5, 1)
        return Runs(script, budgets, tuple(range(5)))

    quarter = (0.25, 0.5, 1)
    mini = (
        Runs("baselines/scratch", (0.25, 0.5, 1, 2), THREE),
        Runs("methods/kd", quarter, THREE),
        Runs("methods/ensemble_distill", quarter, THREE, **SAMPLE),
        Runs("baselines/warm_start", quarter, THREE),
        Runs("methods/loss_replay", quarter, THREE),
        Runs("baselines/label_smoothing", quarter, THREE),
        Runs("baselines/ema", quarter, THREE),
        Runs("methods/ensemble_distill", (0.5, 1), THREE))
    return {
        "demo": Study("shapes", "resnet8", 3, recommend=False, runs=tuple(
            Runs(script, (0.5, 1), THREE if script == "baselines/scratch" else (0, 1)) for script in every_script())),
        "cifar100-mini-tuning": Study("cifar100", "resnet8", 8, tuning=True, runs=(
            *tuning(0.25, (0.1, 0.2, 0.4, 0.8), (2e-4, 1e-3)), *tuning(0.25, (1.6,), (2e-4,)), *tuning(0.25, (0.8,), (5e-5,)),
            *(runs for budget in (0.5, 1) for runs in (
                *tuning(budget, (0.4, 0.8, 1.6), (2e-4,)), *tuning(budget, (0.8,), (5e-5, 5e-4)))),
            *tuning(2, (0.4, 0.8), (2e-4,)), *tuning(2, (0.8,), (5e-4,)))),
        "cifar100-mini": Study("cifar100", "resnet8", 8, settings=MINI, runs=(*mini, *screening(mini, 0.5, THREE))),
        "cifar100-short": Study("cifar100", "resnet56", 40, runs=(
            Runs("baselines/scratch", (0.25, 0.5, 1, 2), THREE),
            Runs("methods/kd", (0.25, 0.5), THREE),
            Runs("methods/ensemble_distill", (0.25, 0.5), THREE, **SAMPLE),
            Runs("methods/loss_replay", (0.25, 0.5), THREE))),
        "cifar100": Study("cifar100", "resnet56", 200, runs=tuple(map(full, every_script()))),
    }


def plan(name: str, study: Study) -> dict:
    """plan.json: every run with its command and its folder, past runs first."""
    results = f"results/{name}"
    owner = study.past_of or name                             # of the past runs
    above = f"../{owner}/" if study.past_of else ""           # from this study's folder to its

    def command(script, epochs, seed, where, budget, options=(), kind="past", tag=""):
        line = [f"{script}.py", "--task", study.task, "--model", study.model, "--epochs", f"{epochs:g}", "--seed", str(seed)]
        line += settings(*study.settings[budget]) if budget in study.settings else []
        line += list(options) + (["--tag", tag] if tag else []) + ["--results", where]
        parser = importlib.import_module(script.replace("/", ".")).parser()
        line += ["--past", f"results/{owner}/{kind}"] if parser.get_default("needs_past") else []
        args = parser.parse_only(line[1:])
        past = [run["folder"] for run in before[kind]] if args.needs_past else []
        return {"seed": seed, "folder": folder_name(args, past),
                "command": shlex.join(["python", *line])}

    def made_before(kind, options=lambda fold: ()):           # the runs below results/STUDY/KIND
        return [command("baselines/scratch", study.past_epochs, seed, f"results/{owner}/{kind}", 1,
                        ("--slim", *study.past_options, *options(fold))) for fold, seed in enumerate(PAST_SEEDS, 1)]

    before = {} if study.tuning else {"past": made_before("past")}
    if FOLDS & {r.script for r in study.runs}:
        before["folds"] = made_before("folds", lambda fold: ("--subset", f"not:{fold}/{len(PAST_SEEDS)}"))
    runs = [{"method": r.script.split("/")[1], "tag": r.tag, "budget": budget} |
            command(r.script, budget * (study.epochs or study.past_epochs), seed, results, budget, (*study.options, *r.options),
                    "folds" if r.script in FOLDS else "past", r.tag)
            for r in study.runs for budget in r.budgets for seed in r.seeds]
    past = [run | {"folder": f"{above}{kind}/{run['folder']}"} for kind, made in before.items() for run in made]
    return {"study": name, "task": study.task, "model": study.model, "scenario": study.scenario, "past_epochs": study.past_epochs,
            "recommend": study.recommend, "tuning": study.tuning, "past": past, "runs": runs,
            "tuned": all(budget in study.settings for r in study.runs for budget in r.budgets)}
