"""Where a study's numbers come from: machine and code of its runs, its past runs, what a sequence of runs cost."""

from collections.abc import Mapping, Sequence

from common.report.runs import kind
from common.report.scores import average, mean
from common.report.words import REGIME_BORDER, distinct

BEFORE = "bf16"                                               # of all runs that were committed before it was recorded


def provenance(runs: Sequence[Mapping]) -> dict[str, list[str]]:
    """Device, versions, batch size, commit and data of finished runs, each value once.

    Commits are also those at which a killed run went on, and those of past runs whose seconds this one is charged.
    """
    configs = [run["config"] for run in runs]

    def device(config):
        threads = config["device"].get("threads")
        how = [config["device"]["type"], *([f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []),
               *(word for name, word in (("compile", "compiled"), ("graph", "captured")) if config["args"].get(name)),
               config["device"].get("arithmetic", BEFORE)]
        return f"{config['device']['name']} ({', '.join(how)})"

    return {
        "device": distinct(device(config) for config in configs),
        "versions": distinct(", ".join(f"{name} {version}" for name, version in config["versions"].items())
                             for config in configs),
        "batch_size": distinct(str(config["args"].get("batch_size", "unknown")) for config in configs),
        "commit": distinct((made["commit"] or "unknown")[:10] + (" (dirty: with uncommitted changes)" if made["dirty"] else "")
                           for run in runs for config in (run["config"], *run.get("charged", ()))
                           for made in (config, *config.get("resumed", ()))),
        "data": distinct(str(config["data"].get("fingerprint")) for config in configs),
    }


def past_runs(past: Sequence[Mapping], score: str) -> dict:
    """The past runs and the regime they put every conclusion in; by accuracy alone, elsewhere nobody knows the border.

    There their mean losses stand instead: of the last epoch's training, and of the test set.
    """
    def read(run, value):
        return average([run], value) if run["summary"] else None

    runs = [{"folder": run["folder"], "seed": run["seed"], "state": run["state"],
             "train_accuracy": read(run, lambda run: run["summary"]["train"].get("correct")),
             "test_accuracy": read(run, lambda run: run["test"])} for run in past]
    train = [value for run in runs if (value := run["train_accuracy"]) is not None]
    done = [run for run in past if run["summary"]]
    middle = mean(train)
    loss = {part: average(done, lambda run, part=part: run["summary"][part].get("loss")) for part in ("train", "test")}
    return {"runs": runs, "train_accuracy": {"mean": middle, "low": min(train, default=None),
                                             "high": max(train, default=None)},
            "regime": None if middle is None or score != "accuracy" else "memorizes" if middle >= REGIME_BORDER else "underfits",
            "seeds": min(len(done), 1), "provenance": provenance(done)} | ({} if score == "accuracy" else {"loss": loss})


def sequences(runs: Sequence[dict]) -> None:
    """Adds to each run what it cost with all runs before it, whose seconds it was charged, and whether those had another task.

    Past runs come first, then stage after stage. What a run was charged as preparation is in its own FLOPs already.
    """
    made: dict[str, dict] = {}
    for run in runs:
        run |= {"sequence_flops": None, "charged": [], "foreign": False}
        if not run["summary"]:
            continue
        used = run["summary"].get("past", [])
        run["charged"] = [made[name]["config"] for name in used if name in made and kind(made[name]) == "folds"]
        run["foreign"] = any(made[name]["summary"]["task"] != run["summary"]["task"] for name in used if name in made)
        run["before"] = {name for name in used if name not in made or kind(made[name]) != "folds"}
        run["before"] |= {name for other in used if other in made for name in made[other]["before"]}
        if run["before"] <= made.keys():
            run["sequence_flops"] = sum(sum(one["summary"]["flops"].values())
                                        for one in (run, *(made[name] for name in sorted(run["before"]))))
        made[run["config"].get("name", run["folder"])] = run
