"""Captured steps: equal to eager ones, bit for bit, in every script, and without a wait for the device.

A CPU has no CUDA graphs. `Tape` does what one does, with the same blindness: it records the operations of one call with the very
tensors and numbers they had, and repeats those. What a real capture would miss or refuse, it misses or refuses.
"""
import json
import math
import os
import signal

import pytest
import torch
from conftest import AT_ONCE, SCRIPTS, fork_script, parse, run_script, same_weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common import graphs, step
from common.data import Batch, train_batches
from common.files import Refused
from common.run import Run
from common.tasks import TASKS

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}       # for the device


class Recorder(TorchDispatchMode):
    """Every operation below autograd and autocast: function, arguments, what it returned."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = "index" in name and any(getattr(at, "dtype", None) == torch.bool for at in tree_leaves(args[1]))
        if name in WAITS or masks:
            raise AssertionError(f"a captured step cannot wait for the device: {name}")
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, found in self.calls:
            for old, new in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)                            # what a graph returns lies where it lay at the capture


class Tape(graphs.Graph):
    def _capture(self, function, beside):
        for _ in range(graphs.WARM):
            function(self.batch)
        self.graph = Recorder()
        with self.graph:
            return function(self.batch)


@pytest.fixture
def capture(monkeypatch):
    """Call it, and runs that begin from then on capture their steps; returns the tapes they will make."""
    def one_hot(target, classes):                             # torch's looks whether each class exists, on a CPU alone
        return torch.zeros(*target.shape, classes, dtype=torch.int64).scatter_(-1, target[..., None], 1)

    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)
    monkeypatch.setattr(step, "FUSED", ("cpu",))              # one update for eager steps and captured ones, as on a GPU
    made = []

    def make(*args):
        made.append(Tape(*args))
        return made[-1]

    def start():
        begin = Run.__init__
        monkeypatch.setattr(step, "Graph", make)
        monkeypatch.setattr(Run, "__init__", lambda run, args: begin(run, setattr(args, "graph", True) or args))
        return made

    return start


@pytest.mark.parametrize("script", SCRIPTS)
def test_captured_steps_equal_eager_ones(script, reuse, capture, tmp_path):
    argv = [script, "--epochs", 2, *AT_ONCE.get(script, []), *reuse(script), "--results"]
    eager = run_script(*argv, tmp_path / "eager")
    made = capture()
    graphed = run_script(*argv, tmp_path / "graphed")
    assert made and json.loads((graphed / "config.json").read_text())["args"]["graph"]
    assert same_weights(eager, graphed)


@pytest.mark.parametrize("task", ["shapes-seg", "shapes-det"])
def test_captured_steps_equal_eager_ones_on_pixels_and_boxes(task, capture, tmp_path):
    scratch = ["baselines/scratch", "--task", task, "--epochs", 1, "--results"]
    past = run_script(*scratch, tmp_path / "past", "--seed", 100)
    argv = ["methods/kd", "--past", past, "--epochs", 1, "--results"]
    eager = run_script(*argv, tmp_path / "eager")
    assert capture() == []
    assert same_weights(eager, run_script(*argv, tmp_path / "graphed"))


def test_a_killed_captured_run_goes_on(past, capture, tmp_path):
    capture()
    argv = ["methods/partial_kd", "--share", 0.5, "--past", past, "--epochs", 2, "--results"]
    whole = run_script(*argv, tmp_path / "whole")
    _, status = os.waitpid(fork_script(*argv, tmp_path / "killed", killed_after=2, console=tmp_path / "console"), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL and list((tmp_path / "killed").rglob("last.pt"))
    assert same_weights(whole, run_script(*argv, tmp_path / "killed"))


@pytest.fixture
def begun(capture, tmp_path):
    """A captured run's step, and batches for it."""
    capture()
    args = parse("baselines/scratch", "--results", tmp_path)
    run = Run(args)
    run.data = data = TASKS["shapes"].load(args, run.device)
    model = TASKS["shapes"].build(args, data)
    yield step.Step(run, model, step.sgd(model, args)), [batch for _, batch in train_batches(data.train, run, 1)]
    run.lock.close()


def test_a_tape_is_as_blind_as_a_graph(begun):
    """Else these tests could not fail: a number that Python changes stays as it was at the capture, a tensor does not."""
    take, batches = begun
    number, tensor = [2.0], torch.tensor(2.0)

    def scaled(model, batch):
        loss = torch.nn.functional.cross_entropy(model(batch.image).float(), batch.target, reduction="none")
        return loss, {"number": torch.full_like(loss, number[0]), "tensor": tensor.expand_as(loss)}

    take(batches[0], scaled, lr=0.1)
    number[0], _ = 3.0, tensor.fill_(3.0)
    take(batches[1], scaled, lr=0.1)
    for batch, value in ((batches[0], 2.0), (batches[1], 3.0)):
        assert (take.recorded["tensor"][batch.index] == value).all() and (take.recorded["number"][batch.index] == 2.0).all()

    def waiting(model, batch):
        loss, parts = scaled(model, batch)
        return loss * 2 if loss.mean() > 1 else loss, parts

    with pytest.raises(AssertionError, match="cannot wait for the device: _local_scalar_dense"):
        take(batches[2], waiting, lr=0.1)


