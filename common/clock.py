"""The benchmark's clock: seconds and FLOPs of everything a run does, unless it is told to stop."""
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from common import ranks

UNTIMED = ("data", "compile", "eval", "checkpoint")


def convolution_backward(grad, image, weight, _bias, _stride, _padding, _dilation, transposed, _more, _groups, wanted, **_):
    """FLOPs of a convolution's gradients, from shapes; `wanted` is for its input, weight, bias.

    Torch's own formula leaves the groups out of the weight's gradient, and so counts it as many times as there are groups.
    """
    return 2 * grad[0] * math.prod((image if transposed else grad)[2:]) * math.prod(weight) * (wanted[0] + wanted[1])


def attention(query, key, value, *_, **__):
    """FLOPs of attention's two products, from shapes: torch's own formula is registered for GPUs alone."""
    return sdpa_flop_count(query, key, value)


def attention_backward(grad, query, key, value, *_, **__):
    """FLOPs of its gradients: of two products for each, and the scores made again."""
    return sdpa_backward_flop_count(grad, query, key, value)


FORMULAS = {torch.ops.aten.convolution_backward: convolution_backward,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward}


@contextmanager
def count_flops() -> Iterator[FlopCounterMode]:
    """`with count_flops() as counter:`, then counter.get_total_flops(): 2 for a multiply-add.

    Without torch's fast path of attention in eval mode, one operation that has no formula; its FLOPs are the slow one's.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Clock:
    """Runs from its making. Synchronised with the device whenever it is read, stopped or started."""

    def __init__(self, device: torch.device):
        self.device = device
        self.started = time.perf_counter()
        self.untimed_seconds = dict.fromkeys(UNTIMED, 0.0)
        self.preparation_seconds: dict[str, float] = {}
        self.flops = {"training": 0, "preparation": 0}
        self.stopped_at: float | None = None                  # while it stands still

    def elapsed(self) -> float:
        """Seconds since the start, counted or not."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - self.started

    def counted(self) -> float:
        """Seconds that count so far, preparation included."""
        now = self.elapsed() if self.stopped_at is None else self.stopped_at
        return now - sum(self.untimed_seconds.values())

    @contextmanager
    def untimed(self, kind: str) -> Iterator[None]:
        """Stops the clock for one of `data`, `compile`, `eval`, `checkpoint`; inside another one it changes nothing."""
        if kind not in UNTIMED:
            raise ValueError(f"untimed({kind!r}): the clock stops for {', '.join(UNTIMED)} only")
        if self.stopped_at is not None:
            yield
            return
        self.stopped_at = self.elapsed()
        try:
            yield
        finally:
            self.untimed_seconds[kind] += self.elapsed() - self.stopped_at
            self.stopped_at = None

    @contextmanager
    def prepare(self, what: str) -> Iterator[Callable]:
        """Counted work before the first step (`what`: cache, scores, matching ...), its seconds and FLOPs told apart.

        Whatever multiplies matrices goes through what it yields: `call(teacher, image)` is `teacher(image)`, with its FLOPs.
        They are counted once for a function and the shapes it is given, since counting slows a call down.
        """
        begin, known = self.counted(), {}

        def call(function: Callable, *args):
            key = function, *(arg.shape if isinstance(arg, Tensor) else None for arg in args)
            if key in known:
                result = function(*args)
            else:
                with count_flops() as counter:
                    result = function(*args)
                known[key] = counter.get_total_flops()
            self.flops["preparation"] += known[key] * ranks.world()     # every rank prepares for itself
            return result

        yield call
        self.preparation_seconds[what] = self.preparation_seconds.get(what, 0.0) + self.counted() - begin

    def charge(self, what: str, seconds: float, flops: int) -> None:
        """Preparation that another run did for this one, as if it had been done here and now."""
        self.started -= seconds
        self.preparation_seconds[what] = self.preparation_seconds.get(what, 0.0) + seconds
        self.flops["preparation"] += flops

    def state_dict(self) -> dict:
        return {"elapsed": self.elapsed() if self.stopped_at is None else self.stopped_at,
                "untimed": self.untimed_seconds, "preparation": self.preparation_seconds, "flops": self.flops}

    def load_state_dict(self, state: dict) -> None:
        """The clock shows what it showed then: time between a checkpoint and now never counts."""
        self.started = time.perf_counter() - state["elapsed"]
        self.untimed_seconds, self.flops = dict(state["untimed"]), dict(state["flops"])
        self.preparation_seconds = dict(state["preparation"])
        if self.stopped_at is not None:
            self.stopped_at = state["elapsed"]
