"""Image files on disk: anybody's folders, Caltech-101's layout, what is damaged, odd or missing, or too much for memory."""
import json
import os

import numpy as np
import pytest
import torch
from conftest import parse, run_script
from PIL import Image

from common import data, datasets, imagefiles, tasks
from common.files import Refused

CPU = torch.device("cpu")


def picture(path, colour, size=(40, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


@pytest.fixture(autouse=True)
def forgotten():
    yield
    datasets.read_folder.cache_clear()
    datasets.read_caltech101.cache_clear()


@pytest.fixture
def tree(tmp_path):
    """Two classes of ten pictures, red and blue, in a tree without a split."""
    for i in range(10):
        picture(tmp_path / f"images/red/{i}.png", (250, i, 0))
        picture(tmp_path / f"images/blue/deep/{i}.jpg", (0, i, 250))
    return tmp_path / "images"


def test_the_middle_of_the_longer_side_is_kept(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (10, 200, 30)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        found = imagefiles.decode(tmp_path / name, 20)
        assert found.shape == (20, 20, 3) and (found == (10, 200, 30)).all()


def test_one_tree_is_split_by_names_alone(tree):
    (images, target, _), (test_images, test_target, _) = datasets.read_folder(str(tree), 16)
    assert images.shape == (16, 16, 16, 3) and np.bincount(target).tolist() == [8, 8]
    assert np.bincount(test_target).tolist() == [2, 2]
    assert (images[target == 0][..., 2] > 200).all() and (test_images[test_target == 1][..., 0] > 200).all()    # blue sorts first
    everything = {int(image[0, 0, 1]) for image in (*images[target == 1], *test_images[test_target == 1])}
    assert everything == set(range(10))                       # green numbers the pictures
    written = {path.name: path.stat().st_mtime_ns for path in (tree / ".decoded").iterdir()}
    datasets.read_folder.cache_clear()
    again = datasets.read_folder(str(tree), 16)[0]
    assert np.array_equal(again[0], images) and isinstance(again[0], np.memmap)
    assert {path.name: path.stat().st_mtime_ns for path in (tree / ".decoded").iterdir() if path.suffix == ".npy"} == \
        {name: time for name, time in written.items() if name.endswith(".npy")}               # decoded once
    picture(tree / "red/another.png", (250, 99, 0))
    datasets.read_folder.cache_clear()
    assert sum(len(split[0]) for split in datasets.read_folder(str(tree), 16)) == 21           # but anew where files changed


def test_odd_files_are_converted_and_bad_ones_named(tmp_path, capsys):
    for split, n in (("train", 6), ("test", 2)):
        for i in range(n):
            picture(tmp_path / split / f"a/{i}.png", (9, 9, 9), mode=("L", "RGBA", "P")[i % 3])
            picture(tmp_path / split / f"b/{i}.png", (90, 90, 90))
    (tmp_path / "train/a/broken.jpg").write_bytes(b"no image")
    (tmp_path / "train/a/notes.txt").write_text("not one either")
    picture(tmp_path / "test/c/0.png", (1, 1, 1))
    (images, target, _), (_, test_target, _) = datasets.read_folder(str(tmp_path), 16)
    said = capsys.readouterr().out
    assert images.shape[0] == 12 and np.bincount(target).tolist() == [6, 6] and len(test_target) == 4
    assert "1 of 13 images cannot be read" in said and "broken.jpg: UnidentifiedImageError" in said and "notes" not in said
    assert "train/ lacks 1 classes of the other split: c. Their test images are left out." in said


@pytest.mark.parametrize("make, match", [
    (lambda root: None, "is no folder"), (lambda root: (root / "a").mkdir(parents=True), "holds 1 class folders, expected two"),
    (lambda root: [(root / name).mkdir(parents=True) for name in "ab"], "holds no image: its class folders \\(a, b\\)"),
    (lambda root: [(root / name).mkdir(parents=True) or (root / name / "x.jpg").write_bytes(b"") for name in "ab"],
     "none of 2 images can be read"),
    (lambda root: [picture(root / name / "x.png", (1, 2, 3)) for name in "ab"], "too few images of every class for a test set")])
def test_folders_that_are_no_data_set(make, match, tmp_path):
    make(tmp_path / "root")
    with pytest.raises(Refused, match=match):
        datasets.read_folder(str(tmp_path / "root"), 16)
    assert not list(tmp_path.rglob("*.partial"))


def test_caltech101_takes_30_of_a_class_and_no_background(tmp_path):
    root = tmp_path / "caltech101/101_ObjectCategories"
    for name, n in (("ant", 33), ("BACKGROUND_Google", 40), ("bass", 31)):
        for i in range(n):
            picture(root / name / f"image_{i:04}.jpg", (i, 0, 0))
    (_, target, _), (_, test_target, _) = datasets.read_caltech101(str(tmp_path), 16)
    assert np.bincount(target).tolist() == [30, 30] and np.bincount(test_target).tolist() == [3, 1]


def test_what_does_not_fit_is_read_from_disk(tree, tmp_path, monkeypatch):
    args = parse("baselines/scratch", "--task", "folder", "--data-dir", tree, "--image-size", 16, "--batch-size", 4,
                 "--results", tmp_path)
    whole = tasks.TASKS["folder"].load(args, CPU)
    monkeypatch.setattr(data, "free_memory", lambda device: 1000)
    mapped = tasks.TASKS["folder"].load(args, CPU)
    assert whole.train.pixels is not None and mapped.train.pixels is None
    index, view = torch.tensor([3, 0, 15, 3]), torch.tensor([0, 80, 161, 40])
    assert torch.equal(whole.train.images(index, view), mapped.train.images(index, view))


def test_runs_on_folders_and_a_trunk_from_elsewhere(tree, past, tmp_path, capsys):
    argv = ["--task", "folder", "--data-dir", tree, "--image-size", 16, "--model", "resnet8", "--batch-size", 4, "--epochs", 1,
            "--results", tmp_path / "results"]
    folder = run_script("baselines/scratch", *argv)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 4 and 0 <= summary["test"]["accuracy"] <= 1
    run_script("baselines/warm_start", *argv, "--past", past, "--part", "trunk")
    assert "from scratch: head.bias, head.weight" in capsys.readouterr().out
    run_script("methods/kd", *argv, "--past", folder, "--seed", 1)
    with pytest.raises(Refused, match="predicts 20 fine classes of shapes, this run 2 fine ones of folder"):
        run_script("methods/kd", *argv, "--past", past, "--seed", 2)


def test_a_read_only_data_folder_keeps_its_array_elsewhere(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    datasets.read_folder(str(tree), 16)
    assert list((tmp_path / "home/.cache/encore").glob("*.npy")) and not (tree / ".decoded").exists()
