"""Plans and the queue: order, failures, what a second call does."""
import json
import os
import shlex
import shutil
import signal
from dataclasses import replace

import pytest
from conftest import SCRIPTS, parse, run_script, wait_for

from common import planning, study
from common.files import Refused
from common.naming import folder_name
from common.planning import Planner, plan
from common.planparts import Runs, Study, needs
from common.plans import VARIANTS, dense_minis, studies
from common.report import write_report
from common.report.overview import write_overview
from common.report.search import what_pays
from common.report.stream import aggregate
from common.report.tuning import best, pairs
from common.runfiles import names


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A study of one past budget, two scripts and a run that fails, below tmp_path."""
    small = Study("shapes", "resnet8", 0.4, recommend=False, past_seeds=(100, 101), runs=(
        Runs("baselines/scratch", (0.5, 1), (0, 1)),
        Runs("baselines/scratch", (1,), (0,), ("--lr", "1e30"), tag="broken"),
        Runs("methods/kd", (1,), (0, 1))))
    monkeypatch.setattr(study, "studies", lambda: {"demo": small})
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results" / "demo"


def test_failed_runs_are_named_and_the_rest_goes_on(tiny, capfd):
    with pytest.raises(SystemExit) as ended:
        study.main(["--jobs", "2"])
    assert ended.value.code == 1
    out, err = capfd.readouterr()
    assert "FAILED with exit code 1: the loss became infinite" in out and "1 of 9 runs failed" in err
    assert out.index("seed101") < out.index("/kd/") and "[9/9]" in out
    written = json.loads((tiny / "plan.json").read_text())
    assert len(written["past"]) == 2 and len(written["runs"]) == 7
    done = [r for r in written["past"] + written["runs"] if (tiny / r["folder"] / "summary.json").exists()]
    assert len(done) == 8
    broken = next(r for r in written["runs"] if r["tag"] == "broken")
    assert json.loads((tiny / broken["folder"] / "failed.json").read_text())["exit_code"] == 1
    report = json.loads((tiny / "report.json").read_text())
    assert len(report["failed"]) == 1 and not report["missing"] and (tiny / "REPORT.md").exists()

    with pytest.raises(SystemExit):                           # a second call skips what is finished, tries the failed one
        study.main(["--jobs", "2"])
    assert capfd.readouterr().out.count("finished before") == 8


def test_a_planned_run_is_its_printed_command(tiny, capsys):
    study.main(["--list"])
    commands = capsys.readouterr().out.strip().splitlines()
    assert len(commands) == 9 and all("--seed 10" in c and "--slim" in c for c in commands[:2])
    assert not tiny.exists()
    with pytest.raises(SystemExit):
        study.main([])
    for run in json.loads((tiny / "plan.json").read_text())["runs"]:
        config = tiny / run["folder"] / "config.json"         # the folder that the plan foretold is the run's own
        assert json.loads(config.read_text())["command"] == run["command"] and run["command"] in commands


def test_nothing_inherits_what_only_the_past_runs_were_made_with():
    """Past runs with a learning rate of their own would hand it on to whatever does not name one."""
    for name, planned in studies().items():
        if "--lr" in planned.past_options and not planned.tuning:
            runs = plan(name, planned)["runs"]
            assert runs and all("--lr" in shlex.split(run["command"]) for run in runs if " --past " in run["command"]), name


def test_plans_match_the_contract():
    for name, planned in studies().items():
        made = plan(name, planned)
        rows = [(r.get("method"), r.get("tag"), r.get("budget"), r["seed"], r["folder"]) for r in made["past"] + made["runs"]]
        assert len(rows) == len(set(rows)), name
        for folder in {r["folder"] for r in made["runs"]}:    # in several rows of a report where only the tag is another
            same = [r for r in made["runs"] if r["folder"] == folder]
            assert len({(r["method"], r["budget"], r["seed"], r["command"]) for r in same}) == 1, folder
            assert len({r["tag"] for r in same}) == len(same) and ("--tag" in same[0]["command"]) == bool(same[0]["tag"]), folder
        assert all(shlex.split(r["command"])[1][:-3] in SCRIPTS for r in made["runs"])
        folds = [r for r in made["past"] if r["folder"].startswith("folds/")]
        assert all(f"--subset not:{k}/{len(planned.past_seeds)}" in r["command"] for k, r in enumerate(folds, 1))
        assert bool(folds) == any(r["method"] == "rho_loss" for r in made["runs"])
        past = [r for r in made["past"] if r["folder"].split("/")[-5] == "past"]
        none = planned.trials or planned.portions or {r["method"] for r in made["runs"]} == {"scratch"}
        assert [r["seed"] for r in past] == ([] if none else list(planned.past_seeds))
        new = {r["seed"] for r in made["runs"]}
        assert not new & {r["seed"] for r in made["past"]} and all("--results results/" in r["command"] for r in made["runs"])
    mini = plan("cifar100-mini", studies()["cifar100-mini"])
    # STUDIES: scratch 4 budgets (and 2 between), six methods 3, one 2; the screening's other scripts and the variants 1; 3 seeds
    assert len(mini["runs"]) == 3 * (4 + 2 + 6 * 3 + 2 + len(SCRIPTS) - 7 + len(VARIANTS))
    assert {r["method"] for r in mini["runs"]} == {script.split("/")[1] for script in SCRIPTS}
    assert {r["seed"] for r in mini["runs"]} == {0, 1, 2}
    demo = {r["method"] for r in plan("demo", studies()["demo"])["runs"]}
    assert demo == {script.split("/")[1] for script in SCRIPTS}


def test_a_run_that_differs_from_another_by_its_tag_alone_is_made_once(tmp_path, monkeypatch, capsys):
    made = {(r["tag"], r["budget"], r["seed"]): r["folder"] for r in plan("grow-mini", studies()["grow-mini"])["runs"]
            if r["method"] == "warm_start"}
    assert made["tuned", 1, 2] == made["", 1, 2]              # .4 and 2e-3 are scratch's own there
    assert made["tuned", 0.5, 2] != made["", 0.5, 2]
    queue, started = study.Queue(tmp_path, 1, 1, []), []
    monkeypatch.setattr(queue, "_fork", lambda words, folder, threads: started.append(folder) or 1)
    monkeypatch.setattr(queue, "_spawn", lambda words, folder, threads: started.append(folder) or 1)
    monkeypatch.setattr(queue, "_wait", queue.running.clear)
    queue.make([{"folder": made[tag, 1, 2], "command": "python baselines/warm_start.py"} for tag in ("", "tuned")])
    assert len(started) == 1
    study.main(["grow-mini", "--list"])
    commands = capsys.readouterr().out.split("\n")
    assert len([c for c in commands if c]) == len({c for c in commands if c})


def test_a_study_may_have_the_scratch_runs_of_another():
    """They stand beside its own folder, are made by the other's commands, and the rest of it does not change."""
    name = "grow-mini-crop-flip"
    study = studies()[name]
    theirs = {run["folder"]: run["command"] for run in plan(study.scratch_of, studies()[study.scratch_of])["runs"]}
    runs = plan(name, study)["runs"]
    shared = [run for run in runs if run["method"] == "scratch"]
    assert len(shared) == 25 and all(
        theirs[run["folder"].removeprefix(f"../{study.scratch_of}/")] == run["command"] for run in shared)
    own = plan(name, replace(study, scratch_of=""))["runs"]
    assert [run for run in runs if run not in shared] == [run for run in own if run["method"] != "scratch"]
    assert not any(run["folder"].startswith("..") for run in own)


