"""The report of random searches in which each trial reuses the best one so far: cost, delivered accuracy, regret."""
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import read_json, write_atomic, write_json
from common.log import read_rows
from common.report import scores
from common.report.figures import legend, looks, panels, save, score_over_cost
from common.report.markdown import table
from common.report.origin import provenance
from common.report.runs import one_score, read_finished
from common.report.words import axis, budget, percent, point_interval, significant, terms

TERA = 1e12
RULES = """\
- A **search** draws learning rate and weight decay at random, the same settings in the same order for all methods of a seed, and
  evaluates on held-out training examples. Its first trial is from scratch; each later one reuses the best trial before it.
- **Cost** is that of all of its trials, in FLOPs of training and preparation.
- **Delivered** is the {noun} of its best trial, the model that one would take: on the held-out examples that chose it, which
  flatters every search, and on the test set, which chose nothing and was looked at once, after that trial's training.
- A trial that **failed** counts as the worst, with 0 % {noun}, and costs what the other trials of its search cost
  on average, or what it had logged where that is more. A search whose first trial failed has nothing to reuse and is left out.
- **Regret** is what the settings of that trial lose when they are trained from scratch: the best {noun} in scratch's own search
  of that seed, less scratch's {noun} with them. Reuse makes later trials look better whatever their settings are. Scratch's own
  is 0 by definition. On held-out examples that flatters it: what is subtracted from is the largest of several noisy values. On
  the test set none of the values was chosen.
- Scratch's search is the one at its **largest budget up to 1**, what one would do without reuse.
- What else one can do without reuse stands beside: search with short trials and **then train in full**, or for longer, from
  scratch, with the settings of the best; or try **half of the settings**. All are put together from runs of scratch's searches.
- **Without reuse for no more** is the one of these, or of scratch's searches, that is best on the test set among those whose
  FLOPs are at most the row's (to half a percent): the largest of several, which favours what does not reuse.
- What **pays** is the cheapest row whose cost interval lies below scratch's and whose {noun} on the test set, over that of
  scratch's search, has an interval above −1 point; a shorter scratch, too, may be it. Nothing is said while trials are missing.
- Intervals are 95 % t-intervals over seeds, paired with scratch's search of the same seed where a difference is shown."""
LOSS = -0.01                                                  # of score, that a cheaper sequence of runs may bring


def read_trial(folder: Path) -> dict | None:
    """A finished run, with its FLOPs and, where the test set did not choose, its score there; None if it is not finished."""
    run = read_finished(folder)
    return run and run | {"flops": sum(run["summary"]["flops"].values()),
                          "final": run["summary"].get("final_test", {}).get(run["score"])}


def read_or_failed(folder: Path) -> dict | None:
    """The same of a trial; one that failed has a score of 0."""
    run = read_trial(folder)
    if run or not (folder / "failed.json").exists():
        return run
    logged = read_rows(folder)
    return {"config": None, "score": None, "test": 0.0, "final": 0.0, "flops": logged[-1]["flops"] if logged else 0}


def state(folder: Path) -> str:
    """Of a run that is not finished."""
    failed = folder / "failed.json"
    return f"failed: {str(read_json(failed).get('message'))[:200]}" if failed.exists() else "not finished"


def one_search(trials: list[dict], scratch: list[dict]) -> dict:
    """Numbers of a search whose trials, and those of scratch with the same settings, are finished."""
    chosen = max(range(len(trials)), key=lambda i: trials[i]["test"])
    usual = scores.mean([trial["flops"] for trial in trials if trial["config"]]) or 0
    cost = [trial["flops"] if trial["config"] else max(trial["flops"], usual) for trial in trials]
    best = max(scratch, key=lambda trial: trial["test"])
    finals = best["final"], scratch[chosen]["final"]
    return {"flops": sum(cost), "delivered": trials[chosen]["test"], "chosen": chosen, "scores": [t["test"] for t in trials],
            "delivered_test": trials[chosen]["final"], "train": train(trials[chosen]),
            "regret": best["test"] - scratch[chosen]["test"],
            "regret_test": None if None in finals else finals[0] - finals[1]}


def then_longer(trials: list[dict], scratch: list[dict], longer: list[dict]) -> dict:
    """The same of a search whose chosen settings are then trained from scratch for as long as `longer` has them."""
    one = one_search(trials, scratch)
    full = longer[one["chosen"]]
    return one | {"flops": one["flops"] + full["flops"], "delivered": full["test"], "delivered_test": full["final"],
                  "train": train(full)}


