"""The report of streams, where data arrive in portions: what the whole sequence of runs costs, and how good it is all along."""
from collections.abc import Mapping
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from common.files import write_atomic, write_json
from common.report import scores
from common.report.figures import DASHES, clean, legend, looks, panels, save, score_over_cost
from common.report.markdown import table
from common.report.origin import provenance
from common.report.runs import one_score
from common.report.search import TERA, interval, missing, read_trial, rival, state, what_pays
from common.report.words import axis, budget, percent, point_interval, significant, terms

RULES = """\
- In a **stream** the data arrive in equal portions, and after each a run on all data so far is made; it reuses the run before it.
  The first run is from scratch.
- **Cost** is that of all runs of the stream, in FLOPs of training and preparation.
- Scratch's stream makes every run from scratch. Others are compared with it at its **largest budget**, what one would do
  without reuse.
- **Without reuse for no more** is scratch's stream, at whatever budget, that is best along the way among those whose FLOPs are at
  most the row's (to half a percent).
- **Along the way** is the mean {noun} over the runs of the stream, **at the end** that of the last.
- **Old / new**: the last run's {train} on the portions that were there before, and on the one that came last.
- What **pays** is the cheapest row whose cost interval lies below scratch's and whose {noun} along the way, over that of
  scratch's, has an interval above −1 point; a shorter scratch, too, may be it. Nothing is said while runs are missing.
- Intervals are 95 % t-intervals over seeds, paired with scratch's stream of the same seed."""


def aggregate(root: Path, plan: Mapping) -> dict:
    """report.json: one row per method and budget."""
    read = {folder: read_trial(root / folder) for stream in plan["streams"] for folder in stream["runs"]}
    groups: dict[tuple, dict[int, list]] = {}
    for stream in plan["streams"]:
        groups.setdefault((stream["method"], stream["budget"]), {})[stream["seed"]] = [read[f] for f in stream["runs"]]
    scratch = groups.get(max((key for key in groups if key[0] == "scratch"), default=None), {})
    rows = []
    for (method, share), streams in groups.items():
        done = {seed: runs for seed, runs in streams.items() if None not in runs}
        paired = {seed: runs for seed, runs in done.items() if None not in scratch.get(seed, [None])}

        def over(value, paired=paired):                       # of a stream's runs, less that of scratch's
            return interval({seed: value(runs) - value(scratch[seed]) for seed, runs in paired.items()})

        rows.append({
            "method": method, "budget": share, "seeds": len(done), "planned": len(streams),
            "cost": interval({seed: cost(runs) for seed, runs in done.items()}),
            "cost_over_scratch": interval({seed: cost(runs) / cost(scratch[seed]) for seed, runs in paired.items()}),
            "after_portion": [scores.mean([runs[k]["test"] for runs in done.values()]) for k in range(plan_length(plan))],
            "along": interval({seed: along(runs) for seed, runs in done.items()}),
            "end": interval({seed: end(runs) for seed, runs in done.items()}),
            "along_over_scratch": over(along), "end_over_scratch": over(end),
            "train_old": apart(done, "old"), "train_new": apart(done, "new"),
            "provenance": provenance([run for runs in done.values() for run in runs])})
    compared = [row for row in rows if row["cost_over_scratch"]["mean"] is not None]
    for row in rows:
        row["rival"] = rival(row, compared, "along")
    report = {"study": plan["study"], "task": plan["task"], "model": plan["model"], "scenario": plan["scenario"],
              "score": one_score(root, read), "rows": rows, "portions": plan_length(plan),
              "missing": [{"command": run["command"], "state": state(root / run["folder"])} for run in plan["runs"]
                          if read.get(run["folder"]) is None]}
    return report | {"pays": what_pays(report, "along_over_scratch", "along the way")}


def plan_length(plan: Mapping) -> int:
    return max(len(stream["runs"]) for stream in plan["streams"])


def apart(streams: Mapping[int, list[dict]], name: str) -> float | None:
    """Mean over the streams of what their last runs say of a part of their training examples; None where one does not."""
    found = [runs[-1]["summary"].get("train_parts", {}).get(name) for runs in streams.values()]
    return None if None in found else scores.mean(found)


def cost(runs: list[dict]) -> float:
    return sum(run["flops"] for run in runs)


def along(runs: list[dict]) -> float:
    return sum(run["test"] for run in runs) / len(runs)


def end(runs: list[dict]) -> float:
    return runs[-1]["test"]


