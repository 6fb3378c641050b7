"""The report's figures, drawn from the numbers of report.json. Agg only; the same report gives the same bytes."""

import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from PIL import Image
from scipy.interpolate import PchipInterpolator

from common.files import write_atomic
from common.report.recommend import along_curves, is_scratch, ranking
from common.report.words import SITUATIONS, axis, budget, goal, significant, speed_up

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is left out, too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D")
MARKERS = "osD^vPX*<>phdH8"
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
TERA = 1e12
INK, GREY, PALE = "#222222", "#9a9a9a", "#d9d9d9"


def styles(report: Mapping) -> dict[str, dict]:
    """One look per method in all figures of a study: scratch black, a colour for the first of the headline, the others grey.

    Markers change with every method, dashes with every round of them, so that colour is never the only cue.
    """
    shown = along_curves(report)
    others = [score["method"] for score in (*shown, *(score for score in ranking(report) if score not in shown))
              if score["method"] != "scratch"]
    looks = {"scratch": {"color": "black", "marker": "o", "linestyle": "-"}}
    for i, method in enumerate(others):
        looks[method] = {"color": COLOURS[i] if i < len(COLOURS) else GREY, "marker": MARKERS[1 + i % (len(MARKERS) - 1)],
                         "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}
    return looks


def drawn(report: Mapping) -> Sequence[Mapping]:
    """Scores of the methods whose curves are drawn: of all, at the one budget that they have, where scratch alone has more."""
    shown = along_curves(report)
    return shown if any(len(score["planned_budgets"]) > 1 for score in shown if score["method"] != "scratch") else ranking(report)


def clean(axes: Axes, grid: str = "both") -> None:
    axes.grid(True, axis=grid, color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)


def log_ticks(axes: Axes, ticks: Sequence[float], labels: Sequence[str]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(list(ticks), list(labels))


def pleasant(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten in [low, high]; the two ends where that leaves fewer than two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]
    return ticks if len(ticks) > 1 else sorted({float(f"{low:.2g}"), float(f"{high:.2g}")})


def save(figure: Figure, path: Path) -> None:
    """As a PNG of at most 256 colours, a third of the size of a full one; nothing of the time or machine is in it."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    buffer = BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    write_atomic(path, lambda file: file.write(buffer.getvalue()))


def legend(figure: Figure, axes: Axes) -> None:
    """Beside the panels, so that it covers no curve."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8.5 if len(labels) < 20 else 7,
                  handlelength=2.8, ncols=1 if len(labels) < 28 else 2)


def panels(columns: int, size: tuple[float, float], sharey: bool = True) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, columns, sharey=sharey, squeeze=False)[0]


