"""The table of a tuning study: what --holdout said of each learning rate and weight decay, per budget."""
from pathlib import Path

from common.files import write_atomic, write_json
from common.report import words
from common.report.origin import BEFORE
from common.report.runs import one_score, read_finished
from common.report.scores import average
from common.report.words import SCORES

SETTINGS = ("batch_size", "lr", "weight_decay")


def write_table(root: Path, plan: dict) -> Path:
    """TUNING.md and tuning.json in `root`, from its finished runs; unfinished ones are rows without a score."""
    rows, found = [], {run["folder"]: read_finished(root / run["folder"]) for run in plan["runs"]}
    score = one_score(root, found)
    usual = next((done["config"]["args"]["batch_size"] for run in plan["runs"]           # what a command without one has
                  if "--batch-size" not in run["command"] and (done := found[run["folder"]])), None)
    for run in plan["runs"]:
        done = found[run["folder"]]
        config, summary = (done["config"], done["summary"]) if done else (None, None)
        words = run["command"].split()
        label = f"{run['method']}-{run['tag']}" if run.get("tag") else run["method"]
        rows.append({"method": label, "budget": run["budget"], "lr": float(words[words.index("--lr") + 1]),
                     "weight_decay": float(words[words.index("--weight-decay") + 1]), "seed": run["seed"],
                     "batch_size": int(words[words.index("--batch-size") + 1]) if "--batch-size" in words else usual,
                     "accuracy": done["test"] if done else None,
                     **({"failed": True} if not done and (root / run["folder"] / "failed.json").exists() else {}),
                     "loss": summary["test"].get("loss") if done else None,
                     "train_accuracy": summary["train"].get("correct") if done else None,
                     "commit": config["commit"] if done else None, "dirty": config["dirty"] if done else None,
                     "device": config["device"] if done else None, "versions": config["versions"] if done else None})
    if len({row["batch_size"] for row in rows}) == 1:         # not among what is chosen
        for row in rows:
            del row["batch_size"]
    rows.sort(key=lambda row: (row["method"], row["budget"], row.get("batch_size") or 0, row["lr"], row["weight_decay"],
                               row["seed"]))
    write_json(root / "tuning.json", {"study": plan["study"], "task": plan["task"], "model": plan["model"],
                                      "score": score, "past_epochs": plan["past_epochs"], "rows": rows})
    write_atomic(root / "TUNING.md", markdown(plan, rows, score))
    return root / "TUNING.md"


def pairs(rows: list[dict]) -> list[dict]:
    """Rows of one method and budget -> one for each setting, in their order: "values" of its seeds and the means over them.

    "accuracy" is None where a seed is missing.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in SETTINGS), []).append(row)
    found = []
    for own in groups.values():
        done = [row for row in own if row["accuracy"] is not None]
        whole = len(done) == len(own)
        found.append({name: own[0][name] for name in SETTINGS if name in own[0]} | {
            "values": [row["accuracy"] for row in done], "planned": len(own), "failed": any(row.get("failed") for row in own),
            **{name: average(done, lambda row, name=name: row[name]) if whole else None
               for name in ("accuracy", "loss", "train_accuracy")}})
    return found


def best(rows: list[dict]) -> dict | None:
    """Of `pairs` those with the most seeds, and of these the one with the best mean, of equals the first; None without any."""
    tried = [pair for pair in pairs(rows) if pair["accuracy"] is not None]
    most = max((pair["planned"] for pair in tried), default=0)
    return max((pair for pair in tried if pair["planned"] == most), key=lambda pair: pair["accuracy"], default=None)


def choice(rows: list[dict]) -> str:
    """What is best of one budget's rows, and where no farther neighbour was tried."""
    chosen, tried = best(rows), [row for row in rows if row["accuracy"] is not None]
    if chosen is None:
        return "nothing yet"
    open_ends = []
    for name, others, noun in (("lr", ("weight_decay", "batch_size"), "learning rate"),
                               ("weight_decay", ("lr", "batch_size"), "weight decay"), ("batch_size", (), "batch size")):
        beside = [row[name] for row in tried if name in row and all(row.get(other) == chosen.get(other) for other in others)]
        ends = [side for side, end in (("lower", min(beside)), ("higher", max(beside))) if chosen[name] == end] if beside else []
        open_ends += [f"no {' or '.join(ends)} {noun} was tried beside it"] if ends else []
    text = (f"batch size {chosen['batch_size']}, " if "batch_size" in chosen else "") \
        + f"learning rate {chosen['lr']:g}, weight decay {chosen['weight_decay']:g}"
    return text + (f" ({', '.join(open_ends)})" if open_ends else "")


