"""Earlier models as teachers: frozen, and as fast as their arithmetic allows."""
import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.amp import autocast

AS_ONE, NARROW = ("cuda",), 64                                # devices and channels with which several teachers are faster as one


class Teacher(nn.Module):
    """A frozen copy of `model` in eval mode, batch norm folded into the convolutions, in the type that `amp` says.

    Called like the model itself: image [B, 3, H, W] -> logits [B, C], with `features=True` also features; inside autocast or not.
    """

    def __init__(self, model: nn.Module, image: Tensor, amp: torch.dtype | None, columns: Tensor | None = None):
        """image [b, 3, H, W]: a few examples on which folding is traced and checked.

        columns [C]: the model's output for each class of the run; one past its last output where it has none, -inf then.
        """
        super().__init__()
        self.amp, self.device, self.columns = amp, image.device, columns
        self.model = fold(deepcopy(model).requires_grad_(False).eval(), image).to(amp or torch.float32,
                                                                                  memory_format=torch.channels_last)

    def forward(self, image: Tensor, **options):
        with autocast(self.amp, self.device):
            return self.chosen(self.model(image, **options))

    def chosen(self, found):
        """What the model has put out, of this run's classes."""
        if self.columns is None:
            return found
        output, *rest = found if isinstance(found, tuple) else (found,)
        output = F.pad(output, (0, 1), value=-math.inf).index_select(1, self.columns)
        return (output, *rest) if rest else output

    def trunk(self, image: Tensor) -> list[Tensor]:
        """image [B, 3, H, W] -> the features alone: of a model whose decoder costs something, that is not computed."""
        with autocast(self.amp, self.device):
            return self.model.trunk(image)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode."""
        return self


def together(teachers: list[Teacher]) -> Callable[[Tensor], list[Tensor]]:
    """Returns what gives each teacher's output for an image [B, 3, H, W], as a list.

    On a GPU narrow ones of one architecture run as one, their convolutions grouped: five ResNet-56 (64 channels at most), 128
    images of 32 pixels, then take 59 % of the time that they take in sequence, on a CPU 1.9 times that time
    (results/speed/h200.md). Wider ones were not measured, and run in sequence. As one they keep a second copy of all weights.
    """
    first = teachers[0]
    narrow = all(p.shape[0] <= NARROW for p in first.model.parameters() if p.ndim == 4)
    if first.device.type not in AS_ONE or not narrow or len(teachers) == 1 or not alike(teachers):
        return lambda image: [teacher(image) for teacher in teachers]
    weights = stack_module_state([teacher.model for teacher in teachers])        # parameters and buffers, name -> [P, ...]

    def outputs(image):
        with autocast(None, first.device):                    # in vmap it would cast some inputs of a layer and not others
            found = vmap(lambda *own: functional_call(first.model, own, (image.to(first.amp or torch.float32),)))(*weights)
            return [teacher.chosen(one) for teacher, one in zip(teachers, found.unbind(), strict=True)]
    return outputs


def alike(teachers: list[Teacher]) -> bool:
    """Whether they differ in their weights alone, as far as names, shapes and what modules say of themselves tell."""
    looks = [(str(teacher.model), {name: tensor.shape for name, tensor in teacher.model.state_dict().items()}, teacher.amp)
             for teacher in teachers]
    return all(look == looks[0] for look in looks)


@torch.no_grad()
def fold(model: nn.Module, image: Tensor) -> nn.Module:
    """Every batch norm whose input is what a convolution has just put out becomes part of that convolution.

    `model` is in eval mode and is changed. Where the folded model's outputs differ by more than rounding (a model that also reads
    such an output elsewhere), it is returned as it came.
    """
    made: dict[int, tuple[str, Tensor, int]] = {}             # id of an output -> convolution, the output, its version
    pairs: dict[str, str] = {}                                # batch norm -> convolution

    def after_convolution(name):
        def hook(module, inputs, output):
            made[id(output)] = name, output, output._version
        return hook

    def before_norm(name):
        def hook(module, inputs):
            convolution, output, version = made.get(id(inputs[0]), ("", None, -1))
            if output is not None and output._version == version:     # nothing has changed it in place since
                pairs[name] = convolution
        return hook

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution(name)))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm(name)))
    exact = partial(torch.backends.cudnn.flags, enabled=True, allow_tf32=False)         # which rounds as much as is allowed
    with exact():
        expected = model(image)
    for hook in hooks:
        hook.remove()
    folded = deepcopy(model)
    for norm, convolution in pairs.items():
        place(folded, convolution, fuse_conv_bn_eval(folded.get_submodule(convolution), folded.get_submodule(norm)))
        place(folded, norm, nn.Identity())
    with exact():
        close = torch.allclose(folded(image), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    return folded if close else model


def place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` where `name` ("stage1.0.conv1") is."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
