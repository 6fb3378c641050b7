"""Segmentation: losses and scores by hand, labels that move with their images, files that are odd, models."""
import math

import numpy as np
import pytest
import torch
from conftest import parse, run_script
from PIL import Image
from torch import nn

from common import mapfiles, tasks
from common.clock import count_flops
from common.dense import DenseResNet, build_segmenter
from common.files import Refused
from common.seeding import generator
from common.segmentation import evaluate_segmenter, intersection_over_union, pixel_cross_entropy, pixel_distill, pixel_stats
from common.splits import PAD, VIEWS, VOID, MapSplit
from common.teachers import Teacher

CPU = torch.device("cpu")


def test_loss_is_the_mean_over_pixels_that_somebody_labelled():
    p = torch.tensor([0.7, 0.2, 0.1])
    output = p.log()[None, :, None, None].expand(2, 3, 2, 2)  # [B, C, H, W], the same everywhere
    target = torch.tensor([[[0, 1], [2, VOID]], [[VOID, VOID], [VOID, VOID]]])
    expected = -(math.log(0.7) + math.log(0.2) + math.log(0.1)) / 3
    assert torch.allclose(pixel_cross_entropy(output, target), torch.tensor([expected, 0.0]))
    stats = pixel_stats(output, target)
    assert torch.allclose(stats["loss"], torch.tensor([expected, 0.0]))
    assert torch.allclose(stats["correct"], torch.tensor([1 / 3, 0]))
    el2n = [math.dist((0.7, 0.2, 0.1), one) for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert torch.allclose(stats["el2n"], torch.tensor([sum(el2n) / 3, 0]))
    smooth = 0.9 * -math.log(0.7) + 0.1 / 3 * -sum(math.log(q) for q in (0.7, 0.2, 0.1))
    only = torch.full((1, 2, 2), VOID)
    only[0, 0, 0] = 0
    assert pixel_cross_entropy(output[:1], only, 0.1).item() == pytest.approx(smooth, rel=1e-5)


def test_void_pixels_have_no_gradient_and_a_coarse_output_is_brought_to_the_labels():
    output = torch.zeros(1, 2, 2, 2, requires_grad=True)
    target = torch.full((1, 4, 4), VOID)
    target[0, 0, 0] = 1                                       # bilinear, corners not aligned: the outermost pixel is its cell's
    pixel_cross_entropy(output, target).sum().backward()
    assert torch.allclose(output.grad[0, :, 0, 0], torch.tensor([0.5, -0.5]))
    assert output.grad.flatten(2)[..., 1:].abs().max() == 0
    target[0, 0, 1] = 0                                       # a quarter of its way to the next cell
    output.grad = None
    pixel_cross_entropy(output, target).sum().backward()
    assert torch.allclose(output.grad[0, 0, 0], torch.tensor([(0.5 - 0.75 * 0.5) / 2, -0.25 * 0.5 / 2]))


def test_distillation_is_hintons_at_every_place():
    soft, output = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
    two = torch.stack([torch.stack([soft, output]), torch.stack([output, output])])[..., None]      # [B, W, C, H]
    student = torch.zeros(2, 2, 1, 2)
    p = 1 / (1 + math.exp(-2 / 4))
    kl = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    found = pixel_distill(student, two.permute(0, 2, 3, 1), temperature=4.0)
    assert torch.allclose(found, torch.tensor([16 * kl / 2, 0.0]), atol=1e-6)


def test_intersection_over_union_by_hand():
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])           # class 2 is neither there nor predicted
    found = intersection_over_union(confusion)
    assert found[:2].tolist() == [3 / 4, 2 / 3] and found[2].isnan()


class Answers(nn.Module):
    """Says what it was told about each image of a split, one after the other."""

    def __init__(self, answers, classes):
        super().__init__()
        self.logits = torch.nn.functional.one_hot(answers, classes).permute(0, 3, 1, 2).float()
        self.at = 0

    def forward(self, image):
        self.at += len(image)
        return self.logits[self.at - len(image):self.at]


