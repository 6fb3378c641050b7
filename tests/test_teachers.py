"""Teachers: folding changes nothing but rounding, and refuses where it would; nor does asking several as one."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common import models, teachers
from common.clock import count_flops
from common.dense import build_detector
from common.seeding import generator
from common.teachers import Teacher, fold, together


def trained(name: str, seed: int = 0) -> nn.Module:
    """A model whose batch norms have statistics, scales and shifts of their own; "boxes": a ResNet-8 for such."""
    here = generator(seed, "weights"), torch.device("cpu")
    model = build_detector("resnet8", 10, *here, 32) if name == "boxes" else models.build(name, 10, *here)
    for i, module in enumerate(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        ranges = ((module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2), (module.weight, 0.2, 1), (module.bias, -1, 1))
        for tensor, low, high in ranges:
            with torch.no_grad():
                tensor.copy_(torch.rand(tensor.shape, generator=generator(i, str(low))) * (high - low) + low)
    return model.eval()


def image(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=generator(0, "image")).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_folding_leaves_no_batch_norm_and_the_same_outputs(name):
    model, x = trained(name), image()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    teacher = Teacher(model, x[:2], None)
    expected, features = model(x, features=True)
    output, folded_features = teacher(x, features=True)
    assert not [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(folded_features, features, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert all(map(torch.equal, teacher.trunk(x), folded_features))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the model itself was changed"


def test_a_teacher_computes_in_its_type_inside_autocast_or_not_and_stays_in_eval_mode():
    model, x = trained("resnet8"), image()
    teacher = Teacher(model, x[:2], torch.bfloat16)
    alone = teacher(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher.train()(x)
    assert alone.dtype == torch.bfloat16 and torch.equal(alone, inside)
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.model.training
    expected = model(x)
    assert (alone.float() - expected).abs().mean() < 0.02 * expected.std()


class ReadTwice(nn.Module):
    """What a convolution puts out goes into batch norm and into a sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.bn.running_mean += 1

    def forward(self, x):
        x = self.conv(x)
        return (x + self.bn(x)).mean((2, 3))


class ReluBetween(ReadTwice):
    """In place, so that batch norm sees the very object that the convolution put out."""

    def forward(self, x):
        return self.bn(F.relu(self.conv(x), inplace=True)).mean((2, 3))


@pytest.mark.parametrize("kind", [ReadTwice, ReluBetween])
def test_a_batch_norm_that_cannot_be_folded_stays(kind):
    model, x = kind().eval(), image()
    folded = fold(model, x)
    assert isinstance(folded.bn, nn.BatchNorm2d)
    torch.testing.assert_close(folded(x), model(x))


def asked(several: list[Teacher], x: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Their outputs as a student's step sees them, and FLOPs."""
    ask = together(several)
    with count_flops() as counter, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=several[0].amp is not None):
        return ask(x), counter.get_total_flops()


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet20", "boxes"])
def test_several_teachers_as_one_say_the_same_for_as_many_flops(name, amp, monkeypatch):
    x, order = image(), torch.tensor([3, 0, 10])                  # the last is a class that the second does not know
    several = [Teacher(trained(name, seed), x[:2], amp, order if (name, seed) == ("resnet20", 1) else None) for seed in range(3)]
    expected, flops = asked(several, x)
    monkeypatch.setattr(teachers, "AS_ONE", ("cpu",))
    with monkeypatch.context() as counted:
        counted.setattr(Teacher, "forward", None)                 # nobody is asked alone
        found, flops_as_one = asked(several, x)
    assert flops_as_one == flops > 0
    assert name == "boxes" or found[1].shape == (4, 3) and found[1][:, 2].isneginf().all()
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-4 if amp is None else 0.05, atol=1e-4 if amp is None else 0.05)


@pytest.mark.parametrize("names", [("resnet8", "resnet20"), ("resnet8", "resnet8x0.5"), ("resnet8x2", "resnet8x2"), ("resnet8",)])
def test_other_teachers_are_asked_one_by_one(names, monkeypatch):
    """Of other architectures, or wider than was measured, or one alone."""
    monkeypatch.setattr(teachers, "AS_ONE", ("cpu",))
    x = image()
    several = [Teacher(trained(name, seed), x[:2], None) for seed, name in enumerate(names)]
    monkeypatch.setattr(teachers, "functional_call", None)
    for mine, teacher in zip(together(several)(x), several, strict=True):
        assert torch.equal(mine, teacher(x))
