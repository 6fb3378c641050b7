"""How the report writes its numbers for a person: budgets, percentages, points, speed-ups, costs, provenance."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

REGIME_BORDER = 0.95  # share of correct training examples from which a run is said to memorize (DESIGN section 5)
SITUATIONS = {"same": "nothing is new", "grow": "data have grown", "classes": "classes were added", "shift": "members were added",
              "model": "another architecture", "tuning": "a search", "generations": "a chain of runs",
              "stream": "data arrive in portions"}
NOTHING_NEW = ("same", "generations")                         # there, reloaded weights go on from a finished run
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
BY_POOLING = "†"
PAST_CHARGED = "Over scratch at equal FLOPs, past runs charged"      # a column


class Terms(NamedTuple):
    """What a study's score is called, and `correct` of its training examples, pixels or objects; heads of their columns."""

    noun: str
    train: str
    test_column: str
    train_column: str
    loss: str
    second: str = ""                                          # a second score of the task, as its runs name it
    second_noun: str = ""
    second_column: str = ""


SCORES = {
    "accuracy": Terms("accuracy", "train accuracy", "Test %", "Train %", "loss, nats", "accuracy_per_class",
                      # of classes with unlike numbers of examples
                      "accuracy, mean of the classes", "Test %, mean of the classes"),
    "miou": Terms("mean IoU", "train pixel accuracy", "Test mean IoU %", "Train pixels %", "loss, nats", "pixel_accuracy",
                  "pixel accuracy", "Test pixels %"),
    "map": Terms("mAP (IoU .5 to .95)", "train objects found", "Test mAP (IoU .5 to .95) %", "Train objects found %", "loss",
                 "map50", "mAP (IoU .5)", "Test mAP (IoU .5) %"),
}


def terms(report: Mapping) -> Terms:
    """Of a report.json; older ones do not name their score, it is accuracy."""
    return SCORES[report.get("score", "accuracy")]


def goal(report: Mapping, target: str) -> str:
    """A target by its name in report.json: "full-1" -> "full accuracy − 1 point"."""
    return f"full {terms(report).noun}" + {"full": "", "full-1": " − 1 point", "full+1": " + 1 point"}[target]


def axis(report: Mapping) -> str:
    """The label of an axis of test scores."""
    return f"test {terms(report).noun}, %"


def budget(value: float) -> str:
    """0.25 -> "1/4"; a share that is no simple fraction stays decimal."""
    share = Fraction(value).limit_denominator(16)
    return str(share) if abs(share - value) < 1e-6 else f"{value:.3g}"


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}"


def points(value: float) -> str:
    """Rounded, what lies below 0 keeps its sign."""
    return f"{100 * value if abs(value) > 1e-9 else 0:+.1f}".replace("-", "−")


def point_interval(cell: Mapping) -> str:
    """+1.2 [+0.4, +2.0], in points; the reason where there is no difference; † where it leaves 0 out by the pooling alone."""
    if cell["mean"] is None:
        return cell["reason"]
    if cell["low"] is None:
        return f"{points(cell['mean'])} [unknown]"
    pooled = cell["low"] > 0 or cell["high"] < 0
    alone = cell.get("own_half")
    return f"{points(cell['mean'])} [{points(cell['low'])}, {points(cell['high'])}]" + (
        BY_POOLING if pooled and alone is not None and abs(cell["mean"]) <= alone else "")


def significant(value: float | None) -> str:
    """Three significant digits without an exponent: 0.0123, 1.23, 123, 12,300."""
    if value is None:
        return "unknown"
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:#.3g}"


def reading(cell: Mapping, scale: float = 1.0) -> str:
    """A cost to a target accuracy."""
    if cell["status"] == "reached":
        return significant(cell["cost"] / scale)
    if cell["status"] == "at most":
        return f"at most {significant(cell['cost'] / scale)}"
    return cell["status"]


def times(value: float) -> str:
    return f"{value:.2f}"


