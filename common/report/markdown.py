"""REPORT.md, written from the numbers of report.json alone."""

from collections.abc import Mapping, Sequence

from common.report import landscape, pictures, words
from common.report.recommend import along_curves, rows_of
from common.report.rules import FIGURES, RULES
from common.report.words import budget, percent, point_interval, significant, speed_up

TERA, MEGA = 1e12, 1e6


def table(head: Sequence[str], lines: Sequence[Sequence[str]], text: Sequence[str] = ()) -> str:
    """A Markdown table; its first column and those named in `text` are left-aligned."""
    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|".join(":--" if name in (head[0], *text) else "--:" for name in head)
    return "\n".join([line(head), f"|{rule}|", *map(line, lines)])


def seeds(row: Mapping) -> str:
    return f"{row['seeds']}/{row['planned']}"


def accuracy(row: Mapping) -> str:
    """Its mean score and half of the interval."""
    if row["mean"] is None:
        return "missing"
    half = "[unknown]" if row["low"] is None else f"± {percent(row['high'] - row['mean'])}"
    return f"{percent(row['mean'])} {half}"


def headline(report: Mapping) -> str:
    lines, used, chosen = [], [], along_curves(report)
    timed = any(score["step_cost"] and score["step_cost"]["seconds"] for score in chosen if score["method"] != "scratch")
    for score in chosen:
        rows = rows_of(report, score["method"])
        used += rows
        last = next((row for row in reversed(rows) if row["complete"]), None)
        step = score["step_cost"]
        complete = f"{sum(row['complete'] for row in rows)}/{len(rows)}"
        costs = [f"{step[clock]:.2f}" if step and step[clock] else "–" for clock in ("flops", "seconds")]
        if score["method"] == "scratch":
            cells = ["unknown" if report["full_accuracy"] is None else "1"] * 3 + ["–"]
        elif score["scored_by"] == "gain":
            cells = ["see gains", "see gains", "see gains", "see gains"]
        else:
            full, near = score["targets"]["full"]["speed_up"], score["targets"]["full-1"]["speed_up"]
            cells = [speed_up(full["flops"]), speed_up(full["seconds"]), speed_up(near["flops"]),
                     f"{point_interval(last['equal_flops'])} at {budget(last['budget'])}" if last else "–"]
        reused = ", ".join(score["reused"]) or ("nothing" if any(row["seeds"] for row in rows) else "–")
        lines.append([f"`{score['method']}`", *cells, *costs, reused, complete])
    head = ["Method", "Speed-up to full, FLOPs", "by seconds", "to full − 1 point, FLOPs",
            "Points over scratch at equal FLOPs, at budget", "FLOPs per step, × scratch", "seconds per step, × scratch", "Reuses",
            "Rows complete"]
    if not timed:
        lines, head = [line[:2] + line[3:6] + line[7:] for line in lines], head[:2] + head[3:6] + head[7:]
    others = len(report["scores"]) - len(chosen)
    more = (f"\n\nPlanned at one budget alone: {words.count(others, 'more method')} or variants, see "
            "[side by side](#side-by-side).")
    return table(head, lines) + "\n\n" + words.provenance(used, report) + (more if others else "")


