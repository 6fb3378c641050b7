"""Recommendations: stated rules over the numbers of report.json, nothing else. Each carries its rule and its limits."""

from collections.abc import Mapping, Sequence

from common.report import words

OTHER_REGIME = {"underfits": "memorize", "memorizes": "underfit"}


def ranking(report: Mapping) -> list[Mapping]:
    """Scores in the order of the headline: scratch, then by speed-up in FLOPs, then what is scored by paired gains.

    Where two get as far, what gains more at equal FLOPs at the budget that most methods have comes first.
    """
    gains = {row["method"]: row["equal_flops"]["mean"] for row in report["rows"]
             if row["budget"] == report["common_budget"] and "equal_flops" in row}

    def key(score):
        values = [score["targets"][name]["speed_up"]["flops"]["value"] or 0
                  for name in ("full", "full-1")] if score["targets"] and score["method"] != "scratch" else []
        return (score["method"] != "scratch", score["scored_by"] == "gain", [-value for value in values],
                -(gains.get(score["method"]) or 0), score["method"])

    return sorted(report["scores"], key=key)


def along_curves(report: Mapping) -> list[Mapping]:
    """Scores of methods that the study plans at more budgets than one, or that one budget brings to full accuracy.

    All, where no method has more than one.
    """
    def at_full(score):
        return score["targets"] and score["method"] != "scratch" and score["targets"]["full"]["speed_up"]["flops"]["value"]

    ranked = ranking(report)
    return [score for score in ranked if len(score["planned_budgets"]) > 1 or at_full(score)] \
        if any(len(score["planned_budgets"]) > 1 for score in ranked) else ranked


def rows_of(report: Mapping, method: str) -> list[Mapping]:
    return [row for row in report["rows"] if row["method"] == method]


def is_scratch(report: Mapping, method: str) -> bool:
    """Whether it is scratch, or scratch under a tag: what such a row controls for is no method."""
    return rows_of(report, method)[0]["script"] == "scratch"


def blocked(plan: Mapping, report: Mapping) -> str | None:
    """Why this study recommends nothing; None if it may."""
    scratch = {row["budget"]: row for row in rows_of(report, "scratch")}
    if not plan["recommend"]:
        return "This study is a smoke test on easy data: it shows that the scripts run, and recommends nothing."
    if report["missing"]:
        return (f"The study is incomplete: {len(report['missing'])} of "
                f"{report['planned']} planned runs are missing. It recommends nothing.")
    if 1 not in scratch or not scratch[1]["complete"]:
        return (f"Scratch has no complete row at budget 1, so {words.goal(report, 'full')} is unknown. "
                "The study recommends nothing.")
    if scratch[1]["seeds"] < 2:
        return "One seed gives no interval. The study recommends nothing."
    return None


def largest_of(report: Mapping, number: int, what: str) -> str:
    """What choosing the largest of so many rows or methods does to it."""
    if study := report.get("confirms"):
        return (f" The largest of {number} {what}, which {study} chose on other seeds. " if number > 1 else
                f" {study} chose it on other seeds. ")
    return " " if number == 1 else f" The largest of {number} {what}: measure it again on fresh seeds before calling it best. "


def measured_at(budgets: Sequence[float]) -> str:
    """Where a recommendation stops holding."""
    return f"Measured at budget {' to '.join(words.budget(budget) for budget in sorted({min(budgets), max(budgets)}))}."


def holds_for(report: Mapping) -> str:
    """The kind of past runs of which all recommendations of a study speak, one sentence."""
    regime = report["past"]["regime"]
    return f"The regime of the past runs is unknown{words.losses(report)}." if regime is None else \
        f"The past runs {regime[:-1]}: nothing is said about runs that {OTHER_REGIME[regime]}."


def above(cell: Mapping, border: float) -> bool:
    return cell["low"] is not None and cell["low"] > border


