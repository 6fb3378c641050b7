"""From the runs of a study to the numbers of its report: one row per method and budget, one score per method."""

from collections.abc import Callable, Collection, Mapping, Sequence

from common.report import recommend, scores
from common.report.origin import past_runs, provenance, sequences
from common.report.runs import kind
from common.report.scores import average
from common.report.words import NOTHING_NEW

PARTS = ("test_old", "test_new", "train_old", "train_new")     # what --parts scores apart
CLOCKS = ("flops", "seconds", "steps")  # FLOPs first: runs share machines, so FLOPs are the headline
REUSES = (1, 5)
POINT = 0.01
EDGE = 1.01                                                   # steps are whole, so that costs of equal budgets differ a little
STEADY = 1.1                                                  # the slowest step over the fastest, of the same arithmetic
SHARED = ("over_full", "past_charged", "gain_over_scratch_2")  # comparisons of all of a method's rows with much the same runs
NOT_COMPARABLE = scores.SpeedUp("not comparable", None, None, "unknown", None, "unknown")


def one_row(label: str, budget: float, runs: Sequence[Mapping]) -> dict:
    """Means over the finished runs of one method at one budget; intervals are added by `add_intervals`."""
    done = [run for run in runs if run["summary"]]
    values = {run["seed"]: run["test"] for run in done}
    row = {"method": label, "script": runs[0]["method"], "tag": runs[0]["tag"], "budget": budget,
           "seeds": len(done), "planned": len(runs), "complete": len(done) == len(runs),
           "mean": scores.mean(list(values.values())), "low": None, "high": None,
           "values": dict(sorted(values.items())),
           "reused": sorted({kind for run in done for kind in run["summary"]["reused"]})}
    numbers = {
        "epochs": lambda s: s["epochs"], "steps": lambda s: s["steps"], "examples": lambda s: s["examples"],
        "flops": lambda s: s["flops"]["training"] + s["flops"]["preparation"],
        "seconds": lambda s: s["seconds"]["counted"],
        "preparation_flops": lambda s: s["flops"]["preparation"],
        "preparation_seconds": lambda s: s["seconds"]["preparation"],
        "past_bytes": lambda s: s["past_bytes"], "parameters": lambda s: s["parameters"],
        "train_accuracy": lambda s: s["train"].get("correct"),
        "test_old": None, "test_new": None,                   # of the run, under this name
        "train_old": lambda s: s.get("train_parts", {}).get("old"), "train_new": lambda s: s.get("train_parts", {}).get("new"),
        "start": None, "sequence_flops": None,
    }
    for name, read in numbers.items():
        row[name] = average(done, lambda run, name=name, read=read: read(run["summary"]) if read else run[name])
    for name, read in (("second", lambda run: run["second"]),                       # of tasks that have one
                       *((f"apart_{part}", lambda run, part=part: run[part] if part.startswith("test_") else
                          run["summary"].get("train_parts", {}).get(part.removeprefix("train_"))) for part in PARTS)):
        middle = average(done, read)
        row |= {} if middle is None else {name: {
            "mean": middle, "low": None, "high": None, "values": dict(sorted((run["seed"], read(run)) for run in done))}}
    row |= {"foreign": True} if any(run["foreign"] for run in done) else {}      # reuses runs of another task
    row["cost"] = {clock: scores.cost_columns(row[clock] - row[f"preparation_{clock}"], row[f"preparation_{clock}"],
                                              REUSES) if done else None for clock in ("flops", "seconds")}
    row["pace"] = sorted((run["summary"]["seconds"]["counted"] - run["summary"]["seconds"]["preparation"])
                         / run["summary"]["steps"] for run in done if run["summary"]["steps"])
    row["provenance"] = provenance(done)
    return row


def add_intervals(rows: Sequence[dict]) -> None:
    """t-intervals of the means of one method, the standard deviation pooled over its budgets."""
    sd, freedom = scores.pooled_sd([row["values"] for row in rows])
    for row in rows:
        half = scores.half_width(sd, freedom, row["seeds"])
        if half is not None:
            row["low"], row["high"] = row["mean"] - half, row["mean"] + half