def summary(report: Mapping, where: str) -> str:
    """The table of the README's first screen: test score per budget, price of a step, speed-up. `where`: link to its commits."""
    largest = max((row["budget"] for row in report["rows"]), default=1)          # of scratch's own, this one says most
    budgets = sorted({row["budget"] for row in report["rows"] if row["method"] != "scratch"} | {largest})
    lines, chosen = [], along_curves(report)
    for score in chosen:
        rows = {row["budget"]: row for row in rows_of(report, score["method"])}
        cells = [(accuracy(rows[b]) + ("" if rows[b]["complete"] else f" ({seeds(rows[b])} seeds)")) if b in rows else "–"
                 for b in budgets]
        step = f"{score['step_cost']['flops']:.2f}" if score["step_cost"] else "–"
        speed = {"scratch": "1", "gain": "reloads weights"}.get(score["method"] if score["method"] == "scratch" else
                                                               score["scored_by"])
        lines.append([f"`{score['method']}`", *cells, step, speed or speed_up(score["targets"]["full"]["speed_up"]["flops"])])
    absent = len(report["missing"]) + len(report["failed"])
    state = f" **{absent} of {report['planned']} runs are still missing**; rows that lack seeds count for nothing yet." \
        if absent else ""
    others = len(report["scores"]) - len(chosen)
    more = f" {others} more methods and variants at one budget: under [Scripts](#scripts) and in the report." if others else \
        f" Chosen by {report['confirms']}, which has all methods at one budget: under [Scripts](#scripts)." \
        if report.get("confirms") else ""
    heads = [f"{words.terms(report).test_column} at budget {budget(b)}" for b in budgets]
    return table(["Method", *heads, "FLOPs per step, × scratch", f"Speed-up to {words.goal(report, 'full')}, FLOPs"], lines) \
        + f"\n\n{words.provenance(report['rows'], report, where)}\n\n" \
        + f"Budget: epochs, as a share of {report['budget_1_epochs']:g}. Full {words.terms(report).noun}: scratch's at " \
        f"budget 1. ± and [ ]: 95 % intervals over seeds. Not reached: not at the largest budget.{state}{more}"


def every_row(report: Mapping) -> str:
    lines, terms = [], words.terms(report)
    apart = {f"{split}_{part}": column.replace("%", f"{part} %")
             for split, column in (("test", terms.test_column), ("train", terms.train_column)) for part in ("old", "new")}
    apart = {name: title for name, title in apart.items() if any(row[name] is not None for row in report["rows"])}
    memory = "" if not {"train_old", "train_new"} <= set(apart) else (
        f"\n\n{apart['train_old']} and {apart['train_new']}: the finished model on the training examples of either part, without "
        "augmentation.")
    heads = {"difference": "Over scratch, equal budget", "equal_flops": "equal FLOPs", "equal_seconds": "equal seconds",
             "over_full": "scratch at budget 1"}
    for row in report["rows"]:
        other = ["–" if "difference" not in row or (name, row["budget"]) == ("over_full", 1)           # stands before
                 else point_interval(row[name]) for name in heads]
        lines.append([f"`{row['method']}`", budget(row["budget"]), seeds(row),
                      percent(row["train_accuracy"]) if row["seeds"] else "–", accuracy(row),
                      *("–" if row.get(name) is None else percent(row[name]) for name in apart), *other])
    return table(["Method", "Budget", "Seeds", terms.train_column, terms.test_column, *apart.values(),
                  *heads.values()], lines) \
        + memory + "\n\n" + words.provenance(report["rows"], report)


def against_each_other(report: Mapping) -> str | None:
    """The table of the methods of a study that measures again, against the first of them; None where there is one alone."""
    rows = [row for row in report["rows"] if "over_first" in row]
    if not rows:
        return None
    budgets = sorted({row["budget"] for row in rows})
    cells = {(row["method"], row["budget"]): point_interval(row["over_first"]) for row in rows}
    return table(["Method", *(f"at budget {budget(value)}" for value in budgets)], [
        [f"`{method}`", *(cells.get((method, value), "–") for value in budgets)]
        for method in dict.fromkeys(row["method"] for row in rows)]) + "\n\n" + words.provenance(rows, report)


def second_score(report: Mapping) -> str | None:
    """The table of the task's second score; None where it has none."""
    rows, terms = [row for row in report["rows"] if "second" in row], words.terms(report)
    if not rows:
        return None
    heads = {"difference": "Over scratch, equal budget", "equal_flops": "equal FLOPs",
             "gain_over_warm_start": "Over warm_start, equal budget", "gain_over_scratch_2": "Over scratch at budget 2",
             "past_charged": words.PAST_CHARGED}
    heads = {name: head for name, head in heads.items() if any(name in row["second"] for row in rows)}
    lines = [[f"`{row['method']}`", budget(row["budget"]), seeds(row), accuracy(row["second"]),
              *(point_interval(row["second"][name]) if name in row["second"] else "–" for name in heads)] for row in rows]
    return table(["Method", "Budget", "Seeds", terms.second_column, *heads.values()], lines) \
        + "\n\n" + words.provenance(rows, report)


