"""Models by name: `resnet8` ... `resnet110`, wider as in `resnet56x2`, and torchvision's as in `tv:resnet18`.

ResNets for small images: 3 stages of basic blocks, widths 16/32/64 (He et al. 2016, arXiv:1512.03385, section 4.2).

The variant of RepDistiller and most distillation papers: where a stage changes width, the shortcut is a 1x1
convolution with batch norm; convolutions start from kaiming normal (fan-out). ResNet-56 with 100 classes has
861,620 parameters and takes 125.75 M multiply-adds for a 32 x 32 image.
"""
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.files import Refused


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
    """ResNet of depth 6n + 2, its stages `width` times 16, 32, 64 channels wide. All parameters but the head's are the trunk."""

    head_name, stages = "head", 3

    def __init__(self, depth: int, classes: int, width: float = 1):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        assert blocks > 0 and rest == 0, f"depth {depth} is not 6n + 2"
        first, second, third = (round(width * channels) for channels in (16, 32, 64))
        self.conv = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(first)
        self.stage1 = self._stage(first, first, blocks, stride=1)
        self.stage2 = self._stage(first, second, blocks, stride=2)
        self.stage3 = self._stage(second, third, blocks, stride=2)
        self.head = nn.Linear(third, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, image: Tensor, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """image [B, 3, H, W] normalised -> logits [B, C]; with `features` also the three stages' outputs [B, c, h, w]."""
        maps = self.trunk(image)
        output = self.head(maps[-1].mean((2, 3)))             # [B, C]
        return (output, maps) if features else output

    def trunk(self, image: Tensor) -> list[Tensor]:
        """The stages' outputs: [B, 16, H, W], [B, 32, H/2, W/2], [B, 64, H/4, W/4], channels times the width."""
        x = F.relu(self.bn(self.conv(image)), inplace=True)
        f1 = self.stage1(x)
        f2 = self.stage2(f1)
        return [f1, f2, self.stage3(f2)]


MODELS = tuple(f"resnet{depth}" for depth in (8, 20, 32, 44, 56, 110))


def model_name(text: str) -> str:
    """argparse type: a name that `build` knows."""
    plain = re.fullmatch(r"(resnet\d+)(?:x(\d+(?:\.\d+)?))?", text)
    if plain and plain[1] in MODELS and (plain[2] is None or float(plain[2]) >= 0.25):
        return text
    if text.startswith("tv:"):
        from torchvision import models as torchvision_models  # costs a second; our own ResNets need none of it
        if text[3:] in {*torchvision_models.list_models(torchvision_models),
                        *torchvision_models.list_models(torchvision_models.segmentation)}:
            return text
    raise Refused(f"--model {text} is unknown here; choose from {', '.join(MODELS)}, one of these at another width "
                  "(resnet56x2, resnet20x0.5), one of torchvision's classification models (tv:resnet18, "
                  "tv:mobilenet_v3_small), or of its segmentation models where pixels are predicted (tv:fcn_resnet50).")


def build(name: str, classes: int, generator: torch.Generator, device: torch.device, size: int = 32) -> nn.Module:
    """A channels-last model in train mode whose initial weights are a function of `generator` alone.

    Args
        size: pixels of an image's side, which torchvision's models below 64 need to know.
    """
    if name.startswith("tv:"):
        from common.zoo import Torchvision
        model = Torchvision(name[3:], classes, size, generator)
    else:
        depth, width = depth_and_width(name)
        model = initialised(ResNet(depth, classes, width), generator)
    return model.to(device, memory_format=torch.channels_last)


def depth_and_width(name: str) -> tuple[int, float]:
    """"resnet56x2" -> 56, 2."""
    depth, _, width = name.removeprefix("resnet").partition("x")
    return int(depth), float(width or 1)


def initialised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """The model with weights drawn anew: convolutions kaiming normal (fan-out), biases 0, linear layers as PyTorch has them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.in_features ** -0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    return model