def save_compute(report: Mapping, target: str) -> dict:
    goal = words.goal(report, target)
    candidates = [score for score in ranking(report) if score["targets"] and not is_scratch(report, score["method"])]
    cells = {score["method"]: score["targets"][target]["speed_up"] for score in candidates}
    met = [score for score in candidates if above(cells[score["method"]]["flops"], 1)]
    known = [score for score in candidates if cells[score["method"]]["flops"]["value"] is not None]
    among = "that does not reload final weights of this task " if report["scenario"] in words.NOTHING_NEW else ""
    rule = (f"the method {among}with the largest speed-up by FLOPs to {goal}, among those whose interval lies above 1")
    best = max(met or known, key=lambda score: cells[score["method"]]["flops"]["value"], default=None)
    cell = cells[best["method"]] if best else None
    found = {"kind": f"save compute, {target}", "rule": rule, "method": best["method"] if met else None,
             "candidates": len(candidates)} | {
             name: cell["flops"][name] if met else None for name in ("value", "low", "high")}
    state = {score["method"]: cells[score["method"]]["flops"]["status"] for score in candidates}
    short = [score for score in candidates if state[score["method"]] == "not reached" and max(score["budgets"]) < 1]
    unknown = list(state.values()).count("unknown")
    found |= {"said": words.speed_up(cell["flops"]) if met else None, "measured": len(candidates) - len(short) - unknown}
    there = "".join(f" `{name}` has it before its first step." for name, said in state.items() if said == "starts there")
    if not met:
        text = f"No method meets the rule for {goal}.{there}"
        if best:
            text += f" Nearest: `{best['method']}`, {words.speed_up(cell['flops'])} times."
        if short:
            text += f" {unfinished(short, candidates)}"
        return found | {"text": text}
    text = (f"To save compute on the way to {goal}: **`{best['method']}`**, {words.speed_up(cell['flops'])} times "
            "cheaper than scratch by FLOPs" + ("." if cell["seconds"]["status"] == "not comparable" else
                                               f", {words.speed_up(cell['seconds'])} by counted seconds."))
    if cell["seconds"]["status"] != "not comparable" and not above(cell["seconds"], 1):
        text += " By seconds the saving is not established."
    text += there
    free = next((score for score in met if not score["reused"]), None)
    if not best["reused"]:
        text += " It reuses nothing of the past."
    elif target == "full":
        text += if_charged(report, best["method"])
    if short:
        text += f" {unfinished(short, candidates)}"
    text += of_another_task(rows_of(report, best["method"])[-1])
    if best["reused"] and free:
        text += (f" Without any past run: `{free['method']}`, "
                 f"{words.speed_up(cells[free['method']]['flops'])} times.")
    text += largest_of(report, len(candidates), "methods")
    return found | {"text": text + measured_at(best["budgets"])}


def unfinished(short: Sequence[Mapping], candidates: Sequence[Mapping]) -> str:
    """Of methods that the study does not follow as far as scratch, one sentence."""
    most = words.budget(max(max(score["budgets"], default=0) for score in short))
    return f"{len(short)} of {len(candidates)} do not get there, measured up to budget {most} alone."


def of_another_task(row: Mapping) -> str:
    """What a row that reuses a run of another task does not count, one sentence."""
    if not row.get("foreign") or not row["sequence_flops"]:
        return ""
    before = words.significant((row["sequence_flops"] - row["flops"]) / 1e12)
    return f" It begins with a run of another task, {before} TFLOP beside its own " \
           f"{words.significant(row['flops'] / 1e12)}, which count as paid."


