"""The speed table: every loop trains, FLOPs are those worked out by hand; seconds are nobody's business here."""
import json
from contextlib import nullcontext

import pytest
import torch

from common import study
from common.files import Refused
from common.machine import keep_memory
from common.speed import fastest
from common.speed.__main__ import main
from common.speed.rivals import build_loops
from common.speed.together import measure_together


def test_a_table_and_its_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("common.speed.__main__.peak_memory", lambda options, name: 2 ** 20)      # a process each: seconds
    monkeypatch.setattr("common.speed.__main__.SECONDS", 0.1)
    main(["--model", "resnet8", "--batch-size", "32", "--rounds", "1", "--steps", "1", "--loops", "textbook_amp",
          "--scripts", "kd", "infobatch", "--turns", "2", "--jobs", "1", "2",
          "--device", "cpu", "--json", str(tmp_path / "speed.json")])
    found = json.loads((tmp_path / "speed.json").read_text())
    assert list(found["loops"]) == ["textbook", "textbook_amp", "eager", "convolutions"]
    for name, row in found["loops"].items():
        assert row["images_per_second"] > 0 and row["over_textbook"] > 0
        assert set(row["milliseconds"]) == (set() if name == "convolutions" else {"data", "forward", "backward", "optimizer"})
    assert set(found["steps"]) == {"kd", "infobatch"} and found["machine"]["commit"]
    assert all(len(row["turns"]) == 2 and min(row["turns"]) <= row["over_scratch"] <= max(row["turns"])
               for row in found["steps"].values())
    assert {name: set(rates) for name, rates in found["together"].items()} == {"eager": {"1", "2"}}
    assert min(found["together"]["eager"].values()) > 0
    # forward 1/3 of a step but for the first convolution, whose input needs no gradient
    assert found["steps"]["kd"]["flops_over_scratch"] == pytest.approx(1.34, abs=0.01)
    assert found["steps"]["infobatch"]["flops_over_scratch"] == pytest.approx(1, rel=1e-9)
    text = capsys.readouterr().out
    assert "| `textbook_amp` |" in text and "| `kd` |" in text and "resnet8, batch 32" in text and "| 2 | " in text


def test_what_was_measured_is_kept_when_something_later_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("common.speed.__main__.peak_memory", lambda options, name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--model", "resnet8", "--batch-size", "32", "--rounds", "1", "--steps", "1", "--loops", "eager", "--scripts",
              "--device", "cpu", "--json", str(tmp_path / "speed.json")])
    assert json.loads((tmp_path / "speed.json").read_text())["loops"]["eager"]["images_per_second"] > 0


def test_no_process_is_no_number_of_jobs(capsys):
    with pytest.raises(SystemExit):
        main(["--jobs", "1", "0"])
    assert "--jobs: at least 1 process at a time" in capsys.readouterr().err


def test_a_process_that_fails_is_not_waited_for(capfd):
    with pytest.raises(Refused, match="one of 1 processes did not get to its first step .see above.: try fewer --jobs"):
        measure_together(["--task", "nothing"], ["eager"], [1], 0.1, None)
    assert "invalid choice: 'nothing'" in capfd.readouterr().err


def test_loops_train_the_same_model_and_convolutions_are_those_of_a_step(tmp_path):
    options = ["--model", "resnet8", "--batch-size", "32", "--task", "shapes", "--device", "cpu"]
    loops = build_loops(options, str(tmp_path), ["textbook", "eager", "convolutions"])
    weights = {name: [p.detach().clone() for p in loops[name].model.parameters()] for name in ("textbook", "eager")}
    assert all(torch.equal(a, b) for a, b in zip(*weights.values(), strict=True))
    for name, before in weights.items():
        loops[name].step()
        assert not any(torch.equal(a, b) for a, b in zip(before, loops[name].model.parameters(), strict=True) if a.ndim > 1)
    assert len(loops["convolutions"].calls) == 9              # stem, six in blocks, two shortcuts
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        loops["convolutions"].step()
    head = 3 * 2 * 32 * 64 * 20                               # the linear layer, forward and both gradients
    assert counter.get_total_flops() == loops["eager"].flops() - head