def train(trial: Mapping) -> float | None:
    """Share of the training examples that it had right."""
    return trial["summary"].get("train", {}).get("correct") if trial["config"] else None


def reference(groups: Mapping[tuple, Mapping]) -> tuple | None:
    """Scratch's search at the largest budget up to 1; in a study that has none, at its largest."""
    return max((key for key in groups if key[0] == "scratch"), key=lambda key: (key[1] <= 1, key[1]), default=None)


def without_reuse(groups: Mapping[tuple, Mapping]) -> dict[tuple, dict[int, tuple]]:
    """What scratch alone can do, put together from its searches: (name, budget) -> by seed, trials and what is trained after
    them, in the same settings, None for nothing."""
    last = reference(groups)
    if last is None:
        return {}
    found = {}
    for _, share in sorted(key for key in groups if key[0] == "scratch" and key[1] < last[1]):
        for key, longer in groups.items():
            if key[0] == "scratch" and key[1] >= last[1]:
                name = "scratch, then in full" if key == last else f"scratch, then for {budget(key[1])}"
                short = groups["scratch", share]
                found[name, share] = {seed: (short[seed], longer[seed]) for seed in short if seed in longer}
    half = max((len(trials) for trials in groups[last].values()), default=0) // 2
    if half > 1:
        found["scratch, half of the settings", last[1]] = {seed: (trials[:half], None) for seed, trials in groups[last].items()}
    return found


def interval(values: Mapping[int, float]) -> dict:
    """Mean and 95 % t-interval of values by seed."""
    sd, freedom = scores.pooled_sd([values])
    half, middle = scores.half_width(sd, freedom, len(values)), scores.mean(list(values.values()))
    known = middle is not None and half is not None
    return {"mean": middle, "low": middle - half if known else None, "high": middle + half if known else None, "values": values,
            "reason": None if values else "missing"}


def aggregate(root: Path, plan: Mapping) -> dict:
    """report.json: one row per method and budget."""
    read = {folder: read_or_failed(root / folder) for search in plan["searches"] for folder in search["trials"]}
    groups: dict[tuple, dict[int, list]] = {}
    for search in plan["searches"]:
        groups.setdefault((search["method"], search["budget"]), {})[search["seed"]] = [read[f] for f in search["trials"]]
    rows, largest = [], reference(groups)
    scratch = groups.get(largest, {})
    every = {key: {seed: (trials, None) for seed, trials in searches.items()} for key, searches in groups.items()}
    for (method, share), searches in (every | without_reuse(groups)).items():
        done = {seed: then_longer(trials, scratch[seed], longer) if longer else one_search(trials, scratch[seed])
                for seed, (trials, longer) in searches.items()
                if seed in scratch and None not in [*trials, *scratch[seed], *(longer or ())] and trials[0]["config"]}
        other = {seed: one_search(scratch[seed], scratch[seed]) for seed in done}
        rows.append({"method": method, "budget": share, "seeds": len(done), "planned": len(searches),
                     "reference": (method, share) == largest, "train_accuracy": scores.mean([
                         one["train"] for one in done.values() if one["train"] is not None]),
                     "trials": {} if (method, share) not in groups else {
                         str(seed): {"scores": one["scores"], "chosen": one["chosen"]} for seed, one in done.items()},
                     "cost": {str(seed): one["flops"] for seed, one in done.items()},
                     "cost_over_scratch": interval({seed: done[seed]["flops"] / other[seed]["flops"] for seed in done}),
                     "delivered": interval({seed: one["delivered"] for seed, one in done.items()}),
                     "delivered_over_scratch": interval({s: done[s]["delivered"] - other[s]["delivered"] for s in done}),
                     "delivered_test": interval({s: one["delivered_test"] for s, one in done.items() if tested(one)}),
                     "delivered_test_over_scratch": interval({
                         s: done[s]["delivered_test"] - other[s]["delivered_test"] for s in done
                         if tested(done[s]) and tested(other[s])}),
                     "regret": interval({seed: one["regret"] for seed, one in done.items()}),
                     "regret_test": interval({
                         s: one["regret_test"] for s, one in done.items() if one["regret_test"] is not None}),
                     "provenance": provenance([
                         trial for seed in done for trials in searches[seed] for trial in trials or () if trial["config"]])})
    for row in rows:
        row["rival"] = rival(row, rows, "delivered_test")
    report = {"study": plan["study"], "task": plan["task"], "model": plan["model"], "scenario": plan["scenario"],
              "score": one_score(root, read), "rows": rows, "settings": tried(groups),
              "trials": max((len(search["trials"]) for search in plan["searches"]), default=0),
              "failed": [{"command": run["command"], "state": state(root / run["folder"])} for run in plan["runs"]
                         if read.get(run["folder"]) and read[run["folder"]]["config"] is None],
              "missing": [{"command": run["command"], "state": state(root / run["folder"])} for run in plan["runs"]
                          if read.get(run["folder"]) is None]}
    return report | {"pays": what_pays(report, "delivered_test_over_scratch", "on the test set")}


