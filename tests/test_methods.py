"""Losses, rules and schedules of single methods against numbers worked out by hand."""
import argparse
import json
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import parse, rows, run_script, same_weights
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from baselines import ema, lawa
from common import examples, models
from common.amp import autocast
from common.data import train_batches
from common.files import Refused
from common.log import read_rows, write_rows
from common.run import Run
from common.seeding import generator
from common.tasks import TASKS
from methods import (
    attention_transfer,
    born_again,
    cached_kd,
    curriculum,
    dash,
    data_prune,
    dkd,
    early_checkpoint,
    infobatch,
    layer_freeze,
    loss_replay,
    partial_kd,
    rho_loss,
    schedule_reuse,
    selective_backprop,
    shrink_perturb,
    similarity_kd,
    weight_average,
)

# Multiply-adds of ResNet-8 for one image, by hand: stem, three stages, head of 20 classes.
RESNET8 = 32 * 32 * 16 * 27 + 2 * 32 * 32 * 16 * 144 + 16 * 16 * 32 * (144 + 288 + 16) + 8 * 8 * 64 * (288 + 576 + 32) + 64 * 20


def args(**values) -> argparse.Namespace:
    return argparse.Namespace(**values)


def test_partial_kd_anneals_to_zero_at_until():
    fixed, falling = args(alpha=0.8, anneal=False, until=0.5), args(alpha=0.8, anneal=True, until=0.5)
    assert partial_kd.strength(0.4, fixed) == 0.8
    assert [partial_kd.strength(p, falling) for p in (0, 0.25, 0.5, 0.7)] == pytest.approx([0.8, 0.4, 0, 0])


def test_partial_kd_asks_at_its_share_of_the_steps(past, tmp_path):
    full = run_script("methods/kd", "--epochs", 2, "--seed", 1, "--past", past, "--results", tmp_path)
    scratch = run_script("baselines/scratch", "--epochs", 2, "--seed", 1, "--results", tmp_path)
    early = run_script("methods/partial_kd", "--epochs", 2, "--seed", 1, "--past", past, "--results", tmp_path,
                       "--share", 1, "--until", 0.5)
    flops = [rows(folder)[-1]["flops"] for folder in (scratch, early, full)]
    assert flops[1] - flops[0] == (flops[2] - flops[0]) / 2 > 0     # the teacher of half of the steps
    assert "train/kd" in rows(early)[1] and "train/kd" not in rows(early)[2]


    some = run_script("methods/partial_kd", "--epochs", 2, "--seed", 1, "--past", past, "--results", tmp_path, "--share", 0.3)
    steps, asked = rows(full)[-1]["steps"] // 2, 0
    for epoch in (1, 2):
        draw = torch.rand(320, generator=generator(1, "partial", epoch)).tolist()
        asked += sum(draw[step % 320] < 0.3 for step in range((epoch - 1) * steps, epoch * steps))
    assert 0 < asked < 2 * steps
    assert (rows(some)[-1]["flops"] - flops[0]) * 2 * steps == (flops[2] - flops[0]) * asked


def test_one_teacher_drawn_for_every_step_costs_as_much_as_one(past, tmp_path):
    argv = ["--epochs", 1, "--seed", 1, "--past", past, "--results", tmp_path]
    kd, mean, drawn = (rows(run_script(script, *argv, *more))[-1] for script, more in (
        ("methods/kd", []), ("methods/ensemble_distill", []), ("methods/ensemble_distill", ["--sample"])))
    assert drawn["flops"] == kd["flops"] < mean["flops"]
    assert len({drawn["train/kd"], kd["train/kd"], mean["train/kd"]}) == 3


def test_a_mean_of_teachers_of_different_classes_is_refused(past, tmp_path):
    some = run_script("baselines/scratch", "--epochs", 1, "--seed", 7, "--subset", "classes:10", "--results", tmp_path / "past")
    argv = ["--epochs", 0.5, "--seed", 1, "--past", past, some, "--results", tmp_path]
    with pytest.raises(Refused, match="add --sample"):
        run_script("methods/ensemble_distill", *argv)
    run_script("methods/ensemble_distill", *argv, "--sample")


def test_checkpoints_from_after_on_teach(tmp_path):
    past = run_script("baselines/scratch", "--epochs", 4, "--seed", 100, "--results", tmp_path / "past")    # keeps e1, e2, e3
    argv = ["--epochs", 0.5, "--seed", 1, "--results", tmp_path]
    plain, two, one = (rows(run_script(script, *argv, *more))[-1]["flops"] for script, more in (
        ("baselines/scratch", []), ("methods/checkpoint_ensemble", ["--past", past, "--after", 0.5]),
        ("methods/checkpoint_ensemble", ["--past", past, "--after", 0.75])))
    assert (two - plain) * 2 == (one - plain) * 3 > 0         # and the last weights besides
    with pytest.raises(Refused, match="Choose a smaller one"):
        run_script("methods/checkpoint_ensemble", *argv, "--past", past, "--after", 0.8)