@pytest.mark.parametrize("asked, threads", [(None, 4), ("", 4), ("0", 4), ("some", 4), ("1", 1), ("3", 3), ("2,1", 2)])
def test_a_run_has_the_threads_that_were_asked_for_or_its_part_of_the_cores(tmp_path, monkeypatch, asked, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(study, "cores", lambda: 8)
    queue, given = study.Queue(tmp_path, 2, 1, []), []
    for start in ("_fork", "_spawn"):
        monkeypatch.setattr(queue, start, lambda words, folder, threads: given.append(threads) or 1)
    monkeypatch.setattr(queue, "_wait", queue.running.clear)
    queue.make([{"folder": "new", "command": "python methods/kd.py"}])
    assert given == [threads]


def test_listed_commands_compile_where_they_are_told_to(capsys):
    for flags in ([], ["--compile"]):
        study.main(["cifar100", "--list", *flags])
        commands = [shlex.split(c) for c in capsys.readouterr().out.splitlines() if c]
        assert all(("--compile" in c) == bool(flags) for c in commands)
        slim = ["--slim" in c for c in commands]               # README's job array cuts the list by it: past runs come first
        assert slim == sorted(slim, reverse=True) and sum(slim) == 10 and len(commands) > 500
    with pytest.raises(Refused, match="measures nothing"):
        study.main(["cifar100", "--list", "--fastest"])


def test_dense_studies_are_tuned_by_a_cross_and_every_seed_reuses_another_past_run():
    for name, rates, middle in (("segmentation", (0.1, 0.2, 0.4, 0.8), 0.4), ("detection", (0.025, 0.05, 0.1, 0.2), 0.1)):
        made = plan(f"{name}-mini-tuning", studies()[f"{name}-mini-tuning"])
        tried = {(r["budget"], *(float(words[words.index(option) + 1]) for option in ("--lr", "--weight-decay")))
                 for r in made["runs"][:15] for words in [shlex.split(r["command"])] if "--batch-size 16" in r["command"]}
        cross = {*((lr, 5e-4) for lr in rates), (middle, 1e-4), (middle, 2e-3)}
        assert tried == {(b, *one) for b in (0.5, 1) for one in cross} | {(2, lr, 5e-4) for lr in rates[1:]}
        assert len({r["folder"] for r in made["runs"]}) == len(made["runs"]) > 15
        assert all("--holdout 0.2" in r["command"] for r in made["runs"])
        grow = plan(f"{name}-mini-grow", studies()[f"{name}-mini-grow"])
        assert len({r["seed"] % len(grow["past"]) for r in grow["runs"]}) == 3
    chosen = dense_minis("x", "shapes-seg", (0.1, 0.2, 0.4, 0.8), {b: (b / 10, 1e-4) for b in (0.25, 0.5, 0.75, 1, 2)})
    made = plan("x-mini", chosen["x-mini"])
    assert made["tuned"] and "--lr 0.1 " in made["past"][0]["command"]
    assert all(f"--lr {r['budget'] / 10:g} " in r["command"] for r in made["runs"])


def test_no_two_seeds_share_a_past_run():
    """Where a method reuses one run, so that an interval over seeds is one over past runs, too."""
    for name, one in studies().items():
        made, seeds = Planner(name, one), {}
        for runs in one.runs if not (one.trials or one.portions or one.generations) else ():
            if needs(runs.script):
                seeds.setdefault((made._kind(runs), runs.script, runs.tag, runs.budgets), set()).update(runs.seeds)
        for (kind, *_), own in seeds.items():
            assert len({seed % len(made.before[kind]) for seed in own}) == len(own), (name, kind)
    fresh = plan("caltech101-mini-fresh", studies()["caltech101-mini-fresh"])       # its own trunks, the past runs of another
    assert [run["folder"].split("/")[:2] for run in fresh["past"]] == 5 * [["..", "caltech101-mini"]] + 5 * [
        ["trunks", "cifar100-resnet20"]]
    trunk, sample = (next(run["command"] for run in fresh["runs"] if run["tag"] == tag) for tag in ("trunk", "sample"))
    assert trunk.endswith("--past results/caltech101-mini-fresh/trunks")
    assert sample.endswith("--past results/caltech101-mini/past")


def test_past_runs_of_another_task_do_not_get_the_study_s_settings():
    small = Study("shapes", "resnet8", 1, settings={1: (0.7, 3e-4)}, runs=(Runs("baselines/warm_start", (1,), (0,)),),
                  others={"trunks": (1, ("--task", "cifar100"))})
    past, trunk = ({tuple(shlex.split(r["command"])[1:].count(word) for word in ("--lr", "--weight-decay"))
                    for r in plan("demo", small)["past"] if r["folder"].startswith(kind)} for kind in ("past", "trunks"))
    assert past == {(1, 1)} and trunk == {(0, 0)}


def test_tuning_chooses_by_the_mean_of_what_has_most_seeds():
    def row(lr, seed, accuracy):
        return {"lr": lr, "weight_decay": 0.1, "seed": seed, "accuracy": accuracy, "loss": accuracy, "train_accuracy": 0.5}
    rows = [row(0.1, 0, 0.60), row(0.1, 1, 0.70), row(0.2, 0, 0.69), row(0.2, 1, 0.59), row(0.4, 0, 0.90)]
    found = pairs(rows)
    assert [pair["accuracy"] for pair in found] == pytest.approx([0.65, 0.64, 0.9]) and found[1]["values"] == [0.69, 0.59]
    assert best(rows)["lr"] == 0.1                            # not the luckiest one seed, .69, nor what has one alone, .9
    rows[1]["accuracy"] = None
    assert pairs(rows)[0]["accuracy"] is None and best(rows)["lr"] == 0.2      # until its other seed is there
    assert best(rows[:1])["lr"] == 0.1 and best([]) is None


def test_tuning_table_marks_the_best_and_shows_what_is_missing(tmp_path):
    def run(lr, accuracy):
        folder = f"scratch/{lr}"
        if accuracy is not None:
            (tmp_path / folder).mkdir(parents=True)
            summary = {"test": {"accuracy": accuracy, "loss": 2.0}, "train": {"correct": 0.4}}
            config = {"commit": "1" * 40, "dirty": False, "versions": {"torch": "2.15"}, "args": {"batch_size": 64},
                      "device": {"name": "a CPU", "threads": 1}}
            (tmp_path / folder / "summary.json").write_text(json.dumps(summary))
            (tmp_path / folder / "config.json").write_text(json.dumps(config))
        return {"method": "scratch", "budget": 0.5, "seed": 0, "folder": folder,
                "command": f"python baselines/scratch.py --holdout 0.2 --lr {lr} --weight-decay 0.0002"}
    made = {"study": "x-tuning", "task": "cifar100", "model": "resnet8", "past_epochs": 8, "tuning": True, "past": [],
            "runs": [run(0.8, 0.414), run(0.4, 0.397), run(1.6, None)]}
    (tmp_path / "plan.json").write_text(json.dumps(made))
    text = write_report(tmp_path).read_text()
    assert "(`--holdout 0.2`)" in text and "Chosen: learning rate 0.8, weight decay 0.0002 (no higher" in text
    assert "## Budget 1/2 (4 epochs)" in text and "| 0.8 | 0.0002 | **41.40** | 2.000 | 40.0 |" in text
    assert "| 0.4 | 0.0002 | 39.70 |" in text and "| 1.6 | 0.0002 | not finished | | |" in text
    assert "2 of 3 runs, seed 0. a CPU, 1 thread(s), bf16, torch 2.15, commit 1111111111" in text
    assert [row["accuracy"] for row in json.loads((tmp_path / "tuning.json").read_text())["rows"]] == [0.397, 0.414, None]
    assert "All methods then use what scratch got" in text
    assert "Batch size" not in text and "batch_size" not in (tmp_path / "tuning.json").read_text()
    plain = made["runs"][1]["command"]                        # where only some commands name one, the others have the task's
    made["runs"][1]["command"] += " --batch-size 16"
    (tmp_path / "plan.json").write_text(json.dumps(made))
    text = write_report(tmp_path).read_text()
    assert "| 16 | 0.4 | 0.0002 | 39.70 |" in text and "| 64 | 0.8 | 0.0002 | **41.40** |" in text and "| 64 | 1.6 |" in text
    made["runs"][1]["command"] = plain
    for one, size in zip(made["runs"], (16, 8, 8), strict=True):
        one["command"] += f" --batch-size {size}"
    (tmp_path / "plan.json").write_text(json.dumps(made))
    text = write_report(tmp_path).read_text()
    assert text.index("| 8 | 0.4 | 0.0002 | 39.70 |") < text.index("| 16 | 0.8 | 0.0002 | **41.40** |")
    assert "Chosen: batch size 16, learning rate 0.8, weight decay 0.0002 (no lower or higher learning rate" in text
    assert text.count("no higher batch size was tried beside it") == 1                  # smaller ones were, at another rate
    again = made["runs"][2] = made["runs"][0] | {"seed": 1, "folder": "scratch/again"}
    shutil.copytree(tmp_path / "scratch/0.8", tmp_path / again["folder"])
    (tmp_path / again["folder"] / "summary.json").write_text(json.dumps(
        {"test": {"accuracy": 0.2, "loss": 2.0}, "train": {"correct": 0.4}}))
    (tmp_path / "plan.json").write_text(json.dumps(made))
    text = write_report(tmp_path).read_text()
    assert "| 16 | 0.8 | 0.0002 | **30.70** | 41.40, 20.00 | 2.000 | 40.0 |" in text
    assert "the best mean of those with the most seeds is chosen" in text
    made["runs"][0]["method"] = "warm_start"
    (tmp_path / "plan.json").write_text(json.dumps(made))
    text = write_report(tmp_path).read_text()
    assert "## warm_start, budget 1/2 (4 epochs)" in text and "All methods" not in text
    assert "weight decay 0.0002 (no lower or higher learning rate" in text.partition("## warm_start")[2]    # apart from scratch


def test_a_chain_waits_for_the_generation_before(tmp_path, monkeypatch, capsys):
    small = Study("shapes", "resnet8", 0.4, scenario="generations", recommend=False, past_seeds=(100,), generations=3, runs=(
        Runs("methods/kd", (1,), (0,)), Runs("baselines/scratch", (1,), (0,))))
    made = plan("demo", small)
    chain = [r for r in made["runs"] if r["method"] == "kd"]
    assert [(r["stage"], r["tag"], r["seed"]) for r in chain] == [(1, "g1", 0), (2, "g2", 1000), (3, "g3", 2000)]
    assert chain[0]["command"].endswith("--past results/demo/past")
    assert chain[2]["command"].endswith("--past results/demo/" + chain[1]["folder"])
    assert {(r["tag"], r["seed"]) for r in made["runs"] if r["method"] == "scratch"} == {("", 0), ("", 1000), ("", 2000)}
    monkeypatch.setattr(study, "studies", lambda: {"demo": small})
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    study.main(["--list"])
    stages = capsys.readouterr().out.rstrip("\n").split("\n\n")          # past run and stage 1 together
    assert [len(lines.splitlines()) for lines in stages] == [1 + 4, 1, 1] and "--tag g3" in stages[2]
    study.main(["--jobs", "2"])
    report = json.loads((tmp_path / "results/demo/report.json").read_text())
    first, second, third = (next(row for row in report["rows"] if row["method"] == f"kd-g{g}") for g in (1, 2, 3))
    assert third["difference"]["values"].keys() == {"2000"} and not report["missing"]
    assert third["sequence_flops"] == second["sequence_flops"] + third["flops"] == first["sequence_flops"] + 2 * third["flops"]


def test_a_search_reuses_its_best_trial_and_shares_the_first(tmp_path, monkeypatch):
    small = Study("shapes", "resnet8", 1, scenario="tuning", recommend=False, trials=3, runs=(
        Runs("baselines/scratch", (0.5,), (0,)), Runs("baselines/warm_start", (0.5,), (0,))))
    made = plan("demo", small)
    assert [(r["method"], r["tag"], r["seed"], r["stage"]) for r in made["runs"]] == [
        ("scratch", "t1", 0, 1), ("scratch", "t2", 1, 2), ("warm_start", "t2", 1, 2), ("scratch", "t3", 2, 3),
        ("warm_start", "t3", 2, 3)]
    given = [shlex.split(r["command"]) for r in made["runs"]]
    rates = [words[words.index("--lr") + 1] for words in given]
    assert rates[1] == rates[2] != rates[3] == rates[4] != rates[0]
    assert "--pick" not in given[1] and given[2][given[2].index("--pick") + 1] == "best"
    monkeypatch.setattr(study, "studies", lambda: {"demo": small})
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    study.main(["--jobs", "2"])
    root = tmp_path / "results/demo"
    last = json.loads((root / made["runs"][4]["folder"] / "summary.json").read_text())
    before = [json.loads((root / made["runs"][i]["folder"] / "summary.json").read_text())["test"]["accuracy"] for i in (0, 2)]
    chosen = made["runs"][0 if before[0] >= before[1] else 2]["folder"]
    assert last["past"] == [chosen]
    assert {row["method"]: row["seeds"] for row in json.loads((root / "report.json").read_text())["rows"]} == \
        {"scratch": 1, "warm_start": 1}


def test_regret_by_hand(tmp_path):
    """Scratch's trials have .3 .5 .4; the method's .3 .4 .6: it delivers .6, and its third settings lose .5 - .4 from scratch."""
    def trial(name, accuracy, flops):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"test": {"accuracy": accuracy}, "flops": {"training": flops}}))
        (folder / "config.json").write_text(json.dumps({
            "args": {"batch_size": 32}, "commit": "1" * 40, "dirty": False, "versions": {"torch": "2.15"}, "data": {},
            "device": {"type": "cpu", "name": "a CPU", "threads": 1}}))
        return name
    scratch = [trial("a1", 0.3, 100), trial("a2", 0.5, 100), trial("a3", 0.4, 100)]
    reuse = ["a1", trial("b2", 0.4, 50), trial("b3", 0.6, 50)]
    (tmp_path / "plan.json").write_text(json.dumps({
        "study": "x", "task": "shapes", "model": "resnet8", "scenario": "tuning", "past": [],
        "runs": [{"folder": "b3", "command": "python b3"}], "searches": [
            {"method": "scratch", "budget": 1, "seed": 0, "trials": scratch},
            {"method": "reuse", "budget": 1, "seed": 0, "trials": reuse}]}))
    text = write_report(tmp_path).read_text()
    rows = {row["method"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    assert rows["reuse"]["delivered"]["mean"] == 0.6 and rows["reuse"]["regret"]["mean"] == pytest.approx(0.1)
    assert "0 by definition" in text and "| `reuse` | 1 | 0 | 30.0 | 40.0 | **60.0** |" in text
    assert rows["reuse"]["cost_over_scratch"]["mean"] == pytest.approx(2 / 3) and rows["scratch"]["regret"]["mean"] == 0
    assert rows["scratch"]["cost_over_scratch"]["mean"] == 1
    assert rows["reuse"]["delivered_over_scratch"]["mean"] == pytest.approx(0.1)
    assert "| `reuse` | 1 | 1/1 |" in text and "random searches of 3 trials" in text
    assert rows["reuse"]["delivered_test"]["values"] == {} and "| unknown | missing |" in text      # no trial said
    for name, value in (("b3", 0.55), ("a2", 0.5)):
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        (tmp_path / name / "summary.json").write_text(json.dumps(summary | {"final_test": {"accuracy": value}}))
    write_report(tmp_path)
    tested = {row["method"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}["reuse"]
    assert tested["delivered"]["mean"] == 0.6 and tested["delivered_test"]["mean"] == 0.55
    assert tested["delivered_test_over_scratch"]["mean"] == pytest.approx(0.05) and tested["regret_test"]["values"] == {}
    (tmp_path / "b3" / "summary.json").unlink()
    text = write_report(tmp_path).read_text()
    assert "1 trials are missing" in text and "| not finished | `python b3` |" in text
    (tmp_path / "b3" / "failed.json").write_text(json.dumps({"exit_code": 1, "message": "the loss became infinite"}))
    (tmp_path / "b3" / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "flops": 7}) + "\n")
    text = write_report(tmp_path).read_text()
    rows = {row["method"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    assert rows["reuse"]["seeds"] == 1 and rows["reuse"]["delivered"]["mean"] == 0.4      # b2's, whose settings are the best
    assert rows["reuse"]["cost"] == {"0": 100 + 50 + 75} and rows["reuse"]["regret"]["mean"] == 0
    assert "1 trials failed and count as the worst" in text and "failed: the loss became infinite | `python b3`" in text
    assert "1 trials are missing" not in text
    (tmp_path / "a1" / "summary.json").rename(tmp_path / "a1" / "failed.json")            # nothing there to reuse
    write_report(tmp_path)
    assert {row["seeds"] for row in json.loads((tmp_path / "report.json").read_text())["rows"]} == {0}


def test_what_scratch_alone_can_do_for_less(tmp_path):
    """Four settings: short trials choose the third, which in full has .45 held out and .44 on the test set; two, the second."""
    def search(name, accuracies, finals, flops):
        for k, (accuracy, final) in enumerate(zip(accuracies, finals, strict=True)):
            (tmp_path / f"{name}{k}").mkdir()
            (tmp_path / f"{name}{k}" / "summary.json").write_text(json.dumps({
                "test": {"accuracy": accuracy}, "final_test": {"accuracy": final}, "flops": {"training": flops},
                "train": {"correct": accuracy + 0.2}}))
            (tmp_path / f"{name}{k}" / "config.json").write_text(json.dumps({
                "args": {"batch_size": 32, "lr": 0.1 * k, "weight_decay": 5e-4}, "commit": "1" * 40, "dirty": False,
                "versions": {}, "data": {}, "device": {"type": "cpu", "name": "a CPU", "threads": 1}}))
        return [f"{name}{k}" for k in range(4)]
    full = search("full", [0.3, 0.5, 0.45, 0.55], [0.31, 0.49, 0.44, 0.5], 100)
    short = search("short", [0.2, 0.3, 0.35, 0.33], [0.2, 0.3, 0.3, 0.3], 25)
    longer = search("longer", [0.6, 0.7, 0.65, 0.55], [0.6, 0.7, 0.64, 0.5], 150)
    reuse = search("reuse", [0.3, 0.4, 0.6, 0.75], [0.3, 0.4, 0.6, 0.7], 62.5)
    (tmp_path / "plan.json").write_text(json.dumps({
        "study": "x", "task": "shapes", "model": "resnet8", "scenario": "tuning", "past": [], "runs": [], "searches": [
            {"method": "scratch", "budget": 1, "seed": 0, "trials": full},
            {"method": "scratch", "budget": 1.5, "seed": 0, "trials": longer},
            {"method": "reuse", "budget": 0.5, "seed": 0, "trials": reuse},
            {"method": "scratch", "budget": 0.25, "seed": 0, "trials": short}]}))
    text = write_report(tmp_path).read_text()
    rows = {(row["method"], row["budget"]): row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    then, half = rows["scratch, then in full", 0.25], rows["scratch, half of the settings", 1]
    assert then["cost"] == {"0": 4 * 25 + 100} and half["cost"] == {"0": 200} and len(rows) == 7
    reusing = rows["reuse", 0.5]["rival"]                      # 250 FLOPs: what costs as much and has more, not what costs less
    assert (reusing["method"], reusing["budget"]) == ("scratch, then for 3/2", 0.25) and rows["scratch", 1]["rival"] is None
    assert reusing["over"]["mean"] == pytest.approx(0.7 - 0.64)
    more = rows["scratch, then for 3/2", 0.25]
    assert more["cost"] == {"0": 4 * 25 + 150} and more["delivered"]["mean"] == 0.65 and more["delivered_test"]["mean"] == 0.64
    assert [row["reference"] for row in rows.values()].count(True) == 1 and rows["scratch", 1]["reference"]
    assert [row["delivered"]["mean"] for row in (then, half)] == [0.45, 0.5]
    assert [row["delivered_test"]["mean"] for row in (then, half)] == [0.44, 0.49]
    assert [round(row["regret"]["mean"], 6) for row in (then, half)] == [0.1, 0.05]
    assert [round(row["regret_test"]["mean"], 6) for row in (then, half)] == [0.06, 0.01]
    assert rows["scratch", 0.25]["regret_test"]["mean"] == pytest.approx(0.06) and "has 75.0 % right" in text
    assert "| learning rate, weight decay |  | 0 | 0, 0.0005 | 0.1, 0.0005 | 0.2, 0.0005 | 0.3, 0.0005 |" in text
    figure = tmp_path / "figures/search.png"
    assert "![search](figures/search.png)" in text and figure.exists()
    for name in (*full, *longer, *reuse, *short):
        (tmp_path / name / "summary.json").unlink()
    text = write_report(tmp_path).read_text()
    assert "![" not in text and "<sub>No finished search.</sub>" in text and not figure.exists()


def test_a_stopped_queue_stops_its_runs(tiny, monkeypatch, capfd):
    long = Study("shapes", "resnet8", 40, recommend=False, past_seeds=(100,), runs=(Runs("baselines/scratch", (1,), (0,)),))
    monkeypatch.setattr(study, "studies", lambda: {"demo": long})
    wait = study.Queue._wait

    def stop(queue):
        (run, _), = queue.running.values()
        wait_for(lambda: (queue.root / run["folder"] / "metrics.jsonl").exists())
        os.kill(os.getpid(), signal.SIGTERM)
        wait(queue)

    monkeypatch.setattr(study.Queue, "_wait", stop)
    with pytest.raises(SystemExit) as ended:
        study.main(["--jobs", "1"])
    assert ended.value.code == 143 and "stopped; the same command goes on from there" in capfd.readouterr().out
    assert len(list(tiny.rglob("last.pt"))) == 1 and not [*tiny.rglob("summary.json"), *tiny.rglob("failed.json")]


def test_a_run_that_a_signal_meets_after_its_summary_is_done(tmp_path, monkeypatch, capsys):
    def start(queue, words, folder, threads):
        (folder / "console.txt").write_text("results/x/run: test accuracy 0.5000\n")
        return os.posix_spawn("/bin/sh", ["sh", "-c", f"echo {{}} > {folder}/summary.json; kill -TERM $$"], {})

    def stopped(queue, wait=study.Queue._wait):
        queue.stopping = signal.SIGTERM
        wait(queue)

    monkeypatch.setattr(study.Queue, "_fork", start)
    monkeypatch.setattr(study.Queue, "_wait", stopped)
    study.Queue(tmp_path, 1, 1, []).make([{"folder": "run", "command": "python methods/kd.py"}])
    assert "[1/1] run: test accuracy 0.5000 (0 s)" in capsys.readouterr().out


def test_a_study_in_use_and_past_runs_that_are_not_planned_are_refused(tiny):
    held = study.lock(tiny / ".lock", wait=False)
    with pytest.raises(Refused, match="is being made by another process"):
        study.main(["--jobs", "1"])
    held.close()
    run_script("baselines/scratch", "--epochs", 0.4, "--seed", 105, "--results", tiny / "past")
    with pytest.raises(Refused, match="past runs that are not in the plan .*seed105"):
        study.main(["--jobs", "1"])


def test_what_follows_a_trial_that_never_began_is_the_run_that_was_planned(tmp_path):
    trial = ["--epochs", 1, "--holdout", 0.1, "--results", tmp_path]
    first, lost = run_script("baselines/scratch", *trial, "--seed", 1), tmp_path / "shapes-resnet8/scratch/e1/seed2"
    lost.mkdir(parents=True)
    (lost / "failed.json").write_text(json.dumps({"exit_code": -9, "message": "", "name": "shapes-resnet8/scratch/e1/seed2"}))
    reuse = ["--epochs", 1, "--holdout", 0.1, "--seed", 3, "--pick", "best", "--past", first, lost,
             "--results", tmp_path]
    args = parse("baselines/warm_start", *reuse)
    planned = [str(folder.relative_to(tmp_path)) for folder in (first, lost)]
    assert names(args.past_folders, args.past) == planned
    assert run_script("baselines/warm_start", *reuse) == tmp_path / folder_name(args, planned)


def test_nothing_is_reused_where_a_past_run_failed(tiny, monkeypatch):
    small = replace(study.studies()["demo"], past_options=("--lr", "1e30"))
    monkeypatch.setattr(study, "studies", lambda: {"demo": small})
    with pytest.raises(Refused, match="2 of 2 past runs failed .past/.*seed100, .*seed101., and to reuse the others alone"):
        study.main(["--jobs", "2"])
    assert not list(tiny.glob("shapes-resnet8/*")) and len(list(tiny.rglob("failed.json"))) == 2


def test_a_failed_trial_does_not_end_its_search(tmp_path, monkeypatch, capsys):
    """The second of three trials diverges: the third goes on from the first and says so."""
    small = Study("shapes", "resnet8", 1, scenario="tuning", recommend=False, trials=3, runs=(
        Runs("baselines/scratch", (0.5,), (0,)), Runs("baselines/warm_start", (0.5,), (0,))))
    monkeypatch.setattr(planning, "random_settings", lambda seed, trials: [(0.1, 5e-4), (1e30, 5e-4), (0.2, 5e-4)])
    monkeypatch.setattr(study, "studies", lambda: {"demo": small})
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        study.main(["--jobs", "2"])
    made, root = plan("demo", small)["runs"], tmp_path / "results/demo"
    third = root / made[4]["folder"]
    summary = json.loads((third / "summary.json").read_text())
    assert summary["past"] == [made[0]["folder"]] and 0 <= summary["final_test"]["accuracy"] <= 1
    console = (third / "console.txt").read_text()
    assert "--pick best leaves out past runs that failed or are not finished" in console and made[2]["folder"] in console
    report = json.loads((root / "report.json").read_text())
    assert {row["method"]: row["seeds"] for row in report["rows"]} == {"scratch": 1, "warm_start": 1}
    assert len(report["failed"]) == 2 and not report["missing"]
    assert all(row["delivered_test"]["mean"] is not None for row in report["rows"])


def test_a_stream_reuses_the_run_before_and_compares_the_whole_sequence(tmp_path, monkeypatch):
    small = Study("shapes", "resnet8", 1, scenario="stream", recommend=False, portions=2, runs=(
        Runs("baselines/scratch", (1,), (0,)), Runs("baselines/warm_start", (0.5,), (0,))))
    made = plan("demo", small)
    assert not made["past"] and [(r["method"], r["tag"], r["budget"], r["seed"], r["stage"]) for r in made["runs"]] == [
        ("scratch", "p1", 1, 0, 1), ("scratch", "p2", 1, 1000, 1), ("scratch", "p1", 0.5, 0, 1),
        ("warm_start", "p2", 0.5, 1000, 2)]
    assert ["--subset share:0.5" in r["command"] for r in made["runs"]] == [True, False, True, False]
    assert ["--parts share:0.5" in r["command"] for r in made["runs"]] == [False, True, False, True]
    assert made["runs"][3]["command"].endswith("--past results/demo/" + made["runs"][2]["folder"])
    monkeypatch.setattr(study, "studies", lambda: {"demo": small})
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    study.main(["--jobs", "2"])
    root = tmp_path / "results/demo"
    one, two, first, warm = (json.loads((root / r["folder"] / "summary.json").read_text()) for r in made["runs"])
    report = json.loads((root / "report.json").read_text())
    row = next(row for row in report["rows"] if row["method"] == "warm_start")
    flops = [sum(s["flops"].values()) for s in (one, two, first, warm)]
    accuracy = [s["test"]["accuracy"] for s in (one, two, first, warm)]
    assert row["cost_over_scratch"]["mean"] == pytest.approx((flops[2] + flops[3]) / (flops[0] + flops[1]))
    assert row["after_portion"] == pytest.approx(accuracy[2:]) and not report["missing"]
    last = json.loads((root / made["runs"][3]["folder"] / "summary.json").read_text())["train_parts"]
    assert [row["train_old"], row["train_new"]] == [last["old"], last["new"]] and None not in last.values()
    assert row["end_over_scratch"]["values"]["0"] == pytest.approx(accuracy[3] - accuracy[1])
    assert row["along_over_scratch"]["values"]["0"] == pytest.approx(sum(accuracy[2:]) / 2 - sum(accuracy[:2]) / 2)
    assert row["along"]["mean"] == pytest.approx(sum(accuracy[2:]) / 2) and row["end"]["mean"] == accuracy[3]
    assert row["rival"] is None                               # scratch's only stream costs twice as much
    text, figure = (root / "REPORT.md").read_text(), root / "figures/stream.png"
    assert "| `warm_start` | 1/2 | 1/1 |" in text and "![stream](figures/stream.png)" in text and figure.exists()

    def without(run):
        (root / run["folder"] / "summary.json").unlink()
        write_report(root)
        rows = json.loads((root / "report.json").read_text())["rows"]
        return (root / "REPORT.md").read_text(), {row["method"]: (row["seeds"], row["cost_over_scratch"]["mean"]) for row in rows}

    text, rows = without(made["runs"][1])                     # what is whole is counted, and compared where scratch's is
    assert "1 runs are missing" in text and rows == {"scratch": (0, None), "warm_start": (1, None)} and figure.exists()
    text, rows = without(made["runs"][3])
    assert "<sub>No finished stream.</sub>" in text and "![" not in text and not figure.exists()


def test_a_stream_is_compared_with_the_best_of_scratch_s_that_cost_no_more(tmp_path):
    streams = {("scratch", 1): (4, 0.6), ("scratch", 0.5): (2, 0.5), ("scratch", 0.25): (1, 0.2), ("kd", 0.5): (2.5, 0.58),
               ("warm_start", 0.25): (1, 0.45)}
    made = [{"method": method, "budget": share, "seed": seed, "runs": [f"{method}{share}p{k}s{seed}" for k in (1, 2)]}
            for method, share in streams for seed in (0, 1)]
    for stream in made:
        flops, accuracy = streams[stream["method"], stream["budget"]]
        for k, name in enumerate(stream["runs"]):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps({
                "commit": "c", "dirty": False, "data": {}, "args": {"task": "shapes", "batch_size": 32},
                "versions": {"torch": "1"}, "device": {"type": "cpu", "name": "one", "threads": 1, "arithmetic": "float32"}}))
            (tmp_path / name / "summary.json").write_text(json.dumps({
                "test": {"accuracy": accuracy + 0.1 * k + 0.01 * stream["seed"]},
                "flops": {"training": flops, "preparation": 0}}))
    rows = aggregate(tmp_path, {"study": "x", "task": "shapes", "model": "resnet8", "scenario": "stream", "streams": made,
                                "runs": []})["rows"]
    found = {(row["method"], row["budget"]): row["rival"] and (row["rival"]["budget"], round(row["rival"]["over"]["mean"], 6))
             for row in rows}
    assert found == {("scratch", 1): None, ("scratch", 0.5): None, ("scratch", 0.25): None, ("kd", 0.5): (0.5, 0.08),
                     ("warm_start", 0.25): (0.25, 0.25)}


def test_compiled_runs_are_asked_for_and_a_killed_one_goes_on_as_it_was(tmp_path, monkeypatch):
    asked = {}

    def start(queue, words, folder, threads):
        asked[folder.name] = words
        return os.posix_spawn("/bin/true", ["true"], {})

    for begun in (False, True):
        (tmp_path / f"begun{begun}").mkdir()
        (tmp_path / f"begun{begun}/last.pt").touch()
        (tmp_path / f"begun{begun}/config.json").write_text(json.dumps({
            "device": {"threads": 1}, "args": {"compile": begun, "graph": begun}}))
    monkeypatch.setattr(study.Queue, "_fork", start)
    for flags in (["--compile"], ["--graph"], ["--compile", "--graph"], []):
        queue = study.Queue(tmp_path, 1, 3, flags)
        queue.make([{"folder": name, "command": "python methods/kd.py"} for name in ("begunFalse", "begunTrue", "new")])
        assert {name: words[1:] for name, words in asked.items()} == {
            "begunFalse": [], "begunTrue": ["--compile", "--graph"], "new": flags}


def test_what_pays_is_the_cheapest_that_loses_no_point(tmp_path):
    def row(method, share, cost, gain):
        cells = ({"mean": mean, "low": None if half is None else mean - half, "high": None if half is None else mean + half,
                  "reason": None} for mean, half in (cost, gain))
        return {"method": method, "budget": share} | dict(zip(("cost_over_scratch", "gain"), cells, strict=True))

    report = {"missing": [], "rows": [
        row("scratch", 1, (1, 0), (0, 0)), row("scratch", 0.5, (0.5, 0.02), (-0.02, 0.005)),
        row("kd", 0.5, (0.7, 0.02), (0.01, 0.005)), row("warm_start", 0.5, (0.6, 0.02), (-0.002, 0.005)),
        row("cheap", 0.25, (0.3, 0.02), (-0.002, 0.01)), row("dear", 0.5, (0.98, 0.05), (0.1, 0.01)),
        row("once", 0.25, (0.2, None), (0.1, None))]}
    said = what_pays(report, "gain", "along the way")
    assert said == ("`warm_start` at budget 1/2: 0.60 [0.58, 0.62] of scratch's FLOPs, accuracy along the way −0.2 [−0.7, +0.3] "
                    "points over scratch's")
    assert "nothing established" in what_pays(report | {"rows": report["rows"][:2]}, "gain", "")
    assert what_pays(report | {"missing": [{}]}, "gain", "") == "not yet: 1 runs are missing"
    for name in ("x-mini", "demo-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps({
            "study": name, "task": "cifar100", "model": "resnet8", "scenario": "stream", "pays": said}))
    text = write_overview(tmp_path).read_text()
    assert f"- [x-mini](x-mini/REPORT.md), `resnet8` on `cifar100`, data arrive in portions: {said}." in text
    assert "demo-x" not in text


def test_a_study_cannot_be_captured_without_a_gpu(tmp_path):
    with pytest.raises(Refused, match="--graph is for GPUs, and there is none here: leave it out"):
        study.main(["demo", "--graph"])


@pytest.mark.parametrize("flag", ["--compile", "--graph"])
def test_the_fastest_loop_is_not_also_named(flag):
    with pytest.raises(Refused, match="--fastest chooses between --compile, --graph, both and neither: leave those out"):
        study.main(["demo", "--fastest", flag])
