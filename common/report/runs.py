"""Reads the runs of a study from their folders. The one place that looks up which metric is a run's score."""

import math
from collections.abc import Mapping
from pathlib import Path

from common.files import Refused, read_json
from common.log import read_rows
from common.report.scores import mean
from common.report.words import SCORES


def read_finished(folder: Path) -> dict | None:
    """A finished run's {"summary", "config", "score": the name, "test", "test_old", "test_new", "second": its values or None}.

    Raises
        Refused: a file of it is damaged, or its score has no words in the report.
    """
    if not (folder / "summary.json").exists():
        return None
    summary, config = read_json(folder / "summary.json"), read_json(folder / "config.json")
    name = config.get("data", {}).get("score", "accuracy")    # runs made before there were other scores do not say
    name = "map" if name == "map50" else name                 # of runs made when the looser of the two was the first
    if name not in SCORES:
        raise Refused(f"{folder} has the score {name!r}, the report knows {', '.join(SCORES)}: give it words in "
                      "common/report/words.py.")
    return {"summary": summary, "config": config, "score": name, "second": summary["test"].get(SCORES[name].second)} | {
        "test" + part: summary["test"].get(name + part) for part in ("", "_old", "_new")}


def one_score(study: Path, runs: Mapping[str, Mapping | None]) -> str:
    """The name of the score that all finished runs have; `runs` are those of `read_finished` by folder.

    Raises
        Refused: they have several.
    """
    found = {}
    for folder, run in runs.items():
        if run and run["score"]:
            found.setdefault(run["score"], folder)
    if len(found) > 1:
        raise Refused(f"{study} mixes scores ({' and '.join(f'{name} in {folder}' for name, folder in found.items())}), which "
                      "do not compare: a study is of one task, plan another one for the other.")
    return next(iter(found), "accuracy")


def kind(run: Mapping) -> str:
    """Of a past run: "past"; "folds", one method's preparation, made without a part of the data; "trunks", of another task."""
    return next((name for name in ("folds", "trunks") if name in run["folder"].split("/")), "past")


def read_run(study: Path, planned: Mapping) -> dict:
    """A planned run with what its folder holds. Its state: finished, failed, unfinished or not started.

    Raises
        Refused: a file of it is damaged.
    """
    folder = study / planned["folder"]
    run = {"method": "past run", "tag": "", "budget": None} | dict(planned)
    run |= {"label": f"{run['method']}-{run['tag']}" if run["tag"] else run["method"], "summary": None, "failed": None,
            "config": None, "score": None, "metrics": [], "start": None, "state": "not started", "pictures": None}
    if done := read_finished(folder):
        run |= done | {"metrics": read_rows(folder), "state": "finished"}
        run["start"] = next((row[f"test/{run['score']}"] for row in run["metrics"] if row["epoch"] == 0), None)
        if (folder / "pictures.png").exists():
            run["pictures"] = folder / "pictures.png"
        if run["test"] is None or not math.isfinite(run["test"]):
            run |= {"summary": None, "state": "failed", "failed": {
                "exit_code": 0, "message": f"finished, but its test {SCORES[run['score']].noun} is not a number"}}
    elif (folder / "failed.json").exists():
        found = read_json(folder / "failed.json")
        run |= {"state": "failed", "failed": {key: found.get(key) for key in ("exit_code", "message")}}
    elif (folder / "config.json").exists():
        run["state"] = "unfinished"
    return run


def read_study(folder: Path) -> dict:
    """The plan, every run it names, past ones first, and the name of their score: {"plan", "past", "runs", "score"}.

    Raises
        Refused: a file is damaged, or the runs have several scores; trunks, of another task, may have another one.
    """
    plan = read_json(folder / "plan.json")
    past, runs = ([read_run(folder, run) for run in plan[part]] for part in ("past", "runs"))
    score = one_score(folder, {run["folder"]: run for run in [*past, *runs] if kind(run) != "trunks"})
    return {"plan": plan, "past": past, "runs": runs, "score": score}


def learning_curves(study: Mapping) -> dict[str, dict]:
    """By method, its longest budget up to 1 with a finished run: the mean test score over mean counted cost by epoch."""
    curves = {}
    for label in dict.fromkeys(run["label"] for run in study["runs"]):
        planned = [run for run in study["runs"] if run["label"] == label]
        runs = [run for run in planned if run["summary"] and run["metrics"]]
        if not runs:
            continue
        budgets = {run["budget"] for run in runs}
        budget = max((b for b in budgets if b <= 1), default=max(budgets))
        tables = [{row["epoch"]: row for row in run["metrics"]} for run in runs if run["budget"] == budget]
        epochs = sorted(epoch for epoch in tables[0] if all(epoch in table for table in tables))
        complete = len(tables) == sum(run["budget"] == budget for run in planned)
        curves[label] = {"budget": budget, "complete": complete} | {
            name: [mean([table[epoch][key] for table in tables]) for epoch in epochs]
            for name, key in (("seconds", "seconds"), ("flops", "flops"), ("score", f"test/{study['score']}"))}
    return curves
