"""Models for dense predictions: an encoder that begins with a classifier's trunk, and a decoder back to a finer grid."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.detection import BOX, STRIDE
from common.files import Refused
from common.models import ResNet, depth_and_width, initialised


class DenseResNet(ResNet):
    """The trunk of `ResNet`, two more stages for context, a feature pyramid's way up (Lin et al. 2017, arXiv:1612.03144).

    Parameters of the trunk have the names they have in `ResNet`, so that a classifier's weights fit (`--part trunk`).
    """

    def __init__(self, depth: int, outputs: int, width: float = 1, stride: int = 2, prior: Tensor | None = None):
        """outputs: channels of the output map, whose height and width are the image's over `stride` (2 or 4).

        prior: [outputs], added to the output; no parameter, so that what shrinks or averages weights leaves it alone.
        """
        super().__init__(depth, outputs, width)
        del self.head                                         # the last layer stays the last
        blocks, second, third = (depth - 2) // 6, round(width * 32), round(width * 64)
        self.stage4 = self._stage(third, third, blocks, stride=2)
        self.stage5 = self._stage(third, third, blocks, stride=2)
        merged = round(width * 16 * stride)                   # channels of the way up
        inputs = [third, third, third] if stride == 4 else [second, third, third, third]
        self.lateral = nn.ModuleList(nn.Conv2d(channels, merged, 1) for channels in inputs)
        self.smooth = nn.Sequential(nn.Conv2d(merged, merged, 3, padding=1, bias=False), nn.BatchNorm2d(merged), nn.ReLU())
        self.head = nn.Conv2d(merged, outputs, 1)
        self.register_buffer("prior", None if prior is None else prior[:, None, None], persistent=False)

    def forward(self, image: Tensor, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """image [B, 3, H, W] normalised -> [B, outputs, H/stride, W/stride]; with `features` also the trunk's three maps."""
        maps = self.trunk(image)
        f4 = self.stage4(maps[-1])                            # [B, 64, H/8, W/8], times the width
        levels = [*maps, f4, self.stage5(f4)][-len(self.lateral):]
        merged = self.lateral[-1](levels[-1])
        for lateral, level in zip(list(self.lateral)[-2::-1], levels[-2::-1], strict=True):
            merged = lateral(level) + F.interpolate(merged, size=level.shape[2:], mode="nearest")
        merged = self.smooth(merged)
        with torch.autocast(image.device.type, enabled=False):     # boxes to better than a pixel; a teacher's are bf16
            output = self.head(merged.to(self.head.weight.dtype))
            if self.prior is not None:
                output = output + self.prior.to(output.dtype)
        return (output, maps) if features else output


class TorchvisionSegmenter(nn.Module):
    """One of torchvision's segmentation models, without dropout, called likewise; its features are what its backbone hands on."""

    def __init__(self, name: str, classes: int, generator: torch.Generator):
        super().__init__()
        from torchvision import models  # a second, and only here

        if name not in models.list_models(module=models.segmentation):
            raise Refused(f"tv:{name} does not predict pixels: choose one of "
                          f"{', '.join('tv:' + known for known in models.list_models(module=models.segmentation))}, or resnet8 "
                          "to resnet110.")
        with torch.random.fork_rng(devices=[]):               # its constructor asks the default generator alone: lend it ours
            torch.set_rng_state(generator.get_state())
            self.net = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
        for module in self.net.modules():                     # they draw from a generator that no seed and no resume knows
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.head_name = "net." + [key for key, module in self.net.named_modules() if isinstance(module, nn.Conv2d)][-1]
        self.takes_all = name.startswith("lraspp")            # its classifier reads every map of the backbone
        self.stages = len(self.net.backbone.return_layers)

    def forward(self, image: Tensor, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """image [B, 3, H, W] -> logits [B, C, H/8, W/8] or so, which the loss brings to the labels' size."""
        maps = self.net.backbone(image)
        output = self.net.classifier(maps if self.takes_all else maps["out"])
        return (output, list(maps.values())) if features else output

    def trunk(self, image: Tensor) -> list[Tensor]:
        return list(self.net.backbone(image).values())


def build_segmenter(name: str, classes: int, generator: torch.Generator, device: torch.device, size: int) -> nn.Module:
    """A channels-last model in train mode whose output has a channel for each class."""
    if name.startswith("tv:"):
        model = TorchvisionSegmenter(name[3:], classes, generator)
    else:
        depth, width = depth_and_width(name)
        model = initialised(DenseResNet(depth, classes, width, stride=2), generator)
        nn.init.normal_(model.head.weight, std=1e-3, generator=generator)       # all classes alike to begin with
        nn.init.zeros_(model.head.bias)
    return model.to(device, memory_format=torch.channels_last)


def build_detector(name: str, classes: int, generator: torch.Generator, device: torch.device, size: int) -> nn.Module:
    """A channels-last model in train mode whose output is what common/detection.py wants: a heat map for each class, a box.

    Its heat maps are .1 everywhere to begin with (Lin et al. 2017, arXiv:1708.02002, section 4.1, as CenterNet).
    """
    if name.startswith("tv:"):
        raise Refused(f"--model {name} does not predict boxes here: choose resnet8 to resnet110, at any width.")
    depth, width = depth_and_width(name)
    prior = torch.cat([torch.full((classes,), -2.19), torch.zeros(BOX)])
    model = initialised(DenseResNet(depth, classes + BOX, width, stride=STRIDE, prior=prior), generator)
    nn.init.normal_(model.head.weight, std=1e-3, generator=generator)
    nn.init.zeros_(model.head.bias)
    return model.to(device, memory_format=torch.channels_last)
