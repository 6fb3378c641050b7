"""Every script on tasks that predict pixels or boxes, what such a run leaves, and scores against an image of the truth."""
import json
import os
import signal

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, call_main, fork_script, parse, rows, run_script, same_weights
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_ranks import end, start
from torch import nn

from common import tasks
from common.boxes import BoxSplit, evaluate_detector
from common.detection import heat, objects
from common.files import Refused
from common.log import rebuild_tensorboard
from common.pictures import boxed, colours
from common.planparts import needs
from common.seeding import generator
from common.splits import VIEWS

DENSE = ("shapes-seg", "shapes-det")
ONLY_CLASSES = {"methods/dkd", "methods/born_again", "methods/curriculum_dkd"}          # as README says
REFUSE = {"shapes-seg": ONLY_CLASSES, "shapes-det": ONLY_CLASSES | {"baselines/label_smoothing", "methods/schedule_reuse"}}
SCORES = {"shapes-seg": ["miou", "pixel_accuracy", "loss"], "shapes-det": ["map", "map50", "loss"]}


@pytest.fixture(scope="module")
def pasts(tmp_path_factory, small):
    """(task, script) -> its --past arguments: two runs on half of the images, or two folds."""
    folder = tmp_path_factory.mktemp("dense")
    for task in DENSE:
        for seed in (100, 101):
            run_script("baselines/scratch", "--task", task, "--subset", "half", "--epochs", 2, "--seed", seed,
                       "--results", folder / task / "past")
            run_script("baselines/scratch", "--task", task, "--subset", f"not:{seed - 99}/2", "--epochs", 1, "--seed", seed,
                       "--results", folder / task / "folds")
    return lambda task, script: ["--past", folder / task / needs(script)] if needs(script) else []


@pytest.mark.parametrize("task", DENSE)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_trains_or_says_why_not(task, script, pasts, tmp_path):
    argv = ["--task", task, "--epochs", 1, "--results", tmp_path, *pasts(task, script)]
    if script in REFUSE[task]:
        with pytest.raises(Refused, match=f"needs a task that predicts classes.*, and --task {task} predicts"):
            call_main(script, *argv)
        return
    folder = run_script(script, *argv)
    summary, config = (json.loads((folder / name).read_text()) for name in ("summary.json", "config.json"))
    assert [name for name in summary["test"] if "/" not in name] == SCORES[task] and config["data"]["score"] == SCORES[task][0]
    apart = [value for name, value in summary["test"].items() if name.startswith("iou/")]         # of each class, of pixels alone
    assert bool(apart) == ("miou" in SCORES[task]) and all(0 <= value <= 1 for value in apart)
    assert not apart or sum(apart) / len(apart) == pytest.approx(summary["test"]["miou"])
    assert all(0 <= summary["test"][name] <= 1 for name in SCORES[task][:2]) and summary["test"]["loss"] > 0
    assert summary["train"].keys() >= {"loss", "correct", "el2n"} and 0 < summary["steps"] <= 10


@pytest.mark.parametrize("task", DENSE)
def test_pictures_show_truth_beside_prediction(task, pasts, tmp_path):
    folder = run_script("baselines/scratch", "--task", task, "--epochs", 1, "--results", tmp_path)
    picture = np.asarray(Image.open(folder / "pictures.png"))
    assert picture.shape == (4 * 32 + 3 * 4, 3 * 32 + 2 * 4, 3) and (picture[:, 32:36] == 255).all()
    data = tasks.TASKS[task].load(parse("baselines/scratch", "--task", task, "--results", tmp_path), torch.device("cpu"))
    image = data.test.disk[data.test.index[0]]
    if task == "shapes-seg":
        own = data.test.target[0, 4:-4, 4:-4]                 # without its padding
        truth, empty = colours(6)[own.numpy()], np.broadcast_to(colours(6)[0], image.shape)
    else:
        truth, empty = boxed(image[None], [data.test.target[0, :1, :5].tolist()], 5)[0], image
    assert np.array_equal(picture[:32, :32], image) and np.array_equal(picture[:32, 36:68], truth)
    model = tasks.TASKS[task].net("resnet8", len(data.classes), generator(0, "weights"), torch.device("cpu"), 32)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.linspace(0, -9, len(model.head.bias)) if task == "shapes-seg" else torch.tensor(-9.0))
    shown = tasks.TASKS[task].picture(model, data.test)       # background everywhere, or no box
    assert np.array_equal(shown[:32, 36:68], truth) and np.array_equal(shown[:32, 72:], empty)
    for again in (False, True):
        if again:
            rebuild_tensorboard(folder)
        events = EventAccumulator(str(folder / "tb"))
        events.Reload()
        assert events.Tags()["images"] == ["predictions"] and f"test/{SCORES[task][0]}" in events.Tags()["scalars"]


@pytest.mark.parametrize("task", DENSE)
@pytest.mark.parametrize("script, options, other", [("methods/kd", ["--alpha", 0], "baselines/scratch"),
                                                    ("methods/cached_kd", ["--alpha", 0, "--views", 162], "baselines/scratch"),
                                                    ("methods/rho_loss", ["--keep", 1], "baselines/scratch"),
                                                    ("methods/dash", ["--threshold", 1], "baselines/warm_start")])
def test_neutral_settings_are_so_here_too(task, script, options, other, pasts, tmp_path):
    argv = ["--task", task, "--subset", "half", "--epochs", 0.5, "--seed", 1, "--results", tmp_path]
    mine = run_script(script, *argv, *options, *pasts(task, script))
    assert same_weights(mine, run_script(other, *argv, *pasts(task, other)))