def test_dkd_by_hand():
    """Three classes, T = 2: student (.5, .3, .2), teacher (.6, .1, .3), label 0."""
    student, teacher = torch.tensor([[0.5, 0.3, 0.2]]).log() * 2, torch.tensor([[0.6, 0.1, 0.3]]).log() * 2
    label, others = dkd.decoupled(student, teacher, torch.tensor([0]), 2.0)
    assert label.item() == pytest.approx(4 * (0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)), abs=1e-5)
    assert others.item() == pytest.approx(4 * (0.25 * math.log(0.25 / 0.6) + 0.75 * math.log(0.75 / 0.4)), abs=1e-5)
    # equation 7 of the paper: KL = TCKD + (1 - p of the label) NCKD
    kl = 4 * F.kl_div(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.6, 0.1, 0.3]]), reduction="sum")
    assert (label + 0.4 * others).item() == pytest.approx(kl.item(), abs=1e-5)


def test_born_again_terms_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.4, 0.5]])
    assert born_again.soft_cross_entropy(torch.tensor([[0.5, 0.25, 0.25]]).log(), p[:1]).item() == pytest.approx(
        -(0.7 * math.log(0.5) + 0.3 * math.log(0.25)), abs=1e-6)
    weighted = born_again.confidence_weighted(torch.tensor([2.0, 4.0]), p)      # confidences .7 and .5, mean .6
    assert weighted.tolist() == pytest.approx([2 * 0.7 / 0.6, 4 * 0.5 / 0.6])
    # the largest stays; the others go where smaller noise comes first
    assert born_again.permuted(p, torch.tensor([[0.9, 0.8, 0.3], [0.2, 0.6, 0.9]])).equal(
        torch.tensor([[0.7, 0.1, 0.2], [0.1, 0.4, 0.5]]))
    many = torch.rand(50, 10, generator=generator(0, "p")).softmax(1)
    shuffled = born_again.permuted(many, torch.rand(50, 10, generator=generator(0, "noise")))
    assert torch.equal(shuffled.argmax(1), many.argmax(1)) and torch.equal(shuffled.sort(1).values, many.sort(1).values)
    assert not torch.equal(shuffled, many)


def test_attention_by_hand():
    feature = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]]])      # mean squares 1, 0, 4, 0
    assert attention_transfer.attention(feature)[0].tolist() == pytest.approx([1 / math.sqrt(17), 0, 4 / math.sqrt(17), 0])
    other = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])        # attention 1, 0, 0, 0; another number of channels
    assert attention_transfer.difference(feature, other).item() == pytest.approx(
        ((1 / math.sqrt(17) - 1) ** 2 + 16 / 17) / 4)
    larger = other.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert attention_transfer.difference(feature, larger).item() == pytest.approx(
        attention_transfer.difference(feature, other).item())


def test_similarity_by_hand():
    feature = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 2, 1, 1)           # products (1, 1), (1, 2)
    expected = [[1 / math.sqrt(2), 1 / math.sqrt(2)], [1 / math.sqrt(5), 2 / math.sqrt(5)]]
    torch.testing.assert_close(similarity_kd.similarity(feature), torch.tensor(expected))
    other = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)             # no two alike: the identity
    squares = (torch.tensor(expected) - torch.eye(2)).pow(2)
    torch.testing.assert_close(similarity_kd.difference(feature, other).mean(), squares.sum() / 2 ** 2)


def test_cached_views_are_distinct_fixed_and_what_batches_show(past, tmp_path):
    chosen = cached_kd.choose(500, args(augment="crop-flip", views=3, seed=1))
    assert chosen.shape == (500, 3) and bool((chosen[:, 1:] > chosen[:, :-1]).all()) and chosen.unique().numel() > 150
    assert torch.equal(cached_kd.choose(9, args(augment="crop-flip", views=162, seed=1)), torch.arange(162).expand(9, 162))


