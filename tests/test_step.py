"""Step against ten readable lines, the losses against formulas by hand, the clock, FLOPs."""
import json
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import parse, run_script
from torch.nn import functional as F

import common.resume
from common.amp import amp_dtype
from common.clock import Clock, count_flops
from common.data import train_batches
from common.files import Refused
from common.models import MODELS, build
from common.run import Run
from common.seeding import generator
from common.step import Step, one_cycle, sgd
from common.tasks import TASKS, cross_entropy, mean_output, soft_cross_entropy


@pytest.fixture
def begun(tmp_path):
    """A run on `shapes` that is about to take its first step: run, task, data, model."""
    args = parse("baselines/scratch", "--epochs", 1, "--results", tmp_path, "--no-amp", "--weight-decay", 0.05)
    run, task = Run(args), TASKS["shapes"]
    data = task.load(args, run.device)
    return run, task, data, task.build(args, data)


def test_step_equals_a_plain_loop(begun):
    """In float64, where rounding does not grow within ten steps."""
    run, task, data, model = begun
    model, twin = model.double(), task.build(run.args, data).double()
    step = Step(run, model, sgd(model, run.args))
    plain_sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch.image.double()), batch.target, reduction="none"), {}

    for epoch in run.epochs(1, data, step=step):
        for progress, batch in train_batches(data.train, run, epoch):
            step(batch, loss_fn, lr=0.1 * one_cycle(progress))
            loss = F.cross_entropy(twin(batch.image.double()), batch.target)
            plain_sgd.param_groups[0]["lr"] = 0.1 * one_cycle(progress)
            plain_sgd.zero_grad()
            loss.backward()
            for p in twin.parameters():                       # weight decay by hand: on convolutions and linear layers
                if p.ndim > 1:
                    p.grad += run.args.weight_decay * p.data
            plain_sgd.step()
        run.log(epoch, {"test/loss": 0.0})
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("amp", [torch.bfloat16, None])
def test_a_step_computes_in_the_type_of_the_run(amp, tmp_path, monkeypatch):
    monkeypatch.setattr("common.run.amp_dtype", lambda *where: amp)
    args = parse("baselines/scratch", "--epochs", 1, "--results", tmp_path)
    run, task, types = Run(args), TASKS["shapes"], set()
    run.data = data = task.load(args, run.device)
    model = task.build(args, data)

    def plain(model, batch):
        output = model(batch.image)
        types.add(output.dtype)
        return task.loss(output, batch.target), {}

    _, batch = next(train_batches(data.train, run, 1))
    Step(run, model, sgd(model, args))(batch, plain, lr=0.1)
    assert types == {amp or torch.float32}
    run.lock.close()


def test_weights_scale_the_gradient_and_kept_rows_find_theirs(begun):
    run, task, data, model = begun
    run.data = data
    step = Step(run, model, sgd(model, run.args))
    weight = torch.arange(data.examples) / 100
    progress, batch = next(train_batches(data.train, run, 1, weight=weight))
    assert torch.equal(batch.weight, weight[batch.index])

    def second_half(model, batch):
        loss = cross_entropy(model(batch.image), batch.target)[16:]
        return loss, {"index": batch.index[16:], "kept": loss}

    step._backward(batch, second_half)
    gradient = model.head.weight.grad.clone()
    model.zero_grad()
    (cross_entropy(model(batch.image), batch.target)[16:] * weight[batch.index[16:]]).mean().backward()
    assert torch.allclose(gradient, model.head.weight.grad, rtol=1e-4, atol=1e-6)
    step(batch, second_half, lr=0.1)
    seen = ~step.recorded["kept"].isnan()
    assert set(seen.nonzero().flatten().tolist()) == set(batch.index[16:].tolist())


def test_counting_flops_leaves_no_trace(begun):
    run, task, data, model = begun
    run.data = data
    step = Step(run, model, sgd(model, run.args))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _, batch = next(train_batches(data.train, run, 1))
    seen = torch.zeros(())                                    # state of the script's own, changed by its loss function
    run.state = {"step": step, "seen": seen}

    def counting(model, batch):
        seen.add_(1)
        return cross_entropy(model(batch.image), batch.target), {}

    step._prepare(batch, counting)
    assert seen == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and run.clock.untimed_seconds["compile"] > 0