def speed_up(cell: Mapping) -> str:
    """1.42 [1.20, 1.66]; "≥" where the smallest budget is above the target already, one bound where both ends are its value."""
    if cell["value"] is None:
        return cell["status"]

    def side(name):
        value, status = cell[name], cell[f"{name}_status"]
        return status if value is None else ("≥ " if status == "at most" else "") + times(value)

    value = ("≥ " if cell["status"] == "at most" else "") + times(cell["value"])
    if cell["low_status"] == "unknown":
        return f"{value} [unknown]"
    ends = dict.fromkeys((side("low"), side("high"))) if cell["status"] == "at most" else (side("low"), side("high"))
    return f"{value} [{', '.join(ends)}]"


def count(number: int, noun: str) -> str:
    """Counts in words, as in "given these five past runs"."""
    word = NUMBERS[number] if number < len(NUMBERS) else str(number)
    return f"{word} {noun}{'' if number == 1 else 's'}"


def regime(report: Mapping) -> str:
    """The past runs' train accuracy and what it means for a conclusion, as one clause."""
    train, name = report["past"]["train_accuracy"], terms(report).train
    if train["mean"] is None:
        return f"{name} of the past runs unknown, regime unknown{losses(report)}"
    value = f"{name} {percent(train['mean'])} % ({percent(train['low'])} to {percent(train['high'])} %)"
    if report["past"]["regime"] is None:                      # large classes and easy objects are right without memory
        return f"{value}, which says little about whether they memorize{losses(report)}"
    verb = {"underfits": "underfit (below 95 %)", "memorizes": "memorize (at least 95 %)"}[report["past"]["regime"]]
    return f"{value}: they {verb}"


def losses(report: Mapping) -> str:
    """The past runs' mean train loss beside their test loss, where that is all that speaks of their regime; else nothing."""
    found = report["past"].get("loss") or {"train": None, "test": None}
    return "" if None in found.values() else \
        f"; their train loss is {significant(found['train'])}, their test loss {significant(found['test'])}"


def distinct(values: Iterable) -> list:
    """Each value once, in order of appearance."""
    return list(dict.fromkeys(values))


def examples(report: Mapping) -> str:
    """How many training examples new and past runs saw, where these differ; else nothing."""
    seen = report["train_examples"]
    return "" if None in seen.values() or seen["new"] == seen["past"] else \
        f": new runs have {seen['new']:,} training examples, past runs had {seen['past']:,}"


def machines(values: Sequence[str]) -> str:
    """"A (cpu)" and "A (cpu, compiled)" -> "A (cpu) and (cpu, compiled)"."""
    names = [value.rpartition(" (")[0] for value in values]
    return " and ".join(value.removeprefix(name + " ") if i and name == names[i - 1] else value
                        for i, (name, value) in enumerate(zip(names, values, strict=True)))


def code(commits: Sequence[str], where: str) -> str:
    """Commits, or how many, if there are more than three: they stand under `where`."""
    if len(commits) <= 3:
        return f"Commit{'s' if len(commits) > 1 else ''} {' and '.join(commits)}"
    dirty = sum("dirty" in commit for commit in commits)
    return f"{len(commits)} [commits]({where})" + (f", {dirty} of them with uncommitted changes" if dirty else "")


def provenance(rows: Sequence[Mapping], report: Mapping, where: str = "#made-by") -> str:
    """The line under a table: where its numbers come from. Several values are listed where the runs differ.

    where: link to the list of commits, if there are many.
    """
    used = [row for row in rows if row["seeds"]]
    past = f"Given {'this' if len(report['past']['runs']) == 1 else 'these'} " \
           f"{count(len(report['past']['runs']), 'past run')}: {regime(report)}."
    if not used:
        return f"<sub>No finished run. {past}</sub>"

    def several(name):
        return " and ".join(distinct(value for row in used for value in row["provenance"][name]))

    seeds = " or ".join(str(n) for n in sorted({row["seeds"] for row in used}))
    commits = distinct(value for row in used for value in row["provenance"]["commit"])
    devices = distinct(value for row in used for value in row["provenance"]["device"])
    return (f"<sub>{machines(devices)}. {several('versions')}. Batch size {several('batch_size')}. "
            f"{code(commits, where)}. Seeds per row: {seeds}. {past}</sub>")