def test_a_cache_is_charged_in_full_to_whoever_reads_it(past, tmp_path):
    argv = ["--seed", 1, "--past", past, "--results", tmp_path, "--views", 2]
    first = run_script("methods/cached_kd", "--epochs", 1, *argv)
    files = sorted((tmp_path / "cache").glob("*.npy"))
    made = files[0].stat().st_mtime_ns
    price = files[0].with_suffix(".json")
    assert json.loads(price.read_text())["seconds"] > 0
    price.write_text(json.dumps(json.loads(price.read_text()) | {"seconds": 1000.0}))
    second = run_script("methods/cached_kd", "--epochs", 2, *argv)
    seconds = json.loads((second / "summary.json").read_text())["seconds"]
    assert seconds["counted"] > seconds["preparation"] > 1000
    assert sorted((tmp_path / "cache").glob("*.npy")) == files and len(files) == 1 and files[0].stat().st_mtime_ns == made
    forward = rows(run_script("methods/kd", "--epochs", 1, *argv[:-2]))[-1]["flops"] - rows(
        run_script("baselines/scratch", "--epochs", 1, "--seed", 1, "--results", tmp_path))[-1]["flops"]
    assert forward == 2 * 320 * RESNET8                       # a teacher's pass
    for folder in (first, second):
        # two views of 320 images, and two images that say how large an output is; kd looks at 320 in an epoch
        assert rows(folder)[0]["flops"] == 2 * forward + 2 * forward // 320
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["reused"] == ["model"] and summary["past_bytes"] > 100_000
    table = np.load(files[0])
    assert table.shape == (320, 2, 20) and table.dtype == np.float16
    parsed = parse("methods/cached_kd", "--epochs", 1, *argv, "--tag", "again")
    run = Run(parsed)
    data = TASKS[parsed.task].load(parsed, run.device)
    views, teacher = cached_kd.choose(data.examples, parsed), run.past(data)[0].model(run.device)
    for _, batch in (pair for _ in run.epochs(1, data) for pair in train_batches(data.train, run, 1, views=views)):
        with torch.no_grad(), autocast(run.amp, run.device):
            expected = teacher(data.train.images(batch.index, views[batch.index, batch.view])).float()
            torch.testing.assert_close(teacher(batch.image).float(), expected)  # batches show what was cached, by its column
        found = torch.from_numpy(table[batch.index.numpy(), batch.view.numpy()]).float()
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.1)        # bf16 in batches of other sizes
    run.lock.close()


def test_shrink_perturb_by_hand():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[10.0, 20.0]]))
        model.bias.fill_(30)
    shrink_perturb.shrink_perturb(model, {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])},
                                  args(shrink=0.4, perturb=0.1))
    assert model.weight.tolist() == [pytest.approx([1.4, 2.8])] and model.bias.item() == pytest.approx(4.2)


def test_dash_by_hand():
    """Cosines .6, -1 and 1 of three kernels; lambda .3; a bias as one group."""
    model = nn.Sequential(nn.Conv2d(3, 1, (1, 2), bias=False), nn.Flatten(), nn.Linear(1, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]], [[3.0, 4.0]]]]))
        model[2].weight.copy_(torch.tensor([[5.0], [-5.0]]))
        model[2].bias.copy_(torch.tensor([1.0, 1.0]))
    negative = {"0.weight": torch.tensor([[[[0.6, 0.8]], [[0.0, -1.0]], [[6.0, 8.0]]]]),
                "2.weight": torch.tensor([[1.0], [1.0]]), "2.bias": torch.tensor([1.0, 0.0])}
    before = model[3].weight.clone()
    dash.shrink(model, negative, 0.3)
    assert model[0].weight.flatten().tolist() == pytest.approx([0.6, 0, 0, 0.6, 3, 4])
    assert model[2].weight.flatten().tolist() == pytest.approx([5, -1.5])
    assert model[2].bias.tolist() == pytest.approx([math.sqrt(0.5)] * 2) and torch.equal(model[3].weight, before)


def test_dash_averages_negative_gradients_of_chunks_the_newest_most(past, tmp_path):
    """One weight w = 0, loss (w - y)^2 / 2: gradients -y, summed over a chunk of two; the last chunk has one example."""
    parsed = parse("methods/dash", "--past", past, "--results", tmp_path, "--alpha", 0.3, "--chunk", 2, "--no-amp")
    run = Run(parsed)
    data = TASKS[parsed.task].load(parsed, run.device)
    model = nn.Bilinear(1, 1, 1, bias=False)                  # a weight, and any forward pass
    model.forward = lambda image: model.weight.expand(len(image), 1, 1).flatten()
    nn.init.zeros_(model.weight)
    value = torch.arange(data.examples, dtype=torch.float32)
    order = data.train.index[[4, 9, 2, 7, 5]]
    index = iter([order[:2], order[2:4], order[4:]])
    task = argparse.Namespace(loss=lambda output, target: (output - value[next(index)]).pow(2) / 2)
    found = dash.gradients(lambda f, *given: f(*given), model, data, order, task, parsed, run)["weight"].squeeze()
    first, second, third = value[order[:2]].sum(), value[order[2:4]].sum(), 2 * value[order[4]]
    torch.testing.assert_close(found, 0.7 * 0.7 * 0.3 * first + 0.7 * 0.3 * second + 0.3 * third)
    run.lock.close()