def split_of(images, maps, augment="none"):
    return MapSplit(images, maps, np.arange(len(images)), torch.zeros(3), torch.ones(3), CPU, None, augment)


def test_scores_of_perfect_empty_and_wrong_predictions():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 3, (40, 4, 6)).astype(np.uint8)
    maps[0, 0] = VOID
    split = split_of(np.zeros((40, 4, 6, 3), np.uint8), maps)
    truth = torch.from_numpy(maps).long()
    perfect = evaluate_segmenter(Answers(truth.where(truth != VOID, 1), 3), split)
    assert perfect["test/miou"] == 1 and perfect["test/pixel_accuracy"] == 1 and list(perfect)[0] == "test/miou"
    n = [(maps == c).sum() for c in range(3)]
    zeros = evaluate_segmenter(Answers(torch.zeros_like(truth), 3), split)
    assert zeros["test/pixel_accuracy"] == pytest.approx(n[0] / sum(n))
    assert zeros["test/miou"] == pytest.approx(n[0] / sum(n) / 3)
    split.classes = ["sky", "tree", "car"]
    zeros = evaluate_segmenter(Answers(torch.zeros_like(truth), 3), split)
    assert {name: value for name, value in zeros.items() if "/iou/" in name} == {
        "test/iou/sky": pytest.approx(n[0] / sum(n)), "test/iou/tree": 0, "test/iou/car": 0}
    maps[maps == 1] = 2                                       # a class that is neither there nor predicted has none
    fewer = split_of(np.zeros((40, 4, 6, 3), np.uint8), maps)
    fewer.classes = split.classes
    assert "test/iou/tree" not in evaluate_segmenter(Answers(torch.zeros_like(truth), 3), fewer)
    wrong = evaluate_segmenter(Answers((truth.where(truth != VOID, 0) + 1) % 3, 3), split)
    assert wrong["test/miou"] == 0 and wrong["test/pixel_accuracy"] == 0


def test_labels_move_with_their_images_under_every_view():
    rng = np.random.default_rng(1)
    maps = rng.integers(0, 200, (3, 8, 12)).astype(np.uint8)
    images = np.repeat(maps[..., None] + 1, 3, 3)             # a pixel says its label, the black around it 0
    split = split_of(images, maps, "crop-flip")
    view = torch.arange(VIEWS)
    for example in range(3):
        index = torch.full_like(view, example)
        shown, label = split.images(index, view)[:, 0], split.targets(index, view)
        assert label.shape == (VIEWS, 8, 12) and torch.equal(torch.where(label == VOID, 0, label + 1), shown.long())
    assert torch.equal(split.targets(torch.tensor([2]), torch.tensor([PAD * 9 + PAD]))[0], torch.from_numpy(maps[2]).long())


def test_data_of_a_task(tmp_path):
    args = parse("baselines/scratch", "--task", "shapes-seg", "--subset", "half", "--parts", "half", "--results", tmp_path)
    data = tasks.TASKS["shapes-seg"].load(args, CPU)
    assert len(data.train) == 160 and data.examples == 320 and len(data.test) == 100
    assert data.classes == ["background", "disc", "square", "triangle", "cross", "star"]
    label = data.train.targets(data.train.index, torch.full((160,), PAD * 9 + PAD))
    assert set(label.unique().tolist()) == set(range(6)) and set(data.train.parts) == {"old", "new"}


def camvid(root, size=(24, 18), label=0):
    for part, n in (("train", 3), ("test", 2)):
        for i in range(n):
            for path, picture in ((f"{part}/{i}.{'jpg' if i else 'png'}", Image.new("L" if i else "RGBA", size, 100)),
                                  (f"{part}annot/{i}.png", Image.new("L", size, label))):
                (root / "CamVid" / path).parent.mkdir(parents=True, exist_ok=True)
                picture.save(root / "CamVid" / path)


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for read in (mapfiles.read_camvid, mapfiles.read_voc_seg, mapfiles.read_shapes_seg):
        read.cache_clear()


