"""The hot step: forward, loss, backward, update, and what is recorded about each example."""
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
import torch._dynamo  # noqa: F401                            # the first optimizer would import it: seconds on the clock
from torch import Tensor, nn

from common import ranks
from common.amp import autocast
from common.clock import count_flops
from common.data import Batch
from common.files import Refused
from common.graphs import Graph

LossFn = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]
FUSED = ("cuda",)                                             # devices on which one kernel updates all weights


def sgd(model: nn.Module, args) -> torch.optim.SGD:
    """SGD with Nesterov momentum .9; weight decay on convolutions and linear layers, not on batch norm and biases."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
                                lr=args.lr, momentum=0.9, nesterov=True, fused=decayed[0].device.type in FUSED or None)
    for p in (*decayed, *others):                             # fused, a first step that overflows in fp16 would leave it unset
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def one_cycle(progress: float, peak: float = 0.25, start: float = 0.04) -> float:
    """Share of the peak learning rate: up from `start` to 1 at progress `peak`, then down to 0, both straight.

    Smith and Topin 2017, arXiv:1708.07120, without their last phase of even lower rates.
    """
    return start + (1 - start) * progress / peak if progress < peak else (1 - progress) / (1 - peak)


class Step:
    """One optimizer update per call; one FLOP count (and compiled or captured graph) per loss function handed to it.

    `loss_fn(model, batch) -> (loss [K], parts {name: [K]})` runs under autocast. It must not synchronise with the host
    nor branch on values. Where it keeps K < B rows, `parts["index"]` [K] says which examples. Every part is recorded.
    """

    MOST = 64                                                 # loss functions of one run, a sampled teacher's each

    def __init__(self, run, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.run, self.model, self.optimizer = run, model, optimizer
        fp16 = run.amp == torch.float16
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=fp16)
        self.functions: dict[LossFn, tuple[Callable[[Batch], tuple], int]] = {}         # -> (its update, FLOPs of a step)
        self.latest: Graph | None = None
        # of all groups, changed in place, where a fused optimizer reads it on the device
        self.lr = torch.zeros((), device=run.device) if optimizer.defaults.get("fused") else None
        self.recorded: dict[str, Tensor] = {}                 # of this epoch: name -> [N], NaN where unseen
        self.finite = torch.ones((), dtype=torch.bool, device=run.device)
        model.train()

    def __call__(self, batch: Batch, loss_fn: LossFn, lr: float) -> None:
        rate = lr if self.lr is None else self.lr.fill_(lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if loss_fn not in self.functions:
            self._prepare(batch, loss_fn)
        update, flops = self.functions[loss_fn]
        loss, index, parts = update(batch)
        self.finite &= loss.isfinite().all()
        for name, values in parts.items():                    # no synchronisation: looked at once an epoch
            if name not in self.recorded:
                self.recorded[name] = torch.full((self.run.data.examples,), torch.nan, device=self.run.device)
            self.recorded[name][index] = values.float()
        self.run.count(flops, len(batch.index))

    def _update(self, run_fn: LossFn, batch: Batch):
        """One update of the weights; returns loss [K], index [K], parts, without a graph of theirs that would be kept."""
        loss, index, parts = self._backward(batch, run_fn)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), index, {name: values.detach() for name, values in parts.items()}

    def _backward(self, batch: Batch, run_fn: LossFn):
        """Leaves the gradient; returns loss [K], index [K], parts."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.run.amp, self.run.device):
            loss, parts = run_fn(self.model, batch)           # [K]
        index = parts.pop("index", None)
        if index is None:
            index, weight = batch.index, batch.weight
        else:
            found = index[:, None] == batch.index             # not so where another rank composed that row
            weight = torch.where(found.any(1), batch.weight[found.int().argmax(1)], 1.0)
        self.scaler.scale((loss * weight).mean()).backward()
        if ranks.world() > 1:                                 # batch norm sees its own rank's rows, its statistics are shared
            statistics = [b for b in self.model.buffers() if b.is_floating_point()]
            ranks.average_([p.grad for p in self.model.parameters() if p.grad is not None] + statistics)
        return loss, index, parts

    def _prepare(self, batch: Batch, loss_fn: LossFn) -> None:
        """Compiles or captures a loss function and counts its FLOPs in steps that leave no trace; none of it is on the clock."""
        if len(self.functions) >= self.MOST:
            raise Refused(f"more than {self.MOST} different loss functions were handed to Step: define them once, before "
                          "the loops, and hand over the same ones, else each is compiled and counted anew.")
        args, device = self.run.args, self.run.device
        with self.run.untimed("compile"), torch.random.fork_rng([device] if device.type == "cuda" else []):
            put_back = self._remember()
            run_fn = torch.compile(loss_fn, dynamic=False) if args.compile else loss_fn
            with count_flops() as counter:
                self._backward(batch, loss_fn)
            if args.compile:
                with torch.compiler.config.patch(recompile_limit=self.MOST):    # of loss functions made by one def: 8, else eager
                    self._backward(batch, run_fn)
            update = partial(self._update, run_fn)
            if args.graph:
                update = self.latest = Graph(update, batch, self.latest)
            put_back()
            self.optimizer.zero_grad(set_to_none=True)
        self.functions[loss_fn] = update, counter.get_total_flops()

    def _remember(self) -> Callable[[], None]:
        """Returns what puts all that a step changes back, where it lies: a captured graph reads it there."""
        others = {name: value for name, value in self.run.state.items() if value is not self}
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        other_state = {name: value.clone() if isinstance(value, Tensor) else deepcopy(value.state_dict())
                       for name, value in others.items()}
        momentum = {p: {name: value.clone() for name, value in own.items()} for p, own in self.optimizer.state.items()}

        def put_back():
            self.model.load_state_dict(weights)
            for name, value in others.items():
                value.copy_(other_state[name]) if isinstance(value, Tensor) else value.load_state_dict(other_state[name])
            for p, own in self.optimizer.state.items():
                for name, value in own.items():
                    value.copy_(momentum[p][name]) if p in momentum else value.zero_()
        return put_back

    def forget(self) -> None:
        """Frees what was compiled or captured; the next step prepares it anew."""
        self.functions, self.latest = {}, None

    def means(self) -> dict[str, float]:
        """Ends the epoch: means of what was recorded, each example once, as `train/NAME`; hands the tables to the run.

        Raises
            Refused: the loss was not finite.
        """
        if ranks.largest(float(not self.finite)):
            raise Refused(f"the loss became infinite or NaN in epoch {self.run.epoch} of {self.run.folder}: lower --lr "
                          f"(it is {self.run.args.lr:g}) or run with --no-amp.")
        tables = {name: self.table(name) for name in self.recorded}
        self.run.record_examples(tables)
        self.recorded = {}
        apart = {f"train/{name}_{part}": table[mask].nanmean().item() for part, mask in self.run.data.train.parts.items()
                 for name, table in tables.items() if mask.any() and not table[mask].isnan().all()}
        return {f"train/{name}": table.nanmean().item() for name, table in tables.items()} | apart

    def table(self, name: str) -> Tensor:
        """[N] what was recorded as `name` about each example in this epoch, NaN where unseen."""
        unseen = torch.full((self.run.data.examples,), torch.nan, device=self.run.device)
        return ranks.merged(self.recorded.get(name, unseen))

    def state_dict(self) -> dict:
        recorded = {name: ranks.everyone(table) for name, table in self.recorded.items()}           # [ranks * N]
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "recorded": recorded,
                "scaler": self.scaler.state_dict(), "finite": self.finite}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.finite = state["finite"].to(self.run.device)
        self.forget()                                         # captured ones would go on with the momentum of before
        self.recorded = {name: table.view(ranks.world(), -1)[ranks.rank()].to(self.run.device)
                         for name, table in state["recorded"].items()}