def test_dash_pays_for_one_pass(past, tmp_path):
    folder = run_script("methods/dash", "--epochs", 1, "--seed", 1, "--past", past, "--results", tmp_path)
    assert rows(folder)[1]["flops"] == 2 * rows(folder)[0]["flops"] > 0         # an epoch of training, after a pass like it


def test_early_checkpoint_takes_the_nearest():
    kept = {"e1": 0.125, "e2": 0.25, "e4": 0.5, "e6": 0.75}
    assert [early_checkpoint.nearest(kept, at) for at in (0, 0.2, 0.6, 0.8, 1)] == ["e1", "e2", "e4", "e6", None]
    with pytest.raises(Refused, match="0.125, 0.25, 0.5, 0.75"):
        early_checkpoint.nearest(kept, 0.9)


def test_matching_undoes_a_permutation():
    """A network with its neurons permuted is the same function, and weight matching finds the permutation."""
    model = models.build("resnet20", 10, generator(0, "weights"), torch.device("cpu")).eval()
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups, image = weight_average.neurons(model), torch.randn(2, 3, 32, 32, generator=generator(0, "image"))
    expected, permuted = model(image), dict(original)
    assert len(groups) == 9 + 3                               # inside each block, and what flows between them at each width
    for number, axes in enumerate(groups.values()):
        size = next(permuted[name].shape[axis] for name, axis in axes.items())
        order = torch.randperm(size, generator=generator(number, "permute"))
        permuted |= {name: permuted[name].index_select(axis, order) for name, axis in axes.items()}
    model.load_state_dict(permuted)
    torch.testing.assert_close(model(image), expected)        # the groups name all axes that belong together
    asked = []                                                # what costs FLOPs goes through the clock's call
    found = weight_average.match(lambda f, *given: asked.append(f) or f(*given), original, permuted, groups, seed=0)
    assert set(asked) == {torch.matmul} and len(asked) >= 12
    assert all(torch.equal(found[name], original[name]) for name in original)
    with pytest.raises(Refused, match="leave --match out"):
        weight_average.neurons(nn.Linear(1, 1))


@pytest.mark.parametrize("options", [[], ["--match"]])
def test_weight_average_runs_from_the_mean(options, past, tmp_path):
    argv = ["--epochs", 0.5, "--past", past, "--results", tmp_path, "--refresh", 2, *options]
    folder = run_script("methods/weight_average", *argv)
    assert rows(folder)[0]["flops"] > 0 and np.isfinite(rows(folder)[0]["test/loss"])
    if not options:                                           # batch norm's scales move least in five steps: near the mean still
        mean, own = (torch.stack([torch.load(path, weights_only=True)["head.weight"] for path in paths]).mean(0) for paths in (
            sorted(past.rglob("final.pt")), sorted(past.rglob("final.pt"))[:1]))
        assert len(sorted(past.rglob("final.pt"))) > 1 and not torch.allclose(mean, own)
        frozen = run_script("methods/weight_average", *argv, "--lr", 1e-9, "--tag", "still")
        torch.testing.assert_close(torch.load(frozen / "final.pt", weights_only=True)["head.weight"], mean)


def test_layers_freeze_one_after_the_other(past, tmp_path):
    model = models.build("resnet8", 10, generator(0, "weights"), torch.device("cpu"))
    assert layer_freeze.groups(model) == [[model.conv, model.bn, model.stage1], [model.stage2], [model.stage3]]
    chosen = args(first=0.25, last=0.75)
    assert [layer_freeze.count_frozen(p, 5, chosen) for p in (0, 0.25, 0.375, 0.5, 0.74, 0.75, 1)] == [0, 1, 2, 3, 4, 5, 5]
    folder = run_script("methods/layer_freeze", "--epochs", 2, "--seed", 1, "--past", past, "--results", tmp_path,
                        "--first", 0.5, "--last", 0.5)
    first, second = rows(folder)[1]["flops"], rows(folder)[2]["flops"] - rows(folder)[1]["flops"]
    assert second < 0.4 * first                               # only the head learns: no backward pass through the trunk
    weights = torch.load(folder / "final.pt", weights_only=True)
    before = torch.load(folder / "checkpoints" / "e1.pt", weights_only=True)
    same = {name for name in weights if torch.equal(weights[name], before[name])}
    assert set(weights) - same == {"head.weight", "head.bias"}


