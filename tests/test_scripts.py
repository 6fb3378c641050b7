"""Every script: runs, leaves the contract's files, equals what its docstring says at its neutral setting, resumes exactly."""
import ast
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import AT_ONCE, ROOT, SCRIPTS, fork_script, needs_past, rows, run_script, same_weights, score_of

from common import resume, shapes
from common.demos import SCENARIOS
from common.files import Refused
from common.planning import plan
from common.plans import studies
from common.run import Run
from common.tasks import TASKS

# script -> (arguments that make it neutral, the script it then equals bit for bit)
NEUTRAL = {
    "baselines/label_smoothing": (["--smoothing", 0], "baselines/scratch"),
    "baselines/ema": (["--horizon", 0], "baselines/scratch"),
    "methods/kd": (["--alpha", 0], "baselines/scratch"),
    "methods/ensemble_distill": (["--alpha", 0], "baselines/scratch"),
    "methods/loss_replay": (["--share", 0], "baselines/warm_start"),
    "baselines/lawa": (["--snapshots", 1, "--apart", 0], "baselines/scratch"),
    "methods/partial_kd": (["--share", 0], "baselines/scratch"),
    "methods/cached_kd": (["--alpha", 0, "--views", 162], "baselines/scratch"),
    "methods/dkd": (["--alpha", 0, "--beta", 0], "baselines/scratch"),
    "methods/checkpoint_ensemble": (["--alpha", 0], "baselines/scratch"),
    "methods/born_again": (["--alpha", 0, "--hard", 1], "baselines/scratch"),
    "methods/attention_transfer": (["--beta", 0], "baselines/scratch"),
    "methods/similarity_kd": (["--gamma", 0], "baselines/scratch"),
    "methods/shrink_perturb": (["--shrink", 0, "--perturb", 1], "baselines/scratch"),
    "methods/dash": (["--threshold", 1], "baselines/warm_start"),
    "methods/early_checkpoint": (["--at", 1], "baselines/warm_start"),
    "methods/layer_freeze": (["--first", 1], "baselines/warm_start"),
    "methods/selective_backprop": (["--beta", 0], "baselines/scratch"),
    "methods/infobatch": (["--ratio", 0], "baselines/scratch"),
    "methods/data_prune": (["--prune", 0], "baselines/scratch"),
    "methods/rho_loss": (["--keep", 1], "baselines/scratch"),
    "methods/curriculum": (["--start", 1], "baselines/scratch"),
    "methods/curriculum_dkd": (["--until", 0], "methods/curriculum"),
    "methods/schedule_reuse": (["--fall", 0], "baselines/scratch"),
    "methods/shrink_perturb_kd": (["--share", 0], "methods/shrink_perturb"),
    "methods/early_checkpoint_kd": (["--share", 0], "methods/early_checkpoint"),
    "methods/infobatch_kd": (["--share", 0], "methods/infobatch"),
}
SHORTER = {"methods/selective_backprop", "methods/infobatch", "methods/infobatch_kd", "methods/data_prune"}      # fewer steps
REUSED = {                                                    # what summary.json says of it, by which reports tell them apart
    "baselines/warm_start": ["weights"], "methods/shrink_perturb": ["weights"], "methods/early_checkpoint": ["weights"],
    "methods/weight_average": ["weights"], "methods/layer_freeze": ["weights"],
    **{f"methods/{name}": ["model"] for name in (
        "kd", "partial_kd", "cached_kd", "dkd", "born_again", "ensemble_distill", "attention_transfer", "similarity_kd")},
    "methods/shrink_perturb_kd": ["model", "weights"], "methods/early_checkpoint_kd": ["model", "weights"],
    "methods/checkpoint_ensemble": ["checkpoints", "model"],
    **{f"methods/{name}": ["examples"] for name in ("data_prune", "curriculum", "infobatch", "selective_backprop")},
    "methods/curriculum_dkd": ["examples", "model"], "methods/infobatch_kd": ["examples", "model"],
    "methods/loss_replay": ["examples", "weights"], "methods/dash": ["examples", "weights"],
    "methods/rho_loss": ["examples", "model"], "methods/schedule_reuse": ["curve"],       # which examples a fold has not seen
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_epochs_leave_the_contract(script, reuse, tmp_path):
    folder = run_script(script, "--epochs", 2, "--results", tmp_path, *AT_ONCE.get(script, []), *reuse(script))
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "metrics.jsonl", "tb", "final.pt", "checkpoints", "examples.npz", "summary.json"} <= names
    assert not {"last.pt", "examples"} & names and not list(folder.glob(".*.partial"))
    config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
    assert folder == tmp_path / config["name"] and config["args"]["epochs"] == 2 and len(config["commit"]) == 40
    table = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in table] == [0, 1, 2]
    steps = [row["steps"] for row in table]
    assert steps == [0, 10, 20] or script in SHORTER and 0 < steps[1] < steps[2] < 20       # 320 examples, batches of 32
    assert table[0]["flops"] == summary["flops"]["preparation"] and table[1]["flops"] > table[0]["flops"]
    assert summary["test"]["accuracy"] == table[-1]["test/accuracy"] and summary["flops"]["training"] > 0
    assert [summary["test"][name] for name in ("accuracy", "loss")] == pytest.approx(score_of(folder), rel=1e-3)
    assert summary["seconds"]["counted"] + 1e-4 > table[-1]["seconds"] > table[1]["seconds"] > 0            # rows are rounded
    with np.load(folder / "examples.npz", allow_pickle=False) as examples:
        assert {"loss", "correct", "el2n"} <= set(examples.files)
        assert examples["loss"].shape == (2, 320) and examples["loss"].dtype == np.float16
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["e1.pt"]
    assert bool(summary["past"]) == needs_past(script) == bool(summary["past_bytes"])
    assert summary["reused"] == REUSED.get(script, [])


