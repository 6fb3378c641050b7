"""Views against a slow crop, order and views as functions of (seed, epoch), subsets, CIFAR-100 as torchvision reads it."""
import hashlib
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import parse, run_script

from common import tasks
from common.data import CENTER, VIEWS, Split, channel_moments, epoch_order, fingerprint, train_batches, visits
from common.files import Refused
from common.seeding import generator
from common.subsets import parts, rank_in_class, subset

CPU = torch.device("cpu")


def split(n=20, augment="crop-flip", seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    return images, Split(images, np.arange(n) % 4, np.arange(n), mean, std, CPU, None, augment)


def test_every_view_is_pad_crop_flip():
    images, s = split(2)
    padded = np.pad(images[1], ((4, 4), (4, 4), (0, 0)))
    for view in range(VIEWS):
        flip, y, x = view // 81, view // 9 % 9, view % 9
        crop = padded[y:y + 8, x:x + 8]
        crop = crop[:, ::-1] if flip else crop
        expected = (crop.astype(np.float32) - [1, 2, 3]) / [4, 5, 6]
        got = s.images(torch.tensor([1]), torch.tensor([view]))
        assert np.allclose(got[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last) and not got.is_contiguous()
    center = s.images(torch.tensor([0]), torch.tensor([CENTER]))[0].permute(1, 2, 0).numpy()
    assert np.allclose(center, (images[0].astype(np.float32) - [1, 2, 3]) / [4, 5, 6], atol=1e-6)


def test_order_and_views_are_functions_of_seed_and_epoch():
    _, s = split()
    order, view = epoch_order(s, 7, 3, None)
    again, same_view = epoch_order(s, 7, 3, None)
    assert torch.equal(order, again) and torch.equal(view, same_view)
    assert sorted(order.tolist()) == list(range(20)) and order.tolist() != list(range(20))
    for seed, epoch in ((8, 3), (7, 4)):
        other, other_view = epoch_order(s, seed, epoch, None)
        assert not torch.equal(order, other) and not torch.equal(view, other_view)
    assert (epoch_order(split(augment="none")[1], 7, 3, None)[1] == CENTER).all()


def test_what_two_methods_both_keep_stands_in_one_order_under_one_view():
    _, s = split()
    order, view = epoch_order(s, 1, 1, None)
    mask = torch.arange(20) % 3 != 0
    kept, kept_view = epoch_order(s, 1, 1, mask)
    assert torch.equal(kept, order[mask[order]]) and torch.equal(kept_view, view[mask[order]])
    repeated = torch.cat([torch.arange(19, -1, -1), torch.tensor([5, 5, 2])])
    index, views = epoch_order(s, 1, 1, repeated)
    assert sorted(index.tolist()) == sorted(repeated.tolist())
    fives = [(i, v) for i, v in zip(index.tolist(), views.tolist(), strict=True) if i == 5]
    assert len(fives) == 3 and len(set(fives)) > 1            # an example seen again has another view


def test_a_fingerprint_tells_data_sets_apart():
    images, target = np.zeros((98, 4, 4, 3), np.uint8), np.arange(98)
    other = images.copy()
    other[97] = 1
    assert len({fingerprint(images, target), fingerprint(other, target), fingerprint(images, target[::-1]),
                fingerprint(images[:, :2], target)}) == 4
    assert fingerprint(images, target.astype(np.int32)) == fingerprint(images, target)
    swapped = images.copy()
    swapped[5] = 1                                            # not among those that are looked at, unless all are
    assert fingerprint(images, target) == fingerprint(swapped, target)
    assert fingerprint(images, target, whole=True) != fingerprint(swapped, target, whole=True)


def test_a_channel_that_is_the_same_everywhere_can_be_divided_by():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    images[..., 2] = 77
    mean, std = channel_moments(images, np.arange(10))
    assert np.allclose(mean, images[:10].mean((0, 1, 2))) and mean[2] == 77
    assert np.allclose(std[:2], images[:10, ..., :2].std((0, 1, 2)), rtol=1e-5) and std[2] == 1


def test_visits():
    assert visits(torch.tensor([4, 2, 4, 4, 2, 9])).tolist() == [0, 0, 1, 2, 1, 0]


def fake_run(epochs, batch):
    return SimpleNamespace(args=SimpleNamespace(seed=0, epochs=epochs, batch_size=batch), rest=None, stop_if_asked=lambda: None,
                           bar=SimpleNamespace(advance=lambda progress: None),
                           leftover={"index": torch.empty(0, dtype=torch.int64), "view": torch.empty(0, dtype=torch.int64),
                                     "weight": torch.empty(0)})


def test_what_does_not_fill_a_batch_goes_first_in_the_next_epoch():
    _, s = split(20)
    run = fake_run(2.5, 8)                                    # 20 = 2 x 8 + 4; 4 + 20 = 3 x 8; 10 = 8 + 2
    first, second, third = ([(p, b) for p, b in train_batches(s, run, epoch)] for epoch in (1, 2, 3))
    assert list(train_batches(s, run, 0)) == []
    assert [len(e) for e in (first, second, third)] == [2, 3, 1]
    seen = torch.cat([b.index for e in (first, second) for _, b in e])
    assert sorted(seen.tolist()) == sorted([*range(20)] * 2)
    assert torch.equal(second[0][1].index[:4], epoch_order(s, 0, 1, None)[0][16:])
    progress = [p for e in (first, second, third) for p, _ in e]
    assert progress == pytest.approx([0, 0.2, 0.4, 0.4 + 0.4 / 3, 0.4 + 0.8 / 3, 0.8])


def test_weight_is_looked_up():
    _, s = split(20)
    _, batch = next(train_batches(s, fake_run(1, 8), 1, weight=torch.arange(20) * 2.0))
    assert torch.equal(batch.weight, batch.index * 2.0)
    assert torch.equal(batch.target, batch.index % 4)


FINE = np.repeat(np.arange(20), 10)                           # 20 classes of 10, 4 superclasses of 5
COARSE = FINE // 5
TEST_FINE = np.repeat(np.arange(20), 2)


def kept(text):
    return subset(text, FINE, COARSE, TEST_FINE)


def test_subsets():
    assert len(kept("all")[0]) == 200 and kept("all")[2] == ""
    half, fifth, tenth = (set(kept(t)[0]) for t in ("half", "share:0.2", "share:0.1"))
    assert [len(s) for s in (half, fifth, tenth)] == [100, 40, 20] and tenth < fifth < half
    assert (np.bincount(FINE[kept("share:0.3")[0]]) == 3).all()
    left = [set(range(200)) - set(kept(f"not:{k}/5")[0]) for k in range(1, 6)]
    assert all(len(p) == 40 for p in left) and set().union(*left) == set(range(200))
    train, test, _ = kept("classes:8")
    assert len(np.unique(FINE[train])) == 8 and set(FINE[train]) == set(TEST_FINE[test]) < set(FINE[kept("classes:12")[0]])
    train, test, labels = kept("members:3/5")
    assert labels == "coarse" and len(test) == 40 and (np.bincount(COARSE[np.unique(FINE[train], return_index=True)[1] * 0 +
                                                                          [np.flatnonzero(FINE == f)[0]
                                                                           for f in np.unique(FINE[train])]]) == 3).all()
    assert np.array_equal(kept("half")[0], kept("share:0.5")[0])
    assert np.array_equal(kept("first:0.3")[0], np.flatnonzero(np.arange(200) % 10 < 3))      # the first 3 of each class
    frames = np.zeros(367, int)                                                               # no classes: a film's beginning
    assert np.array_equal(subset("first:0.5", frames, frames, frames)[0], np.arange(184))
    assert parts("first:0.5", frames, frames, frames[:9])[0].tolist() == [True] * 184 + [False] * 183


@pytest.mark.parametrize("text", ["", "third", "share:0", "share:2", "share:x", "not:6/5", "not:3", "classes:1", "classes:99",
                                  "members:3/4", "all:2", "half:9", "first", "first:0", "first:2"])
def test_impossible_subsets_are_refused(text):
    with pytest.raises(Refused, match=f"--subset {text!r} is none of: all, half, share:0.2, first:0.5"):
        kept(text)
    with pytest.raises(Refused, match=f"--parts {text!r} is none of"):
        parts(text, FINE, COARSE, TEST_FINE)


def test_holdout_is_balanced_disjoint_and_for_evaluation(tmp_path):
    args = parse("baselines/scratch", "--holdout", 0.25, "--results", tmp_path)
    data = tasks.TASKS["shapes"].load(args, CPU)
    assert len(data.train) == 240 and len(data.test) == 80
    assert not set(data.train.index.tolist()) & set(data.test.index.tolist())
    assert (torch.bincount(data.test.target[data.test.index]) == 4).all()
    assert data.train.augment == "crop-flip" and data.test.augment == "none"
    whole = tasks.TASKS["shapes"].load(parse("baselines/scratch", "--results", tmp_path), CPU)
    assert whole.final is None and torch.equal(data.final.target, whole.test.target)         # for one look at the end
    assert torch.equal(data.final.index, whole.test.index)


def test_no_subset_has_seen_what_another_holds_out(tmp_path):
    def split(text):
        args = parse("baselines/scratch", "--subset", text, "--holdout", 0.25, "--results", tmp_path)
        data = tasks.TASKS["shapes"].load(args, CPU)
        return set(data.train.index.tolist()), set(data.test.index.tolist())
    for past, new in (("all", "half"), ("half", "all"), ("not:3/5", "all"), ("classes:8", "all")):
        assert not split(past)[0] & split(new)[1]


def test_classes_get_labels_of_their_own(tmp_path):
    data = tasks.TASKS["shapes"].load(parse("baselines/scratch", "--subset", "classes:8", "--results", tmp_path), CPU)
    assert len(data.classes) == 8 and sorted(set(data.train.target[data.train.index].tolist())) == list(range(8))
    assert data.examples == 320                               # indices stay global
    coarse = tasks.TASKS["shapes"].load(parse("baselines/scratch", "--labels", "coarse", "--results", tmp_path), CPU)
    assert len(coarse.classes) == 5


def test_parts_are_scored_apart(tmp_path):
    """Old classes of the test set; under `half`, which keeps all classes, old training examples."""
    def scored(*argv):
        folder = run_script("baselines/scratch", "--epochs", 1, "--results", tmp_path, *argv)
        summary = json.loads((folder / "summary.json").read_text())
        return summary["test"], summary["train"], folder
    test, train, folder = scored("--parts", "classes:8")
    assert test["accuracy"] == pytest.approx(0.4 * test["accuracy_old"] + 0.6 * test["accuracy_new"])
    assert "correct_old" not in train
    with pytest.raises(SystemExit) as ended:                  # what is looked at does not make it another run
        scored()
    assert ended.value.code == 0
    test, train, _ = scored("--parts", "half", "--tag", "half")
    assert train["correct"] == pytest.approx((train["correct_old"] + train["correct_new"]) / 2) and "accuracy_old" not in test
    test, _, _ = scored("--parts", "members:3/4", "--labels", "coarse")
    assert test["accuracy"] == pytest.approx(0.75 * test["accuracy_old"] + 0.25 * test["accuracy_new"])


def test_rank_depends_on_the_data_alone():
    keep = np.flatnonzero(FINE < 3)
    rank = rank_in_class(FINE, keep)
    assert all(sorted(rank[FINE[keep] == c]) == pytest.approx(np.arange(10) / 10) for c in range(3))


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """Files in CIFAR-100's format with 4 training and 2 test images of 100 classes, and MD5 sums to match."""
    from torchvision.datasets import CIFAR100
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sums = {}
    for name, n in (("train", 400), ("test", 100)):
        content = {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "fine_labels": [i % 100 for i in range(n)],
                   "coarse_labels": [i % 100 // 5 for i in range(n)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    for name in ("train", "test", "meta"):
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})
    return tmp_path / "data"


def cifar_args(folder, *more):
    return parse("baselines/scratch", "--task", "cifar100", "--model", "resnet8", "--data-dir", folder, *more)


def test_cifar100_is_read_through_torchvision(tiny_cifar):
    data = tasks.TASKS["cifar100"].load(cifar_args(tiny_cifar, "--augment", "none"), CPU)
    raw = pickle.loads((tiny_cifar / "cifar-100-python" / "train").read_bytes())["data"]
    pixels = data.train.images(torch.tensor([3]), torch.tensor([CENTER]))[0] * data.train.std[:, None, None] \
        + data.train.mean[:, None, None]
    assert np.allclose(pixels.numpy(), raw[3].reshape(3, 32, 32), atol=1e-3)
    assert data.train.target.tolist() == [i % 100 for i in range(400)] and len(data.test) == 100
    assert np.allclose(data.train.mean, raw.reshape(400, 3, 1024).mean((0, 2)), atol=1e-3)
    assert np.allclose(data.train.std, raw.reshape(400, 3, 1024).std((0, 2)), atol=1e-3)
    coarse = tasks.TASKS["cifar100"].load(cifar_args(tiny_cifar, "--labels", "coarse"), CPU)
    assert coarse.train.target[:10].tolist() == [0] * 5 + [1] * 5


def test_damaged_or_missing_cifar100_is_refused(tiny_cifar, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100
    train = tiny_cifar / "cifar-100-python" / "train"
    train.write_bytes(train.read_bytes()[:1000])
    with pytest.raises(Refused, match="incomplete or damaged.*Delete it"):
        tasks.TASKS["cifar100"].load(cifar_args(tiny_cifar), CPU)

    def no_network(self):
        raise OSError("no route to host")
    monkeypatch.setattr(CIFAR100, "download", no_network)
    with pytest.raises(Refused, match="download failed.*no route to host.*--data-dir"):
        tasks.TASKS["cifar100"].load(cifar_args(tmp_path / "nowhere"), CPU)


def test_a_training_set_smaller_than_a_batch_is_refused(tmp_path):
    with pytest.raises(Refused, match="lower --batch-size or raise --epochs"):
        tasks.TASKS["shapes"].load(parse("baselines/scratch", "--batch-size", 400, "--epochs", 0.5), CPU)


def test_draws_are_those_that_committed_runs_were_made_with():
    """Past runs have seen these examples, and a row that is made later pairs with old ones: another draw is another benchmark."""
    fine = np.repeat(np.arange(100), 50)
    chosen = {text: hashlib.sha256(np.ascontiguousarray(subset(text, fine, fine // 5, fine)[0], np.int64)).hexdigest()[:12]
              for text in ("half", "share:0.1", "classes:80", "not:1/5", "members:3/5")}
    assert chosen == {"half": "de4655a4c0bc", "share:0.1": "a1ffdafc2807", "classes:80": "4baa9011e501",
                      "not:1/5": "fcf54e769ebf", "members:3/5": "aa8635e1fb05"}
    held = rank_in_class(fine, np.arange(len(fine))) >= 0.8
    assert hashlib.sha256(np.packbits(held)).hexdigest()[:12] == "d40a8f0c030a"
    assert torch.randint(1 << 30, (3,), generator=generator(7, "order", 3)).tolist() == [1052455259, 986042137, 417541853]


def test_batches_of_an_evaluation_add_up():
    images = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), np.uint8)
    split = Split(images, np.arange(70) % 4, np.arange(70), torch.zeros(3), torch.full((3,), 255.0), torch.device("cpu"), None)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    assert tasks.evaluate_classifier(model, split, batch=30) == pytest.approx(tasks.evaluate_classifier(model, split, batch=70))