def test_selective_backprop_by_hand():
    loss = torch.tensor([0.1, 9.0, 0.3, 0.2, float("nan"), 0.4])
    index = torch.tensor([0, 2, 3, 4, 5])                     # example 1 is not in use
    chance = selective_backprop.chances(loss, index, beta=2.0)
    assert chance[index].tolist() == pytest.approx([0.25 ** 2, 0.75 ** 2, 0.5 ** 2, 1, 1])


def test_infobatch_by_hand():
    scores = torch.tensor([1.0, 1.0, 1.0, 1.0, 6.0, 8.0, float("inf")])         # mean of the known ones 3: four below
    keep, weight = infobatch.prune(scores, torch.arange(7), 0.5, generator(0, "prune"))
    assert keep[:4].sum() == 2 and keep[4:].all()
    assert weight[keep].tolist() == [2, 2, 1, 1, 1]           # 1 / (1 - r), so that the expected gradient stays the same
    keep, weight = infobatch.prune(scores, torch.arange(7), 0.25, generator(0, "prune"))
    assert keep[:4].sum() == 3 and weight[keep].tolist() == pytest.approx([4 / 3] * 3 + [1] * 3)
    keep, weight = infobatch.prune(scores, torch.arange(7), 0.0, generator(0, "prune"))
    assert keep.all() and torch.equal(weight, torch.ones(7))


def test_infobatch_passes_over_all_at_the_end(past, tmp_path):
    folder = run_script("methods/infobatch", "--epochs", 4, "--seed", 1, "--past", past, "--results", tmp_path)
    steps = np.diff([row["steps"] for row in rows(folder)])
    assert (steps[:3] < 10).all() and steps[3] >= 10          # the last epoch's middle is at 3.5 of 4: .875


def test_forgetting_and_pruning_by_hand():
    unseen = float("nan")
    correct = torch.tensor([[1.0, 0, 0, 1, unseen, 1], [0, 0, 1, 1, unseen, unseen], [1, 0, 0, 1, unseen, 0],
                            [0, 0, 1, 1, unseen, 0]])
    events = data_prune.forgetting(correct)
    assert events[:4].tolist() == [2, 4, 1, 0] and events[4].isnan()            # never learnt counts most: 4 epochs
    assert events[5] == 1                                     # forgotten over an epoch in which it was not shown
    past = argparse.Namespace(seed=100, examples=lambda name, every_epoch: correct.repeat(1, 20))
    drawn = data_prune.score(past, "forgetting")
    assert len({tuple(drawn[i::6].argsort().tolist()) for i in range(4)}) == 4  # ties by lot, counts in their order
    assert torch.equal(drawn.nan_to_num(9).round(), events.repeat(20).nan_to_num(9))
    assert data_prune.highest(events, torch.arange(5), 0.4).tolist() == [0, 1, 4]
    assert data_prune.highest(events, torch.tensor([0, 2, 3]), 0.34).tolist() == [0, 2]


def test_rho_loss_keeps_what_is_learnable_and_not_yet_learnt():
    loss, irreducible = torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([0.0, 0.0, 1.5, 4.5])
    assert rho_loss.select(loss, irreducible, 2).tolist() == [0, 1]             # by loss alone it would be 3 and 0


def test_loss_replay_by_hand():
    loss, index = torch.tensor([0.1, 5.0, 0.2, float("nan"), float("nan"), 0.3, 9.0, 0.4]), torch.tensor([0, 1, 2, 3, 4, 5, 7])
    chosen = args(share=4 / 7, hardest=2 / 7, seed=0)         # of 7, example 6 not in use, 2 are hard and fill 4 places
    drawn = [loss_replay.replay(index, loss, chosen, epoch) for epoch in range(1, 43)]
    counts = torch.stack([found.bincount(minlength=8) for found in drawn])
    assert (counts.sum(1) == 7).all() and (counts[:, 6] == 0).all()
    assert (counts[:, [3, 4]] >= 2).all() and (counts <= 4).all()               # never seen counts as hardest: twice, and by lot
    easy = counts[:, [0, 1, 2, 5, 7]]
    assert easy.sum(0).tolist() == [18] * 5                   # 42 x 3 places are 18 passes over all seven
    assert (easy[0] + easy[1] + easy[2] >= 1).all() and (easy[:, 0] == 0).any()
    one = torch.stack([loss_replay.replay(index, loss, args(share=4 / 7, hardest=1 / 7, seed=0), epoch).bincount(minlength=8)
                       for epoch in range(1, 41)])
    assert (one[:, [3, 4]].max(1).values >= 4).all() and (one[:, 3] >= 4).any() and (one[:, 4] >= 4).any()      # which, by lot