def smooth(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The line that is read between points: a monotone cubic in log x."""
    if len(x) < 3 or len(set(x)) < len(x) or not np.isfinite(y).all():
        return x, y
    fine = np.linspace(math.log(x[0]), math.log(x[-1]), 100)
    return np.exp(fine), PchipInterpolator(np.log(x), y)(fine)


def tradeoff(report: Mapping, path: Path) -> bool:
    """Test score over budget and over FLOPs, a line a method, its band the interval."""
    chosen = {score["method"] for score in drawn(report)}
    rows = [row for row in report["rows"] if row["seeds"] and row["method"] in chosen]
    if not rows:
        return False
    figure, axes = panels(2, (10.5, 4.6))
    alone = [method for method in styles(report) if [row["method"] for row in rows].count(method) == 1]
    for panel, name, scale in zip(axes, ("budget", "flops"), (1, TERA), strict=True):
        for method, look in styles(report).items():
            own = sorted((row for row in rows if row["method"] == method), key=lambda row: row[name])
            if not own:
                continue
            x, y = [row[name] / scale for row in own], [100 * row["mean"] for row in own]
            if name == "budget" and method in alone:          # else they would cover each other
                x = [x[0] * 1.03 ** (alone.index(method) - (len(alone) - 1) / 2)]
            front = 3 if method == "scratch" else 2
            panel.plot([], [], label=method, markersize=5, linewidth=1.6, **look)
            panel.plot(*smooth(x, y), linewidth=1.6, zorder=front, **look | {"marker": ""})
            panel.plot(x, y, markersize=5, zorder=front, **look | {"linestyle": "none"})
            hollow = [i for i, row in enumerate(own) if not row["complete"]]
            panel.plot([x[i] for i in hollow], [y[i] for i in hollow], linestyle="none", marker=look["marker"],
                       markersize=5, markerfacecolor="white", color=look["color"], zorder=4)
            low = [100 * row["low"] if row["low"] is not None else math.nan for row in own]
            high = [100 * row["high"] if row["high"] is not None else math.nan for row in own]
            if len(own) > 1 and look["color"] == GREY:
                continue                                      # their bands would cover what the others show
            if len(own) > 1:
                panel.fill_between(smooth(x, low)[0], smooth(x, low)[1], smooth(x, high)[1], color=look["color"], alpha=0.2,
                                   linewidth=0)
            else:
                panel.vlines(x, low, high, color=look["color"], linewidth=1.2)
        values = [row[name] / scale for row in rows]
        ticks = sorted(set(values)) if name == "budget" else pleasant(min(values), max(values))
        log_ticks(panel, ticks, [budget(t) if name == "budget" else significant(t).rstrip("0").rstrip(".")
                                 if t < 10 else f"{t:,.0f}" for t in ticks])
        if report["full_accuracy"] is not None:
            panel.axhline(100 * report["full_accuracy"], color=INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        clean(panel)
    if report["full_accuracy"] is not None:                   # on the side of it where scratch's curve does not end
        above = max(row["mean"] for row in rows if row["method"] == "scratch") <= report["full_accuracy"]
        axes[0].annotate(goal(report, "full"), (0.99, 100 * report["full_accuracy"]), xytext=(0, 3 if above else -10),
                         xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=8, color=INK,
                         zorder=5)
    axes[0].set(ylabel=axis(report), xlabel=f"budget, share of {report['budget_1_epochs']:g} epochs (log scale)")
    axes[1].set(xlabel="training and preparation, TFLOP (log scale)")
    legend(figure, axes[0])
    save(figure, path)
    return True


def accuracy_over_cost(report: Mapping, curves: Mapping[str, Mapping], path: Path) -> bool:
    """Mean test score over counted seconds and over FLOPs, the longest budget up to 1 of each method."""
    chosen = {score["method"] for score in drawn(report)}
    curves = {method: curve for method, curve in curves.items() if curve["score"] and method in chosen}
    if not curves:
        return False
    clocks = {"flops": (TERA, "training and preparation, TFLOP")}
    if report["timed_alike"]:
        clocks = {"seconds": (1, "counted seconds")} | clocks
    figure, axes = panels(len(clocks), (10.5 if len(clocks) > 1 else 7, 4.6))
    for panel, (name, (scale, label)) in zip(axes, clocks.items(), strict=True):
        for method, look in styles(report).items():
            if method not in curves:
                continue
            curve = curves[method]
            panel.plot([value / scale for value in curve[name]], [100 * value for value in curve["score"]],
                       color=look["color"], linestyle=look["linestyle"], marker=look["marker"], markevery=[-1],
                       markerfacecolor=look["color"] if curve["complete"] else "white",
                       markersize=6, linewidth=1.5, label=f"{method}, budget {budget(curve['budget'])}")
        panel.set_xlim(left=0)
        panel.set_xlabel(label)
        clean(panel)
    axes[0].set(ylabel=axis(report))
    legend(figure, axes[0])
    save(figure, path)
    return True


def step_cost(report: Mapping, path: Path) -> bool:
    """Cost of a step over scratch's, the cheapest first: FLOPs solid, counted seconds hatched, side by side."""
    scored = [score for score in ranking(report) if score["step_cost"] and score["method"] != "scratch"]
    scored.sort(key=lambda score: score["step_cost"]["flops"])
    if not scored:
        return False
    figure, (axes,) = panels(1, (8.5, 1.3 + (0.42 if len(scored) < 12 else 0.32) * len(scored)))
    for i, score in enumerate(scored):
        cell, colour = score["step_cost"], COLOURS[0]
        timed = cell["seconds"] is not None
        for offset, clock, look in ((-0.19 * timed, "flops", {"color": colour}),
                                    (0.19, "seconds", {"facecolor": "white", "edgecolor": colour, "hatch": "////"})):
            if cell[clock] is None:
                continue
            axes.barh(i + offset, cell[clock], height=0.34 if timed else 0.6, **look)
            axes.annotate(f"{cell[clock]:.2f}", (cell[clock], i + offset), xytext=(3, 0), va="center", fontsize=7.5,
                          color=INK, textcoords="offset points", zorder=4,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    axes.barh([0], [0], color="#777777", label="FLOPs")
    if any(score["step_cost"]["seconds"] for score in scored):
        axes.barh([0], [0], facecolor="white", edgecolor="#777777", hatch="////", label="counted seconds")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(scored)), [f"{score['method']} ({budget(score['step_cost']['budget'])})"
                                         for score in scored])
    axes.set_ylim(len(scored) - 0.5, -0.5)
    axes.set_xlim(0, 1.1 * max(score["step_cost"][clock] or 0 for score in scored for clock in ("flops", "seconds")))
    axes.set_xlabel("cost of a training step, scratch in the same budget (in brackets) = 1")
    clean(axes, "x")
    figure.legend(loc="outside upper right", frameon=False, fontsize=8.5, ncols=2)
    save(figure, path)
    return True