def test_final_test_is_of_the_test_set(tmp_path):
    folder = run_script("baselines/scratch", "--epochs", 1, "--holdout", 0.25, "--results", tmp_path)
    summary, found = json.loads((folder / "summary.json").read_text()), score_of(folder, "--holdout", 0.25)
    assert [summary["final_test"][name] for name in ("accuracy", "loss")] == pytest.approx(found, rel=1e-3)
    assert summary["test"]["loss"] != pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_by_itself_from_anywhere(script):
    text = (ROOT / f"{script}.py").read_text()
    assert text.endswith('\n\n\nif __name__ == "__main__":\n    main(parser().parse_args())\n')
    assert text.index("\nsys.path.insert(0, str(Path(__file__).resolve().parents[1]))") < text.index("\nfrom common")


@pytest.mark.parametrize("script", NEUTRAL)
def test_what_is_neutral_is_what_the_docstring_says(script):
    doc, (options, other) = (ROOT / f"{script}.py").read_text().split('"""')[1], NEUTRAL[script]
    said = " ".join(re.search(r"^Neutral +(.*(?:\n {9}.*)*)", doc, re.M)[1].split())
    for option, value in zip(options[::2], options[1::2], strict=True):
        assert f"{option} {value}" in said
    assert f"{other}.py" in said and "bit for bit" in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_docstring_has_its_lines_and_a_command_that_parses(script):
    doc = (ROOT / f"{script}.py").read_text().split('"""')[1]
    for word in ("Reuses", "Pays", "Source", "Differs", "Neutral"):
        assert re.search(rf"^{word}  +\S", doc, re.M), word
    command = shlex.split(re.search(r"^    python (.*)$", doc, re.M).group(1))
    assert command[0] == f"{script}.py"
    parsed = importlib.import_module(script.replace("/", ".")).parser().parse_only([*command[1:], "--task", "shapes"])
    planned = {str(Path("results", name, run["folder"].partition("/")[0])) for name, study in studies().items()
               for run in plan(name, study)["past"]}
    assert all((ROOT / path).is_dir() or path in planned for path in parsed.past) and bool(parsed.past) == needs_past(script)
    assert script == "baselines/scratch" or script in NEUTRAL or "none" in re.search(r"^Neutral +(.*)$", doc, re.M).group(1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_line_names_a_task(script):
    """What differs between tasks is in common/tasks.py; a docstring's command may name one."""
    code = (ROOT / f"{script}.py").read_text().split('"""', 2)[2]
    names = {part for name in TASKS for part in (name, *name.split("-"))} - {"folder", "seg", "det"}        # words of their own
    assert "camvid" in names and not re.search(rf"\b({'|'.join(sorted(names))})\b", code, re.I)
    assert not re.search(r"""["']folder["']""", code)


@pytest.mark.parametrize("script", SCRIPTS)
def test_only_loading_and_evaluating_are_untimed(script):
    """With what the clock does in them in test_step.py, a method cannot put work of its own beside the clock."""
    blocks = [(ast.unparse(node.items[0]), [ast.unparse(line) for line in node.body])
              for node in ast.walk(ast.parse((ROOT / f"{script}.py").read_text()))
              if isinstance(node, ast.With) and "untimed" in ast.unparse(node.items[0])]
    (data, load), (evaluation, (log,)) = blocks
    assert (data, load) == ("run.untimed('data')", ["data = task.load(args, run.device)"])
    assert evaluation == "run.untimed('eval')"
    assert re.fullmatch(r"run\.log\(epoch, step\.means\(\) \| task\.evaluate\([\w.]+, data\.test\)\)", log)


@pytest.mark.parametrize("script, more", [
    ("methods/attention_transfer", []), ("methods/similarity_kd", []), ("methods/born_again", []),
    ("methods/curriculum_dkd", ["--until", 1]), ("methods/shrink_perturb_kd", ["--share", 1]),
    ("methods/early_checkpoint_kd", ["--share", 1]), ("methods/infobatch_kd", ["--share", 1, "--ratio", 0])])
def test_a_teacher_in_every_step_costs_at_least_what_it_costs_kd(script, more, past, tmp_path):
    argv = ["--epochs", 0.2, "--seed", 1, "--past", past, "--results", tmp_path]
    mine, kds = (rows(run_script(*one))[-1]["flops"] for one in ((script, *argv, *more), ("methods/kd", *argv)))
    head = 2 * 2 * 32 * 64 * 20                               # of two steps' images: who wants features alone does not run it
    assert mine >= kds - head * (script in ("methods/attention_transfer", "methods/similarity_kd"))


def test_readmes_commands_parse():
    text = re.sub(r"\$\w+", "0", (ROOT / "README.md").read_text().replace("; done", ""))
    commands = [shlex.split(line, comments=True) for line in re.findall(r"((?:baselines|methods)/\w+\.py --[^`\n]*)", text)]
    for script, *argv in commands:
        if "--help" not in argv:
            parser = importlib.import_module(script.removesuffix(".py").replace("/", ".")).parser()
            past = parser.parse_only(["--task", "shapes", *argv]).past
            assert all("by-hand" in folder or (ROOT / folder).is_dir() for folder in past)
    assert len(commands) > 10


def readme() -> dict[str, list[str]]:
    """script -> cells of its row."""
    lines = re.findall(r"^\| `((?:baselines|methods)/\w+)\.py` \|(.*)\|$", (ROOT / "README.md").read_text(), re.M)
    return {script: [cell.strip() for cell in cells.split("|")] for script, cells in lines}


def test_readme_lists_every_script_once():
    assert sorted(readme()) == SCRIPTS


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, small):
    """Past runs of two epochs on half of the data, on other classes, and of another architecture."""
    options = {"new data": ["--subset", "half"], "new classes": ["--subset", "classes:10"],
               "another model": ["--model", "resnet20"]}
    folders = {}
    for column, more in options.items():
        folders[column] = tmp_path_factory.mktemp("elsewhere")
        for seed in (100, 101):
            run_script("baselines/scratch", "--epochs", 2, "--seed", seed, "--results", folders[column], *more)
    return folders