def test_rho_loss_charges_for_its_past_runs_and_needs_unseen_examples(past, folds, tmp_path):
    folder = run_script("methods/rho_loss", "--epochs", 1, "--seed", 1, "--past", folds, "--results", tmp_path)
    scratch = run_script("baselines/scratch", "--epochs", 1, "--seed", 1, "--results", tmp_path)
    theirs = sum(rows(path.parent)[-1]["flops"] for path in folds.rglob("config.json"))
    summary, *past_ones = (json.loads(path.read_text()) for path in (folder / "summary.json", *folds.rglob("summary.json")))
    assert summary["seconds"]["preparation"] > sum(one["seconds"]["counted"] for one in past_ones)
    epoch = rows(scratch)[1]["flops"]
    scoring = rows(folder)[0]["flops"] - theirs               # a forward pass over 320 examples
    by_hand = 2 * 320 * RESNET8                                # each example under the one that has not seen it
    assert scoring == by_hand < 0.4 * epoch
    assert rows(folder)[1]["flops"] - rows(folder)[0]["flops"] == pytest.approx(scoring + epoch / 2, rel=1e-6)
    with pytest.raises(Refused, match="not:1/5"):
        run_script("methods/rho_loss", "--epochs", 1, "--past", past, "--results", tmp_path / "other")
    started = run_script("baselines/warm_start", "--epochs", 1, "--past", past, "--subset", "not:1/2", "--results", tmp_path)
    with pytest.raises(Refused, match="has itself reused"):
        run_script("methods/rho_loss", "--epochs", 1, "--past", started, "--results", tmp_path / "other")


def test_dkd_asks_its_teacher_until_it_is_told_to_stop(past, tmp_path):
    argv = ["--epochs", 1, "--seed", 1, "--results", tmp_path]
    never = run_script("methods/dkd", *argv, "--past", past, "--until", 0)
    assert same_weights(never, run_script("baselines/scratch", *argv))
    half, whole = (json.loads((run_script("methods/dkd", *argv, "--past", past, *more) / "summary.json").read_text())
                   for more in (["--until", 0.5], []))
    plain = json.loads((never / "summary.json").read_text())["flops"]["training"]
    assert 2 * (half["flops"]["training"] - plain) == whole["flops"]["training"] - plain > 0


def test_curriculum_by_hand():
    loss, index = torch.tensor([0.5, 0.1, float("nan"), 0.2, 0.3]), torch.arange(5)
    chosen = args(start=0.4, full=0.5, seed=0)
    first = [curriculum.pool(index, loss, 0, chosen, epoch).tolist() for epoch in range(1, 30)]
    assert {tuple(sorted(pool)) for pool in first} == {(1, 1, 1, 3, 3), (1, 1, 3, 3, 3)}         # two fill it; who thrice, by lot
    fourth = curriculum.pool(index, loss, 0.25, chosen, 1).tolist()             # 70 % of 5, rounded to 4
    assert set(fourth) == {0, 1, 3, 4} and len(fourth) == 5
    assert sorted(curriculum.pool(index, loss, 0.5, chosen, 1).tolist()) == [0, 1, 2, 3, 4]


def test_examples_of_partly_seen_epochs(tmp_path):
    nan = float("nan")
    examples.write_epoch(tmp_path, 1, {"loss": torch.tensor([1, nan, nan]), "correct": torch.tensor([1, nan, nan])})
    examples.write_epoch(tmp_path, 2, {"loss": torch.tensor([3, 5, nan]), "correct": torch.tensor([0, 1, nan]),
                                       "kd": torch.tensor([nan, 2, nan])})
    for slim, wanted in ((False, {"loss": [[1, nan, nan], [3, 5, nan]], "kd": [[nan] * 3, [nan, 2, nan]]}),
                         (True, {"loss.mean": [[2, 5, nan]], "kd.mean": [[nan, 2, nan]]})):
        examples.merge(tmp_path, 3, slim)
        with np.load(tmp_path / "examples.npz") as found:
            assert set(found.files) == {*wanted, "correct"} and found["correct"].shape == (2, 3)
            assert all(np.array_equal(found[name], table, equal_nan=True) for name, table in wanted.items())


