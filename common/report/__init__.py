"""Reads the runs of a study and writes REPORT.md, report.json and figures/ next to them.

    python -m common.report results/cifar100-mini
    python -m common.report results                                 # over all studies: results/REPORT.md
    python -m common.report --tensorboard results/cifar100-mini     # rebuild every run's tb/ from its metrics.jsonl
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from common.files import read_json, write_atomic, write_json
from common.log import read_rows
from common.report.aggregate import aggregate
from common.report.figures import draw
from common.report.landscape import draw_landscape, result
from common.report.markdown import markdown, summary
from common.report.overview import write_overview
from common.report.scores import mean
from common.report.search import write_search
from common.report.tuning import write_table


def read_run(study: Path, planned: Mapping) -> dict:
    """A planned run with what its folder holds. Its state: finished, failed, unfinished or not started.

    Raises
        Refused: a file of it is damaged.
    """
    folder = study / planned["folder"]
    run = {"method": "past run", "tag": "", "budget": None} | dict(planned)
    run |= {"label": f"{run['method']}-{run['tag']}" if run["tag"] else run["method"], "summary": None, "failed": None,
            "config": None, "metrics": [], "start": None, "state": "not started"}
    if (folder / "summary.json").exists():
        run["summary"], run["config"] = read_json(folder / "summary.json"), read_json(folder / "config.json")
        run["metrics"] = read_rows(folder)
        run["start"] = next((row["test/accuracy"] for row in run["metrics"] if row["epoch"] == 0), None)
        run["state"] = "finished"
        accuracy = run["summary"]["test"]["accuracy"]
        if accuracy is None or not math.isfinite(accuracy):
            run |= {"summary": None, "state": "failed",
                    "failed": {"exit_code": 0, "message": "finished, but its test accuracy is not a number"}}
    elif (folder / "failed.json").exists():
        found = read_json(folder / "failed.json")
        run |= {"state": "failed", "failed": {key: found.get(key) for key in ("exit_code", "message")}}
    elif (folder / "config.json").exists():
        run["state"] = "unfinished"
    return run


def read_study(folder: Path) -> dict:
    """The plan and every run it names, past ones first: {"plan", "past", "runs"}."""
    plan = read_json(folder / "plan.json")
    return {"plan": plan, "past": [read_run(folder, run) for run in plan["past"]],
            "runs": [read_run(folder, run) for run in plan["runs"]]}


def learning_curves(study: Mapping) -> dict[str, dict]:
    """By method, its longest budget with a finished run: mean test accuracy over mean counted cost, epoch by epoch."""
    curves = {}
    for label in dict.fromkeys(run["label"] for run in study["runs"]):
        runs = [run for run in study["runs"] if run["label"] == label and run["summary"] and run["metrics"]]
        if not runs:
            continue
        budget = max(run["budget"] for run in runs)
        tables = [{row["epoch"]: row for row in run["metrics"]} for run in runs if run["budget"] == budget]
        epochs = sorted(epoch for epoch in tables[0] if all(epoch in table for table in tables))
        curves[label] = {"budget": budget} | {
            name: [mean([table[epoch][key] for table in tables]) for epoch in epochs]
            for name, key in (("seconds", "seconds"), ("flops", "flops"), ("accuracy", "test/accuracy"))}
    return curves


def write_report(folder: Path) -> Path:
    """Writes REPORT.md, report.json and figures/ of the study in `folder`, or a tuning study's table; returns its path."""
    plan = read_json(folder / "plan.json")
    if plan.get("tuning"):
        return write_table(folder, plan)
    if plan.get("searches"):
        return write_search(folder, plan)
    study = read_study(folder)
    report = aggregate(study)
    report["figures"] = draw(report, learning_curves(study), folder / "figures", {"landscape": draw_landscape})
    write_json(folder / "report.json", report)
    write_atomic(folder / "REPORT.md", markdown(report))
    return folder / "REPORT.md"


def write_readme(folder: Path, readme: Path) -> None:
    """Puts the study's summary table and first figure between the README's `<!-- result -->` lines.

    And each script's result at the study's common budget into the last column of the table of scripts.
    """
    mark, report = "<!-- result -->\n", read_json(folder / "report.json")
    before, _, after = readme.read_text().split(mark)
    after = re.sub(r"^(\| `(?:baselines|methods)/(\w+)\.py` .*\| )[^|]*\|$",
                   lambda line: f"{line[1]}{result(report, line[2])} |".replace("|  |", "| |"), after, flags=re.M)
    where = folder.as_posix()
    block = f"{summary(report)} All of it: [{where}/REPORT.md]({where}/REPORT.md).\n\n" \
        f"![Test accuracy over budget]({where}/figures/tradeoff.png)\n"
    write_atomic(readme, before + mark + block + mark + after)


def rebuild(folder: Path) -> int:
    """Rebuilds tb/ of every run below `folder`; returns how many there are."""
    from common.log import rebuild_tensorboard  # torch's TensorBoard writer takes seconds to import

    runs = sorted(path.parent for path in folder.rglob("metrics.jsonl"))
    for run in runs:
        rebuild_tensorboard(run)
    return len(runs)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="results/STUDY; results, for all studies; with --tensorboard any folder")
    parser.add_argument("--readme", action="store_true", help="also put the study's summary on README.md's first screen")
    parser.add_argument("--tensorboard", action="store_true", help="only rebuild every run's tb/ from metrics.jsonl")
    args = parser.parse_args(argv)
    if args.tensorboard:
        number = rebuild(args.folder)
        print(f"rebuilt tb/ of {number} runs below {args.folder}" if number else
              f"{args.folder} holds no run: no metrics.jsonl below it.", file=sys.stdout if number else sys.stderr)
        return 0 if number else 2
    if any(args.folder.glob("*/plan.json")):
        print(f"wrote {write_overview(args.folder)}")
        return 0
    if not (args.folder / "plan.json").exists():
        print(f"{args.folder} is no study: it has no plan.json. Run `run_all.sh STUDY` first, or name a folder like "
              "results/cifar100-mini.", file=sys.stderr)
        return 2
    print(f"wrote {write_report(args.folder)}")
    if args.readme:
        write_readme(args.folder, Path("README.md"))
    return 0