# what the sentence of a refusal says there
WHY = {"new classes": "predicts 10 fine classes of shapes, this run 20", "folds": "every past run has seen some",
       "another model": "is a resnet20 for 20 fine classes of shapes, this run a resnet8"}


@pytest.mark.parametrize("column, cell", [("new data", 2), ("new classes", 3), ("another model", 4)])
@pytest.mark.parametrize("script", [script for script in SCRIPTS if needs_past(script)])
def test_readme_says_where_a_script_works(script, column, cell, elsewhere, tmp_path):
    said = readme()[script][cell]
    argv = ["--epochs", 0.2, "--model", "resnet8", "--past", elsewhere[column], "--results", tmp_path]
    if said == "yes":
        assert (run_script(script, *argv) / "summary.json").exists()
    else:
        with pytest.raises(Refused, match=WHY["folds" if said == "folds" else column]):
            run_script(script, *argv)


@pytest.mark.parametrize("scenario, cell", [("grow", 2), ("shift", 2), ("classes", 3), ("model", 4)])
def test_plans_leave_out_what_the_readme_says_refuses(scenario, cell):
    """A method that needs folds has them where the past runs' data are all of it, as the planner makes them."""
    past, _, refuse = SCENARIOS[scenario]
    said = {script: row[cell] for script, row in readme().items() if needs_past(script)}
    assert refuse == {script for script, word in said.items() if word == "no" or word == "folds" and "--subset" in past}
    assert set(said.values()) <= {"yes", "no", "folds"}