def compare(rows: Sequence[dict], reference: Callable[[dict], Mapping[int, float] | str], shared: bool = False) -> list[dict]:
    """Paired difference of each row of one method to `reference(row)`, pooled likewise.

    Args
        shared: the reference of all rows is the same runs, so that they are not independent.

    The reference is values by seed, or the reason why there are none. "half" is also known where only other budgets
    have a reference: the standard deviation is theirs. "own_half" is that of the row's own seeds, with their own deviation.
    """
    found = [reference(row) if row["seeds"] else "no finished run" for row in rows]
    pairs = [{} if isinstance(other, str) else scores.paired(row["values"], other)
             for row, other in zip(rows, found, strict=True)]
    sd, freedom = scores.pooled_sd(pairs)
    freedom = scores.shared_freedom(pairs) if shared else freedom
    cells = []
    for row, other, pair in zip(rows, found, pairs, strict=True):
        half = scores.half_width(sd, freedom, len(pair) or row["seeds"])
        middle = scores.mean(list(pair.values()))
        bounded = middle is not None and half is not None
        cells.append({"mean": middle, "low": middle - half if bounded else None,
                      "high": middle + half if bounded else None, "half": half,
                      "own_half": scores.half_width(*scores.pooled_sd([pair]), len(pair)), "seeds": len(pair), "values": pair,
                      "reason": None if pair else other if isinstance(other, str) else "no seed in common"})
    return cells


def at_equal_cost(scratch: Sequence[dict], clock: str, cost: str = "") -> Callable[[dict], Mapping[int, float] | str]:
    """Scratch's complete rows, read at another row's cost: of the same name, or `cost`."""
    points = [(row[clock], row["values"]) for row in scratch]

    def reference(row):
        if not points:
            return "no complete scratch"
        own = row[cost or clock]
        if own is None:
            return "unknown cost"
        low, high = min(price for price, _ in points), max(price for price, _ in points)
        side = "below" if own < low else "beyond"
        if low / EDGE <= own <= high * EDGE:
            own = min(max(own, low), high)
        found = scores.equal_cost(own, points)
        return f"{side} scratch's budgets" if found is None else found

    return reference


def at_equal_score(scratch: Sequence[dict]) -> Callable[[dict], Mapping[int, float] | str]:
    """Scratch's complete rows, read where they cost what brings their mean to another row's; else their nearest end."""
    points = sorted(((row["flops"], row["values"]) for row in scratch), key=lambda point: point[0])

    def reference(row):
        if not points:
            return "no complete scratch"
        found = scores.cost_at([(cost, scores.mean(list(values.values()))) for cost, values in points], row["mean"])
        return points[0 if found.status == "at most" else -1][1] if found.cost is None or found.status == "at most" \
            else scores.equal_cost(found.cost, points)

    return reference


def timed_alike(rows: Sequence[dict]) -> bool:
    """Whether counted seconds compare these rows.

    One known version of the code on one device and set of packages made them, and steps of the same arithmetic took as long
    (`STEADY`): those of one row, and those of all of scratch's. A machine that was busy with something else fails that, unless it
    was so for all of scratch's runs and for none of a method's, or the other way round.
    """
    made = {name: {value for row in rows for value in row["provenance"][name]} for name in ("commit", "device", "versions")}
    alike = [*(row["pace"] for row in rows), [pace for row in rows if row["method"] == "scratch" for pace in row["pace"]]]
    return all(len(values) <= 1 for values in made.values()) and not any(
        "dirty" in commit or commit == "unknown" for commit in made["commit"]) \
        and all(max(paces) <= STEADY * min(paces) for paces in alike if paces)


def step_cost(rows: Sequence[dict], scratch: Mapping[float, dict], prefer: float, timed: bool) -> dict | None:
    """Cost of a training step over scratch's in one shared budget: `prefer`, or else the largest; no preparation."""
    shared = [row for row in rows if row["seeds"] and scratch.get(row["budget"], {}).get("seeds")]
    if not shared:
        return None
    row = next((row for row in shared if row["budget"] == prefer), shared[-1])
    base = scratch[row["budget"]]
    return {"budget": row["budget"]} | {
        clock: row["cost"][clock]["marginal"] / row["steps"] / (base["cost"][clock]["marginal"] / base["steps"])
        if timed or clock == "flops" else None for clock in ("flops", "seconds")}