def test_what_was_never_seen_counts_highest_in_an_order_by_lot():
    table = torch.tensor([0.5, float("nan"), 7.0, float("nan"), float("nan")])
    drawn = [examples.unseen_highest(table, generator(0, "unseen", epoch)) for epoch in range(30)]
    assert all(row[[0, 2]].tolist() == [0.5, 7.0] and row[[1, 3, 4]].min() > 7 for row in drawn)
    assert len({tuple(row.argsort().tolist()) for row in drawn}) == 6          # every order of the three


def test_schedule_begins_where_the_loss_had_fallen():
    table = [{"epoch": 1, "train/loss": 4.0}, {"epoch": 2, "train/loss": 3.0}, {"epoch": 4, "train/loss": 1.0}]
    # 5 before training, 4 in the middle of epoch 1, 3 in that of epoch 2
    assert schedule_reuse.beginning(5.0, table, 0.125) == pytest.approx(0.25 / 4)
    assert schedule_reuse.beginning(5.0, table, 0.25) == pytest.approx(0.5 / 4)
    assert schedule_reuse.beginning(5.0, table, 0.375) == pytest.approx(1 / 4)
    assert schedule_reuse.beginning(5.0, table, 0) == 0
    part = [{"epoch": 0.2, "train/loss": 4.0}]                # its middle is at .1 of .2: all of the fall is made by then
    assert schedule_reuse.beginning(5.0, part, 0.5) == pytest.approx(0.25)
    rising = [{"epoch": 1, "train/loss": 6.0}, {"epoch": 2, "train/loss": 4.0}]
    assert schedule_reuse.beginning(5.0, rising, 0) == 0 and schedule_reuse.beginning(5.0, rising, 0.5) == pytest.approx(1.25 / 2)


def test_schedule_takes_the_best_past_runs_settings_unless_told(tmp_path):
    for seed, lr, loss in ((100, 0.2, 2.5), (101, 0.001, 1.5)):
        folder = run_script("baselines/scratch", "--epochs", 2, "--lr", lr, "--seed", seed, "--results", tmp_path / "past")
        write_rows(folder, [*read_rows(folder)[:-1], read_rows(folder)[-1] | {"train/loss": loss}])
    argv = ["--epochs", 1, "--past", tmp_path / "past", "--results", tmp_path]
    folders = [run_script("methods/schedule_reuse", *argv), run_script("methods/schedule_reuse", *argv, "--lr", 0.05)]
    assert [json.loads((f / "config.json").read_text())["args"]["lr"] for f in folders] == [0.001, 0.05]
    assert json.loads((folders[0] / "summary.json").read_text())["reused"] == ["curve"]


def test_a_learning_rate_comes_with_its_batch_size(tmp_path):
    for seed, lr, size, loss in ((100, 0.2, 32, 2.5), (101, 0.001, 16, 1.5)):
        folder = run_script("baselines/scratch", "--epochs", 1, "--lr", lr, "--batch-size", size, "--seed", seed,
                            "--results", tmp_path / "past")
        write_rows(folder, [*read_rows(folder)[:-1], read_rows(folder)[-1] | {"train/loss": loss}])
    folder = run_script("methods/schedule_reuse", "--epochs", 1, "--past", tmp_path / "past", "--results", tmp_path)
    args = json.loads((folder / "config.json").read_text())["args"]
    assert (args["lr"], args["batch_size"]) == (0.001, 16)


def test_schedule_compares_runs_of_one_task(past, tmp_path):
    pixels = run_script("baselines/scratch", "--task", "shapes-seg", "--epochs", 1, "--results", tmp_path / "pixels")
    with pytest.raises(Refused, match="runs of several tasks"):
        run_script("methods/schedule_reuse", "--task", "shapes", "--epochs", 1, "--past", past, pixels, "--results", tmp_path)


def test_schedule_passes_over_a_failed_trial(tmp_path):
    trial = ["--epochs", 1, "--holdout", 0.1, "--results", tmp_path / "search"]
    done, failed = (run_script("baselines/scratch", *trial, "--lr", lr, "--seed", seed) for lr, seed in ((0.2, 1), (0.1, 2)))
    (failed / "summary.json").unlink()
    write_rows(failed, read_rows(failed)[:1])                 # it diverged in its first epoch
    folder = run_script("methods/schedule_reuse", *trial, "--seed", 3, "--pick", "best", "--past", done, failed)
    assert json.loads((folder / "config.json").read_text())["args"]["lr"] == 0.2