def rival(row: Mapping, rows: Sequence[Mapping], name: str) -> dict | None:
    """Of a row that reuses: what is best by its cell `name` without reuse at no more FLOPs, and the row's difference to it."""
    own = row[name]["values"]
    cheaper = [other for other in rows if other["method"].startswith("scratch") and other[name]["mean"] is not None
               and other["cost_over_scratch"]["mean"] <= 1.005 * (row["cost_over_scratch"]["mean"] or 0)]
    if row["method"].startswith("scratch") or not own or not cheaper:
        return None
    best = max(cheaper, key=lambda other: other[name]["mean"])
    theirs = best[name]["values"]
    return {"method": best["method"], "budget": best["budget"],
            "over": interval({seed: own[seed] - theirs[seed] for seed in own if seed in theirs})}


def tried(groups: Mapping[tuple, Mapping[int, list]]) -> dict[str, list]:
    """Seed -> learning rate and weight decay of each trial, which all searches of a seed share; None where none is finished."""
    found = {}
    for searches in groups.values():
        for seed, trials in searches.items():
            own = found.setdefault(str(seed), [None] * len(trials))
            for t, trial in enumerate(trials):
                if trial and trial["config"]:
                    own[t] = [trial["config"]["args"].get(name) for name in ("lr", "weight_decay")]
    return found


def what_pays(report: Mapping, gain: str, where: str) -> str:
    """By the rule of searches and of streams, one clause with its numbers; `gain` is the row's cell of scores over scratch's."""
    if report["missing"]:
        return f"not yet: {len(report['missing'])} runs are missing"
    rows = [row for row in report["rows"] if row["cost_over_scratch"]["high"] is not None and row["cost_over_scratch"]["high"] < 1
            and row[gain]["low"] is not None and row[gain]["low"] > LOSS]
    if not rows:
        return "nothing established: no row is cheaper than scratch's at no loss of a point"
    best = min(rows, key=lambda row: row["cost_over_scratch"]["mean"])
    cost, other = best["cost_over_scratch"], best.get("rival")
    more = other and (f"; {point_interval(other['over'])} over the best without reuse for no more, `{other['method']}` at budget "
                      f"{budget(other['budget'])}")
    return (f"`{best['method']}` at budget {budget(best['budget'])}: {cost['mean']:.2f} [{cost['low']:.2f}, {cost['high']:.2f}] "
            f"of scratch's FLOPs, {terms(report).noun} {where} {point_interval(best[gain])} points over scratch's{more or ''}")


def tested(search: Mapping) -> bool:
    """Whether its chosen trial said how good it is on the test set; those of first versions did not."""
    return search["delivered_test"] is not None


def missing(report: Mapping, runs: str, whole: str) -> tuple[str, str]:
    """What is said of missing runs, so called, of which a `whole` must not lack one: a sentence, and a section of them."""
    gone = report["missing"]
    if not gone:
        return "", ""
    return (f" {len(gone)} {runs} are missing, and no {whole} that lacks one is counted.",
            f"\n\n## Missing {runs}\n\n{commands(gone)}")


def commands(runs: Sequence[Mapping]) -> str:
    return table(["State", "Command"], [[run["state"], f"`{run['command']}`"] for run in runs], text=("Command",))


def draw(report: Mapping, path: Path) -> bool:
    """What searches deliver over what they cost; False where none is whole."""
    rows = [row for row in report["rows"] if row["delivered_test"]["mean"] is not None]
    rows.sort(key=lambda row: (row["method"] != "scratch", -row["delivered_test"]["mean"]))
    if not rows:
        path.unlink(missing_ok=True)
        return False
    figure, (panel,) = panels(1, (8.5, 4.6))
    look = looks([row["method"] for row in rows])
    for method in look:
        panel.plot([], [], linestyle="none", markersize=6, label=method, **look[method])
    score_over_cost(panel, [(scores.mean(list(row["cost"].values())), row["delivered_test"], look[row["method"]] | {
        "markerfacecolor": look[row["method"]]["color"] if row["seeds"] == row["planned"] else "white"}) for row in rows],
        "all trials, and what is trained after them")
    panel.set_ylabel(f"{axis(report)}, of the delivered model")
    legend(figure, panel)
    save(figure, path)
    return True