def score(rows: Sequence[dict], scratch: Sequence[dict], targets: Mapping[str, float | None], gained: bool,
          timed: bool) -> dict:
    """Costs and speed-ups of one method, from its complete rows.

    Args
        gained: scored by paired gains, no speed-up.
        timed: whether its counted seconds compare with scratch's.
    """
    complete = [row for row in rows if row["complete"]]
    reused = sorted({kind for row in rows for kind in row["reused"]})
    # other initial weights only get to a target by chance
    start = complete[0]["start"] if complete and "weights" in reused else None
    result = {"method": rows[0]["method"], "reused": reused,
              "scored_by": "gain" if gained else "cost", "start": start, "budgets": [row["budget"] for row in complete],
              "planned_budgets": [row["budget"] for row in rows],
              "targets": None if gained else {}}
    own = rows[0]["method"] == "scratch"
    for name, target in ({} if gained else targets).items():
        cell = {"accuracy": target, "cost": {}, "speed_up": {}}
        for clock in CLOCKS:
            base = scores.cost_at([(row[clock], row["mean"]) for row in scratch], target)
            full = next((row for row in scratch if row["budget"] == 1), None)
            if name == "full" and full:
                base = scores.Reading("reached", full[clock])  # by definition, also where a smaller budget gets there
            there = full["values"] if name == "full" and full else scores.equal_cost(
                base.cost, [(row[clock], row["values"]) for row in scratch]) if base.status == "reached" else None
            halves = [cell["half"] for cell in compare(complete, lambda row, there=there: there or "scratch is not there", True)]
            curve = [(row[clock], row["mean"]) for row in complete]
            reading = base if own else scores.cost_at(curve, target, start)
            reading = reading if timed or clock != "seconds" else scores.Reading("not comparable")
            cell["cost"][clock] = reading._asdict()
            cell["speed_up"][clock] = None if own else (scores.speed_up(
                base, curve, halves, target, start)
                if timed or clock != "seconds" else NOT_COMPARABLE)._asdict()
        result["targets"][name] = cell
    return result


def references(label: str, gained: bool, timed: bool, methods: Mapping[str, Sequence[dict]]) -> dict[str, Callable]:
    """What the rows of one method are compared with, by the name of the comparison in report.json."""
    if label == "scratch":
        return {}
    scratch = methods.get("scratch", [])
    complete = [row for row in scratch if row["complete"]]

    def at_budget(rows, name, budget=None):
        found = {row["budget"]: row["values"] for row in rows if row["seeds"]}
        return lambda row: found.get(budget or row["budget"], f"no {name} at {f'budget {budget}' if budget else 'this budget'}")

    chosen = {"difference": at_budget(scratch, "scratch"), "over_full": at_budget(complete, "complete scratch", 1)}
    chosen |= {f"equal_{clock}": at_equal_cost(complete, clock) for clock in CLOCKS}
    if not timed:
        chosen["equal_seconds"] = lambda row: "not comparable"
    chosen["past_charged"] = at_equal_cost(complete, "flops", "sequence_flops")
    if gained:
        chosen["gain_over_scratch_2"] = at_budget(complete, "complete scratch", 2)
        if label != "warm_start":
            chosen["gain_over_warm_start"] = at_budget(methods.get("warm_start", []), "warm_start")
    return chosen


def add_others(methods: Mapping[str, Sequence[dict]], gained: Collection[str]) -> None:
    """Interval and comparisons of each row's other scores, by the rules of the first; seconds and steps left out.

    Others are the task's second one, and the first of the old and of the new part apart.
    """
    for name in ("second", *(f"apart_{part}" for part in PARTS)):
        others = {label: [row | row[name] for row in rows if name in row] for label, rows in methods.items()}
        for label, own in others.items():
            add_intervals(own)
            found = {key: compare(own, reference, shared=key in SHARED) for key, reference in references(
                label, label in gained, False, others).items() if key not in ("equal_seconds", "equal_steps", "over_full")}
            for i, row in enumerate(row for row in methods[label] if name in row):
                row[name] |= {key: own[i][key] for key in ("low", "high")} | {key: cells[i] for key, cells in found.items()}


def against_first(report: dict, methods: Mapping[str, Sequence[dict]]) -> None:
    """Compares each method with the one that stands first in the headline after scratch, budget by budget."""
    first, *others = [score["method"] for score in recommend.ranking(report)
                      if not recommend.is_scratch(report, score["method"])] or [None]
    values = {row["budget"]: row["values"] for row in methods.get(first, []) if row["complete"]}
    for label in others:
        for row, cell in zip(methods[label], compare(methods[label], lambda row: values.get(row["budget"], "not there")),
                             strict=True):
            row["over_first"] = cell
    report["first"] = first


