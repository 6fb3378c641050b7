"""Bad input: one clear sentence that says what to do, a non-zero exit, nothing half-written."""
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, parse, run_script
from PIL import Image

from common import cache, datasets, machine
from common.data import all_batches
from common.files import Refused, write_atomic
from common.past import PastRun
from common.run import Run
from common.runfiles import find_runs
from common.tasks import TASKS


@pytest.fixture
def copy(past, tmp_path):
    """A past run of this test's own, to damage."""
    source = next(past.rglob("seed100"))
    return shutil.copytree(source, tmp_path / "copy" / source.relative_to(past))


def kd(past, tmp_path, *more):
    return run_script("methods/kd", "--epochs", 0.2, "--results", tmp_path / "new", "--past", past, *more)


WHOLE = json.dumps({"task": "shapes", "model": "resnet8", "seed": 100, "holdout": 0.0, "epochs": 2.0, "lr": 0.2,
                    "weight_decay": 5e-4, "batch_size": 32}).encode()


def torch_bytes(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def refused(match, call, *args, **options):
    with pytest.raises(Refused, match=match):
        call(*args, **options)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)             # these handlers are the refused run's own
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()                                              # drops that run's lock, as the process's end would


def test_no_past_prints_the_command_that_makes_one(tmp_path):
    refused(r"python baselines/scratch.py --task shapes --seed 100 --results \S+\nThen add: --past", parse, "methods/kd")
    refused(r"--task shapes --subset not:1/5 --seed 100 --results \S+\nThen add: --past", parse, "methods/rho_loss")
    own = ["--task", "folder", "--data-dir", "/my images"]
    refused(r"--task folder --data-dir '/my images' --seed 100", parse, "methods/kd", *own)


def test_past_that_is_not_there(tmp_path):
    refused("no such folder.*config.json", parse, "methods/kd", "--past", tmp_path / "nowhere")
    refused("there is no run in it", parse, "methods/kd", "--past", tmp_path)


def test_trials_that_were_refused_before_they_began(past, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "failed.json").write_text("{}")
    assert len(find_runs([str(tmp_path / "a"), str(past)])) == len(find_runs([str(past)])) > 0
    refused("none of these runs began", find_runs, [str(tmp_path / "a"), str(tmp_path / "b")])


def test_unfinished_past(copy, tmp_path):
    (copy / "summary.json").unlink()
    refused("is not finished.*\n    python ", kd, copy, tmp_path)
    assert not list((tmp_path / "new").rglob("config.json"))


@pytest.mark.parametrize("file, content, match", [
    ("final.pt", b"PK\3\4 not a zip", "final.pt is damaged"), ("final.pt", None, "final.pt is missing"),
    ("config.json", b"{", "config.json is damaged"), ("summary.json", b"[]", "summary.json is damaged"),
    ("config.json", b'{"name": "x", "args": {"task": "shapes", "model": "resnet8", "seed": 1}}', "its args lack 'holdout'"),
    ("config.json", b"{}", "its args lack 'task'"), ("examples.npz", b"", "examples.npz is missing or damaged"),
    ("config.json", b'{"args": %s}' % WHOLE, "it lacks 'name'"),
    ("config.json", b'{"name": "x", "data": {}, "args": %s}' % WHOLE, "it lacks 'fingerprint'"),
    ("final.pt", torch_bytes([1]), "does not hold a state dict")])
def test_damaged_past(copy, tmp_path, file, content, match):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    script = "methods/loss_replay" if file == "examples.npz" else "methods/kd"
    refused(match, run_script, script, "--epochs", 0.2, "--results", tmp_path / "new", "--past", copy)


