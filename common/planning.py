"""From a fixed plan to plan.json: every run with its command and the folder that the run itself will choose."""
import importlib
import math
import os
import shlex
from collections.abc import Sequence

import numpy as np

from common.naming import folder_name
from common.planparts import Runs, Study, needs
from common.plans import studies
from common.tunings import settings

RATES, DECAYS = (0.05, 1.6), (5e-5, 5e-3)                     # of a random search, drawn evenly in their logarithms


def plan(name: str, study: Study) -> dict:
    """plan.json: past runs first; a run's stage says which runs it waits for, all those of the stages before."""
    planner = Planner(name, study)
    searches, streams = [], []
    if study.trials:
        runs, searches = planner.searches()
    elif study.portions:
        runs, streams = planner.streams()
    else:
        runs = planner.generations() if study.generations else planner.grid()
    return {"study": name, "task": study.task, "model": study.model, "scenario": study.scenario,
            "past_epochs": study.past_epochs, "epochs": planner.epochs, "recommend": study.recommend, "tuning": study.tuning,
            "tuned": all(budget in study.settings for r in study.runs for budget in r.budgets),
            "past": planner.past(), "runs": runs, "searches": searches} | ({"streams": streams} if streams else {}) | (
                {name: value for name in ("confirms", "scratch_of") if (value := getattr(study, name))})


def once(options: Sequence[str]) -> list[str]:
    """Options of which a later one takes the place of an earlier one of its name: the run's of the study's."""
    groups: dict[str, list[str]] = {}
    for word in options:
        if word.startswith("--"):
            name = word
            groups[name] = []
        groups[name].append(word)
    return [word for group in groups.values() for word in group]


