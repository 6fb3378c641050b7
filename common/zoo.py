"""torchvision's classification models, called as ours are: features, a stem for small images, no dropout."""
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import StochasticDepth

SMALL = 64                                                    # pixels: below, the stem keeps the image's size
FEATURES = 3                                                  # as our ResNets have stages


class Torchvision(nn.Module):
    """Called like `ResNet`: image [B, 3, H, W] -> logits [B, C], with `features=True` also up to three feature maps.

    `head` names the layer whose outputs are the classes; all other parameters are the trunk.
    """

    def __init__(self, name: str, classes: int, size: int, generator: torch.Generator):
        super().__init__()
        seed = int(torch.randint(2 ** 31, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):               # its own initial weights, by the only generator it asks
            torch.manual_seed(seed)
            self.net = models.get_model(name, weights=None, num_classes=classes,
                                        **({"image_size": size} if name.startswith("vit_") else {}))
            if size < SMALL:
                small_stem(self.net)
        for module in self.net.modules():                     # they draw from a generator that no seed and no resume knows
            if isinstance(module, nn.Dropout | StochasticDepth):
                module.p = 0.0
        self.head_name = "net." + last_linear(self.net)
        self.extractor: list[nn.Module] = []                  # a list, so that its modules are not ours a second time

    def __getstate__(self) -> dict:
        return self.__dict__ | {"extractor": []}              # of a copy's modules, a new one

    def forward(self, image: Tensor, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        if not features:
            return self.net(image)
        if not self.extractor:
            self.extractor.append(with_features(self.net, image))
        found = self.extractor[0].train(self.training)(image)
        return found.pop("output"), list(found.values())


def last_linear(net: nn.Module) -> str:
    return [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def small_stem(net: nn.Module) -> None:
    """The first convolution keeps the image's size, and a ResNet's pooling behind it goes: else 32 pixels end as one."""
    name, first = next((name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if max(first.stride) == 1:
        return
    kernel = min(3, first.kernel_size[0])
    parent, _, key = name.rpartition(".")
    setattr(net.get_submodule(parent), key, nn.Conv2d(
        first.in_channels, first.out_channels, kernel, 1, kernel // 2, groups=first.groups, bias=first.bias is not None))
    if isinstance(getattr(net, "maxpool", None), nn.MaxPool2d):
        net.maxpool = nn.Identity()


@torch.no_grad()
def with_features(net: nn.Module, image: Tensor) -> nn.Module:
    """image -> {"0": [B, c, h, w], ..., "output": [B, C]}: what the last node of each of the last sizes puts out."""
    nodes = get_graph_node_names(net)[1]                      # as traced in eval mode
    training = net.training
    every = create_feature_extractor(net.eval(), nodes)
    maps = {name: out.shape[2:] for name, out in every(image[:2]).items()
            if isinstance(out, Tensor) and out.ndim == 4 and name != nodes[0]}  # but not of the image itself
    net.train(training)
    last = {size: name for name, size in maps.items() if size[0] == size[1] > 1}    # the last node of each size
    chosen = sorted(last.values(), key=nodes.index)[-FEATURES:]
    return create_feature_extractor(net, {**{name: str(i) for i, name in enumerate(chosen)}, nodes[-1]: "output"})