def if_charged(report: Mapping, method: str) -> str:
    """What a method's longest training costs together with the past runs that it reuses, and what scratch has for no more."""
    rows = [row for row in rows_of(report, method) if row["complete"] and row["sequence_flops"]]
    paid = [row for row in rows_of(report, "scratch") if row["complete"] and rows and row["flops"] <= rows[-1]["sequence_flops"]]
    if not paid or report["scenario"] not in words.NOTHING_NEW:
        return ""

    def said(row, cost):
        return f"costs {words.significant(cost / 1e12)} TFLOP and has {words.percent(row['mean'])} %"

    return (f" What is reused counts as paid; charged in full, `{method}` at budget {words.budget(rows[-1]['budget'])} "
            f"{said(rows[-1], rows[-1]['sequence_flops'])}, scratch at budget {words.budget(paid[-1]['budget'])} "
            f"{said(paid[-1], paid[-1]['flops'])}"
            + ("" if rows[-1]["past_charged"]["mean"] is None else
               f"; at as many FLOPs the difference is {words.point_interval(rows[-1]['past_charged'])} points") + ".")


def equal_flops_rows(report: Mapping, reload: bool | None = None) -> list[Mapping]:
    """Complete rows with an accuracy over scratch at equal FLOPs; `reload` picks those that reuse final weights."""
    gained = {score["method"] for score in report["scores"] if score["scored_by"] == "gain"}
    return [row for row in report["rows"] if row["complete"] and row["method"] not in gained and row["script"] != "scratch"
            and row["equal_flops"]["mean"] is not None and reload in (None, "weights" in row["reused"])]


def at(row: Mapping, name: str) -> str:
    return f"`{row['method']}` at budget {words.budget(row['budget'])}, {words.point_interval(row[name])} points"


def largest(rows: Sequence[Mapping], name: str) -> list[Mapping]:
    return sorted(rows, key=lambda row: -row[name]["mean"])


def equal_flops(report: Mapping) -> dict:
    rows, noun = [row for row in equal_flops_rows(report) if row["budget"] == report["common_budget"]], words.terms(report).noun
    met = largest([row for row in rows if above(row["equal_flops"], 0)], "equal_flops")
    rule = (f"the largest {noun} over scratch at equal FLOPs, among complete rows at budget "
            f"{words.budget(report['common_budget'])}, which most methods have, whose interval lies above 0")
    found = {"kind": "accuracy at equal FLOPs", "rule": rule, "method": met[0]["method"] if met else None,
             "budget": met[0]["budget"] if met else None, "candidates": len(rows)} | {
             name: met[0]["equal_flops"][other] if met else None
             for name, other in (("value", "mean"), ("low", "low"), ("high", "high"))}
    if not met:
        nearest = [row for row in largest(rows, "equal_flops")[:1] if row["equal_flops"]["high"] is None
                   or row["equal_flops"]["high"] >= 0]        # else it is among what is not worth it
        return found | {"text": f"No method meets the rule for {noun} at equal FLOPs." + "".join(
            f" Nearest: {at(row, 'equal_flops')}." for row in nearest)}
    free = next((row for row in met if not row["reused"]), None)
    text = f"For {noun} at equal FLOPs: **{at(met[0], 'equal_flops')}** over scratch."
    if free is met[0]:
        text += " It reuses nothing of the past."
    elif free:
        text += f" Without any past run: {at(free, 'equal_flops')}."
    text += of_another_task(met[0])
    text += largest_of(report, len(rows), "rows")
    return found | {"text": text + measured_at([report["common_budget"]])}


def dominated(report: Mapping) -> list[Mapping]:
    """Complete rows outside of scratch's budgets, to which scratch at no more FLOPs is superior.

    By more than the half-width of the interval of the row's difference to scratch at its own budget.
    """
    gained = {score["method"] for score in report["scores"] if score["scored_by"] == "gain"}
    scratch = [row for row in rows_of(report, "scratch") if row["complete"]]
    return [row for row in report["rows"] if row["complete"] and row["method"] not in gained and row["script"] != "scratch"
            and row["equal_flops"]["mean"] is None and row["difference"]["half"] is not None
            and any(other["flops"] <= row["flops"] and other["mean"] > row["mean"] + row["difference"]["half"]
                    for other in scratch)]