def parts_apart(report: Mapping) -> str | None:
    """The table of the old and the new part, each beside scratch's; None where nothing is scored apart."""
    terms, head = words.terms(report), {"difference": "over scratch, equal budget", "equal_flops": "equal FLOPs"}
    titles = {f"apart_{split}_{part}": column.replace("%", f"{part} %")
              for split, column in (("test", terms.test_column), ("train", terms.train_column)) for part in ("old", "new")}
    titles = {name: title for name, title in titles.items() if any(name in row for row in report["rows"])}
    rows = [row for row in report["rows"] if set(titles) & set(row)]
    if not rows:
        return None
    lines = [[f"`{row['method']}`", budget(row["budget"]), seeds(row), *(
        cell for name in titles for cell in ((accuracy(row[name]), *(
            point_interval(row[name][key]) if key in row[name] else "–" for key in head)) if name in row else ["–"] * 3))]
        for row in rows]
    return table(["Method", "Budget", "Seeds", *(cell for title in titles.values() for cell in (title, *head.values()))], lines) \
        + "\n\n" + words.provenance(rows, report)


def cost_to(report: Mapping, name: str) -> str:
    lines, used = [], []
    for score in along_curves(report):
        if not score["targets"]:
            continue
        cell = score["targets"][name]
        used += rows_of(report, score["method"])
        gains = ["1 by definition"] * 2 if score["method"] == "scratch" else [
            speed_up(cell["speed_up"][clock]) for clock in ("flops", "seconds")]
        lines.append([f"`{score['method']}`", words.reading(cell["cost"]["flops"], TERA),
                      words.reading(cell["cost"]["seconds"]), words.reading(cell["cost"]["steps"]), *gains])
    return table(["Method", "TFLOP", "Counted seconds", "Steps", "Speed-up, FLOPs", "Speed-up, seconds"], lines) \
        + "\n\n" + words.provenance(used, report)


def gains(report: Mapping) -> str | None:
    """The table of methods that reload final weights where nothing is new."""
    rows = [row for row in report["rows"] if "gain_over_scratch_2" in row]
    if not rows:
        return None
    lines = [[f"`{row['method']}`", budget(row["budget"]), seeds(row), accuracy(row),
              point_interval(row["gain_over_warm_start"]) if "gain_over_warm_start" in row else "–",
              point_interval(row["gain_over_scratch_2"]), point_interval(row["past_charged"]), percent(row["start"])]
             for row in rows]
    return table(["Method", "Budget", "Seeds", words.terms(report).test_column, "Gain over warm_start",
                  "Gain over scratch at budget 2", words.PAST_CHARGED, "Before training %"], lines) \
        + "\n\n" + words.provenance(rows, report)


def cost_of_past(report: Mapping) -> str:
    lines = []
    for row in report["rows"]:
        if not row["seeds"]:
            continue
        cells = []
        for clock, scale in (("flops", TERA), ("seconds", 1))[:1 + report["timed_alike"]]:
            cost = row["cost"][clock]
            cells += [significant(value / scale)
                      for value in (cost["marginal"], cost["with_preparation"], cost["amortized"]["5"])]
        cells.insert(2, landscape.preparation(row))
        cells.insert(0, significant(None if row["sequence_flops"] is None else row["sequence_flops"] / TERA))
        cells.insert(1, point_interval(row["past_charged"]) if "past_charged" in row else "–")
        lines.append([f"`{row['method']}`", budget(row["budget"]), *cells, significant(row["past_bytes"] / MEGA)])
    columns = [f"{unit}, {kind}" for unit in ("TFLOP", "Seconds")[:1 + report["timed_alike"]]
               for kind in ("marginal", "with preparation", "amortized over 5")]
    columns.insert(2, "Preparation, % of FLOPs")
    return table(["Method", "Budget", "TFLOP, its past runs too", words.PAST_CHARGED, *columns, "MB of past kept"], lines) \
        + "\n\n" + words.provenance(report["rows"], report)