def test_new_and_old_boxes_are_scored_apart_in_training(tmp_path):
    folder = run_script("baselines/scratch", "--task", "shapes-det", "--parts", "half", "--epochs", 1, "--results", tmp_path)
    last = rows(folder)[-1]
    for name in ("loss", "correct", "el2n"):                  # halves: their mean is all's; both may find as many
        old, new = last[f"train/{name}_old"], last[f"train/{name}_new"]
        assert (old != new or name == "correct") and (old + new) / 2 == pytest.approx(last[f"train/{name}"], rel=1e-3)


@pytest.mark.parametrize("task", DENSE)
@pytest.mark.parametrize("script", ["methods/loss_replay", "methods/cached_kd"])
def test_a_killed_run_goes_on_bit_for_bit(task, script, pasts, tmp_path):
    argv = ["--task", task, "--subset", "half", "--epochs", 2.5, "--batch-size", 24, "--seed", 1, *pasts(task, script)]
    calm = run_script(script, *argv, "--results", tmp_path / "calm")
    process = fork_script(script, *argv, "--results", tmp_path / "killed", killed_after=2)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    killed = run_script(script, *argv, "--results", tmp_path / "killed")
    assert same_weights(calm, killed) and rows(calm) == rows(killed)


@pytest.mark.parametrize("task", DENSE)
@pytest.mark.parametrize("script", ["methods/kd", "methods/rho_loss"])
def test_two_ranks_see_what_one_process_sees(task, script, pasts, tmp_path):
    argv = ["--task", task, "--subset", "half", "--epochs", 0.8, "--seed", 1, *pasts(task, script)]
    alone = run_script(script, *argv, "--results", tmp_path / "one")
    codes = end(start(lambda: call_main(script, *argv, "--results", tmp_path / "two"), console=tmp_path))
    assert codes == [0, 0], (tmp_path / "rank0.txt").read_text() + (tmp_path / "rank1.txt").read_text()
    folder = tmp_path / "two" / alone.relative_to(tmp_path / "one")
    one, two = (json.loads((f / "summary.json").read_text()) for f in (alone, folder))
    assert (one["steps"], one["examples"], one["flops"]["training"]) == (two["steps"], two["examples"], two["flops"]["training"])
    assert two["train"]["loss"] == pytest.approx(one["train"]["loss"], rel=0.3)              # batch norm of another half


def test_forgetting_needs_examples_that_are_right_or_wrong(pasts, tmp_path):
    with pytest.raises(Refused, match="right in part: choose"):
        run_script("methods/data_prune", "--task", "shapes-seg", "--score", "forgetting", "--results", tmp_path,
                   *pasts("shapes-seg", "methods/data_prune"))


class Perfect(nn.Module):
    """Puts out what a perfect detector would about each image of a split, one batch after the other."""

    def __init__(self, split, classes):
        super().__init__()
        self.split, self.classes, self.at = split, classes, 0

    def forward(self, image):
        index = self.split.index[self.at:self.at + len(image)]
        self.at += len(image)
        target = self.split.target[index]
        h, w = image.shape[2] // 4, image.shape[3] // 4
        found = objects(target, h, w)
        boxes = torch.zeros(len(index), 4, h * w).scatter(
            2, found.place[:, None].expand(-1, 4, -1), torch.cat([found.size, found.offset], 2).mT)
        return torch.cat([torch.logit(heat(target, self.classes, h, w), 1e-4), boxes.view(-1, 4, h, w)], 1)


def test_a_perfect_detector_scores_one_and_boxes_follow_every_view(tmp_path):
    images = np.zeros((40, 16, 24, 3), np.uint8)
    boxes = np.full((40, 2, 6), -1, np.float32)
    rng = np.random.default_rng(0)
    for n in range(40):
        x, y = rng.integers(0, 12), rng.integers(0, 8)
        images[n, y:y + 6, x:x + 10] = 200
        boxes[n, 0] = [n % 3, x, y, x + 10, y + 6, 0]
    split = BoxSplit(images, boxes, np.arange(40), torch.zeros(3), torch.ones(3), torch.device("cpu"), None, "crop-flip")
    scores = evaluate_detector(Perfect(split, 3), split)
    assert scores["test/map50"] == 1 and scores["test/map"] == 1 and list(scores)[0] == "test/map"
    view = torch.arange(VIEWS)
    shown, moved = split.images(torch.full_like(view, 7), view)[:, 0] > 0, split.targets(torch.full_like(view, 7), view)
    for seen, box in zip(shown, moved[:, 0], strict=True):
        rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
        assert box[1:5].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_detections_tasks_have_one_box_an_image_of_shapes(tmp_path):
    images, fine, coarse, boxes = tasks.TASKS["shapes-det"].read("data", 32)[0]
    assert images.shape == (320, 32, 32, 3) and boxes.shape == (320, 1, 6) and not fine.any() and not coarse.any()


@pytest.mark.parametrize("task", DENSE)
def test_evaluation_leaves_the_model_as_it_was(task, tmp_path):
    """In eval mode: else test images would move batch norm's statistics."""
    args = parse("baselines/scratch", "--task", task, "--results", tmp_path)
    data = tasks.TASKS[task].load(args, torch.device("cpu"))
    model = tasks.TASKS[task].build(args, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tasks.TASKS[task].evaluate(model, data.test)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