def test_past_cannot_execute_code(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)
    np.savez(copy / "examples.npz", loss=np.array([Evil()], dtype=object))
    refused("examples.npz is missing or damaged", run_script, "methods/loss_replay", "--past", copy,
            "--results", tmp_path / "new")
    torch.save({"conv.weight": Evil()}, copy / "final.pt")
    refused("damaged or holds more than weights", kd, copy, tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_weights_of_another_shape(copy, tmp_path):
    weights = torch.load(copy / "final.pt", weights_only=True)
    torch.save(weights | {"head.weight": torch.zeros(3, 64)}, copy / "final.pt")
    refused("does not hold the weights of a resnet8 with 20 classes", kd, copy, tmp_path)


def seen_from(folder, *argv):
    args = parse("baselines/scratch", *argv)
    data = TASKS[args.task].load(args, torch.device("cpu"))
    return PastRun(folder, args, data), data, args


def test_predictions_of_other_classes(copy):
    past, _, args = seen_from(copy, "--labels", "coarse")
    refused("predicts 20 fine classes of shapes, this run 5 coarse", past.model, torch.device("cpu"))


def test_a_past_run_that_knows_some_of_the_classes(tmp_path, capsys):
    """Its teacher says -inf of the others, its head's rows go where they belong, and a method that needs every class refuses."""
    folder = run_script("baselines/scratch", "--epochs", 0.5, "--seed", 100, "--subset", "classes:8", "--results", tmp_path)
    past, data, args = seen_from(folder)
    places = [data.classes.index(c) for c in past.classes]
    others = sorted(set(range(20)) - set(places))
    image = next(all_batches(data.test, 4)).image
    teacher = past.model(torch.device("cpu"))
    own = past.model(torch.device("cpu"), features=True)(image)           # its own eight
    output = teacher(image)
    assert torch.equal(output[:, places], own) and (output[:, others] == -torch.inf).all()
    refused("predicts 8 fine classes of shapes, this run 20 fine", past.model, torch.device("cpu"), every_class=True)
    model = TASKS["shapes"].build(args, data)
    grown, theirs, fresh = past.weights(model), torch.load(folder / "final.pt", weights_only=True), model.state_dict()
    assert "head rows of 8 of 20 classes placed" in capsys.readouterr().out
    for name in ("head.weight", "head.bias"):
        assert torch.equal(grown[name][places], theirs[name]) and torch.equal(grown[name][others], fresh[name][others])
    assert torch.equal(grown["stage3.0.conv2.weight"], theirs["stage3.0.conv2.weight"])
    fewer = seen_from(folder, "--subset", "classes:4")[0]                 # the other way round: it knows more
    assert fewer.model(torch.device("cpu"), every_class=True)(image).isfinite().all()


def test_weights_for_another_model(copy, capsys):
    past, data, args = seen_from(copy, "--model", "resnet20")
    model = TASKS["shapes"].build(args, data)
    refused("is a resnet8 for 20 fine classes of shapes, this run a resnet20", past.weights, model)
    trunk = past.weights(model, part="trunk")
    model.load_state_dict(trunk)
    assert "from scratch: head.bias, head.weight, stage1.1" in capsys.readouterr().out
    theirs = torch.load(copy / "final.pt", weights_only=True)
    assert torch.equal(trunk["stage1.0.conv1.weight"], theirs["stage1.0.conv1.weight"])
    assert not torch.equal(trunk["head.weight"], theirs["head.weight"])


def test_examples_of_another_data_set_or_not_recorded(copy):
    past, data, _ = seen_from(copy)
    assert past.examples("loss").shape == (320,) and past.examples("loss", every_epoch=True).shape == (2, 320)
    assert past.kept == {"examples.npz loss": 2 * 320 * 2} and past.reused == {"examples"}
    refused("did not record 'forgetting'; it has correct, el2n, loss", past.examples, "forgetting")
    data.fingerprint = "another"
    refused("other images of shapes: files have come, gone or changed since. Make it again", past.examples, "loss")
    past.image_size = 64
    refused("other images of shapes: it had --image-size 64, this run has 32. Use equal sizes", past.examples, "loss")
    past.task = "cifar100"
    refused("another data set", past.examples, "loss")


def test_slim_keeps_means_and_half_precision(tmp_path):
    argv = ["--epochs", 2, "--seed", 100, "--results"]
    whole = run_script("baselines/scratch", *argv, tmp_path / "whole")
    slim = run_script("baselines/scratch", *argv, tmp_path / "slim", "--slim")
    past, data, _ = seen_from(slim)
    other = seen_from(whole)[0]
    assert torch.allclose(past.examples("loss"), other.examples("loss"), atol=2e-3)
    assert torch.equal(past.examples("correct", every_epoch=True), other.examples("correct", every_epoch=True))
    refused("kept only the mean of 'loss'.*without --slim", past.examples, "loss", True)
    half, single = (torch.load(f / "final.pt", weights_only=True) for f in (slim, whole))
    assert half["conv.weight"].dtype == torch.float16 and half["bn.running_var"].dtype == torch.float32
    assert all(torch.equal(half[k], single[k].half() if half[k].dtype == torch.float16 else single[k]) for k in half)
    assert past.checkpoints() == {"e1": 0.5}


@pytest.mark.parametrize("name, value", [("lr", "0.8"), ("batch_size", 3.5), ("weight_decay", None), ("task", 3)])
def test_damaged_arguments_of_a_past_run(name, value, copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["args"][name] = value
    (copy / "config.json").write_text(json.dumps(config))
    refused(f"config.json is damaged: its args lack '{name}'", kd, copy, tmp_path)


def test_unknown_labels_of_a_past_run(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["data"]["labels"] = "x"
    (copy / "config.json").write_text(json.dumps(config))
    refused("--labels must be one of fine, coarse, got 'x'", kd, copy, tmp_path)


def test_curves_of_unfinished_or_gutted_past_runs(copy, tmp_path):
    (copy / "metrics.jsonl").write_text((copy / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    refused("has not finished an epoch", run_script, "methods/schedule_reuse", "--past", copy, "--results", tmp_path)
    (copy / "metrics.jsonl").unlink()
    refused("metrics.jsonl is missing", seen_from(copy)[0].curve)


def test_a_cache_on_a_full_disk_leaves_nothing(past, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.posix_fallocate", full)
    refused("cannot write .*No space left", run_script, "methods/cached_kd", "--past", past, "--results", tmp_path)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_other_holdout(copy):
    refused("made with --holdout 0, this run with --holdout 0.1", seen_from, copy, "--holdout", 0.1)


def test_pick_best_with_no_finished_run(copy):
    args = parse("methods/kd", "--past", copy, "--pick", "best")
    (copy / "summary.json").unlink()
    refused("is not finished", Run.past, SimpleNamespace(args=args), TASKS["shapes"].load(args, torch.device("cpu")))


def test_holdout_of_a_folder_that_has_grown(tmp_path):
    """The new images move others in and out of the held-out part: what is evaluated on may have been trained on."""
    def more(names):
        for i in names:
            for colour in ("red", "blue"):
                path = tmp_path / "mine" / colour / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (200 if colour == "red" else i, 3 * i, 200 if colour == "blue" else i)).save(path)
        datasets.read_folder.cache_clear()

    argv = ["--task", "folder", "--data-dir", tmp_path / "mine", "--image-size", 16, "--model", "resnet8", "--batch-size", 4,
            "--epochs", 1]
    more(range(30))
    plain, held = (run_script("baselines/scratch", *argv, "--seed", seed, "--results", tmp_path / "results", *options)
                   for seed, options in ((100, ()), (101, ("--holdout", 0.2))))
    seen_from(held, *argv, "--holdout", 0.2)
    more(range(30, 40))
    seen_from(plain, *argv)                                   # the test set's images stay where they are
    refused("held out a part of other data.*run its command again on the data as they are now", seen_from, held, *argv,
            "--holdout", 0.2)


def test_a_run_of_another_data_set_has_seen_nothing_of_this_one(copy):
    data = SimpleNamespace(fingerprint="another", train=SimpleNamespace(size=32))
    PastRun(copy, SimpleNamespace(task="camvid", holdout=0.1), data)
    refused("made with --holdout 0, this run", PastRun, copy, SimpleNamespace(task="shapes-seg", holdout=0.1), data)
    config = json.loads((copy / "config.json").read_text())
    config["args"]["holdout"] = 0.1
    (copy / "config.json").write_text(json.dumps(config))
    refused("held out a part of other data", PastRun, copy, SimpleNamespace(task="shapes-seg", holdout=0.1), data)
    PastRun(copy, SimpleNamespace(task="camvid", holdout=0), data)


def test_labels_are_inherited_as_the_data_had_them(tmp_path):
    """members: makes superclasses the labels, though the argument says fine."""
    folder = run_script("baselines/scratch", "--epochs", 1, "--seed", 100, "--subset", "members:3/4", "--results", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["args"]["labels"] == "fine" and config["data"]["labels"] == "coarse"
    assert parse("methods/kd", "--past", folder).labels == "coarse"
    assert seen_from(folder, "--labels", "coarse")[0].examples("loss").shape == (320,)
    refused("recorded examples with coarse labels, this run has fine ones: use --labels coarse", seen_from(folder)[0].examples,
            "loss")
    del config["data"]["labels"]                              # as first versions did
    (folder / "config.json").write_text(json.dumps(config))
    assert parse("methods/kd", "--past", folder).labels == "coarse"


def test_own_seed_warns_and_another_seed_does_not(past, tmp_path, capsys):
    kd(past, tmp_path, "--seed", 102)
    assert "warning: a past run has this run's own seed 102" in capsys.readouterr().err
    kd(past, tmp_path, "--seed", 2)
    assert "warning" not in capsys.readouterr().err


def test_arguments_come_from_past_runs_unless_given(past):
    args = parse("methods/kd", "--past", past)
    assert args.epochs == 2 and args.task == "shapes" and args.model == "resnet8"
    assert parse("methods/kd", "--past", past, "--epochs", 1).epochs == 1


@pytest.mark.parametrize("argv, match", [
    (["--epochs", 0], "--epochs must be above 0, got 0.0"), (["--epochs", "nan"], "--epochs must"),
    (["--batch-size", 1], "--batch-size must be above 1"), (["--lr", -1], "--lr must be above 0"),
    (["--lr", "inf"], "--lr must"), (["--weight-decay", -1], "--weight-decay must be 0 or more"),
    (["--holdout", 1], "--holdout must be at least 0 and below 1"), (["--seed", -1], "--seed must be 0 or more"),
    (["--tag", "a/b"], "--tag must have letters"), (["--device", "nonsense"], "--device nonsense cannot be used"),
    (["--device", "meta"], "--device meta cannot be used: it is neither cpu nor cuda")])
def test_impossible_arguments(argv, match):
    refused(match, parse, "baselines/scratch", *argv)


def test_folder_of_other_arguments_names_the_argument(tmp_path):
    folder = run_script("baselines/scratch", "--epochs", 0.2, "--results", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["args"]["lr"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    refused("holds a run with another --lr \\(7, now 0.*--tag", run_script, "baselines/scratch", "--epochs", 0.2,
            "--results", tmp_path)


def test_finished_run_says_so_and_exits_0(tmp_path, capsys):
    run_script("baselines/scratch", "--epochs", 0.2, "--results", tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_script("baselines/scratch", "--epochs", 0.2, "--results", tmp_path)
    assert ended.value.code == 0 and "is finished already (test accuracy" in capsys.readouterr().out


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    count = Run.count

    def interrupted(run, *what):
        count(run, *what)
        for _ in range(run.steps == 3 and 2):                 # the step's end, where the first would be heard, is not reached
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Run, "count", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_script("baselines/scratch", "--epochs", 1, "--results", tmp_path)
    last, = tmp_path.rglob("last.pt")                         # the one from before training
    assert not list(tmp_path.rglob("summary.json")) and torch.load(last, weights_only=True)["run"]["steps"] == 0


def test_a_table_on_disk_that_cannot_be_made_or_read(past, tmp_path, monkeypatch):
    """No half of one is left; a damaged one is named, and made again when it is gone."""
    argv = ["methods/cached_kd", "--views", 1, "--epochs", 0.2, "--past", past, "--results", tmp_path]
    with monkeypatch.context() as patched:
        patched.setattr(cache, "free_memory", lambda device: 1000)
        refused("table of cached_kd would take 0.0 GiB, and cpu has 0.0 free: keep less of it \\(--views\\)", run_script, *argv)
    with monkeypatch.context() as patched:
        patched.setattr(cache, "reserve", lambda path: os.posix_fallocate(-1, 0, 1))
        refused("cannot write .*cache-.*npy: .*Make room", run_script, *argv)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    run_script(*argv, "--tag", "made")
    table, = (tmp_path / "cache").glob("*.npy")
    table.write_bytes(table.read_bytes()[:200])
    refused("npy is damaged .*: delete it, and it is made again", run_script, *argv)
    table.unlink()
    whole = run_script(*argv)
    assert json.loads((whole / "summary.json").read_text())["seconds"]["preparation"] > 0 and table.exists()


def test_second_process_on_one_folder_is_refused(tmp_path):
    args = parse("baselines/scratch", "--results", tmp_path)
    first = Run(args)
    refused("is in use by another process", Run, args)
    first.lock.close()


def test_other_thread_count_is_refused_unless_forced(tmp_path, monkeypatch):
    argv = ["--epochs", 2, "--results", tmp_path]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        def interrupted(run, model):
            run.lock.close()
            raise KeyboardInterrupt
        patched.setattr(Run, "finish", interrupted)
        run_script("baselines/scratch", *argv)
    path = next(tmp_path.rglob("last.pt"))
    last = torch.load(path, weights_only=True)
    for name, value in (("ranks", 2), ("data", "another")):   # no --force makes these the same run
        torch.save(last | {"where": last["where"] | {name: value}}, path)
        refused(f"was begun with {name} {value}, here it is", run_script, "baselines/scratch", *argv, "--force")
    last["where"]["threads"] = 77
    torch.save(last, path)
    refused("was begun with threads 77, here it is 1.*--force", run_script, "baselines/scratch", *argv)
    path.write_bytes(b"nothing")
    refused("last.pt is damaged.*delete it to start this run again", run_script, "baselines/scratch", *argv)
    torch.save(last, path)
    run_script("baselines/scratch", *argv, "--force")


def test_non_finite_loss(tmp_path):
    refused("loss became infinite or NaN in epoch 1.*lower --lr", run_script, "baselines/scratch", "--lr", 1e30,
            "--results", tmp_path)
    assert not list(tmp_path.rglob("summary.json")) and not list(tmp_path.rglob("final.pt"))


def test_full_disk(tmp_path, monkeypatch):
    """/dev/full answers every write like a full disk."""
    real = open
    target = tmp_path / "metrics.jsonl"
    target.write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", lambda path, mode: real("/dev/full", mode))
        patched.setattr("os.fsync", lambda fd: None)          # not for a device
        refused("cannot write .*metrics.jsonl: No space left on device. Make room", write_atomic, target, "new")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path):
    target = tmp_path / "metrics.jsonl"
    target.write_text("old")

    def half(out):
        out.write(b"new, but")
        out.flush()
        assert target.read_text() == "old"                    # what a kill here would leave
        raise OSError(28, "No space left on device")

    refused("cannot write .*metrics.jsonl: No space left on device. Make room", write_atomic, target, half)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_every_file_is_written_whole_and_the_summary_last(tmp_path, monkeypatch):
    written, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda one, other: (written.append(Path(other).name), real(one, other)))
    folder = run_script("baselines/scratch", "--epochs", 2, "--results", tmp_path)
    left = {path.name for path in folder.rglob("*") if path.is_file() and path.parent.name != "tb"} - {".lock"}
    assert left | {"last.pt"} <= set(written) and written[-1] == "summary.json"


def test_more_that_does_not_fit(copy):
    past, data, args = seen_from(copy, "--model", "resnet8x2")
    refused("nothing fits", past.weights, TASKS["shapes"].build(args, data), "trunk")
    refused("without --holdout, so nothing but the test set", past.held_out)
    np.savez(copy / "examples.npz", loss=np.zeros((2, 7), np.float16))
    refused("has shape", past.examples, "loss")


def test_a_seed_without_a_past_run_of_its_own_wraps_around(past):
    for seed, first in ((1, 101), (3, 100), (14, 102)):
        args = parse("methods/kd", "--past", past, "--seed", seed)
        data = TASKS["shapes"].load(args, torch.device("cpu"))
        assert Run.past(SimpleNamespace(args=args), data)[0].seed == first


def test_results_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    refused("cannot make .*Choose another --results", run_script, "baselines/scratch", "--results", tmp_path / "file")


def test_no_traceback_at_the_console(tmp_path):
    for argv in (["methods/kd.py"], ["baselines/scratch.py", "--epochs", "-1"], ["baselines/scratch.py", "--subset", "no"]):
        ended = subprocess.run([sys.executable, ROOT / argv[0], *argv[1:], "--results", tmp_path / "r"],
                               capture_output=True, text=True, cwd=tmp_path)
        assert ended.returncode == 1 and ended.stderr and "Traceback" not in ended.stderr, ended.stderr
        assert not list((tmp_path / "r").rglob("*.json"))


def test_several_ranks_without_torchrun_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused("start them with torchrun, or unset WORLD_SIZE", run_script, "baselines/scratch", "--results", tmp_path)


def test_code_that_is_not_committed_is_said_to_be(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True,
                       capture_output=True)

    (tmp_path / "common").mkdir()
    (tmp_path / "common/a.py").write_text("1")
    for words in (("init",), ("add", "."), ("commit", "-m", "x")):
        git(*words)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    clean = machine.code_version()
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "notes.md").write_text("not code")
    assert machine.code_version() == clean
    (tmp_path / "common/a.py").write_text("2")
    assert machine.code_version() == clean | {"dirty": True}