def goals(scratch: Sequence[dict]) -> dict[str, float | None]:
    """Target scores by name, from the complete rows of scratch; one point more only where budget 2 gets there."""
    means = {row["budget"]: row["mean"] for row in scratch if row["complete"]}
    full = means.get(1)
    targets = {"full": full, "full-1": None if full is None else full - POINT}
    if full is not None and means.get(2, 0) >= full + POINT:
        targets["full+1"] = full + POINT
    return targets


def other_tasks(past: Sequence[Mapping]) -> dict:
    """The past runs of another task, under "trunks"; nothing where there is none."""
    found = [{"folder": run["folder"], "seed": run["seed"], "state": run["state"]} | ({} if not run["summary"] else {
        "task": run["summary"].get("task", "unknown"), "epochs": run["summary"]["epochs"],
        "flops": sum(run["summary"]["flops"].values()), "test": run["test"]}) for run in past if kind(run) == "trunks"]
    return {"trunks": found} if found else {}


def aggregate(study: Mapping) -> dict:
    """report.json of a study read by `common.report.runs.read_study`. Its keys say accuracy whatever the score is."""
    plan, groups = study["plan"], {}
    sequences(study["past"] + study["runs"])
    for run in study["runs"]:
        groups.setdefault(run["label"], {}).setdefault(run["budget"], []).append(run)
    methods = {label: [one_row(label, budget, by_budget[budget]) for budget in sorted(by_budget)]
               for label, by_budget in groups.items()}
    rows = [row for own in methods.values() for row in own]
    scratch = methods.get("scratch", [])
    targets = goals(scratch)
    budgets = [row["budget"] for row in rows]
    common = max(budgets, key=lambda budget: (budgets.count(budget), budget), default=1)

    result = []
    finished = [row for row in scratch if row["complete"]]
    for label, own in methods.items():
        add_intervals(own)
        timed = timed_alike([*own, *scratch])
        gained = plan["scenario"] in NOTHING_NEW and any("weights" in row["reused"] for row in own) and not any(
            run["foreign"] for runs in groups[label].values() for run in runs)
        for name, reference in references(label, gained, timed, methods).items():
            for row, cell in zip(own, compare(own, reference, shared=name in SHARED), strict=True):
                row[name] = cell
        for row, cell in zip(own, compare(own, at_equal_score(finished), True), strict=True) if label != "scratch" else ():
            row["cheaper"] = scores.cheaper((row["flops"], row["mean"]), cell["half"], [
                (other["flops"], other["mean"]) for other in finished])._asdict() if row["complete"] else None
        result.append(score(own, finished, targets, gained, timed)
                      | {"step_cost": step_cost(own, {row["budget"]: row for row in scratch}, common, timed)})

    add_others(methods, {score["method"] for score in result if score["scored_by"] == "gain"})

    def listed(*states):
        return [{key: run[key] for key in ("method", "tag", "budget", "seed", "folder", "command", "state")}
                | (run["failed"] or {}) for run in [*study["past"], *study["runs"]] if run["state"] in states]

    usual = [run for run in study["past"] if kind(run) == "past"]
    seen = {name: {run["config"]["data"].get("train_examples") for run in runs if run["config"]}
            for name, runs in (("new", study["runs"]), ("past", usual))}
    # a study may call another number of epochs than the past runs' its budget 1, so the rows have the last word
    epochs = [row["epochs"] / row["budget"] for row in rows if row["epochs"]]
    report = {"study": plan["study"], "task": plan["task"], "model": plan["model"], "scenario": plan["scenario"],
              "score": study["score"], "past_epochs": plan["past_epochs"],
              "budget_1_epochs": epochs[0] if epochs else plan["past_epochs"],
              "full_accuracy": targets["full"], "targets": targets, "common_budget": common,
              "timed_alike": timed_alike(rows), "planned": len(study["past"]) + len(study["runs"]),
              "train_examples": {name: numbers.pop() if len(numbers) == 1 else None for name, numbers in seen.items()},
              "tuned": plan.get("tuned", True), "rows": rows, "scores": result,
              "past": past_runs(usual, study["score"]), **other_tasks(study["past"]),
              "missing": listed("not started", "unfinished"), "failed": listed("failed")} | (
                  {name: plan[name] for name in ("confirms", "scratch_of") if name in plan})
    if "confirms" in plan and not report["missing"]:          # all were chosen on other seeds
        against_first(report, methods)
    report["blocked"] = recommend.blocked(plan, report)
    report["holds_for"] = recommend.holds_for(report)
    report["recommendations"] = [] if report["blocked"] else recommend.recommendations(report)
    return report