def absent(report: Mapping) -> str:
    lines = [[f"`{run['method']}{'-' + run['tag'] if run['tag'] else ''}`",
              "–" if run["budget"] is None else budget(run["budget"]), run["seed"],
              f"failed with exit code {run['exit_code']}: {str(run['message'])[:200]}" if run["state"] == "failed"
              else run["state"], f"`{run['command']}`"] for run in [*report["failed"], *report["missing"]]]
    if not lines:
        return "None: every planned run is finished."
    text = table(["Method", "Budget", "Seed", "State", "Command"], lines, text=("State", "Command"))
    if len(lines) > 20:
        text = f"<details><summary>{len(lines)} runs, with their commands</summary>\n\n{text}\n\n</details>"
    return text + "\n\n" + words.provenance(report["rows"], report)


def past(report: Mapping) -> str:
    lines = [[f"`{run['folder']}`", run["seed"], run["state"], percent(run["train_accuracy"]),
              percent(run["test_accuracy"])] for run in report["past"]["runs"]]
    terms = words.terms(report)
    text = table(["Folder", "Seed", "State", terms.train_column, terms.test_column], lines) \
        + "\n\n" + words.provenance([report["past"]], report)
    if trunks := report.get("trunks"):
        text += "\n\nRuns of another task, whose trunk alone is reused:\n\n" + table(
            ["Folder", "Task", "Seed", "State", "Epochs", "TFLOP", "Test score %"],
            [[f"`{run['folder']}`", f"`{run.get('task', '–')}`", run["seed"], run["state"], f"{run['epochs']:g}"
              if "epochs" in run else "–", significant(run["flops"] / TERA) if "flops" in run else "–", percent(run.get("test"))]
             for run in trunks])
    return text


def recommended(report: Mapping) -> str:
    if report["blocked"]:
        return report["blocked"]
    head = (f"For `{report['model']}` on `{report['task']}`, scenario `{report['scenario']}`, given these "
            f"{words.count(len(report['past']['runs']), 'past run')}. Each follows from the tables above by its rule. "
            f"{report['holds_for']}")
    if report["failed"]:
        head += " Rows with a failed run are not considered."
    return "\n".join([head, "", *(f"- {item['text']}\n  *Rule: {item['rule']}.*"
                                  for item in report["recommendations"])])


def made_by(report: Mapping) -> str:
    """Each row's code and machine, which no table repeats in full."""
    lines = [[f"`{row['method']}`", budget(row["budget"]), " ".join(row["provenance"]["commit"]),
              words.machines(row["provenance"]["device"])] for row in report["rows"] if row["seeds"]]
    lines += [["past runs", "–", " ".join(report["past"]["provenance"]["commit"]),
               words.machines(report["past"]["provenance"]["device"])]]
    return table(["Method", "Budget", "Commits", "Device"], lines, text=("Commits", "Device"))