def speedup(report: Mapping, path: Path) -> bool:
    """Speed-up to the full score and to a point below: by FLOPs filled, by counted seconds hollow below it."""
    scored = [score for score in along_curves(report) if score["targets"] and score["method"] != "scratch"]
    if not scored or report["full_accuracy"] is None:
        return False
    looks, bounds, lines = styles(report), [0.8, 1.25], []
    figure, axes = panels(2, (10.5, 1.4 + (0.42 if len(scored) < 12 else 0.3) * len(scored)))
    for panel, target in zip(axes, ("full", "full-1"), strict=True):
        for i, score in enumerate(scored):
            colour, marker = (looks[score["method"]][key] for key in ("color", "marker"))
            cells = score["targets"][target]["speed_up"]
            if cells["flops"]["value"] is None:
                said = cells["flops"]["status"]
                if said == "not reached" and score["budgets"] and max(score["budgets"]) < 1:
                    said += f" up to budget {budget(max(score['budgets']))}"
                panel.annotate(said, (1, i), xytext=(6, 0), textcoords="offset points", fontsize=8,
                               va="center", color="#666666", style="italic")
                continue
            timed = cells["seconds"]["value"] is not None
            for offset, clock, face in ((-0.14 * timed, "flops", colour), (0.2, "seconds", "white")):
                cell = cells[clock]
                if cell["value"] is None:
                    continue
                if cell["low_status"] != "unknown":
                    ends = cell["low"], None if cell["high_status"] == "at most" else cell["high"]
                    look = {"color": colour, "linewidth": 2 if clock == "flops" else 1}
                    lines.append((panel, i + offset, cell["value"], ends, look))
                    bounds += [end for end in (cell["low"], cell["high"]) if end is not None]
                bounds.append(cell["value"])
                panel.plot([cell["value"]], [i + offset], marker=marker, markersize=6 if clock == "flops" else 4.5,
                           color=colour, markerfacecolor=face, zorder=3)
        panel.axvline(1, color="black", linewidth=1, zorder=1)
        panel.set_title(f"to {goal(report, target)}", fontsize=10, loc="left")
        panel.set_xlabel("times cheaper than scratch")
        clean(panel, "x")
    ticks = pleasant_times(min(bounds), max(bounds))
    for panel in axes:
        log_ticks(panel, ticks, [f"{t:g}×" for t in ticks])
        panel.set_xlim(min(bounds) / 1.08, max(bounds) * 1.08)
    for panel, y, middle, ends, look in lines:                # an open end: the line goes on to the edge, to an arrow
        for end, edge, arrow in zip(ends, panel.get_xlim(), "<>", strict=True):
            panel.plot([middle, edge if end is None else end], [y, y], **look)
            if end is None:
                panel.plot([edge], [y], marker=arrow, markersize=5, color=look["color"], clip_on=False)
    timed = any(score["targets"]["full"]["speed_up"]["seconds"]["value"] for score in scored)
    for name, face, size in (("by FLOPs", "#777777", 6), ("by counted seconds", "white", 4.5))[:1 + timed]:
        axes[0].plot([], [], color="#777777", marker="o", markerfacecolor=face, markersize=size, label=name)
    figure.legend(loc="outside upper right", frameon=False, fontsize=8.5, ncols=2)
    axes[0].set_yticks(range(len(scored)), [score["method"] for score in scored])
    axes[0].set_ylim(len(scored) - 0.4, -0.6)
    save(figure, path)
    return True