def markdown(report: Mapping) -> str:
    lines, made = [], {name: set() for name in ("device", "versions", "batch_size", "commit")}
    for row in sorted(report["rows"], key=lambda row: (row["method"] != "scratch", row["cost_over_scratch"]["mean"] or 9)):
        for name in made:
            made[name] |= set(row["provenance"][name])
        cost, delivered = scores.mean(list(row["cost"].values())), row["delivered"]["mean"]
        over = row["cost_over_scratch"]["mean"]
        lines.append([f"`{row['method']}`", budget(row["budget"]), f"{row['seeds']}/{row['planned']}",
                      significant(None if cost is None else cost / TERA), "–" if over is None else f"{over:.2f}",
                      percent(delivered), point_interval(row["delivered_over_scratch"]),
                      percent(row["delivered_test"]["mean"]), point_interval(row["delivered_test_over_scratch"]),
                      f"{point_interval(row['rival']['over'])}: `{row['rival']['method']}`, {budget(row['rival']['budget'])}"
                      if row["rival"] else "–",
                      *(["0 by definition"] * 2 if row["reference"] else
                        map(point_interval, (row["regret"], row["regret_test"])))])
    text = table(["Method", "Budget of a trial", "Seeds", "TFLOP of the search", "over scratch's", "Delivered %, held out",
                  "over scratch's, points", "Delivered %, test set", "over scratch's there, points",
                  "over the best without reuse for no more", "Regret, points",
                  "Regret on the test set, points"], lines)
    device, versions, batch_size, commit = (" and ".join(sorted(values)) for values in made.values())
    text += f"\n\n<sub>{device}. {versions}. Batch size {batch_size}. Commit {commit}.</sub>" if device else \
        "\n\n<sub>No finished search.</sub>"
    if report["figures"]:
        text += ("\n\n![search](figures/search.png)\n\nWhat a search delivers, on the test set, over its cost, with 95 % "
                 "intervals; several points of a method are its budgets. Hollow: planned seeds are missing.")
    text += trials(report)
    gone, section = missing(report, "trials", "search")
    text += section
    if report["failed"]:
        gone += f" {len(report['failed'])} trials failed and count as the worst."
        text += f"\n\n## Failed trials\n\n{commands(report['failed'])}"
    return (f"# {report['study']}\n\n`{report['model']}` on `{report['task']}`: random searches of {report['trials']} trials "
            f"each.{gone}{fit(report)}\n\nWhat pays: {report['pays']}.\n\n{text}"
            f"\n\n## How the numbers are made\n\n{RULES.format(noun=terms(report).noun)}\n")


def fit(report: Mapping) -> str:
    """How well scratch's delivered models know their training examples, one sentence."""
    own = next((row["train_accuracy"] for row in report["rows"] if row["reference"]), None)
    return "" if own is None else f" What scratch's search delivers has {percent(own)} % right of its training examples."


def trials(report: Mapping) -> str:
    """Every trial's score on the held-out examples, the chosen one's bold, under its settings."""
    lines, count = [], report["trials"]
    for seed, settings in sorted(report["settings"].items(), key=lambda item: int(item[0])):
        lines.append(["learning rate, weight decay", "", seed, *("–" if pair is None else ", ".join(
            "?" if value is None else f"{value:g}" for value in pair) for pair in settings)])
        for row in report["rows"]:
            if own := row["trials"].get(seed):
                said = [f"**{percent(value)}**" if t == own["chosen"] else percent(value)
                        for t, value in enumerate(own["scores"])]
                lines.append([f"`{row['method']}`", budget(row["budget"]), seed, *said])
    head = ["Search", "Budget of a trial", "Seed", *(f"Trial {t}" for t in range(1, count + 1))]
    return f"\n\n## Trials\n\nHeld-out {terms(report).noun} in %; the one that was chosen is bold.\n\n{table(head, lines)}" \
        if lines else ""


def write_search(root: Path, plan: Mapping) -> Path:
    """Writes REPORT.md and report.json of a study of searches; returns the former's path."""
    report = aggregate(root, plan)
    report["figures"] = ["search"] if draw(report, root / "figures/search.png") else []
    write_json(root / "report.json", report)
    write_atomic(root / "REPORT.md", markdown(report))
    return root / "REPORT.md"
