"""A training step as one CUDA graph: a small model's kernels end sooner than Python launches the next ones."""
import gc
from collections.abc import Callable
from copy import copy
from typing import Optional

import torch
from torch import Tensor

from common.data import Batch
from common.files import Refused

WARM = 3                                                      # calls before the capture, in which libraries choose algorithms


class Graph:
    """`function(batch)`, captured with one batch; a call copies another batch into that one's place and replays it.

    Python runs at the capture alone, and no kernel looks for its tensors again: what changes between calls (weights, tables, the
    learning rate) must be changed in place. What a call returns holds until the next one. The calls that warm up leave their
    trace in all that `function` changes; the capture leaves none.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, function: Callable[[Batch], tuple], batch: Batch, beside: Optional["Graph"] = None):
        """beside: another graph of the same run, whose memory this one may use, since neither leaves anything there."""
        self.batch = copy(batch)
        for name, tensor in self._tensors(batch):
            setattr(self.batch, name, tensor.clone())
        self.outputs = self._capture(function, beside)

    def _capture(self, function: Callable, beside: Optional["Graph"]) -> tuple:
        here = torch.cuda.current_stream()
        self.stream = beside.stream if beside else torch.cuda.Stream()          # a run's own, as is cuBLAS' memory on it
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM):
                function(self.batch)
        here.wait_stream(self.stream)
        gc.collect()                                          # what would be freed within the capture
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=beside.graph.pool() if beside else None, stream=self.stream,
                              capture_error_mode="thread_local"):
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