def test_every_loss_function_of_one_def_is_compiled(begun, monkeypatch):
    """torch stops after eight and goes on uncompiled, on the clock; more than eight has whoever freezes layer by layer."""
    run, task, data, model = begun
    run.data, run.args.compile, compiled, compiler = data, True, [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, **options: compiler(
        fn, backend=lambda graph, inputs: compiled.append(graph) or graph.forward, **options))
    step = Step(run, model, sgd(model, run.args))
    _, batch = next(train_batches(data.train, run, 1))

    def another():
        return lambda model, batch: (cross_entropy(model(batch.image), batch.target), {})

    for p in list(model.parameters())[:10]:
        p.requires_grad_(False)
        loss_fn, before = another(), len(compiled)
        step._prepare(batch, loss_fn)
        assert len(compiled) > before
        before = len(compiled)
        step(batch, loss_fn, lr=0.1)
        assert len(compiled) == before                        # nor anew on the clock


@pytest.mark.parametrize("frozen", [False, True])
def test_flops_of_attention_are_those_of_its_products(frozen):
    """A frozen one in eval mode takes a path of its own, which torch does not count, nor CPUs' fused attention."""
    batch, length, width = 2, 7, 16
    attention, x = torch.nn.MultiheadAttention(width, 4, batch_first=True), torch.randn(batch, length, width)
    attention.train(not frozen).requires_grad_(not frozen)
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.set_grad_enabled(not frozen), count_flops() as counter:
        output = attention(x, x, x, need_weights=False)[0]
        forward = counter.get_total_flops()
        if not frozen:
            output.sum().backward()
    linear, products = 2 * batch * length * width * 4 * width, 2 * 2 * batch * length ** 2 * width
    assert forward == linear + products and torch.backends.mha.get_fastpath_enabled() == fast
    if not frozen:                                            # two products for each; and the scores are made again
        assert counter.get_total_flops() - forward == 2 * linear - 2 * batch * length * width * 3 * width + 2.5 * products


def test_flops_by_hand(begun):
    """ResNet-8 at 32 x 32, multiply-adds by hand: forward; backward twice that, but no gradient for the image."""
    run, task, data, model = begun
    run.data = data
    first = 32 * 32 * 16 * 27
    stage1 = 2 * 32 * 32 * 16 * 144
    stage2 = 16 * 16 * 32 * (144 + 288 + 16)
    stage3 = 8 * 8 * 64 * (288 + 576 + 32)
    head = 64 * 20
    forward = first + stage1 + stage2 + stage3 + head
    step = Step(run, model, sgd(model, run.args))
    _, batch = next(train_batches(data.train, run, 1))
    plain, skipped = (lambda m, b: (cross_entropy(m(b.image), b.target), {})), \
        (lambda m, b: (cross_entropy(m(b.image[:8]), b.target[:8]), {"index": b.index[:8]}))
    for loss_fn, examples in ((plain, 32), (skipped, 8)):
        step._prepare(batch, loss_fn)
        assert step.functions[loss_fn][1] == 2 * examples * (3 * forward - first)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("layer, positions", [(torch.nn.Conv2d, 5 * 5), (torch.nn.ConvTranspose2d, 10 * 10)])
def test_flops_of_groups(layer, positions, groups):
    image = torch.randn(4, 8, 10, 10, requires_grad=True)
    with count_flops() as counter:                            # forward and both gradients: 8 x 16 / groups filters of 3 x 3
        layer(8, 16, 3, stride=2, padding=1, groups=groups)(image).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * positions * 8 * 16 * 9 // groups


