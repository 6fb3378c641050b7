"""ResNets for small images: 3 stages of basic blocks, widths 16/32/64 (He et al. 2016, arXiv:1512.03385, section 4.2).

The variant of RepDistiller and most distillation papers: where a stage changes width, the shortcut is a 1x1
convolution with batch norm; convolutions start from kaiming normal (fan-out). ResNet-56 with 100 classes has
861,620 parameters and takes 125.75 M multiply-adds for a 32 x 32 image.
"""
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """ResNet of depth 6n + 2. All parameters but those of `head` are the trunk."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        assert blocks > 0 and rest == 0, f"depth {depth} is not 6n + 2"
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = self._stage(16, 16, blocks, stride=1)
        self.stage2 = self._stage(16, 32, blocks, stride=2)
        self.stage3 = self._stage(32, 64, blocks, stride=2)
        self.head = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, image: Tensor, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """image [B, 3, H, W] normalised -> logits [B, C]; with `features` also the three stages' outputs [B, c, h, w]."""
        x = F.relu(self.bn(self.conv(image)), inplace=True)
        f1 = self.stage1(x)                                   # [B, 16, H, W]
        f2 = self.stage2(f1)                                  # [B, 32, H/2, W/2]
        f3 = self.stage3(f2)                                  # [B, 64, H/4, W/4]
        output = self.head(f3.mean((2, 3)))                   # [B, C]
        return (output, [f1, f2, f3]) if features else output


def resnet8(classes: int) -> ResNet:
    return ResNet(8, classes)


def resnet20(classes: int) -> ResNet:
    return ResNet(20, classes)


def resnet32(classes: int) -> ResNet:
    return ResNet(32, classes)


def resnet44(classes: int) -> ResNet:
    return ResNet(44, classes)


def resnet56(classes: int) -> ResNet:
    return ResNet(56, classes)


def resnet110(classes: int) -> ResNet:
    return ResNet(110, classes)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    f.__name__: f for f in (resnet8, resnet20, resnet32, resnet44, resnet56, resnet110)}


def build(name: str, classes: int, generator: torch.Generator, device: torch.device) -> nn.Module:
    """A channels-last model in train mode whose initial weights are a function of `generator` alone."""
    model = MODELS[name](classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            bound = module.in_features ** -0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    return model.to(device, memory_format=torch.channels_last)