def test_camvid_files_of_any_kind_become_one_size(tmp_path):
    camvid(tmp_path, label=11)
    (images, maps), (test_images, _), names = mapfiles.read_camvid(str(tmp_path), (8, 16))
    assert images.shape == (3, 8, 16, 3) and maps.shape == (3, 8, 16) and test_images.shape == (2, 8, 16, 3) and len(names) == 11
    assert (maps == VOID).all() and abs(int(images[1, 0, 0, 0]) - 100) < 3
    mapfiles.read_camvid.cache_clear()
    for path in (tmp_path / "CamVid").glob("test*/0.png"):    # beyond what torchvision's ImageFolder takes for an image
        Image.open(path).save(path.with_suffix(".TGA"))
        path.unlink()
    assert np.array_equal(mapfiles.read_camvid(str(tmp_path), (8, 16))[1][0], test_images)


@pytest.mark.parametrize("spoil, said", [
    (lambda root: None, "holds class 200, expected 0 to 10, or 11"),
    (lambda root: (root / "trainannot" / "1.png").unlink(), r"1 of 3 images .* have no label map .*1\.jpg"),
    (lambda root: (root / "train" / "1.jpg").write_bytes(b"no"), r"1\.jpg: UnidentifiedImageError"),
    (lambda root: Image.new("L", (18, 24)).save(root / "trainannot" / "1.png"), "its label map is 18 x 24"),
    (lambda root: [path.unlink() for path in (root / "train").iterdir()], "train holds no image"),
    (lambda root: [path.unlink() for path in (root / "testannot").iterdir()] and (root / "testannot").rmdir(), "is missing")])
def test_camvid_refuses_by_name(tmp_path, spoil, said):
    camvid(tmp_path, label=0)
    spoil(tmp_path / "CamVid")
    if said.startswith("holds"):
        camvid(tmp_path, label=200)
    with pytest.raises(Refused, match=said):
        mapfiles.read_camvid(str(tmp_path), (8, 16))


def test_without_camvid_the_message_says_where_it_is():
    with pytest.raises(Refused, match="Put the folder CamVid of https://github.com"):
        parse("baselines/scratch", "--task", "camvid", "--data-dir", "/nowhere") and mapfiles.read_camvid("/nowhere", (8, 8))


