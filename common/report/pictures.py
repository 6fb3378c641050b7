"""Pictures that runs of a dense task left of their predictions: scratch's beside those of the best method."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.files import read_json, write_atomic
from common.report import words

NAMES = ("pictures_scratch", "pictures_best")


def choose(runs: Sequence[Mapping], rows: Sequence[Mapping]) -> list[Mapping | None]:
    """Runs to show: the best method's and scratch's in the same budget, of one seed if it can be had; None where there is none.

    The budget is the largest up to 1 in which both have pictures, else scratch's own largest; the best is the complete row with
    the highest mean there or, if none has pictures there, at any.
    """
    shown = [run for run in runs if run["summary"] and run["pictures"]]
    kept = {(run["label"], run["budget"]) for run in shown}
    others = [row for row in rows if row["complete"] and row["method"] != "scratch" and (row["method"], row["budget"]) in kept]
    budgets = {share for label, share in kept if label == "scratch" and share <= 1}
    share = max(budgets & {row["budget"] for row in others} or budgets, default=None)
    scratch = min((run for run in shown if (run["label"], run["budget"]) == ("scratch", share)), key=lambda run: run["seed"],
                  default=None)
    best = max([row for row in others if row["budget"] == share] or others, key=lambda row: row["mean"], default=None)
    return [scratch, best and min((run for run in shown if (run["label"], run["budget"]) == (best["method"], best["budget"])),
                                  key=lambda run: (not scratch or run["seed"] != scratch["seed"], run["seed"]))]


def copy_pictures(study: Mapping, report: Mapping, folder: Path) -> dict:
    """Copies the chosen runs' strips into `folder`, older ones go; what report.json says of them, nothing if there are none.

    Where no run has one, as in a clone of runs whose pictures were not committed, those that the report before shows stay.
    """
    if not any(run["pictures"] for run in study["runs"]):
        return before(report, folder)
    found = []
    for name, run in zip(NAMES, choose(study["runs"], report["rows"]), strict=True):
        path = folder / f"{name}.png"
        if run is None:
            path.unlink(missing_ok=True)
            continue
        strip = run["pictures"].read_bytes()
        write_atomic(path, lambda file, strip=strip: file.write(strip))
        found.append({"name": name, "method": run["label"], "budget": run["budget"], "seed": run["seed"]})
    return {"pictures": found} if found else {}


def before(report: Mapping, folder: Path) -> dict:
    """What the report.json beside `folder` says of its pictures, of those that are still there and of a finished row."""
    path = folder.parent / "report.json"
    shown = read_json(path).get("pictures", []) if path.exists() else []
    done = {(row["method"], row["budget"]) for row in report["rows"] if row["seeds"]}
    kept = [run for run in shown if (run["method"], run["budget"]) in done and (folder / f"{run['name']}.png").exists()]
    return {"pictures": kept} if kept else {}


def section(report: Mapping, table: Callable, show: Callable) -> str:
    """Markdown of the pictures. `table` and `show` are the report's own ways to write a table and a score."""
    heads, images, used = [], [], []
    for run in report["pictures"]:
        row = next(row for row in report["rows"] if (row["method"], row["budget"]) == (run["method"], run["budget"]))
        heads.append(f"`{run['method']}`, budget {words.budget(run['budget'])}: {show(row)} %")
        images.append(f"![{run['method']}](figures/{run['name']}.png)")
        used.append(row)
    noun, best = words.terms(report).noun, [run for run in report["pictures"] if run["name"] == NAMES[1]]
    seeds = " and ".join(str(seed) for seed in words.distinct(run["seed"] for run in report["pictures"]))
    text = (f"Test images by the run of seed {seeds}, a row each: input, truth, prediction. Above them stands the test {noun} "
            "over all seeds")
    if best:
        text += (f"; `{best[0]['method']}` has the highest of the methods with pictures"
                 + (" at this budget" if len({row["budget"] for row in used}) == 1 else ""))
    return f"{text}. A few images of one run illustrate; what is established stands in the tables.\n\n" \
        + table(heads, [images], text=heads) + "\n\n" + words.provenance(used, report)