class Planner:
    """Writes the runs of one study down."""

    def __init__(self, name: str, study: Study):
        self.study, self.results = study, f"results/{name}"
        self.owner = study.past_of or name                    # of the past runs
        self.epochs = study.epochs or study.past_epochs       # of budget 1
        self.before: dict[str, list[dict]] = {}               # kind of past runs -> runs
        if study.past_of:
            used = {"past", *map(self._kind, study.runs)}
            theirs = Planner(study.past_of, studies()[study.past_of]).before
            self.before = {kind: made for kind, made in theirs.items() if kind in used}
        elif not (study.trials or study.portions or {runs.script for runs in study.runs} == {"baselines/scratch"}):
            self._add("past", study.past_epochs, lambda fold: study.past_options, None if "--lr" in study.past_options else 1)
        if any(self._kind(runs) == "folds" for runs in study.runs):
            self._add("folds", study.past_epochs, lambda fold: (
                *study.past_options, "--subset", f"not:{fold}/{len(study.past_seeds)}"))
        for kind, (epochs, options) in study.others.items():
            used = {seed for runs in study.runs if runs.past == kind for seed in runs.seeds}    # seed k reuses the k-th
            self._add(kind, epochs, lambda fold, options=options: options, budget=None, count=len(used) or None)

    def _add(self, kind: str, epochs: float, options, budget: float | None = 1, count: int | None = None) -> None:
        self.before[kind] = [
            self._command("baselines/scratch", epochs, seed, self._home(kind), budget, ("--slim", *options(fold)))
            for fold, seed in enumerate(self.study.past_seeds[:count], 1)]

    def _home(self, kind: str) -> str:
        """Where past runs of that kind are: with a study of its own others, only these are its own."""
        return f"{self.results if kind in self.study.others else f'results/{self.owner}'}/{kind}"

    @staticmethod
    def _kind(runs: Runs) -> str:
        return runs.past or needs(runs.script) or "past"

    def past(self) -> list[dict]:
        above = {kind: os.path.relpath(self._home(kind), self.results) for kind in self.before}
        return [run | {"folder": f"{above[kind]}/{run['folder']}"} for kind, made in self.before.items() for run in made]

    def _command(self, script: str, epochs: float, seed: int, where: str, budget: float | None, options=(), tag: str = "",
                 kind: str = "past", earlier: list[dict] | None = None) -> dict:
        """A run that reuses all past runs of a kind, or `earlier` runs of the study itself, if its script reuses any.

        It has the study's settings of its `budget`, unless its options name a learning rate; without a budget, as a run of
        another task, what its options say.
        """
        study = self.study
        line = [f"{script}.py", "--task", study.task, "--model", study.model, "--epochs", f"{epochs:g}", "--seed", str(seed)]
        if study.settings and budget is not None and "--lr" not in options:
            line += settings(*study.settings[budget])         # of every budget, or none
        line += once(options) + (["--tag", tag] if tag else []) + ["--results", where]
        parser = importlib.import_module(script.replace("/", ".")).parser()
        past = []
        if needs(script):
            past = self.before[kind] if earlier is None else earlier
            line += ["--past", *([self._home(kind)] if earlier is None else
                                 [f"{where}/{run['folder']}" for run in earlier])]
            if "--lr" in study.past_options and "--lr" not in line and budget is not None:
                own = parser.parse_only(line[1:])             # not what the past runs were made with
                line += settings(own.lr, own.weight_decay)
        args = parser.parse_only(line[1:])
        folder = folder_name(args, [run["folder"] for run in past])
        return {"seed": seed, "folder": folder, "command": shlex.join(["python", *line])}

    def _run(self, runs: Runs, budget: float, seed: int, stage: int = 1, options=(), tag: str = "", earlier=None) -> dict:
        tag = "-".join(part for part in (runs.tag, tag) if part)
        where = f"results/{self.study.scratch_of}" if self._shared(runs) else self.results
        return {"method": runs.script.split("/")[1], "tag": tag, "budget": budget, "stage": stage} | self._command(
            runs.script, budget * self.epochs, seed, where, budget, (*self.study.options, *runs.options, *options), tag,
            self._kind(runs), earlier)

    def _shared(self, runs: Runs) -> bool:
        return bool(self.study.scratch_of) and runs.script == "baselines/scratch"

    def grid(self) -> list[dict]:
        """Every script at its budgets and seeds. What differs from another run by its tag alone is that run, made once."""
        made, runs = {}, []
        for r in self.study.runs:
            for budget in r.budgets:
                for seed in r.seeds:
                    run = self._run(r, budget, seed)
                    same = made.setdefault((r.script, *run["folder"].split("/")[2:]), run)          # all but task, tag
                    above = f"../{self.study.scratch_of}/" if self._shared(r) else ""
                    runs.append(run | {"folder": above + same["folder"], "command": same["command"]})
        return runs

    def generations(self) -> list[dict]:
        """Chains: the first generation reuses the past runs, each later one the one before it; another seed for each.

        A script that reuses nothing has a plain run for each of those seeds, to compare with.
        """
        chains = []
        for r in self.study.runs:
            for budget in r.budgets:
                for seed in r.seeds:
                    chain = []
                    for g in range(1, self.study.generations + 1):
                        own = r.script == "baselines/scratch"
                        chain.append(self._run(r, budget, seed + 1000 * (g - 1), 1 if own else g, tag="" if own else f"g{g}",
                                               earlier=chain[-1:] or None))
                    chains += chain
        return sorted(chains, key=lambda run: run["stage"])

    def streams(self) -> tuple[list[dict], list[dict]]:
        """Data that arrive in portions: a run on all that is there after each, which reuses the one before.

        Each has another seed. The first run is from scratch; every run of scratch's own is.
        """
        runs, streams = {}, []
        for r in self.study.runs:
            for budget in r.budgets:
                for seed in r.seeds:
                    chain, n = [], self.study.portions
                    for k in range(1, n + 1):
                        own = k == 1 or r.script == "baselines/scratch"
                        script = Runs("baselines/scratch", r.budgets, r.seeds) if own else r
                        chain.append(self._run(script, budget, seed + 1000 * (k - 1), 1 if own else k, (
                            "--subset", f"share:{k / n:g}" if k < n else "all",
                            *(("--parts", f"share:{(k - 1) / n:g}") if k > 1 else ())), f"p{k}", earlier=chain[-1:]))
                    runs |= {run["folder"]: run for run in chain}
                    label = r.script.split("/")[1] + (f"-{r.tag}" if r.tag else "")
                    streams.append({"method": label, "budget": budget, "seed": seed, "runs": [run["folder"] for run in chain]})
        return sorted(runs.values(), key=lambda run: run["stage"]), streams

    def searches(self) -> tuple[list[dict], list[dict]]:
        """Random searches over learning rate and weight decay; every trial after the first reuses the best one so far.

        The same settings in the same order for all methods of a seed, and the same first trial, from scratch.
        """
        runs, searches = {}, []
        for r in self.study.runs:
            for budget in r.budgets:
                for seed in r.seeds:
                    trials = []
                    for t, chosen in enumerate(random_settings(seed, self.study.trials)):
                        first = t == 0 or r.script == "baselines/scratch"
                        script = Runs("baselines/scratch", r.budgets, r.seeds) if first else r
                        trials.append(self._run(script, budget, 100 * seed + t, t + 1, (
                            *settings(*chosen), "--holdout", f"{self.study.holdout:g}",
                            *(() if first else ("--pick", "best"))), f"t{t + 1}", earlier=trials))
                    runs |= {trial["folder"]: trial for trial in trials}
                    label = r.script.split("/")[1] + (f"-{r.tag}" if r.tag else "")
                    searches.append({"method": label, "budget": budget, "seed": seed, "trials": [t["folder"] for t in trials]})
        return sorted(runs.values(), key=lambda run: run["stage"]), searches


def random_settings(seed: int, trials: int) -> list[tuple[float, float]]:
    """Learning rate and weight decay of each trial, two digits each."""
    draw = np.random.default_rng(seed).random((trials, 2))
    ends = [(math.log(low), math.log(high)) for low, high in (RATES, DECAYS)]
    return [tuple(float(f"{math.exp(low + share * (high - low)):.2g}") for share, (low, high) in zip(row, ends, strict=True))
            for row in draw]