def test_voc_as_torchvision_lays_it_out(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    palette = Image.fromarray(np.array([[0, 20], [255, 5]], np.uint8))
    palette.putpalette([c // 3 for c in range(768)])          # VOC's maps are pictures with a palette
    for name in ("a", "b"):
        Image.new("RGB", (2, 2)).save(root / "JPEGImages" / f"{name}.jpg")
        palette.save(root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("b\n")
    (images, maps), (_, test), names = mapfiles.read_voc_seg(str(tmp_path), (2, 2))
    assert maps[0].tolist() == [[0, 20], [VOID, 5]] and len(test) == 1 and len(names) == 21 and names[20] == "tvmonitor"


def test_the_model_begins_with_a_classifiers_trunk_and_ends_with_its_head(past, tmp_path, capsys):
    model = build_segmenter("resnet8", 6, generator(0, "weights"), CPU, 32)
    output, features = model(torch.zeros(2, 3, 32, 48), features=True)
    assert output.shape == (2, 6, 16, 24) and [f.shape[1:] for f in features] == [(16, 32, 48), (32, 16, 24), (64, 8, 12)]
    assert list(model.named_children())[-1][0] == "head" and len(features) == model.stages
    torch.rand(1)                                             # initial weights are a function of the generator alone
    again = build_segmenter("resnet8", 6, generator(0, "weights"), CPU, 32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    model.eval()
    teacher = Teacher(model, torch.zeros(1, 3, 32, 48), None)
    with count_flops() as whole:
        teacher(torch.zeros(2, 3, 32, 48))
    with count_flops() as part:
        maps = teacher.trunk(torch.zeros(2, 3, 32, 48))
    assert [m.shape for m in maps] == [f.shape for f in features]           # the decoder is not paid for
    assert 0.7 * whole.get_total_flops() < part.get_total_flops() < 0.8 * whole.get_total_flops()
    fine = DenseResNet(8, 7, width=2, stride=4)(torch.zeros(2, 3, 32, 32))
    assert fine.shape == (2, 7, 8, 8)
    run_script("baselines/warm_start", "--task", "shapes-seg", "--part", "trunk", "--past", past, "--model", "resnet8",
               "--epochs", 1, "--subset", "half", "--results", tmp_path)
    said = capsys.readouterr().out
    assert "from scratch: head.bias, head.weight, lateral.0.bias" in said and "stage4" in said and "stage3" not in said


def test_teachers_of_another_stride_are_brought_to_the_students_grid():
    coarse, fine = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 4, 4)
    coarse[0, 0] = 2.0                                        # the same everywhere: no interpolation changes it
    assert torch.allclose(pixel_distill(fine, coarse, 2.0), pixel_distill(fine, coarse[:, :, :1, :1].expand_as(fine), 2.0))
    mean = tasks.TASKS["shapes-seg"].mean([coarse, fine], 1.0)
    p = (1 / (1 + math.exp(-2)) + 0.5) / 2
    assert mean.shape == fine.shape and torch.allclose(mean.softmax(1)[:, 0], torch.tensor(p))


@pytest.mark.parametrize("options, said", [
    (["--labels", "coarse"], "--labels coarse are superclasses of images"),
    (["--subset", "classes:3"], "goes by the class of an image"), (["--parts", "members:1/1"], "goes by the class of an image"),
    (["--task", "shapes-det", "--image-size", 30], "multiples of 4"),
    (["--task", "shapes", "--image-size", "32x64"], "images to be classified are square")])
def test_what_makes_no_sense_is_refused(options, said, tmp_path):
    with pytest.raises(Refused, match=said):
        parse("baselines/scratch", "--task", "shapes-seg", *options, "--results", tmp_path)
    with pytest.raises(SystemExit):
        parse("baselines/scratch", "--task", "shapes-seg", "--image-size", "128x")


def test_a_torchvision_model_by_hand_and_what_it_cannot_do(tmp_path):
    argv = ["--epochs", 0.2, "--subset", "share:0.2", "--batch-size", 4, "--results", tmp_path]
    folder = run_script("baselines/scratch", "--task", "shapes-seg", "--model", "tv:lraspp_mobilenet_v3_large", *argv)
    assert (folder / "pictures.png").exists()
    for task, model, said in (("shapes", "tv:fcn_resnet50", "predicts pixels"), ("shapes-det", "tv:resnet18", "predict boxes"),
                              ("shapes-seg", "tv:resnet18", "does not predict pixels")):
        with pytest.raises(Refused, match=said):
            run_script("baselines/scratch", "--task", task, "--model", model, *argv)


@pytest.mark.parametrize("name", ["fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_torchvisions_models(name):
    model = build_segmenter(f"tv:{name}", 5, generator(0, "weights"), CPU, 64)
    torch.rand(1)
    again = build_segmenter(f"tv:{name}", 5, generator(0, "weights"), CPU, 64)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    output, features = model(torch.zeros(2, 3, 64, 64), features=True)
    assert output.shape[:2] == (2, 5) and len(features) == model.stages
    head = dict(model.named_modules())[model.head_name]
    assert isinstance(head, nn.Conv2d) and head.out_channels == 5
    assert all(map(torch.equal, model.trunk(torch.zeros(2, 3, 64, 64)), features))
    with pytest.raises(Refused, match="does not predict pixels"):
        build_segmenter("tv:resnet18", 5, generator(0, "weights"), CPU, 64)