def test_lawa_is_the_mean_of_the_last_snapshots(tmp_path):
    folder = run_script("baselines/lawa", "--epochs", 1, "--seed", 1, "--results", tmp_path, "--snapshots", 2, "--apart", 0)
    last = run_script("baselines/lawa", "--epochs", 1, "--seed", 1, "--results", tmp_path, "--snapshots", 1, "--apart", 0)
    assert not torch.equal(*(torch.load(f / "final.pt", weights_only=True)["head.weight"] for f in (folder, last)))
    model, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    snapshots = torch.stack([lawa.flat(model), lawa.flat(model) + 1])
    lawa.set_mean(average, model, snapshots)
    assert average.weight.tolist() == [1.5, 1.5] and average.running_mean.tolist() == [0.5, 0.5]


def test_lawa_killed_before_its_summary_keeps_the_mean(tmp_path, monkeypatch):
    argv = ["--epochs", 1, "--seed", 1, "--snapshots", 3, "--apart", 0.1]
    calm = run_script("baselines/lawa", *argv, "--results", tmp_path / "calm")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        def interrupted(run, model):
            run.lock.close()
            raise KeyboardInterrupt
        patched.setattr(Run, "finish", interrupted)
        run_script("baselines/lawa", *argv, "--results", tmp_path / "killed")
    assert same_weights(calm, run_script("baselines/lawa", *argv, "--results", tmp_path / "killed"))


def test_lawa_without_a_snapshot_is_the_model(tmp_path):
    argv = ["--epochs", 0.5, "--seed", 1, "--results", tmp_path]
    assert same_weights(run_script("baselines/lawa", *argv, "--apart", 1, "--batch-size", 60),
                        run_script("baselines/scratch", *argv, "--batch-size", 60))


def test_arguments_refuse_what_makes_no_sense(past, capsys):
    for script, option, value in (("methods/cached_kd", "--views", 163), ("methods/dkd", "--beta", -1),
                                  ("methods/infobatch", "--ratio", 1.5), ("methods/born_again", "--term", "kd")):
        with pytest.raises(SystemExit):
            parse(script, "--past", past, option, value)
        assert option in capsys.readouterr().err


def test_ema_follows_as_torch_s_does():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    mine, theirs = deepcopy(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    for number in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator(number, "ema")))
            model(torch.randn(4, 3, 8, 8, generator=generator(number, "image")))           # batch norm's statistics move
        ema.follow(mine, model, 0.25 if number else 1)
        theirs.update_parameters(model)
    theirs = theirs.module.state_dict() | {"1.num_batches_tracked": torch.tensor(4)}        # which it averages as well
    assert all(torch.equal(value, theirs[name]) for name, value in mine.state_dict().items())


def test_dash_takes_what_the_past_run_has_not_seen_last(tmp_path, monkeypatch):
    past = run_script("baselines/scratch", "--epochs", 1, "--seed", 100, "--subset", "half", "--results", tmp_path / "past")
    asked = []
    monkeypatch.setattr(dash, "gradients", lambda call, model, data, order, *more: asked.append(order) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_script("methods/dash", "--epochs", 1, "--past", past, "--results", tmp_path)
    with np.load(past / "examples.npz") as file:
        new = np.isnan(file["loss"]).all(0)[asked[0].numpy()]
    assert len(new) == 320 and not new[:160].any() and new[160:].all()


def test_refreshed_statistics_are_plain_means_over_the_batches():
    model = nn.Sequential(nn.BatchNorm2d(2))
    model(torch.randn(8, 2, 3, 3))                            # a history that must not show
    batches = [argparse.Namespace(image=torch.randn(4, 2, 3, 3, generator=generator(k, "image"))) for k in range(3)]
    weight_average.refresh(lambda function, *given: function(*given), model, batches)
    means, variances = (torch.stack(values).mean(0) for values in (
        [batch.image.mean((0, 2, 3)) for batch in batches],
        [batch.image.transpose(0, 1).flatten(1).var(1) for batch in batches]))
    torch.testing.assert_close(model[0].running_mean, means)
    torch.testing.assert_close(model[0].running_var, variances)
    assert model[0].momentum == 0.1


def test_pruning_scores_by_all_past_runs(past, tmp_path):
    """What is left out is what the mean over runs says, and no one run alone says the same."""
    folder = run_script("methods/data_prune", "--prune", 0.5, "--epochs", 1, "--seed", 1, "--past", past, "--results", tmp_path)
    with np.load(folder / "examples.npz") as file:
        kept = ~np.isnan(file["loss"][0])
    one = run_script("methods/data_prune", "--prune", 0.5, "--epochs", 1, "--seed", 1, "--past", next(past.rglob("seed101")),
                     "--results", tmp_path / "one")
    with np.load(one / "examples.npz") as file:
        assert kept.sum() == 160 and (kept != ~np.isnan(file["loss"][0])).any()