def test_capturing_leaves_no_trace(begun):
    take, batches = begun
    before = {name: value.clone() for name, value in take.model.state_dict().items()}
    drawn = torch.random.get_rng_state()

    def noisy(model, batch):
        return torch.nn.functional.cross_entropy(model(batch.image + torch.rand(())).float(), batch.target, reduction="none"), {}

    take._prepare(batches[0], noisy)
    assert all(torch.equal(value, before[name]) for name, value in take.model.state_dict().items())
    assert all(not own["momentum_buffer"].any() for own in take.optimizer.state.values()) and len(take.optimizer.state) > 20
    assert torch.equal(torch.random.get_rng_state(), drawn)
    take(batches[0], noisy, lr=0.1)
    momentum = {p: own["momentum_buffer"].clone() for p, own in take.optimizer.state.items()}
    take._prepare(batches[0], lambda model, batch: noisy(model, batch))         # another one, within the training
    assert all(torch.equal(own["momentum_buffer"], momentum[p]) for p, own in take.optimizer.state.items())
    assert all(tensor.any() for tensor in momentum.values())


def test_a_batch_of_another_shape_is_refused(begun):
    take, batches = begun

    def plain(model, batch):
        return torch.nn.functional.cross_entropy(model(batch.image).float(), batch.target, reduction="none"), {}

    take(batches[0], plain, lr=0.1)
    half = Batch(**{name: tensor[:16] for name, tensor in vars(batches[1]).items()})
    with pytest.raises(Refused, match=r"image of a batch has shape \[16, 3, 32, 32\], .* captured with \[32, 3, 32, 32\]"):
        take(half, plain, lr=0.1)


@pytest.mark.parametrize("flag", ["--graph", "--sync-batch-norm"])
def test_what_only_gpus_do_is_refused_elsewhere(flag):
    with pytest.raises(Refused, match=f"{flag} is for GPUs, and --device is cpu: leave it out here"):
        parse("baselines/scratch", flag, "--device", "cpu")


@pytest.mark.parametrize("ranks, amp", [(2, torch.bfloat16), (1, torch.float16)])
def test_what_cannot_be_captured_is_refused(ranks, amp, capture, tmp_path, monkeypatch):
    capture()
    monkeypatch.setattr("common.ranks.world", lambda: ranks)
    monkeypatch.setattr("common.run.amp_dtype", lambda *where: amp)
    with pytest.raises(Refused, match=rf"one process in bf16 or float32; here are {ranks} rank\(s\) and {amp}: leave it out"):
        Run(parse("baselines/scratch", "--results", tmp_path))


def test_synchronised_batch_norm_takes_a_past_run_s_weights(past, tmp_path):
    args = parse("baselines/warm_start", "--past", past, "--results", tmp_path)
    plain, args.sync_batch_norm = TASKS["shapes"].build(args, data := TASKS["shapes"].load(args, torch.device("cpu"))), True
    both = TASKS["shapes"].build(args, data)
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in both.modules()) == 9
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in both.state_dict().items())


def test_one_kernel_updates_as_many_do(tmp_path, monkeypatch):
    argv = ["baselines/scratch", "--epochs", 0.2, "--results"]
    many = run_script(*argv, tmp_path / "many")
    monkeypatch.setattr(step, "FUSED", ("cpu",))
    one = run_script(*argv, tmp_path / "one")
    a, b = (torch.load(folder / "final.pt", weights_only=True) for folder in (many, one))
    assert all(torch.allclose(a[name].float(), b[name].float(), rtol=1e-2, atol=1e-3) for name in a)


def test_a_first_step_that_overflows_leaves_no_trace(monkeypatch):
    """As under fp16, whose first loss scales are too large: the fused kernel then returns before it fills the momentum."""
    monkeypatch.setattr(step, "FUSED", ("cpu",))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    layers = [torch.nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    torch.use_deterministic_algorithms(True)                  # what nobody has filled is NaN
    try:
        for layer, scales in zip(layers, ((math.inf, 1), (1,)), strict=True):
            optimizer = step.sgd(layer, parse("baselines/scratch", "--lr", 0.1))
            scaler = torch.amp.GradScaler("cpu", init_scale=1)
            for scale in scales:
                optimizer.zero_grad()
                scaler.scale(layer(torch.ones(1, 3)).sum() * scale).backward()
                scaler.step(optimizer)
                scaler.update(1.0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.isfinite(layers[0].weight).all() and torch.equal(layers[0].weight, layers[1].weight)
