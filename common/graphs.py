"""A training step as one CUDA graph: a small model's kernels end sooner than Python launches the next ones."""
from collections.abc import Callable
from copy import copy
from functools import cache

import torch
from torch import Tensor

from common.data import Batch
from common.files import Refused

WARM = 3                                                      # calls before the capture, in which libraries choose algorithms


@cache
def pool():
    """Memory that all graphs of this process share: each leaves nothing in it that another one needs."""
    return torch.cuda.graph_pool_handle()


class Graph:
    """`function(batch)`, captured with one batch; a call copies another batch into that one's place and replays it.

    Python runs at the capture alone, and no kernel looks for its tensors again: what changes between calls (weights, tables, the
    learning rate) must be changed in place. What a call returns holds until the next one. The calls that warm up leave their
    trace in all that `function` changes; the capture leaves none.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, function: Callable[[Batch], tuple], batch: Batch):
        self.batch = copy(batch)
        for name, tensor in self._tensors(batch):
            setattr(self.batch, name, tensor.clone())
        self.outputs = self._capture(function)

    def _capture(self, function: Callable) -> tuple:
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM):
                function(self.batch)
        here.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool()):
            return function(self.batch)

    @staticmethod
    def _tensors(batch: Batch) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in vars(batch).items() if isinstance(value, Tensor)]

    def __call__(self, batch: Batch) -> tuple:
        for name, tensor in self._tensors(batch):
            own = getattr(self.batch, name)
            if own.shape != tensor.shape:
                raise Refused(f"--graph: {name} of a batch has shape {list(tensor.shape)}, and the step was captured with "
                              f"{list(own.shape)}: hand another loss function to Step for it, or leave --graph out.")
            own.copy_(tensor)
        self.graph.replay()
        return self.outputs