def not_worth(report: Mapping) -> dict:
    inside = [row for row in equal_flops_rows(report)
              if row["equal_flops"]["high"] is not None and row["equal_flops"]["high"] < 0]
    outside = dominated(report)
    rows, noun = inside + outside, words.terms(report).noun
    rule = (f"complete rows whose {noun} over scratch at equal FLOPs lies below 0 with its whole interval, and those outside of "
            "scratch's budgets to which a scratch of no more FLOPs is superior by more than the half-width of their difference")
    said = [at(row, "equal_flops") for row in inside] + [
        f"`{row['method']}` at budget {words.budget(row['budget'])}, to which a cheaper scratch is superior" for row in outside]
    text = "Not worth it with the settings tried: " + "; ".join(said) + ". " + measured_at(
        [row["budget"] for row in rows]) if rows else "No method is established as not worth it."
    return {"kind": "not worth it", "rule": rule, "method": None, "text": text,
            "rows": [{"method": row["method"], "budget": row["budget"]} for row in rows]}


def reload_weights(report: Mapping) -> dict | None:
    """None where no method of the study reloads final weights."""
    gained = {score["method"] for score in report["scores"] if score["scored_by"] == "gain"}
    if gained:
        name, than = "gain_over_scratch_2", "scratch at budget 2, which trains as long as one past run and a run of budget 1"
        rows = [row for row in report["rows"] if row["method"] in gained and row["complete"]
                and row[name]["mean"] is not None]
    else:
        name, than = "equal_flops", "scratch at equal FLOPs"
        rows = equal_flops_rows(report, reload=True)
    if not rows:
        return None
    met = largest([row for row in rows if above(row[name], 0)], name)
    rule = f"reload final weights only where the paired gain over {than}, lies above 0 with its whole interval"
    rule = rule if gained else rule.replace("FLOPs,", "FLOPs")
    found = {"kind": "reload weights", "rule": rule, "method": met[0]["method"] if met else None,
             "budget": met[0]["budget"] if met else None, "candidates": len(rows), "paid": past_paid(report, gained),
             "rows": [{"method": row["method"], "budget": row["budget"]} for row in met]}
    if not met:
        nearest = largest(rows, name)[0]
        charged = nearest.get("past_charged", {"mean": None})
        return found | {"text": "Reloading final weights is not established to pay, at scratch's learning rate: no row meets the "
                                f"rule. Nearest: {at(nearest, name)}"
                                + ("" if charged["mean"] is None else f", and {words.point_interval(charged)} over scratch at as "
                                   "many FLOPs as it and its past runs had together") + ". "
                                + (f"With the past run taken as paid, {found['paid']} over scratch. "
                                   if found["paid"] else "") + measured_at([row["budget"] for row in rows])}
    text = "Reload final weights only here: " + "; ".join(at(row, name) for row in met) + "."
    plain = met[0].get("gain_over_warm_start")
    if plain and plain["mean"] is not None:
        text += f" The first gains {words.point_interval(plain)} points over plain `warm_start`" + (
            "." if above(plain, 0) else ": no established difference.")
    return found | {"text": f"{text} {measured_at([row['budget'] for row in met])}"}


def past_paid(report: Mapping, gained: Sequence[str]) -> str | None:
    """What plain reloading gains over scratch where the rule charges the past run and nobody else does, if it was compared."""
    rows = [row for row in rows_of(report, "warm_start") if row["complete"] and row["difference"]["mean"] is not None]
    if not rows or "warm_start" not in gained:
        return None
    return at(rows[-1], "difference") + ("" if above(rows[-1]["difference"], 0) else " (not established)")


def recommendations(report: Mapping) -> list[dict]:
    found = [save_compute(report, "full"), save_compute(report, "full-1"),
             equal_flops(report), not_worth(report), reload_weights(report)]
    return [item for item in found if item]