def test_published_sizes():
    model = build("resnet56", 100, generator(0, "weights"), torch.device("cpu"))
    assert sum(p.numel() for p in model.parameters()) == 861_620
    from torch.utils.flop_counter import FlopCounterMode
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output, features = model(torch.zeros(1, 3, 32, 32), features=True)
    assert counter.get_total_flops() / 2 == pytest.approx(125.75e6, rel=1e-3)
    assert output.shape == (1, 100) and [tuple(f.shape[1:]) for f in features] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert MODELS == ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def test_distillation_by_hand():
    """Two classes, T = 2: teacher (2 ln 3, 0) softens to (3/4, 1/4), student (0, 0) to (1/2, 1/2).

    KL(teacher || student) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812; times T^2 = 0.523248. Swapped it would be 0.575364.
    """
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    loss = soft_cross_entropy(torch.zeros(1, 2), teacher, 2.0)
    assert loss.shape == (1,) and loss.item() == pytest.approx(0.523248, abs=1e-5)
    student = torch.zeros(1, 2, requires_grad=True)           # gradient: T (student - teacher) = 2 (1/2 - 3/4)
    soft_cross_entropy(student, teacher, 2.0).sum().backward()
    assert student.grad[0].tolist() == pytest.approx([-0.5, 0.5], abs=1e-6)


def test_classes_that_the_teacher_does_not_know_take_no_part():
    """As above, whatever the student thinks of a third class; the mean of two such teachers does not know it either."""
    teacher = torch.tensor([[2 * math.log(3), -math.inf, 0.0]])
    student = torch.tensor([[0.0, 5.0, 0.0]], requires_grad=True)
    loss = soft_cross_entropy(student, teacher, 2.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.523248, abs=1e-5)
    assert student.grad[0].tolist() == pytest.approx([-0.5, 0.0, 0.5], abs=1e-6)
    mean = mean_output([teacher, teacher], 4.0)[0]            # logits up to a constant
    assert (mean[0] - mean[2]).item() == pytest.approx(2 * math.log(3)) and mean[1] == -math.inf


def test_mean_of_teachers_is_of_probabilities():
    """At T = 4 softened (3/4, 1/4) and (1/4, 3/4) average to (1/2, 1/2), and (9/10, 1/10) with (1/2, 1/2) to (7/10, 3/10)."""
    def logits(p):
        return torch.tensor([[4 * math.log(p / (1 - p)), 0.0]])
    for a, b, mean in ((0.75, 0.25, 0.5), (0.9, 0.5, 0.7)):
        softened = (mean_output([logits(a), logits(b)], 4.0) / 4.0).softmax(1)
        assert softened[0, 0].item() == pytest.approx(mean, abs=1e-6)


def test_label_smoothing_by_hand():
    """Four classes, uniform output: log 4 whatever the smoothing; output p = (.7, .1, .1, .1), smoothing .4:
    (.6 + .1) (-ln .7) + 3 x .1 (-ln .1) = 0.940448."""
    output = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()
    assert cross_entropy(output, torch.tensor([0]), 0.4).item() == pytest.approx(0.940448, abs=1e-5)


def test_el2n_is_the_norm_of_p_minus_y():
    """p = (.7, .2, .1), y = class 1: |(.7, -.8, .1)| = sqrt(1.14)."""
    stats = TASKS["shapes"].stats(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([1]))
    assert stats["el2n"].item() == pytest.approx(math.sqrt(1.14), abs=1e-5) and stats["correct"].item() == 0


def test_one_cycle():
    assert [one_cycle(p) for p in (0, 0.125, 0.25, 0.625, 1)] == pytest.approx([0.04, 0.52, 1, 0.5, 0])


def test_a_cpu_computes_in_bf16_only_where_it_has_instructions_for_it(monkeypatch, begun):
    cpu = torch.device("cpu")

    def here(no_amp=False, **has):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
        return amp_dtype(no_amp, cpu)

    assert here(avx512_bf16=True) == here(amx_bf16=True) == here(bf16=True) == torch.bfloat16
    assert here(avx2=True, avx512_f=True, avx512_bf16=False) is None        # emulated there, ten times slower than float32
    assert here(no_amp=True, avx512_bf16=True) is None
    run = begun[0]
    assert run.config["device"]["arithmetic"] == "float32" and run.where["amp"] == "None"          # of --no-amp
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert here(bf16=True) is None                            # a Mac's torch has no library for it


