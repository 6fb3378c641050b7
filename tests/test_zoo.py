"""torchvision's models as ours are called, and ours at another width."""
import pytest
import torch
from conftest import parse, run_script
from PIL import Image

from common.files import Refused
from common.models import build, model_name
from common.past import PastRun
from common.seeding import generator
from common.tasks import TASKS
from common.teachers import Teacher

CPU = torch.device("cpu")


def made(name, size=32, seed=0):
    return build(model_name(name), 10, generator(seed, "weights"), CPU, size)


def test_width_multiplies_channels():
    model = made("resnet8x2")
    assert model.conv.out_channels == 32 and model.head.in_features == 128
    narrow, plain = (sum(p.numel() for p in made(name).parameters()) for name in ("resnet8x0.5", "resnet8"))
    assert narrow < plain / 3 and made("resnet8x1").state_dict().keys() == made("resnet8").state_dict().keys()


@pytest.mark.parametrize("name", ["resnet7", "resnet8x", "resnet8x0", "resnet8x-1", "resnet8x0.1", "tv:", "tv:nothing",
                                  "resnet18", "tv:raft_small"])
def test_unknown_names_are_refused(name):
    with pytest.raises(Refused, match="is unknown here; choose from resnet8, .*tv:resnet18"):
        model_name(name)


@pytest.mark.parametrize("name", ["tv:resnet18", "tv:mobilenet_v3_small"])
def test_torchvision_models(name):
    model, image = made(name), torch.randn(4, 3, 32, 32, generator=generator(0, "image"))
    state, again, other = (m.state_dict() for m in (model, made(name), made(name, seed=1)))
    assert all(torch.equal(state[k], again[k]) for k in state) and not all(torch.equal(state[k], other[k]) for k in state)
    before = torch.get_rng_state()
    made(name)
    model(image)                                              # in train mode: no dropout, which would draw
    assert torch.equal(before, torch.get_rng_state())
    model.eval()
    output, features = model(image, features=True)
    assert torch.equal(output, model(image)) and output.shape == (4, 10)
    assert len(features) == 3 and all(f.ndim == 4 and f.shape[2] == f.shape[3] > 1 for f in features)
    assert model.state_dict().keys() == state.keys()          # the extractor's modules are not counted twice
    teacher = Teacher(model, image, None)
    theirs, maps = teacher(image, features=True)
    torch.testing.assert_close(theirs, output, rtol=1e-3, atol=1e-4)
    assert [m.shape for m in maps] == [f.shape for f in features] and all(map(torch.equal, teacher.trunk(image), maps))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in teacher.modules())
    assert state[model.head_name + ".weight"].shape[0] == 10


def test_features_are_maps_of_the_image_that_do_not_grow():
    """swin_t has a table of weights as a node [1, 24, 49, 49]; AlexNet pools 3 x 3 up to 6 x 6 where images are small."""
    model = made("tv:alexnet", size=64)
    model.eval()
    sizes = [f.shape[2] for f in model(torch.zeros(2, 3, 64, 64), features=True)[1]]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 3
    assert not any("position_bias" in name for name in made("tv:swin_t", size=64).nodes)


def test_small_images_keep_their_size_in_the_stem():
    assert made("tv:resnet18").net.conv1.stride == (1, 1) and made("tv:resnet18", size=64).net.conv1.stride == (2, 2)


def test_a_torchvision_model_learns_from_our_resnet_and_starts_another(past, tmp_path):
    argv = ["--model", "tv:mobilenet_v3_small", "--epochs", 0.4, "--past", past, "--results", tmp_path]
    for script in ("methods/kd", "methods/attention_transfer"):
        folder = run_script(script, *argv)
        assert folder.parts[-4] == "shapes-tv:mobilenet_v3_small" and (folder / "summary.json").exists()
    again = run_script("baselines/warm_start", *argv[:2], "--epochs", 0.2, "--past", folder, "--results", tmp_path)
    assert (again / "final.pt").exists()


def test_a_transformer_has_its_own_image_size_and_no_stages(tmp_path):
    for c in ("a", "b"):
        (tmp_path / "mine" / c).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (32, 32), (200 if c == "a" else i, 3 * i, i)).save(tmp_path / "mine" / c / f"{i}.png")
    argv = ["--task", "folder", "--data-dir", tmp_path / "mine", "--batch-size", 4, "--epochs", 0.2, "--results", tmp_path]
    folder = run_script("baselines/scratch", *argv, "--model", "resnet8", "--image-size", 32, "--seed", 100)
    config = (folder / "config.json").read_text()             # sizes are compared before weights: no need to train one
    (folder / "config.json").write_text(config.replace('"resnet8"', '"tv:vit_b_32"'))
    args = parse("baselines/warm_start", *argv, "--model", "tv:vit_b_32", "--image-size", 64, "--past", folder)
    data = TASKS["folder"].load(args, CPU)
    past, said = PastRun(folder, args, data), "for images only of 32 pixels, and this run's have 64: use --image-size 32"
    with pytest.raises(Refused, match=said):
        past.model(CPU)
    with pytest.raises(Refused, match=said):
        past.weights(TASKS["folder"].build(args, data))
    with pytest.raises(Refused, match="tv:vit_b_32 has . feature maps on images of 64 pixels, and two or more are needed"):
        TASKS["folder"].build(args, data)(torch.zeros(1, 3, 64, 64), features=True)