def test_folds_of_another_model_do(folds, tmp_path):
    assert (run_script("methods/rho_loss", "--epochs", 0.2, "--model", "resnet8x0.5", "--past", folds, "--results", tmp_path)
            / "summary.json").exists()


@pytest.mark.parametrize("script", NEUTRAL)
def test_neutral_setting_equals(script, reuse, tmp_path):
    options, other = NEUTRAL[script]
    mine = run_script(script, "--epochs", 1.5, "--seed", 1, "--results", tmp_path, *options, *reuse(script))
    theirs = run_script(other, "--epochs", 1.5, "--seed", 1, "--results", tmp_path, *reuse(other))
    assert same_weights(mine, theirs)
    assert [r["test/loss"] for r in rows(mine)] == [r["test/loss"] for r in rows(theirs)]


@pytest.mark.parametrize("script", NEUTRAL)
def test_not_neutral_differs(script, reuse, tmp_path):
    mine = run_script(script, "--epochs", 1, "--seed", 1, "--results", tmp_path, *AT_ONCE.get(script, []), *reuse(script))
    other = NEUTRAL[script][1]
    theirs = run_script(other, "--epochs", 1, "--seed", 1, "--results", tmp_path, *reuse(other))
    assert not same_weights(mine, theirs)


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_twice_equals_undisturbed(script, reuse, tmp_path):
    argv = ["--epochs", 3.5, "--subset", "share:0.9", "--seed", 1, *reuse(script)]     # 288 = 9 batches of 32
    argv += ["--batch-size", 40, "--lr", 0.2, "--weight-decay", 5e-4]       # 7.2 batches: some go first in the next epoch
    argv += AT_ONCE.get(script, [])
    calm = run_script(script, *argv, "--results", tmp_path / "calm")
    for rows_before in (2, 3):
        process = fork_script(script, *argv, "--results", tmp_path / "killed", killed_after=rows_before)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    killed = run_script(script, *argv, "--results", tmp_path / "killed")
    assert same_weights(calm, killed) and rows(calm) == rows(killed)
    with np.load(calm / "examples.npz") as one, np.load(killed / "examples.npz") as two:
        assert all(np.array_equal(one[name], two[name], equal_nan=True) for name in one.files)
    calm_summary, killed_summary = (json.loads((f / "summary.json").read_text()) for f in (calm, killed))
    assert calm_summary["flops"] == killed_summary["flops"] and calm_summary["steps"] == killed_summary["steps"]


