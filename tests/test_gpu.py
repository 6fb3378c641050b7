"""What only a GPU can show: `python -m pytest tests/test_gpu.py --gpu`. Elsewhere these tests are skipped."""
import gc
import os
import signal

import pytest
import torch
from conftest import SCRIPTS, run_script
from test_teachers import image, trained

from common.clock import Clock
from common.files import read_json
from common.run import Run
from common.speed import fastest
from common.step import Step
from common.teachers import Teacher, together

if not torch.cuda.is_available():
    pytest.skip("needs a GPU: python -m pytest tests/test_gpu.py --gpu", allow_module_level=True)


@pytest.fixture(autouse=True)
def repeatable():
    """The same convolutions in the same order of additions."""
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False
    gc.collect()                                              # captured graphs of a test that failed


def farthest(a, b) -> float:
    """Largest distance of two runs' weights, over the largest weight of the same tensor."""
    one, two = (torch.load(folder / "final.pt", weights_only=True) for folder in (a, b))
    return max(((one[k].float() - two[k].float()).abs().max() / one[k].float().abs().max().clamp(1e-3)).item() for k in one)


def test_the_fastest_loop_may_be_captured(tmp_path, monkeypatch):
    monkeypatch.setattr(fastest, "CACHE", tmp_path)
    fastest.main(["--task", "shapes", "--model", "resnet8"])
    measured, = tmp_path.iterdir()
    assert read_json(measured)["seconds"].keys() == set(fastest.OURS)


def test_compiled_and_captured(tmp_path):
    run_script("baselines/scratch", "--epochs", 1, "--compile", "--graph", "--results", tmp_path)


def same(folder, other, again) -> None:
    """Nearer to each other than one in a thousand, or than ten times what `again`, the first made once more, is away.

    Some kernels add in any order, and twenty steps make more of that; one in twenty is too far in any case.
    """
    distance = farthest(folder, other)
    assert distance < 1e-3 or distance < min(0.05, 10 * farthest(folder, again()))


# several functions, and so graphs, a run; noise of its own; the teacher asked often enough to be asked at all
SEVERAL = ["methods/ensemble_distill --sample", "methods/checkpoint_ensemble --sample", "methods/born_again --term dkpp",
           "methods/partial_kd --share 0.5", "methods/infobatch_kd --share 0.5"]


@pytest.mark.parametrize("script", [*SCRIPTS, *SEVERAL])
def test_captured_steps_equal_eager_ones(script, reuse, tmp_path):
    """Twenty steps; in float32, where rounding has not grown to something else by then."""
    (script, *more) = script.split()
    argv = [script, "--epochs", 2, "--no-amp", *more, *reuse(script), "--results"]
    eager = run_script(*argv, tmp_path / "eager")
    graphed = run_script(*argv, tmp_path / "graphed", "--graph")
    same(eager, graphed, again=lambda: run_script(*argv, tmp_path / "again"))


@pytest.mark.parametrize("task", ["shapes-seg", "shapes-det"])
def test_captured_steps_equal_eager_ones_on_pixels_and_boxes(task, tmp_path):
    if task == "shapes-det":
        pytest.importorskip("pycocotools")
    past = run_script("baselines/scratch", "--task", task, "--epochs", 1, "--seed", 100, "--results", tmp_path / "past")
    argv = ["methods/kd", "--past", past, "--epochs", 1, "--lr", 0.01, "--no-amp", "--results"]
    eager = run_script(*argv, tmp_path / "eager")
    graphed = run_script(*argv, tmp_path / "graphed", "--graph")
    same(eager, graphed, again=lambda: run_script(*argv, tmp_path / "again"))


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_teachers_are_asked_as_one_and_say_the_same(amp, monkeypatch):
    x = image(64).cuda()
    several = [Teacher(trained("resnet20", seed).cuda(), x[:2], amp) for seed in range(3)]
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):           # which rounds much more
        expected = [teacher(x) for teacher in several]
        monkeypatch.setattr(Teacher, "forward", None)         # nobody is asked alone
        found = together(several)(x)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3 if amp is None else 0.05, atol=1e-3 if amp is None else 0.05)


def test_a_stopped_captured_run_goes_on(past, tmp_path, monkeypatch):
    argv = ["methods/partial_kd", "--share", 0.5, "--past", past, "--epochs", 2, "--no-amp", "--graph", "--results"]
    whole, count = run_script(*argv, tmp_path / "whole"), Run.count

    def stop_after_15(run, *what):
        count(run, *what)
        if run.steps == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Run, "count", stop_after_15)
        run_script(*argv, tmp_path / "stopped")
    same(whole, run_script(*argv, tmp_path / "stopped"), again=lambda: run_script(*argv, tmp_path / "again"))


@pytest.mark.parametrize("graph", [[], ["--graph"]])
@pytest.mark.parametrize("script", [*SCRIPTS, *SEVERAL])
def test_steps_do_not_wait_for_the_device(script, graph, reuse, tmp_path, monkeypatch):
    """From the second step of an epoch until the clock is read."""
    (script, *more), call, elapsed = script.split(), Step.__call__, Clock.elapsed

    def strict(step, *what, **named):
        call(step, *what, **named)
        torch.cuda.set_sync_debug_mode("error")

    def read(clock):
        torch.cuda.set_sync_debug_mode("default")
        return elapsed(clock)

    monkeypatch.setattr(Step, "__call__", strict)
    monkeypatch.setattr(Clock, "elapsed", read)
    try:
        run_script(script, "--epochs", 1, *more, *graph, *reuse(script), "--results", tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")