def test_the_clock_stops_only_for_untimed():
    clock = Clock(torch.device("cpu"))
    with clock.untimed("eval"):
        time.sleep(0.05)
        inside = clock.counted()
        with clock.untimed("data"):                           # inside another: nothing of its own
            time.sleep(0.05)
        assert clock.counted() == inside
    with clock.prepare("scores") as call:
        time.sleep(0.03)
        product = [call(torch.mm, torch.ones(n, 3), torch.ones(3, 5)) for n in (2, 2, 4)]       # counted once per shape
    assert torch.equal(product[0], product[1]) and product[2].shape == (4, 5)
    assert clock.untimed_seconds["eval"] >= 0.1 and clock.untimed_seconds["data"] == 0
    assert 0.03 <= clock.preparation_seconds["scores"] <= clock.counted() < clock.elapsed() - 0.1 + 1e-3
    assert clock.flops == {"training": 0, "preparation": 2 * (2 + 2 + 4) * 3 * 5}
    counted, untimed = clock.counted(), dict(clock.untimed_seconds)
    clock.charge("cache", seconds=7.0, flops=11)              # as if it had been done here
    assert 7 <= clock.counted() - counted < 7.1 and clock.untimed_seconds == untimed
    assert clock.preparation_seconds["cache"] == 7 and clock.flops["preparation"] == 240 + 11
    with pytest.raises(ValueError, match="data, compile, eval, checkpoint"), clock.untimed("teacher"):
        pass


def test_a_resumed_clock_goes_on_from_its_checkpoint(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("common.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = Clock(torch.device("cpu"))
    now[0] = 10
    with clock.untimed("eval"):
        now[0] = 13
    with clock.prepare("scores"):
        now[0] = 15
    state, now[0] = clock.state_dict(), 100                   # killed, and 92 seconds later another process
    later = Clock(torch.device("cpu"))
    now[0] = 107
    with later.untimed("checkpoint"):
        later.load_state_dict(state)
        now[0] = 108
    now[0] = 110
    assert later.counted() == 12 + 2 and later.untimed_seconds["checkpoint"] == 1 and later.preparation_seconds == {"scores": 2}


def test_the_clock_waits_for_the_device_at_both_edges(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = Clock(torch.device("cuda"))
    with clock.untimed("eval"):
        assert len(waited) == 1
    assert len(waited) == 2 and clock.counted() is not None and len(waited) == 3


def test_only_steps_are_counted(tmp_path, monkeypatch):
    """Every kind of work takes a time of its own on a clock that nothing else moves."""
    now = [0.0]

    def takes(seconds, function):
        def longer(*args, **options):
            now[0] += seconds
            return function(*args, **options)
        return longer

    task = TASKS["shapes"]
    monkeypatch.setattr("common.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setitem(TASKS, "shapes", replace(task, load=takes(1e3, task.load), evaluate=takes(1e4, task.evaluate)))
    monkeypatch.setattr("common.resume.write_torch", takes(1e5, common.resume.write_torch))
    monkeypatch.setattr(Step, "_backward", takes(1, Step._backward))
    folder = run_script("baselines/scratch", "--epochs", 1, "--results", tmp_path)
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    assert seconds["counted"] == 10                           # of an epoch's ten steps; an eleventh counted their FLOPs
    assert seconds["untimed"] == {"data": 1e3, "compile": 1, "eval": 2e4, "checkpoint": 2e5}


def test_too_many_loss_functions_are_refused(begun):
    run, task, data, model = begun
    run.data = data
    step = Step(run, model, sgd(model, run.args))
    _, batch = next(train_batches(data.train, run, 1))
    with pytest.raises(Refused, match="hand over the same ones"):
        for _ in range(Step.MOST + 1):
            step(batch, lambda m, b: (cross_entropy(m(b.image), b.target), {}), lr=0.1)