def test_a_run_killed_between_a_row_and_its_checkpoint_does_not_log_that_epoch_twice(past, tmp_path, monkeypatch):
    argv, save = ["--epochs", 3, "--seed", 1, "--past", past], resume.save
    calm = run_script("methods/loss_replay", *argv, "--results", tmp_path / "calm")

    def die(run, next_epoch):
        if len(run.rows) == 3:                                # epoch 2's row is written, last.pt is epoch 1's
            os.kill(os.getpid(), signal.SIGKILL)
        save(run, next_epoch)

    with monkeypatch.context() as patched:
        patched.setattr(resume, "save", die)
        process = fork_script("methods/loss_replay", *argv, "--results", tmp_path / "killed")
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    killed = run_script("methods/loss_replay", *argv, "--results", tmp_path / "killed")
    assert same_weights(calm, killed) and rows(calm) == rows(killed)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_within_the_epoch(number, code, past, tmp_path, monkeypatch, capsys):
    argv = ["--epochs", 2, "--subset", "share:0.9", "--seed", 1, "--past", past]     # 9 steps an epoch
    calm = run_script("methods/loss_replay", *argv, "--results", tmp_path / "calm")
    count = Run.count

    def count_and_ask(run, *what):
        count(run, *what)
        if run.steps == 13:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        patched.setattr(Run, "count", count_and_ask)
        run_script("methods/loss_replay", *argv, "--results", tmp_path / "stopped")
    assert ended.value.code == code
    assert f"stopped by {number.name} after 13 steps; the same command goes on from there" in capsys.readouterr().err
    folder = tmp_path / "stopped" / calm.relative_to(tmp_path / "calm")
    assert torch.load(folder / "last.pt", weights_only=True)["run"]["rest"]["done"] == 4
    run_script("methods/loss_replay", *argv, "--results", tmp_path / "stopped")
    assert same_weights(calm, folder) and rows(calm) == rows(folder)


def test_warm_start_begins_where_the_past_run_ended(past, tmp_path):
    folder = run_script("baselines/warm_start", "--epochs", 0.5, "--seed", 1, "--results", tmp_path, "--past", past)
    theirs = json.loads(next(past.rglob("seed101/summary.json")).read_text())
    assert rows(folder)[0]["test/accuracy"] == theirs["test"]["accuracy"]
    assert json.loads((folder / "summary.json").read_text())["past"] == ["shapes-resnet8/scratch/e2/seed101"]


@pytest.mark.parametrize("how", [["methods/kd.py"], ["-m", "methods.kd"]])
def test_help_and_both_ways_to_start(how, tmp_path):
    where = tmp_path if how[0].endswith(".py") else ROOT
    how = [str(ROOT / how[0])] if how[0].endswith(".py") else how
    shown = subprocess.run([sys.executable, *how, "--help"], cwd=where, capture_output=True, text=True, check=True).stdout
    help_of = {name: text for name, text in re.findall(r"^  (--[a-z-]+)(.*?)(?=^  --|\Z)", shown, re.M | re.S)}
    assert len(help_of) > 20
    for name, text in help_of.items():
        assert "default" in text, f"{name} shows no default"


def test_three_epochs_of_the_real_size_learn_something_but_not_all(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "TRAIN_SIZE", 2000)
    monkeypatch.setattr(shapes, "TEST_SIZE", 1000)
    folder = run_script("baselines/scratch", "--results", tmp_path)
    assert 0.40 < json.loads((folder / "summary.json").read_text())["test"]["accuracy"] < 0.75
