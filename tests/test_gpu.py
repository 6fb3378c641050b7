"""What only a GPU can show: `python -m pytest tests/test_gpu.py --gpu`. Elsewhere these tests are skipped."""
import pytest
import torch
from conftest import SCRIPTS, run_script

from common.step import Step

if not torch.cuda.is_available():
    pytest.skip("needs a GPU: python -m pytest tests/test_gpu.py --gpu", allow_module_level=True)


@pytest.fixture(autouse=True)
def repeatable(monkeypatch):
    """The same kernels in the same order of additions, as far as CUDA has them."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(False)


def farthest(a, b) -> float:
    """Largest distance of two runs' weights, over the largest weight of the same tensor."""
    one, two = (torch.load(folder / "final.pt", weights_only=True) for folder in (a, b))
    return max(((one[k].float() - two[k].float()).abs().max() / one[k].float().abs().max().clamp(1e-3)).item() for k in one)


@pytest.mark.parametrize("script", SCRIPTS)
def test_captured_steps_equal_eager_ones(script, reuse, tmp_path):
    """Twenty steps; in float32, where rounding has not grown to something else by then."""
    argv = [script, "--epochs", 2, "--no-amp", *reuse(script), "--results"]
    eager = run_script(*argv, tmp_path / "eager")
    graphed = run_script(*argv, tmp_path / "graphed", "--graph")
    assert farthest(eager, graphed) < 1e-3


@pytest.mark.parametrize("graph", [[], ["--graph"]])
@pytest.mark.parametrize("script", SCRIPTS)
def test_steps_do_not_wait_for_the_device(script, graph, reuse, tmp_path, monkeypatch):
    call = Step.__call__

    def strict(step, batch, loss_fn, lr):
        if loss_fn in step.functions:                         # else it is compiled, captured, counted: off the clock
            torch.cuda.set_sync_debug_mode("error")
        try:
            call(step, batch, loss_fn, lr)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Step, "__call__", strict)
    torch.use_deterministic_algorithms(False)                 # which look at indices on the host
    run_script(script, "--epochs", 1, *graph, *reuse(script), "--results", tmp_path)