def opening(report: Mapping) -> str:
    full = next((row for row in rows_of(report, "scratch") if row["budget"] == 1), None)
    noun = words.terms(report).noun
    new = words.SITUATIONS.get(report["scenario"], report["scenario"]).capitalize() + words.examples(report)
    text = f"`{report['model']}` on `{report['task']}`. {new} (scenario `{report['scenario']}`). "
    text += f"Full {noun} is unknown: scratch has no complete row at budget 1. " if report["full_accuracy"] is None \
        else (f"Full {noun} is **{accuracy(full)} %**: scratch at budget 1, {report['budget_1_epochs']:g} epochs, "
              f"{words.count(full['seeds'], 'seed')}. ")
    if owner := report.get("scratch_of"):
        text += f"Scratch's runs are those of [{owner}](../{owner}/REPORT.md). "
    text += f"Past runs: {words.regime(report)}. "
    known = full["train_accuracy"] if full and full["complete"] else None
    if known is not None and report["past"]["regime"] == "memorizes" and known < words.REGIME_BORDER:
        text += f"Scratch at budget 1 does not, its train accuracy is {percent(known)} %. "
    if not report["tuned"]:
        text += "**Scratch's learning rate and weight decay are the task's defaults, not tuned here.** "
    gaps = [f"{state}: {len(runs)}" for state, runs in (("missing", report["missing"]), ("failed", report["failed"]))
            if runs]
    if gaps:
        text += f"**Planned runs {', '.join(gaps)}**, see [below](#missing-and-failed-runs). "
    if len({item for row in report["rows"] for item in row["provenance"]["data"]}) > 1:
        text += "**The new runs differ in their data fingerprint: comparisons between them are not valid.** "
    commits = {item for row in report["rows"] for item in row["provenance"]["commit"]}
    if len(commits) > 1:
        text += (f"**Rows were made by {len(commits)} versions of the code, beside whatever else their machine did then: FLOPs "
                 "and steps compare them all; counted seconds only what the [rules](#how-the-numbers-are-made) allow.** ")
    return text + ("It recommends nothing, see [why](#recommendations)." if report["blocked"]
                   else "What follows from it: [recommendations](#recommendations).")


def markdown(report: Mapping) -> str:
    """The whole of REPORT.md; the same report gives the same text."""
    noun = words.terms(report).noun
    figures = "\n\n".join(f"![{name}](figures/{name}.png)\n\n{FIGURES[name].format(noun=noun)}" for name in report["figures"])
    parts = [("Headline", headline(report)), ("Figures", figures or "No finished run to draw.")]
    if "pictures" in report:
        parts.append(("Pictures", pictures.section(report, table, accuracy)))
    parts += [("Side by side", landscape.tables(report, table, accuracy)),
             ("Every row", "Differences are in points, paired by seed.\n\n" + every_row(report))]
    if against := against_each_other(report):
        parts.append((f"Against `{report['first']}`", "The methods were chosen on other seeds, so these compare them: points over"
                      f" `{report['first']}`, the first of the headline, in as many epochs (whose FLOPs may differ), paired "
                      f"by seed. That is first by these very seeds, which makes the others look a little worse than they are."
                      f"\n\n{against}"))
    if second := second_score(report):
        parts.append((f"The second score: {words.terms(report).second_noun}", f"By the same rules as {noun}, which alone decides "
                      f"what is recommended and where full {noun} lies.\n\n{second}"))
    if apart := parts_apart(report):
        parts.append(("Old and new apart", "Each part beside scratch's same part, in points, paired by seed. With so many "
                      f"comparisons, some intervals leave 0 out by chance.\n\n{apart}"))
    parts += [(f"Cost to {words.goal(report, name)} ({percent(target)} %)",
               cost_to(report, name)) for name, target in report["targets"].items() if target is not None]
    if gains(report):
        parts.append(("Gains of reloading final weights", "Nothing is new in this scenario, so these methods go on "
                      "from a finished run and have no speed-up. Gains are in points, paired by seed.\n\n"
                      + gains(report)))
    own = "Rows named `tuned` have a learning rate and weight decay of their own, chosen on held-out examples. "
    parts += [("Cost of the past", "What the past runs cost themselves stands in the first two columns after the budget, and "
               "is counted nowhere else: they are there. Past runs that only one method needs are its preparation. "
               "Scratch's sequence is its own run alone, also where a team that reuses nothing would have trained before.\n\n"
               + cost_of_past(report)), ("Recommendations", recommended(report)),
              ("Missing and failed runs", absent(report)), ("Past runs", past(report)), ("Made by", made_by(report)),
              ("How the numbers are made", RULES.format(noun=noun, tuned=own if any(
                  row["tag"] == "tuned" for row in report["rows"]) else ""))]
    return "\n\n".join([f"# {report['study']}", opening(report), *(f"## {name}\n\n{body}" for name, body in parts)]) \
        + "\n"