def markdown(plan: dict, rows: list[dict], score: str) -> str:
    terms, held = SCORES[score], plan["runs"][0]["command"].partition("--holdout ")[2].split()[0]
    names = sorted({row["method"] for row in rows})
    alone, tuned, sizes = names == ["scratch"], " and ".join(names), any("batch_size" in row for row in rows)
    what = "Batch size, learning rate" if sizes else "Learning rate"
    then = ("All methods then use what scratch got at their budget, but for rows named `tuned`." + (
        " A study has one batch size for all budgets, and the settings that are best with it." if sizes else "")) if alone else (
        "The past run, made with the same holdout, has not seen the held-out examples either. Hyperparameters of these methods "
        "alone are not tuned.")
    parts = {(name, budget): [row for row in rows if (row["method"], row["budget"]) == (name, budget)]
             for name, budget in sorted({(row["method"], row["budget"]) for row in rows})}
    seeds = any(pair["planned"] > 1 for mine in parts.values() for pair in pairs(mine))
    several = ("What one seed could not tell apart has several, and the best mean of those with the most seeds is chosen; else "
               "one seed: a choice between neighbours is within noise. ") if seeds else (
        "One seed: a choice between neighbours is within noise. ")
    lines = [f"# Tuning: {tuned} on {plan['task']}, {plan['model']}", "",
             f"{what} and weight decay of {tuned}, chosen for each budget by {terms.noun} on held-out training examples "
             f"(`--holdout {held}`); the test set has no part in it. {several}{then}", ""]
    for (name, budget), mine in parts.items():
        chosen = best(mine)
        heading = f"Budget {words.budget(budget)}" if alone else f"{name}, budget {words.budget(budget)}"
        lines += [f"## {heading} ({budget * plan.get('epochs', plan['past_epochs']):g} epochs)", "",
                  ("| Batch size " if sizes else "") + f"| Learning rate | Weight decay | Held-out {terms.noun} % | "
                  + ("Its seeds | " if seeds else "") + f"Held-out {terms.loss} | {terms.train.capitalize()} % |",
                  "|---" * (5 + sizes + seeds) + "|"]
        for pair in pairs(mine):
            tried = (f"| {pair['batch_size']} " if sizes else "") + f"| {pair['lr']:g} | {pair['weight_decay']:g} |"
            each = f" {', '.join(f'{100 * value:.2f}' for value in pair['values'])} |" if seeds else ""
            if pair["accuracy"] is None:
                state = "failed" if pair["failed"] else "not finished"
                lines.append(f"{tried} {state} |{each} | |")
                continue
            mark = "**" if chosen and pair == chosen else ""
            loss = "–" if pair["loss"] is None else f"{pair['loss']:.3f}"
            lines.append(f"{tried} {mark}{100 * pair['accuracy']:.2f}{mark} |{each} {loss} | "
                         f"{words.percent(pair['train_accuracy'])} |")
        lines += ["", f"Chosen: {choice(mine)}.", ""]
    done = [row for row in rows if row["accuracy"] is not None]
    made = {}
    for row in done:
        machine = f"{row['device']['name']}, {row['device']['threads']} thread(s), "
        machine += f"{row['device'].get('arithmetic', BEFORE)}, torch {row['versions']['torch']}"
        made.setdefault(machine, set()).add(row["commit"][:10] + (" (with uncommitted changes)" if row["dirty"] else ""))
    where = [f"{machine}, commit{'s' if len(commits) > 1 else ''} {' and '.join(sorted(commits))}"
             for machine, commits in sorted(made.items())]
    return "\n".join([*lines, f"{len(done)} of {len(rows)} runs, seed {', '.join(sorted({str(r['seed']) for r in rows}))}. "
                      + "; ".join(where), ""])
