"""All methods side by side at the one budget that most of them have: a table, a figure, and the README's result column."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.report import words
from common.report.figures import COLOURS, INK, clean, panels, save
from common.report.recommend import rows_of
from common.report.words import point_interval


def split(report: Mapping) -> tuple[list[Mapping], list[Mapping]]:
    """Rows at the common budget: of methods that train anew, and of those that begin with reused weights.

    The best first: by accuracy over scratch at equal FLOPs, and by accuracy; missing rows last. Scratch is left out.
    """
    gained = {score["method"] for score in report["scores"] if score["scored_by"] == "gain"}
    rows = [row for row in report["rows"] if row["budget"] == report["common_budget"] and row["method"] != "scratch"]

    def order(row):
        value = row["mean"] if row["method"] in gained or not row["seeds"] else row["equal_flops"]["mean"]
        return (not row["seeds"], value is None, -(row["mean"] or 0) if value is None else -value, row["method"])

    return (sorted((row for row in rows if row["method"] not in gained), key=order),
            sorted((row for row in rows if row["method"] in gained), key=order))


def headline(row: Mapping) -> Mapping:
    """The comparison that a row is judged by: over warm_start where it reloads weights, else over scratch at equal FLOPs.

    Of warm_start itself those of its past run are among them.
    """
    gained = "gain_over_scratch_2" in row
    return row.get("gain_over_warm_start", row["past_charged"]) if gained else row["equal_flops"]


def cheaper(row: Mapping, noun: str = "accuracy") -> str:
    """Scratch's FLOPs to this row's score, called `noun`, over the row's own, with interval."""
    cell = row["cheaper"]
    if cell is None:
        return "missing"
    bounds = {"reached": "", "at most": "≤ "}
    if cell["value"] is None:
        return f"beyond scratch's {noun}" if cell["status"] == "not reached" else cell["status"]

    def side(name, status):
        return status if cell[name] is None else bounds[status] + words.times(cell[name])

    low, high = side("low", cell["low_status"]), side("high", cell["high_status"])
    interval = "unknown" if cell["low_status"] == "unknown" else f"{low}, {high}".replace("not reached", "open")
    return f"{bounds[cell['status']]}{words.times(cell['value'])} [{interval}]"


def preparation(row: Mapping) -> str:
    """Its share of all FLOPs, in percent."""
    return "–" if not row["seeds"] else f"{100 * row['preparation_flops'] / row['flops']:.0f}"


def cells(rows: Sequence[Mapping], comparisons: Sequence[str], show: Callable) -> list[list[str]]:
    """The first columns of each row's line: method, seeds, accuracy as `show` writes it, and the `comparisons` by name."""
    found = []
    for row in rows:
        others = [point_interval(row[name]) if row["seeds"] and name in row else "–" for name in comparisons]
        found.append([f"`{row['method']}`", f"{row['seeds']}/{row['planned']}", show(row), *others])
    return found


def tables(report: Mapping, table: Callable, show: Callable) -> str:
    """Markdown of both. `table` and `show` are the report's own ways to write a table and an accuracy."""
    fresh, reload = split(report)
    terms = words.terms(report)
    scratch = next((row for row in rows_of(report, "scratch") if row["budget"] == report["common_budget"]), None)
    text = f"At budget {words.budget(report['common_budget'])}" + (
        f", where scratch has **{show(scratch)} %**" if scratch else "") + ". Differences are in points, paired by seed."
    parts = [text]
    if fresh:
        body = [[*line, cheaper(row, terms.noun) if row["seeds"] else "missing", preparation(row),
                 words.significant(row["past_bytes"] / 1e6) if row["seeds"] else "–"]
                for row, line in zip(fresh, cells(fresh, ("difference", "equal_flops"), show), strict=True)]
        parts.append(table(["Method", "Seeds", terms.test_column, "Over scratch, equal budget", "equal FLOPs",
                            f"Cheaper than scratch at its {terms.noun}, FLOPs", "Preparation, % of FLOPs",
                            "MB of past kept"], body)
                     + "\n\n" + words.provenance(fresh, report))
    if reload:
        body = [[*line, words.percent(row["start"]) if row["seeds"] else "–",
                 words.significant(row["flops"] / 1e12) if row["seeds"] else "–", preparation(row),
                 words.significant(row["past_bytes"] / 1e6) if row["seeds"] else "–"]
                for row, line in zip(reload, cells(reload, (
                    "gain_over_warm_start", "gain_over_scratch_2", "past_charged"), show), strict=True)]
        head = ["Method", "Seeds", terms.test_column, "Over warm_start, equal budget", "Over scratch at budget 2",
                words.PAST_CHARGED, "Before training %", "TFLOP", "Preparation, % of FLOPs", "MB of past kept"]
        parts.append(f"These begin with reused weights, where nothing is new:\n\n{table(head, body)}\n\n"
                     + words.provenance(reload, report))
    return "\n\n".join(parts)


def result(report: Mapping, script: str) -> str:
    """The README's cell of a script: its headline number at the common budget, then those of its variants, by their tags."""
    marks = {"gain_over_warm_start": " (w)", "gain_over_scratch_2": " (c)"}           # the first that a row has
    found = []
    for row in sorted(report["rows"], key=lambda row: "-" in row["method"]):
        method, _, tag = row["method"].partition("-")
        if method == script != "scratch" and row["budget"] == report["common_budget"]:
            value = point_interval(headline(row)) if row["seeds"] else "missing"
            if row["method"] == "warm_start" and "gain_over_scratch_2" in row and row["seeds"]:
                found.append(point_interval(row["difference"]) + " (p)")
            found.append(f"{tag} {value}".strip() + next((mark for name, mark in marks.items() if name in row), ""))
    return "; ".join(found)


def draw_landscape(report: Mapping, path: Path) -> bool:
    """A dot and an interval for every method: over scratch at equal FLOPs, over warm_start where weights are reloaded."""
    both = [[row for row in rows if row["seeds"] and headline(row)["mean"] is not None] for rows in split(report)]
    both[1] = [row for row in both[1] if row["method"] != "warm_start"]
    if len(both[0]) + len(both[1]) < 2:
        return False
    share = words.budget(report["common_budget"])
    titles = (f"over scratch at equal FLOPs, budget {share}", f"over warm_start, budget {share}")
    chosen = [(rows, title) for rows, title in zip(both, titles, strict=True) if rows]
    figure, axes = panels(len(chosen), (5.4 * len(chosen), 1.2 + 0.24 * max(len(rows) for rows, _ in chosen)), sharey=False)
    for panel, (rows, title) in zip(axes, chosen, strict=True):
        for i, row in enumerate(rows):
            cell, colour = headline(row), COLOURS[0]
            if cell["low"] is not None:
                panel.plot([100 * cell["low"], 100 * cell["high"]], [i, i], color=colour, linewidth=2)
            panel.plot([100 * cell["mean"]], [i], marker="o", markersize=5.5, color=colour,
                       markerfacecolor=colour if row["complete"] else "white")
        panel.axvline(0, color="black", linewidth=1, zorder=1)
        panel.set_yticks(range(len(rows)), [row["method"] for row in rows])
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_xlabel(f"points of test {words.terms(report).noun}", color=INK)
        panel.set_title(title, fontsize=10, loc="left")
        clean(panel, "x")
        panel.tick_params(axis="y", labelsize=8)
    save(figure, path)
    return True