def test_keeping_memory_can_be_asked_for_anywhere():
    keep_memory()
    assert torch.ones(1000).sum() == 1000


def test_the_fastest_loop_is_measured_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fastest, "CACHE", tmp_path)
    monkeypatch.setattr(fastest, "OURS", ("eager", "graph"))  # to compile takes a minute
    command = ["--task", "shapes", "--model", "resnet8", "--epochs", "3", "--seed", "100", "--slim", "--device", "cpu"]
    fastest.main(command)
    measured, = (json.loads(path.read_text()) for path in tmp_path.iterdir())
    assert measured["seconds"].keys() == {"eager"} and measured["seconds"]["eager"] > 0
    assert (measured["fastest"], measured["model"], measured["batch_size"]) == ("eager", "resnet8", 32)
    monkeypatch.setattr(fastest, "measure", None)             # would fail
    fastest.main(command)
    assert capsys.readouterr().out.split() == ["eager", "eager"]


def test_a_loop_that_does_not_work_here_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fastest, "CACHE", tmp_path)
    monkeypatch.setattr(torch, "compile", lambda *args, **options: 1 / 0)
    fastest.main(["--task", "shapes", "--model", "resnet8", "--device", "cpu"])
    printed = capsys.readouterr()
    assert printed.out == "eager\n" and "compiled does not work here: ZeroDivisionError: division by zero" in printed.err


@pytest.mark.parametrize("seconds, name", [
    ({"eager": 100, "compiled": 95}, "eager"), ({"eager": 100, "compiled": 75}, "compiled"),
    ({"eager": 100, "compiled": 30, "graph": 32}, "graph"), ({"eager": 100, "compiled": 30, "graph": 50}, "compiled"),
    ({"eager": 100, "compiled": 90, "graph": 40, "compiled_graph": 30}, "compiled_graph")])
def test_a_tie_goes_to_the_simpler_loop(seconds, name):
    assert fastest.choose(seconds) == name


def test_a_study_asks_for_its_first_run_s_loop(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(study, "fastest", lambda command, threads: asked.update(command=command, threads=threads) or "compiled")
    monkeypatch.setattr(study, "make", lambda root, chosen, jobs, flags: asked.update(jobs=jobs, flags=flags))
    monkeypatch.setattr(study, "lock", lambda path, wait: nullcontext())
    monkeypatch.setattr(study, "write_json", lambda path, what: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    study.main(["demo", "--jobs", "1", "--fastest"])
    assert asked["flags"] == ["--compile"] and asked["jobs"] == 1 and "baselines/scratch.py --task shapes" in asked["command"]
    assert asked["threads"] == study.cores()


def test_jobs_on_one_gpu_are_told_of_mps_and_of_what_captures_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "make", lambda root, chosen, jobs, flags: None)
    monkeypatch.setattr(study, "lock", lambda path, wait: nullcontext())
    monkeypatch.setattr(study, "write_json", lambda path, what: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "mps"))
    for jobs, hints in (("6", 1), ("1", 0)):
        study.main(["demo", "--jobs", jobs])
        assert capsys.readouterr().out.count("unless MPS runs: nvidia-cuda-mps-control -d") == hints
    (tmp_path / "mps").mkdir()
    monkeypatch.setattr(study, "fastest", lambda command, threads: "graph")
    for more, hints in (([], 1), (["--graph"], 0), (["--compile"], 0), (["--fastest"], 0)):
        study.main(["demo", "--jobs", "6", *more])
        out = capsys.readouterr().out
        assert "MPS" not in out and out.count("--graph captures steps") == hints
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    study.main(["demo"])
    assert "--graph" not in capsys.readouterr().out


def test_a_failed_measurement_says_what_to_do(monkeypatch):
    with pytest.raises(Refused, match="could not be measured .see above.: choose --compile, --graph, both or neither"):
        fastest.fastest("python baselines/scratch.py --task nothing", 1)
