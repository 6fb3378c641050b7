"""results/REPORT.md: what every study recommends, situation by situation, from the studies' own report.json."""
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import read_json, write_atomic
from common.report.figures import best_of_each
from common.report.markdown import table
from common.report.words import SITUATIONS, budget, distinct, examples, goal, percent, point_interval, regime, terms

KINDS = {"save compute, full": "To save compute on the way to full {noun}",
         "accuracy at equal FLOPs": "For {noun} at equal FLOPs", "reload weights": "Reload final weights (at budget)"}

FIGURE = ("\n\n![How many times cheaper](overview.png)\n\nOf each study whose strongest were not measured again, the method with "
          "the largest speed-up, with its 95 % interval; hollow: not established. An arrow: that end is open.")


def answer(report: Mapping, kind: str) -> str:
    """One cell: the method that met the rule, with its interval."""
    item = next((item for item in report["recommendations"] if item["kind"] == kind), None)
    if report["blocked"]:
        return "not yet"
    if item is None:
        return "–"
    if kind == "reload weights":
        return reload_answer(item)
    if item["method"] is None:
        if "measured" not in item:
            return "no method established"
        if not item["measured"] and item["candidates"]:
            return "not measured that far"
        return f"none of {item['measured']}" + (" measured that far" if item["measured"] < item["candidates"] else "")
    if kind == "accuracy at equal FLOPs":
        row, = (row for row in report["rows"] if (row["method"], row["budget"]) == (item["method"], item["budget"]))
        return f"`{item['method']}` {point_interval(row['equal_flops'])} points at budget {budget(item['budget'])}"
    return f"`{item['method']}` {item['said']} times"


def reload_answer(item: Mapping) -> str:
    """Where nothing is new the rule charges the past run, elsewhere it is taken as paid: the cell says which."""
    by_method: dict[str, list[float]] = {}
    for row in item["rows"]:
        by_method.setdefault(row["method"], []).append(row["budget"])
    met = ", ".join(f"`{method}` ({', '.join(map(budget, sorted(budgets)))})" for method, budgets in by_method.items()) \
        or "no method established"
    return f"past charged: {met}; past paid: {item['paid']}" if item["paid"] else f"past paid: {met}"


def spoken(report: Mapping, superseded: bool) -> str:
    """A study's recommendations; of one that was measured again none is in bold."""
    items = "\n".join(f"- {item['text']}" for item in report["recommendations"])
    return f"{report.get('holds_for', '')}\n\n{items.replace('**', '') if superseded else items}"


def linked(report: Mapping) -> str:
    return f"[{report['study']}]({report['study']}/REPORT.md)"


def measured_again(reports: Sequence[Mapping]) -> dict[str, Mapping]:
    """Name of a study -> the finished one that has measured its strongest on other seeds."""
    return {report["confirms"]: report for report in reports if report.get("confirms") and not report["blocked"]}


def overview(reports: Sequence[Mapping], sequences: Sequence[Mapping] = (), drawn: bool = False) -> str:
    """The page; the same reports give the same text. `sequences` are those of streams and of searches; drawn: overview.png."""
    lines, again = [], measured_again(reports)
    by_name = {report["study"]: report for report in reports}
    for report in reports:
        if report["study"] in again:                          # its strongest were measured again: that row has them
            continue
        first = by_name.get(report.get("confirms"))
        answers = [answer(report, kind) if not first or answer(report, kind) != "–"
                   else f"{answer(first, kind)} ({first['study']})" for kind in KINDS]
        lines.append([linked(report) + (f", after {linked(first)}" if first else ""),
                      SITUATIONS.get(report["scenario"], report["scenario"]) + examples(report),
                      f"`{report['model']}` on `{report['task']}`, {goal(report, 'full')} {percent(report['full_accuracy'])}"
                      + ("" if report["full_accuracy"] is None else " %"),
                      regime(report), *answers])
    nouns = distinct(terms(report).noun for report in reports)
    noun = nouns[0] if len(nouns) == 1 else "score"           # several: each row's setting names its own
    head = ["Study", "What is new", "Setting", "Past runs", *(name.format(noun=noun) for name in KINDS.values())]
    said = [f"## {report['study']}\n\n" + (
        f"**Superseded:** its strongest were measured again on other seeds, which decides: {linked(again[report['study']])}. "
        if report["study"] in again else "") + (report["blocked"] or spoken(report, report["study"] in again))
        for report in reports]
    return ("# Which method for which situation\n\nEvery cell and every sentence is a study's own recommendation, made by the "
            "rule that stands in its report. What is discussed by hand stands in [FINDINGS.md](FINDINGS.md).\n\n"
            + table(head, lines, text=head) + FIGURE * drawn + "\n\n" + "\n\n".join([*said, *whole(sequences)]) + "\n")


def whole(sequences: Sequence[Mapping]) -> list[str]:
    """What is said of sequences of runs whose cost and score count as a whole, a line each."""
    lines = [f"- [{report['study']}]({report['study']}/REPORT.md), `{report['model']}` on `{report['task']}`, "
             f"{SITUATIONS[report['scenario']]}: {report['pays']}." for report in sequences]
    return ["## Whole sequences\n\n" + "\n".join(lines)] if lines else []


def write_overview(root: Path) -> Path:
    """Reads report.json of every study below `root`, writes REPORT.md there."""
    reports = [read_json(path) for path in sorted(root.glob("*/report.json"))]
    real = [report for report in reports if report["study"].partition("-")[0] != "demo"]
    said = [report for report in real if "recommendations" in report]
    drawn = best_of_each([report for report in said if report["study"] not in measured_again(said)], root / "overview.png")
    write_atomic(root / "REPORT.md", overview(said, [report for report in real if "pays" in report], drawn))
    return root / "REPORT.md"
