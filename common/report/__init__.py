"""Reads the runs of a study and writes REPORT.md, report.json and figures/ next to them.

    python -m common.report results/cifar100-mini
    python -m common.report results                                 # over all studies: results/REPORT.md
    python -m common.report --tensorboard results/cifar100-mini     # rebuild every run's tb/ from its metrics.jsonl
"""

import argparse
import re
import sys
from pathlib import Path

from common.files import read_json, write_atomic, write_json
from common.report.aggregate import aggregate
from common.report.figures import draw
from common.report.landscape import draw_landscape, result
from common.report.markdown import markdown, summary
from common.report.overview import write_overview
from common.report.pictures import copy_pictures
from common.report.runs import learning_curves, read_study
from common.report.search import write_search
from common.report.stream import write_stream
from common.report.tuning import write_table
from common.report.words import terms


def write_report(folder: Path) -> Path:
    """Writes REPORT.md, report.json and figures/ of the study in `folder`, or a tuning study's table; returns its path."""
    plan = read_json(folder / "plan.json")
    if plan.get("tuning"):
        return write_table(folder, plan)
    if plan.get("searches"):
        return write_search(folder, plan)
    if plan.get("streams"):
        return write_stream(folder, plan)
    study = read_study(folder)
    report = aggregate(study)
    report["figures"] = draw(report, learning_curves(study), folder / "figures", {"landscape": draw_landscape})
    report |= copy_pictures(study, report, folder / "figures")
    write_json(folder / "report.json", report)
    write_atomic(folder / "REPORT.md", markdown(report))
    return folder / "REPORT.md"


def write_readme(folder: Path, readme: Path) -> None:
    """Puts the study's summary table and first figure between the README's `<!-- result -->` lines.

    And each script's result, at the common budget of this study or of the one it confirms, into the last column of the table of
    scripts.
    """
    mark, report = "<!-- result -->\n", read_json(folder / "report.json")
    every = read_json(folder.parent / report["confirms"] / "report.json") if report.get("confirms") else report
    before, _, after = readme.read_text().split(mark)
    after = re.sub(r"^(\| `(?:baselines|methods)/(\w+)\.py` .*\| )[^|]*\|$",
                   lambda line: f"{line[1]}{result(every, line[2])} |".replace("|  |", "| |"), after, flags=re.M)
    where = folder.as_posix()
    block = f"{summary(report, f'{where}/REPORT.md#made-by')} All of it: [{where}/REPORT.md]({where}/REPORT.md).\n\n" \
        f"![Test {terms(report).noun} over budget]({where}/figures/tradeoff.png)\n"
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
