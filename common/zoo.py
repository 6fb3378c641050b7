"""torchvision's classification models, called as ours are: features, a stem for small images, no dropout."""
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import StochasticDepth

from common.files import Refused

SMALL = 64                                                    # pixels: below, the stem keeps the image's size
FEATURES = 3                                                  # as our ResNets have stages


class Torchvision(nn.Module):
    """Called like `ResNet`: image [B, 3, H, W] -> logits [B, C], with `features=True` also up to three feature maps.

    `head_name` is the layer whose outputs are the classes; all other parameters are the trunk.

    Raises
        Refused: the model does not work on images of this size, or has fewer than two feature maps and they are asked for.
    """

    def __init__(self, name: str, classes: int, size: int, generator: torch.Generator):
        super().__init__()
        if name in models.list_models(models.segmentation):
            raise Refused(f"tv:{name} predicts pixels, not the class of an image: choose another --model, such as tv:resnet18.")
        options = {"image_size": size} if name.startswith("vit_") else {}
        if name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": True}
        try:
            with torch.random.fork_rng(devices=[]):           # its constructor asks the default generator alone: lend it ours
                torch.set_rng_state(generator.get_state())
                self.net = models.get_model(name, weights=None, num_classes=classes, **options)
                if size < SMALL and not name.startswith("vit_"):
                    small_stem(self.net)
            self.nodes = feature_nodes(self.net, torch.zeros(2, 3, size, size))
        except Exception as error:                            # whatever an architecture does not bear
            raise Refused(f"tv:{name} does not work on images of {size} pixels ({type(error).__name__}: {str(error)[:100]}): "
                          "choose another --model, or another --image-size where the task has files.") from None
        for module in self.net.modules():                     # they draw from a generator that no seed and no resume knows
            if isinstance(module, nn.Dropout | StochasticDepth):
                module.p = 0.0
        self.head_name = "net." + [key for key, m in self.net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        self.name, self.stages = f"tv:{name}", len(self.nodes) - 1
        self.extractor: list[nn.Module] = []                  # a list, so that its modules are not ours a second time

    def __getstate__(self) -> dict:
        return self.__dict__ | {"extractor": []}              # a copy's own is traced anew

    def forward(self, image: Tensor, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        if not features:
            return self.net(image)
        if self.stages < 2:
            raise Refused(f"{self.name} has {self.stages} feature maps on images of {image.shape[2]} pixels, and two or more are "
                          "needed: choose another --model, past runs of another one, or a method that reuses outputs alone.")
        if not self.extractor:
            names = {name: str(i) for i, name in enumerate(self.nodes[:-1])} | {self.nodes[-1]: "output"}
            self.extractor.append(create_feature_extractor(self.net, names))
        found = self.extractor[0].train(self.training)(image)
        return found.pop("output"), list(found.values())

    def trunk(self, image: Tensor) -> list[Tensor]:
        """The feature maps. What comes after them is computed, too: little, but for heads as large as VGG's."""
        return self(image, features=True)[1]


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
def feature_nodes(net: nn.Module, image: Tensor) -> list[str]:
    """Names of the nodes whose outputs are the features, and of the output: the last node [B, c, h, h] of each of the last h.

    A map that is larger than one before it (a pooling to a fixed size, of small images) says nothing that was not there.
    """
    nodes = get_graph_node_names(net)[1]                      # as traced in eval mode
    every = create_feature_extractor(net.eval(), nodes)
    maps = [(name, out.shape[2]) for name, out in every(image).items()         # but not of the image itself, or of weights
            if isinstance(out, Tensor) and out.ndim == 4 and len(out) == len(image) and out.shape[2] == out.shape[3] > 1
            and name != nodes[0]]
    net.train()
    last = {size: name for i, (name, size) in enumerate(maps) if size == min(before for _, before in maps[:i + 1])}
    return [*sorted(last.values(), key=nodes.index)[-FEATURES:], nodes[-1]]