def best_of_each(reports: Sequence[Mapping], path: Path) -> bool:
    """Speed-up by FLOPs to the full score: of each study the method with the largest; hollow if its interval is not above 1."""
    found = []
    for report in reports:
        scored = [score for score in ranking(report) if score["targets"] and not is_scratch(report, score["method"])]
        if scored and not report["blocked"]:
            cells = [score["targets"]["full"]["speed_up"]["flops"] for score in scored]
            begun = [cell for cell in cells if cell["status"] == "starts there"]        # no speed-up, and not a failure
            found.append((report, scored[0]["method"], (begun or cells)[0] if cells[0]["value"] is None else cells[0]))
    reached = [cell for *_, cell in found if cell["value"] is not None]
    if not reached:
        return False
    found.sort(key=lambda item: (list(SITUATIONS).index(item[0]["scenario"]), -(item[2]["value"] or 0), item[0]["study"]))
    bounds = [end for cell in reached for end in (1, cell["value"], cell["low"], cell["high"]) if end is not None]
    low, high = min(bounds) / 1.15, max(bounds) * 1.15
    figure, (axes,) = panels(1, (8.5, 1.1 + 0.45 * len(found)))
    ticks = pleasant_times(min(bounds), max(bounds))
    log_ticks(axes, ticks, [f"{t:g}×" for t in ticks])
    axes.set_xlim(low, high)
    for i, (report, _, cell) in enumerate(found):
        if cell["value"] is None:
            said = "old weights have it before the first step" if cell["status"] == "starts there" else \
                "none gets there, in the budgets that were measured"
            axes.annotate(said, (1, i), xytext=(6, 0), va="center", fontsize=8, textcoords="offset points", color="#666666",
                          style="italic")
            continue
        colour = COLOURS[list(SITUATIONS).index(report["scenario"]) % len(COLOURS)]
        ends = [low if cell["low"] is None else cell["low"], high if cell["high"] is None or cell["high_status"] == "at most"
                else cell["high"]]
        if cell["low_status"] != "unknown":
            axes.plot(ends, [i, i], color=colour, linewidth=2)
            for end, edge, arrow in zip(ends, (low, high), "<>", strict=True):
                if end == edge:
                    axes.plot([edge], [i], marker=arrow, markersize=5, color=colour, clip_on=False)
        axes.annotate(speed_up(cell), (cell["value"], i), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7.5,
                      color=INK)
        axes.plot([cell["value"]], [i], marker="o", markersize=6, color=colour, zorder=3,
                  markerfacecolor=colour if cell["low"] is not None and cell["low"] > 1 else "white")
    axes.axvline(1, color="black", linewidth=1, zorder=1)
    axes.set_yticks(range(len(found)), [
        f"{SITUATIONS[report['scenario']]}, {report['study']}" + ("" if cell["value"] is None else f":\n{method}")
        for report, method, cell in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel("times cheaper than scratch by training FLOPs, past runs not counted (log scale)")
    clean(axes, "x")
    save(figure, path)
    return True


def looks(methods: Sequence[str]) -> dict[str, dict]:
    """Of sequences of runs, the best first: scratch black, a colour for the first, the others grey."""
    others = [method for method in dict.fromkeys(methods) if method != "scratch"]
    return {"scratch": {"color": "black", "marker": "o"}} | {
        method: {"color": COLOURS[i] if i < len(COLOURS) else GREY, "marker": MARKERS[1 + i % (len(MARKERS) - 1)]}
        for i, method in enumerate(others)}


def score_over_cost(panel: Axes, points: Sequence[tuple[float, Mapping, Mapping]], what: str) -> None:
    """A point, with its interval, for each FLOPs, cell of a score and look."""
    for flops, cell, look in points:
        panel.plot([flops / TERA], [100 * cell["mean"]], linestyle="none", markersize=6, **look)
        if cell["low"] is not None:
            panel.vlines([flops / TERA], 100 * cell["low"], 100 * cell["high"], color=look["color"], linewidth=1.2)
    costs = [flops / TERA for flops, *_ in points]
    ticks = pleasant(min(costs), max(costs))
    log_ticks(panel, ticks, [f"{tick:,.3g}" for tick in ticks])
    panel.set_xlabel(f"{what}, TFLOP (log scale)")
    clean(panel)


def pleasant_times(low: float, high: float) -> list[float]:
    """Speed-ups worth a tick, the plainest first, as many as have room for their labels."""
    ticks, gap = [], math.log(high / low) / 8
    for tick in (1, 2, 0.5, 4, 0.25, 1.5, 0.7, 3, 10, 0.1, 1.25, 0.8, 1.1, 0.9, 6, 20, 50, 100):
        if low / 1.05 <= tick <= high * 1.05 and all(abs(math.log(tick / other)) >= gap for other in ticks):
            ticks.append(tick)
    return sorted(ticks)


def draw(report: Mapping, curves: Mapping[str, Mapping], folder: Path, more: Mapping[str, Callable]) -> list[str]:
    """Writes the figures that the study has numbers for, and those of `more`; returns their names. Older ones go."""
    made = {"tradeoff": tradeoff(report, folder / "tradeoff.png"),
            "accuracy_over_cost": accuracy_over_cost(report, curves, folder / "accuracy_over_cost.png"),
            "speedup": speedup(report, folder / "speedup.png"),
            **{name: function(report, folder / f"{name}.png") for name, function in more.items()},
            "step_cost": step_cost(report, folder / "step_cost.png")}
    for name, drawn in made.items():
        if not drawn:
            (folder / f"{name}.png").unlink(missing_ok=True)
    return [name for name, drawn in made.items() if drawn]
