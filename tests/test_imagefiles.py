"""Image files on disk: anybody's folders, Caltech-101's layout, what is damaged, odd or missing, or too much for memory."""
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import parse, run_script
from PIL import Image

from common import datasets, imagefiles, machine, splits, tasks
from common.files import Refused
from common.past import PastRun

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
        picture(tmp_path / f"images/blue/deep/{i}.png", (0, i, 250))
    return tmp_path / "images"


def test_the_middle_of_the_longer_side_is_kept(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (10, 200, 30)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        found = imagefiles.decode(tmp_path / name, 20)
        assert found.shape == (20, 20, 3) and (found == (10, 200, 30)).all()


def green(split):
    """Which pictures: red and blue ones are numbered by their green."""
    images, target, _ = split
    return {(int(label), int(image[0, 0, 1])) for image, label in zip(images, target, strict=True)}


def test_one_tree_is_split_by_names_alone_and_decoded_once(tree):
    train, test, names = datasets.read_folder(str(tree), 16)
    assert names == ["blue", "red"] and train[0].shape[1:] == (16, 16, 3) and isinstance(train[0], np.memmap)
    assert (train[0][train[1] == 0][..., 2] > 200).all() and (test[0][test[1] == 1][..., 0] > 200).all()
    assert green(train) | green(test) == {(c, i) for c in (0, 1) for i in range(10)} and not green(train) & green(test)
    assert 1 <= len(test[0]) <= 8 and len(train[0]) + len(test[0]) == 20
    cache = tree.parent / ".decoded"                          # not in the tree, which torchvision's ImageFolder reads, too
    written = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.npy")}
    datasets.read_folder.cache_clear()
    assert green(datasets.read_folder(os.path.relpath(tree), 16)[0]) == green(train)          # however it is spelled
    assert {path.name: path.stat().st_mtime_ns for path in cache.glob("*.npy")} == written
    for i in range(20, 60):                                   # more pictures do not move those that were there
        picture(tree / f"red/{i}.png", (250, i, 0))
    datasets.read_folder.cache_clear()
    more, more_test, _ = datasets.read_folder(str(tree), 16)
    assert green(train) < green(more) and green(test) <= green(more_test) and len(more[0]) + len(more_test[0]) == 60


def test_a_class_keeps_an_image_to_train_on(tree, monkeypatch):
    """Every image is held out by its hash: of each class the one with the highest stays."""
    plain = datasets.read_folder(str(tree), 16)[0]
    datasets.read_folder.cache_clear()
    monkeypatch.setattr(datasets, "TEST_SHARE", 1.1)
    train, test, names = datasets.read_folder(str(tree), 16)
    assert names == ["blue", "red"] and train[1].tolist() == [0, 1] and len(test[0]) == 18 and green(train) <= green(plain)


def test_accuracy_per_class_by_hand():
    """Three of class 0, two of them right, and one of class 1, wrong: 1/2 of all, (2/3 + 0) / 2 by class; class 2 has none."""
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[[0, 1]] = 255                                      # taken for class 0, black ones for class 2
    split = splits.Split(images, np.array([0, 0, 0, 1]), np.arange(4), torch.zeros(3), torch.ones(3), CPU, None)

    class Bright(torch.nn.Module):
        def forward(self, image):
            white = image.mean((1, 2, 3)) > 100               # [B]
            return torch.stack([white, torch.zeros_like(white), ~white], 1).float()

    found = tasks.TASKS["caltech101"].evaluate(Bright(), split)
    assert found["test/accuracy"] == 0.5 and found["test/accuracy_per_class"] == pytest.approx(1 / 3)
    assert "test/accuracy_per_class" not in tasks.TASKS["cifar100"].evaluate(Bright(), split)


def test_odd_files_are_converted_and_bad_ones_named(tmp_path, capsys):
    for split, n in (("train", 6), ("test", 2)):
        for i in range(n):
            picture(tmp_path / split / f"a/{i}.png", (9, 9, 9), mode=("L", "RGBA", "P")[i % 3])
            picture(tmp_path / split / f"b/{i}.png", (90, 90, 90))
    (tmp_path / "train/a/broken.jpg").write_bytes(b"no image")
    (tmp_path / "train/a/notes.txt").write_text("not one either")
    picture(tmp_path / "test/c/0.png", (1, 1, 1))
    (images, target, _), (_, test_target, _), _ = datasets.read_folder(str(tmp_path), 16)
    said = capsys.readouterr().out
    assert images.shape[0] == 12 and np.bincount(target).tolist() == [6, 6] and len(test_target) == 4
    assert "1 of 13 images cannot be read" in said and "broken.jpg: UnidentifiedImageError" in said and "notes" not in said
    assert "1 classes have no training image, their test images are left out: c." in said
    datasets.read_folder.cache_clear()                        # which one is bad is known from the array's own list
    again = datasets.read_folder(str(tmp_path / "train" / ".."), 16)[0]
    assert np.array_equal(again[1], target) and "broken.jpg" in capsys.readouterr().out


def test_a_class_that_only_the_test_set_has_leaves_it_on_disk(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/c"):
        picture(tmp_path / name / "0.png", (9, 9, 9))
    (images, *_), (test_images, test_target, _), names = datasets.read_folder(str(tmp_path), 16)
    assert names == ["a", "b"] and test_target.tolist() == [0]
    assert isinstance(images, np.memmap) and isinstance(test_images, np.memmap)


@pytest.mark.parametrize("make, match", [
    (lambda root: [picture(root / name / "1.png", (1, 2, 3)) for name in ("train/a", "train/b", "test/c", "test/d")],
     "no test image of any class that it has training images of \\(a, b\\)"),
    (lambda root: [picture(root / name / "1.png", (1, 2, 3)) for name in ("train/a", "test/a", "test/b")],
     "training images of one class alone \\(a\\)"),
    (lambda root: None, "is no folder"), (lambda root: (root / "a").mkdir(parents=True), "holds 1 class folders, expected two"),
    (lambda root: [(root / name).mkdir(parents=True) for name in "ab"], "holds no image: its class folders \\(a, b\\)"),
    (lambda root: [(root / name).mkdir(parents=True) or (root / name / "x.jpg").write_bytes(b"") for name in "ab"],
     "none of 2 images can be read"),
    (lambda root: [picture(root / name / "1.png", (1, 2, 3)) for name in "ab"], "too few images for a test set"),
    (lambda root: [picture(root / "train" / name / "1.png", (1, 2, 3)) for name in "ab"],
     "holds train/ with folders of classes, but no such test set"),
    (lambda root: [picture(root / name / "1.png", (1, 2, 3)) for name in ("Train/a", "Train/b", "valid/1")],
     "has no test image of any class")])
def test_folders_that_are_no_data_set(make, match, tmp_path):
    make(tmp_path / "root")
    with pytest.raises(Refused, match=match):
        datasets.read_folder(str(tmp_path / "root"), 16)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("train, test", [("Training", "Testing"), ("train", "valid"), ("TRAIN", "Val")])
def test_halves_by_other_names(train, test, tmp_path, capsys):
    for name in (f"{train}/a", f"{train}/b", f"{test}/a", f"{test}/b"):
        picture(tmp_path / name / "1.png", (1, 2, 3))
    (tmp_path / "test").mkdir(exist_ok=True)                  # without labels, as a competition's
    picture(tmp_path / "test/1.png", (1, 2, 3))
    (_, target, _), (_, test_target, _), names = datasets.read_folder(str(tmp_path), 16)
    assert names == ["a", "b"] and target.tolist() == test_target.tolist() == [0, 1]
    assert "2 classes (a, b), 2 images to train, 2 to test." in capsys.readouterr().out


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "train", "test"):
        for i in range(12):
            picture(tmp_path / name / f"{i}.png", (1, 2, 3))
    assert datasets.read_folder(str(tmp_path), 16)[2] == ["car", "test", "train"]


def test_folders_without_an_image_are_named(tree, capsys):
    picture(tree / "gifs/1.gif", (1, 2, 3))
    (tree / "none").mkdir()
    assert datasets.read_folder(str(tree), 16)[2] == ["blue", "red"]
    said = capsys.readouterr().out
    assert "2 class folders have no image (.jpg " in said and "that can be read: gifs, none." in said


def test_a_name_that_is_no_utf8(tree, capsys):
    odd = os.fsdecode(b"Mu\xf1oz.png")
    picture(tree / "red" / odd, (250, 20, 0))
    assert sum(len(part[0]) for part in datasets.read_folder(str(tree), 16)[:2]) == 21
    (tree / "red" / odd).write_bytes(b"no image")
    datasets.read_folder.cache_clear()
    datasets.read_folder(str(tree), 16)
    assert "Mu\\xf1oz.png: UnidentifiedImageError" in capsys.readouterr().out


def test_a_file_that_may_be_read_now_is(tree, monkeypatch):
    """Its size and time are what they were."""
    def reads(path, mode):
        return (os.fspath(path) != str(tree / "red/3.png") or mode != os.R_OK) and access(path, mode)

    access, decode = os.access, imagefiles.decode
    with monkeypatch.context() as closed:
        closed.setattr(os, "access", reads)
        closed.setattr(imagefiles, "decode", lambda path, size: decode(path, size) if reads(path, os.R_OK) else "PermissionError")
        assert sum(len(part[0]) for part in datasets.read_folder(str(tree), 16)[:2]) == 19
    datasets.read_folder.cache_clear()
    assert sum(len(part[0]) for part in datasets.read_folder(str(tree), 16)[:2]) == 20


def test_classes_that_a_part_lacks_are_named_or_refused(tmp_path, capsys):
    def load(*argv):
        return tasks.TASKS["folder"].load(parse("baselines/scratch", "--task", "folder", "--data-dir", tmp_path, "--image-size",
                                                16, "--batch-size", 4, "--results", tmp_path / "results", *argv), CPU)

    for name, n in (("train/a", 20), ("train/b", 20), ("train/c", 1), ("test/b", 3), ("test/c", 2)):
        for i in range(n):
            picture(tmp_path / name / f"{i}.png", (i, 2, 3))
    assert len(load().test) == 5
    lacks = next(data for k in range(1, 6) if len((data := load("--subset", f"not:{k}/5")).classes) == 2)       # c's only image
    assert len(lacks.test) == 3 and lacks.test.target[lacks.test.index].tolist() == [1, 1, 1]
    assert "has no training image of 1 classes, whose test images are left out: c." in capsys.readouterr().out
    assert len(load("--holdout", "0.1").test) == 4
    assert "--holdout 0.1 holds out no image of 1 classes, which have too few: c." in capsys.readouterr().out
    for name in (chosen := load("--subset", "classes:2").classes):
        shutil.rmtree(tmp_path / "test" / name, ignore_errors=True)
    picture(tmp_path / "test" / ({*"abc"} - {*chosen}).pop() / "0.png", (1, 2, 3))
    datasets.read_folder.cache_clear()
    with pytest.raises(Refused, match="no test image is of a class that --subset classes:2 trains on: take more classes"):
        load("--subset", "classes:2")


def test_other_files_are_other_data(tree, tmp_path):
    """As many of each class as before, another one among them."""
    def load():
        datasets.read_folder.cache_clear()
        return tasks.TASKS["folder"].load(parse("baselines/scratch", "--task", "folder", "--data-dir", tree, "--image-size", 16,
                                                "--batch-size", 4, "--results", tmp_path), CPU).fingerprint

    before = load()
    last = max((tree / "red").iterdir(), key=lambda path: datasets.by_name([path], tree)[0])         # trains
    picture(last, (250, 100, 0))
    assert load() != before


def test_caltech101_takes_30_of_a_class_and_no_background(tmp_path, capsys):
    root = tmp_path / "caltech101/101_ObjectCategories"
    for name, n in (("ant", 33), ("BACKGROUND_Google", 40), ("bass", 31)):
        for i in range(n):
            picture(root / name / f"image_{i:04}.jpg", (i, 0, 0))
    (_, target, _), (_, test_target, _), names = datasets.read_caltech101(str(tmp_path), 16)
    assert names == ["ant", "bass"] and "holds 2 categories, Caltech-101 has 101" in capsys.readouterr().out
    assert np.bincount(target).tolist() == [30, 30] and np.bincount(test_target).tolist() == [3, 1]


def test_a_file_less_moves_one_image_of_caltech101_at_most(tmp_path):
    root, reds = tmp_path / "caltech101/101_ObjectCategories", []
    for i in range(60):
        picture(root / "ant" / f"image_{i:04}.jpg", (4 * i, 0, 0))
        picture(root / "bass" / f"image_{i:04}.jpg", (0, 4 * i, 0))
    for gone in (None, "image_0007.jpg"):
        if gone:
            (root / "ant" / gone).unlink()
        datasets.read_caltech101.cache_clear()
        (images, target, _), *_ = datasets.read_caltech101(str(tmp_path), 16)
        reds.append([{*images[target == c].mean((1, 2)).max(1).round().tolist()} for c in (0, 1)])
    assert len(reds[0][0] - reds[1][0]) <= 1 and reds[0][1] == reds[1][1] and len(reds[1][1]) == 30


def test_what_does_not_fit_is_read_from_disk(tree, tmp_path, monkeypatch):
    args = parse("baselines/scratch", "--task", "folder", "--data-dir", tree, "--image-size", 16, "--batch-size", 4,
                 "--results", tmp_path)
    whole = tasks.TASKS["folder"].load(args, CPU)
    monkeypatch.setattr(splits, "free_memory", lambda device: 1000)
    mapped = tasks.TASKS["folder"].load(args, CPU)
    assert whole.train.pixels is not None and mapped.train.pixels is None
    images = whole.train.disk
    for small in ("cuda", "cpu"):                             # padded on the host, then moved
        monkeypatch.setattr(splits, "free_memory", lambda device, small=small: 1000 if device.type == small else 10 ** 12)
        assert not splits.fits(images, torch.device("cuda")) and splits.fits(images, CPU) == (small == "cuda")
    index, view = torch.tensor([3, 0, 11, 3]), torch.tensor([0, 80, 161, 40])
    assert torch.equal(whole.train.images(index, view), mapped.train.images(index, view))


def test_memory_and_cores_that_a_control_group_leaves(tmp_path):
    """The job may take 100, of the 70 it took 20 are files' cache; above it there is no limit."""
    for folder, limit in (("slurm/job", "100"), ("slurm", "max")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in (("max", limit), ("current", "70"), ("stat", "anon 50\ninactive_file 20")):
            (tmp_path / folder / f"memory.{name}").write_text(text + "\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/slurm/job\n")
    assert machine.left_by_groups(own, tmp_path) == [50]
    assert machine.cores_by_groups(own, tmp_path) == []
    for folder, limit in (("slurm/job", "max 100000"), ("slurm", "150000 100000")):       # microseconds in so many
        (tmp_path / folder / "cpu.max").write_text(limit + "\n")
    assert machine.cores_by_groups(own, tmp_path) == [1.5]
    assert machine.left_by_groups(tmp_path / "none", tmp_path) == [] and machine.free_memory(CPU) > 2 ** 20


def test_a_damaged_list_of_a_cache_is_named(tree):
    datasets.read_folder(str(tree), 16)
    for path in (tree.parent / ".decoded").glob("*.json"):
        path.write_text("{}")
    datasets.read_folder.cache_clear()
    with pytest.raises(Refused, match="is damaged: delete it and .*npy, and both are made again"):
        datasets.read_folder(str(tree), 16)


def test_images_of_ones_own_need_a_folder():
    with pytest.raises(Refused, match="is for images of your own: name the folder that holds them with --data-dir"):
        parse("baselines/scratch", "--task", "folder")


def test_a_folder_is_recorded_from_the_root(tree, monkeypatch):
    monkeypatch.chdir(tree.parent)
    assert parse("baselines/scratch", "--task", "folder", "--data-dir", "images").data_dir == str(tree.resolve())


def test_runs_on_folders_and_a_trunk_from_elsewhere(tree, past, tmp_path, capsys):
    argv = ["--task", "folder", "--data-dir", tree, "--image-size", 16, "--model", "resnet8", "--batch-size", 4, "--epochs", 1,
            "--results", tmp_path / "results"]
    folder = run_script("baselines/scratch", *argv)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] >= 3 and 0 <= summary["test"]["accuracy"] <= 1
    run_script("baselines/warm_start", *argv, "--past", past, "--part", "trunk")
    assert "from scratch: head.bias, head.weight" in capsys.readouterr().out
    run_script("methods/kd", *argv, "--past", folder, "--seed", 1)
    assert "past run of seed 1: folder-resnet8/scratch" in capsys.readouterr().out
    run_script("methods/kd", "--past", folder, "--model", "resnet8x2", "--lr", 0.1, "--results", tmp_path / "results")
    assert "note: --weight-decay from --past go with resnet8; resnet8x2 may need others." in capsys.readouterr().out
    with pytest.raises(Refused, match="predicts 20 fine classes of shapes, this run 2 fine ones of folder"):
        run_script("methods/kd", *argv, "--past", past, "--seed", 2)


def test_a_finished_run_of_a_folder_that_changed_is_not_taken_for_todays(tree, tmp_path, capsys):
    argv = ["--task", "folder", "--data-dir", tree, "--image-size", 16, "--model", "resnet8", "--batch-size", 4, "--epochs", 0.5,
            "--results", tmp_path / "results"]
    run_script("baselines/scratch", *argv)
    with pytest.raises(SystemExit, match="^0$"):
        run_script("baselines/scratch", *argv)
    assert "nothing is done. To run it again, delete it or give a --tag" in capsys.readouterr().out
    train, test, _ = datasets.read_folder(str(tree), 16)
    for change in (train, test):                              # one picture of either split, then a class of another name
        green = int(change[0][change[1] == 1][0][0, 0, 1])
        picture(tree / f"red/{green}.png", (250, 99, 0))
        datasets.read_folder.cache_clear()
        with pytest.raises(Refused, match="is finished already, and .*images has other images since: give this run a --tag"):
            run_script("baselines/scratch", *argv)
        picture(tree / f"red/{green}.png", (250, green, 0))
        datasets.read_folder.cache_clear()
        with pytest.raises(SystemExit, match="^0$"):
            run_script("baselines/scratch", *argv)
    (tree / "red").rename(tree / "scarlet")
    datasets.read_folder.cache_clear()
    with pytest.raises(Refused, match="is finished already"):
        run_script("baselines/scratch", *argv)
    assert run_script("baselines/scratch", *argv, "--tag", "monday").parts[-3] == "scratch-monday"


def test_classes_of_a_folder_are_known_by_name(tree, tmp_path, capsys):
    """A class that sorts before the others is added: the head's rows stay with theirs, and the data's folder is inherited."""
    argv = ["--image-size", 16, "--model", "resnet8", "--batch-size", 4, "--epochs", 1, "--results", tmp_path / "results"]
    folder = run_script("baselines/scratch", "--task", "folder", "--data-dir", tree, *argv)
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["classes"] == ["blue", "red"]
    for i in range(10):
        picture(tree / f"amber/{i}.png", (250, 190, i))
    datasets.read_folder.cache_clear()
    args = parse("baselines/warm_start", *argv, "--past", folder)
    assert args.task == "folder" and args.data_dir == str(tree)
    data_now = tasks.TASKS["folder"].load(args, CPU)
    model = tasks.TASKS["folder"].build(args, data_now)
    grown, theirs = PastRun(folder, args, data_now).weights(model), torch.load(folder / "final.pt", weights_only=True)
    assert data_now.classes == ["amber", "blue", "red"] and torch.equal(grown["head.weight"][1:], theirs["head.weight"])
    other = tmp_path / "other"                                # the same arguments on another folder are another run
    os.rename(tree, other)
    datasets.read_folder.cache_clear()
    again = run_script("baselines/scratch", "--task", "folder", "--data-dir", other, *argv)
    assert again != folder


def test_a_read_only_data_folder_keeps_its_array_elsewhere(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    datasets.read_folder(str(tree), 16)
    assert list((tmp_path / "home/.cache/encore").glob("*.npy")) and not (tree.parent / ".decoded").exists()


def test_an_array_that_is_there_needs_no_lock(tree, monkeypatch):
    """Another's, in a folder that one may not write."""
    whole = datasets.read_folder(str(tree), 16)[0]
    datasets.read_folder.cache_clear()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr(imagefiles, "lock", lambda path, wait: pytest.fail(f"locks {path}"))
    assert np.array_equal(datasets.read_folder(str(tree), 16)[0][0], whole[0])


def test_a_disk_without_room_for_the_array(tree, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagefiles, "reserve", full)
    with pytest.raises(Refused, match=r"No space left on device. It takes .* GiB: make room, or make .*\.decoded a link"):
        datasets.read_folder(str(tree), 16)
    assert not list(tree.parent.rglob("*.partial"))


@pytest.mark.parametrize("mode, ending, dtype, top", [
    ("I;16", "png", np.uint16, 65535), ("I;16", "tif", np.uint16, 65535), ("I;16B", "tif", ">u2", 65535),
    ("I", "tif", np.int32, 65535), ("I", "tif", np.int32, 255), ("I;16", "png", np.uint16, 255), ("F", "tif", np.float32, 1),
    ("F", "tif", np.float32, 255), ("F", "tif", np.float32, 65535)])
def test_grey_of_more_than_8_bits_is_scaled_down(mode, ending, dtype, top, tmp_path):
    """A ramp from black to white, which Pillow alone would make white beyond 255, or black where white is 1."""
    ramp = (np.arange(256).repeat(256).reshape(256, 256) / 255 * top).astype(dtype)
    path = tmp_path / f"ramp.{ending}"
    Image.fromarray(ramp).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    found = imagefiles.decode(path, 256)
    assert (found[..., 0] == found[..., 2]).all() and abs(found[:, 0, 0].astype(int) - np.arange(256)).max() <= 1