def draw(report: Mapping, path: Path) -> bool:
    """Test score after each portion, and that along the way over the cost of the whole stream; False where none is whole."""
    rows = [row for row in report["rows"] if row["seeds"]]
    rows.sort(key=lambda row: (row["method"] != "scratch", -row["along"]["mean"]))
    if not rows:
        path.unlink(missing_ok=True)
        return False
    shares = sorted({row["budget"] for row in report["rows"]}, reverse=True)
    figure, (left, right) = panels(2, (10.5, 4.6), sharey=False)
    look = looks([row["method"] for row in rows])
    for row in rows:
        look[row["method"]]["markerfacecolor"] = look[row["method"]]["color"] if row["seeds"] == row["planned"] else "white"
        left.plot(range(1, report["portions"] + 1), [100 * value for value in row["after_portion"]], markersize=4, linewidth=1.4,
                  linestyle=DASHES[shares.index(row["budget"]) % len(DASHES)], zorder=3 if row["method"] == "scratch" else 2,
                  label=f"{row['method']}, {budget(row['budget'])}", **look[row["method"]])
    score_over_cost(right, [(row["cost"]["mean"], row["along"], look[row["method"]]) for row in rows], "all runs of the stream")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel=f"data so far, portions of {report['portions']}", ylabel=axis(report))
    right.set_ylabel(f"{axis(report)}, mean along the way")
    clean(left)
    legend(figure, left)
    save(figure, path)
    return True


def markdown(report: Mapping) -> str:
    noun, train, portions = terms(report).noun, terms(report).train, report["portions"]

    def best_first(row):
        gain = row["along_over_scratch"]["mean"]
        return row["method"] != "scratch", gain is None, -(gain or 0)

    rows = sorted(report["rows"], key=best_first)
    made = {name: sorted(set().union(*(row["provenance"][name] for row in rows)))
            for name in ("device", "versions", "batch_size", "commit")}
    device, versions, batch_size, commit = (" and ".join(values) for values in made.values())
    lines = []
    for row in rows:
        flops, over = row["cost"]["mean"], row["cost_over_scratch"]["mean"]
        lines.append([f"`{row['method']}`", budget(row["budget"]), f"{row['seeds']}/{row['planned']}",
                      significant(None if flops is None else flops / TERA), "–" if over is None else f"{over:.2f}",
                      percent(row["along"]["mean"]), point_interval(row["along_over_scratch"]),
                      f"{point_interval(row['rival']['over'])}: `scratch`, {budget(row['rival']['budget'])}"
                      if row["rival"] else "–",
                      percent(row["end"]["mean"]), point_interval(row["end_over_scratch"]),
                      f"{percent(row['train_old'])} / {percent(row['train_new'])}"])
    text = table(["Method", "Budget of a run", "Seeds", "TFLOP of the stream", "over scratch's",
                  f"{noun.capitalize()} % along the way", "over scratch's, points", "over the best without reuse for no more",
                  "At the end, %", "over scratch's there, points", f"{train.capitalize()} % at the end, old / new"], lines)
    text += f"\n\n<sub>{device}. {versions}. Batch size {batch_size}. Commit {commit}.</sub>" if device else \
        "\n\n<sub>No finished stream.</sub>"
    if report["figures"]:
        text += ("\n\n![stream](figures/stream.png)\n\nLeft: complete runs after each portion, means over seeds. Right: the mean "
                 "of these over the cost of the whole stream, with 95 % intervals. Hollow: planned seeds are missing.")
    text += f"\n\n## Test {noun} % after each portion\n\n" + table(
        ["Method", "Budget", *(f"{k}/{portions}" for k in range(1, portions + 1))],
        [[f"`{row['method']}`", budget(row["budget"]), *map(percent, row["after_portion"])] for row in rows])
    gone, section = missing(report, "runs", "stream")
    text += section
    return (f"# {report['study']}\n\n`{report['model']}` on `{report['task']}`: data that arrive in {portions} portions.{gone}"
            f"\n\nWhat pays: {report['pays']}.\n\n{text}"
            f"\n\n## How the numbers are made\n\n{RULES.format(noun=noun, train=train)}\n")


def write_stream(root: Path, plan: Mapping) -> Path:
    """Writes REPORT.md and report.json of a study of streams; returns the former's path."""
    report = aggregate(root, plan)
    report["figures"] = ["stream"] if draw(report, root / "figures/stream.png") else []
    write_json(root / "report.json", report)
    write_atomic(root / "REPORT.md", markdown(report))
    return root / "REPORT.md"
