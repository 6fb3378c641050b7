"""Detection: targets, losses and scores against numbers worked out by hand, views against drawn rectangles, files of boxes."""
import math
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import tensor

from common import boxfiles, shapes
from common.boxes import mean_average_precision, shifted
from common.data import Split
from common.dense import build_detector
from common.detection import (
    decode,
    detection_distill,
    detection_loss,
    detection_mean,
    detection_stats,
    heat,
)
from common.files import Refused
from common.seeding import generator

PADDING = [-1, 0, 0, 0, 0, 0]
POINT = [0, 0, 0, 4, 4, 0]                                    # one cell, whose radius is 0: sqrt(1.4^2 + .84) - 1.4 = 0.27


def boxes(*rows):
    """One image's target [1, M, 6]."""
    return tensor([rows], dtype=torch.float32)


def test_heat_of_one_box():
    found = heat(boxes([1, 4, 8, 44, 48, 0]), 2, 16, 16)[0]   # 10 x 10 cells, centre at column 6, row 7
    radius, sigma = 2, 5 / 6                                  # sqrt((.7 x 20)^2 + 4 x .7 x .3 x 100) - .7 x 20 = 2.73
    expected = torch.zeros(2, 16, 16)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            expected[1, 7 + dy, 6 + dx] = math.exp(-(dy ** 2 + dx ** 2) / (2 * sigma ** 2))
    assert torch.allclose(found, expected, atol=1e-6)
    assert found[1, 7, 6] == 1 and (found == 1).sum() == 1 and found[1, 7, 7].item() == pytest.approx(math.exp(-0.72))


def test_heat_where_boxes_meet_and_where_they_do_not():
    target = boxes([0, 4, 8, 44, 48, 0], [0, 28, 28, 32, 32, 0], PADDING, [0, 40, 40, 60, 60, 1], [1, 0, 0, 80, 16, 0])
    found = heat(target, 2, 16, 20)[0]
    alone = heat(target[:, :1], 2, 16, 20)[0]
    assert found[0, 7, 7] == 1 and alone[0, 7, 7] < 0.5       # a point within the other's Gaussian
    alone[0, 7, 7] = 1
    assert torch.equal(found[0], alone[0])                    # neither padding nor a difficult box, and no other class
    wide = [[math.exp(-2 * (dy ** 2 + dx ** 2)) for dx in (-1, 0, 1)] for dy in (-1, 0, 1)]     # 20 x 4 cells: radius 1, sigma .5
    assert torch.allclose(found[1, 1:4, 9:12], tensor(wide)) and (found[1] > 0).sum() == 9


def first_radius(height, width, overlap=0.7):
    """The least of CornerNet's three, as its first code and CenterNet's have them."""
    total, area = height + width, height * width
    cases = ((1, total, area * (1 - overlap) / (1 + overlap)), (4, 2 * total, (1 - overlap) * area),
             (4 * overlap, -2 * overlap * total, (overlap - 1) * area))
    return int(min((b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in cases))


def random_boxes(n, m, side, classes, seed=0):
    """Targets [n, m, 6] of a side of `side` pixels, the last third of the rows padding, some of the others difficult."""
    rng = np.random.default_rng(seed)
    found = np.zeros((n, m, 6), np.float32)
    low, size = rng.uniform(0, 0.8 * side, (n, m, 2)), rng.uniform(1, side, (n, m, 2))
    found[..., 0], found[..., 5] = rng.integers(0, classes, (n, m)), rng.random((n, m)) < 0.2
    found[..., 1:3], found[..., 3:5] = low, np.minimum(low + size, side)
    found[:, m - m // 3:] = PADDING
    return torch.from_numpy(found)


def slow_heat(target, classes, h, w):
    wanted, centers = torch.zeros(len(target), classes, h, w), []
    for b, rows in enumerate(target.tolist()):
        for kind, x0, y0, x1, y1, difficult in rows:
            if kind < 0 or difficult:
                continue
            width, height, x, y = (x1 - x0) / 4, (y1 - y0) / 4, (x0 + x1) / 8, (y0 + y1) / 8
            column, row, radius = int(x), int(y), first_radius(math.ceil(height), math.ceil(width))
            centers.append((b, int(kind), column, row, tensor([width, height, x - column, y - row])))
            for i in range(max(0, row - radius), min(h, row + radius + 1)):
                for j in range(max(0, column - radius), min(w, column + radius + 1)):
                    value = math.exp(-((i - row) ** 2 + (j - column) ** 2) * 18 / (2 * radius + 1) ** 2)
                    wanted[b, int(kind), i, j] = max(wanted[b, int(kind), i, j].item(), value)
    return wanted, centers


def test_heat_and_loss_equal_their_loops():
    target, output = random_boxes(4, 9, 96, 3), torch.randn(4, 7, 24, 24, generator=torch.Generator().manual_seed(0))
    wanted, centers = slow_heat(target, 3, 24, 24)
    assert torch.allclose(heat(target, 3, 24, 24), wanted, atol=1e-6)
    p = output[:, :3].double().sigmoid()
    others = target.clone()
    others[..., 5] = 1 - others[..., 5]
    passed, _ = slow_heat(others, 3, 24, 24)                  # of difficult boxes
    terms = torch.where(wanted == 1, (1 - p) ** 2 * p.log(), (1 - wanted) ** 4 * p ** 2 * (1 - p).log())
    assert ((passed > 0) & (wanted < 1)).sum() > 50
    total = -torch.where((passed > 0) & (wanted < 1), 0, terms).sum((1, 2, 3))
    for b, _, column, row, box in centers:
        away = (output[b, 3:, row, column] - box).abs()
        total[b] += 0.1 * away[:2].sum() + away[2:].sum()
    found = detection_loss(output, target, per_image=3.0)
    assert torch.allclose(found.double(), total / 3, rtol=1e-5)
    alone = [detection_loss(output[b:b + 1], target[b:b + 1], 3.0) for b in range(4)]       # whatever lies beside it
    assert torch.allclose(torch.cat(alone), found, rtol=1e-6)


def two_cells():
    """Output [1, 5, 1, 2] of one class: probabilities 1/2 and 3/4; at the first cell 3 x 0.5 cells, offset (0.25, 0.9)."""
    return tensor([[0, math.log(3)], [3, 70], [0.5, 80], [0.25, 90], [0.9, 60]])[None, :, None]


def test_loss_of_two_cells():
    hit, miss = 0.5 ** 2 * math.log(2), 0.75 ** 2 * math.log(4)     # -(1-p)^2 log p at the centre, -p^2 log(1-p) beside it
    away = 0.1 * (2 + 0.5) + (0.25 + 0.4)                     # the box is 1 x 1 cells, its centre at (0.5, 0.5)
    output = two_cells()
    assert detection_loss(output, boxes(POINT)).tolist() == pytest.approx([hit + miss + away])
    assert detection_loss(output, boxes(POINT, POINT, PADDING)).tolist() == pytest.approx([hit + miss + 2 * away])
    none = 0.5 ** 2 * math.log(2) + miss
    both = detection_loss(output.repeat(2, 1, 1, 1), torch.cat([boxes(*[POINT] * 4), boxes(*[PADDING] * 4)]), 2.0)
    assert both.tolist() == pytest.approx([(hit + miss + 4 * away) / 2, none / 2])
    assert detection_loss(output, boxes([*POINT[:5], 1])).tolist() == pytest.approx([miss])           # difficult: not looked at


def test_difficult_boxes_are_neither_wanted_nor_punished():
    output = torch.zeros(1, 6, 1, 4).requires_grad_()         # two classes of probability 1/2, in four cells
    cells = 0.25 * math.log(2)
    hard = [0, 4, 0, 8, 4, 1]
    nan = [-1, *[math.nan] * 5]
    alone = detection_loss(output, boxes(hard, nan))          # one of eight is left out, the other class's stays
    assert alone.tolist() == pytest.approx([7 * cells])
    grad, = torch.autograd.grad(alone.sum(), output)
    assert (grad[0, :2] == 0).nonzero().tolist() == [[0, 0, 1]] and (grad[0, 2:] == 0).all()
    beside = boxes(hard, [0, 8, 0, 12, 4, 0])                 # an object beside it: its cell is a hit, with the box's 1 and 1
    assert detection_loss(output, beside).tolist() == pytest.approx([7 * cells + 0.2 + 1])
    same = boxes(hard, [*hard[:5], 0])                        # in the same cell: a hit all the same
    assert detection_loss(output, same).tolist() == pytest.approx([8 * cells + 0.2 + 1])
    el2n = [detection_stats(output, target)["el2n"].item() for target in (boxes(hard, nan), beside, same)]
    assert el2n == pytest.approx([math.sqrt(7 / 4), math.sqrt(7 / 4), math.sqrt(8 / 4)])
    wide = boxes([0, -16, -20, 24, 20, 1])                    # 10 x 10 cells about column 1: the neighbours' heat is above 0, too
    assert detection_loss(output, wide).tolist() == pytest.approx([4 * cells])          # radius 2: of four cells, all


def test_loss_beside_a_centre_is_reduced():
    target = boxes([0, -16, -20, 24, 20, 0])                  # 10 x 10 cells about column 1, row 0: its neighbours have exp(-.72)
    output = torch.zeros(1, 5, 1, 3)
    output[0, 1:, 0, 1] = tensor([10, 10, 0, 0])              # centre (1, 0): no offset
    expected = 0.25 * math.log(2) * (1 + 2 * (1 - math.exp(-0.72)) ** 4)
    assert detection_loss(output, target).tolist() == pytest.approx([expected])


def test_no_gradient_comes_from_padding_and_none_is_lost_at_the_extremes():
    output = two_cells().requires_grad_()
    nan = [-1, *[math.nan] * 5]
    detection_loss(output, boxes(nan, nan)).sum().backward()
    assert (output.grad[0, 1:] == 0).all() and output.grad[0, 0].isfinite().all()
    alone, = torch.autograd.grad(detection_loss(output, boxes(POINT)).sum(), output)
    padded, = torch.autograd.grad(detection_loss(output, boxes(nan, POINT, PADDING)).sum(), output)
    assert torch.equal(alone, padded) and (alone[0, 1:, 0, 0] != 0).all() and (alone[0, 1:, 0, 1] == 0).all()
    far = tensor([[-6e4, 6e4], *[[0, 0]] * 4], dtype=torch.float16)[None, :, None].requires_grad_()     # wrong in both cells
    loss = detection_loss(far, boxes(POINT))
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(2 * 6e4 + 0.2 + 1, abs=0.01)
    assert far.grad[0, 0, 0].tolist() == [-1, 1]              # the other way: more there, less here


def cell(*values):
    """Output [1, 5, 1, 1]."""
    return tensor(values, dtype=torch.float32).view(1, 5, 1, 1)


KL = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)      # of Bernoulli 3/4 from 1/2


def test_distill_of_one_cell():
    student = cell(0, 1, 2, 0.5, 0.25)
    away = 0.1 * (1 + 2) + 0.5 + 0.25
    found = detection_distill(student, cell(math.log(3), 0, 0, 0, 0), 1)    # the largest there is, so an object: weight 1
    assert found.tolist() == pytest.approx([KL + away])
    soft = cell(2 * math.log(3), 0, 0, 0, 0)                  # at temperature 2 it is 3/4 again
    assert detection_distill(student, soft, 2).tolist() == pytest.approx([4 * KL + away])
    both = soft[:, [0, 0, 1, 2, 3, 4]]                        # two objects, one box
    found = detection_distill(student[:, [0, 0, 1, 2, 3, 4]], both, 2)
    assert found.tolist() == pytest.approx([8 * KL + away])
    assert detection_distill(student[:, [0, 0, 1, 2, 3, 4]], both, 2, 2.0).tolist() == pytest.approx([4 * KL + away / 2])
    low = cell(math.log(0.1 / 0.9), 0, 0, 0, 0)               # .1 is no object: weight 1/4, the student's, and no box
    nothing = 0.25 * (0.1 * math.log(0.1 / 0.5) + 0.9 * math.log(0.9 / 0.5))
    assert detection_distill(student, low, 1).tolist() == pytest.approx([nothing])
    nearly = cell(math.log(0.2 / 0.8), 0, 0, 0, 0)            # nor is .2: weight (2/3)^2, the teacher's, and no box
    almost = (0.2 / 0.3) ** 2 * (0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5))
    assert detection_distill(student, nearly, 1).tolist() == pytest.approx([almost])
    images = [torch.cat(two) for two in ([student] * 4, [low, soft, soft, soft])]
    assert detection_distill(*images, 1).sum().item() == pytest.approx(nothing + 3 * detection_distill(student, soft, 1).item())


def test_distill_of_an_object_and_what_is_beside_it():
    """Cells [1, 5, 1, 4] of which the teacher has .8 .4 .1 and, two away from the first, another object of .5."""
    teacher, student = (torch.zeros(1, 5, 1, 4) for _ in range(2))
    p, q = tensor([0.8, 0.4, 0.1, 0.5]), tensor([0.3, 0.3, 0.6, 0.3])
    teacher[0, 0, 0], student[0, 0, 0], student[0, 1] = p.logit(), q.logit(), 10
    weight = tensor([1, (0.4 / 0.8) ** 2, 0.6 ** 2, 1])       # a peak, relative to the largest, the student's own, a peak
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert detection_distill(student, teacher, 1).item() == pytest.approx((weight * kl).sum().item() + 2 * 0.1 * 10)
    fainter = teacher.clone()                                 # an unsure teacher's objects count no less
    fainter[0, 0, 0] = (p / 2).logit()
    faint = p / 2 * (p / 2 / q).log() + (1 - p / 2) * ((1 - p / 2) / (1 - q)).log()
    assert detection_distill(student, fainter, 1).item() == pytest.approx((weight * faint).sum().item() + 2 * 0.1 * 10)


@pytest.mark.parametrize("peak", [0.9, 0.6, 0.4])             # of a teacher that is sure, and of some that are not
@pytest.mark.parametrize("background", [0.1, 0.01])           # of a student that is not trained, of one that has learned that
@pytest.mark.parametrize("temperature", [1, 4])
def test_distill_pulls_at_the_objects_as_the_labels_do(background, temperature, peak):
    """As far as the teacher goes: a student that is to get to .4 is pulled by 4/9 of what would bring it to .9."""
    target = boxes(*([k % 3, 16 * (k % 5) + 4, 20 * (k // 5) + 2, 16 * (k % 5) + 14, 20 * (k // 5) + 14, 0] for k in range(15)))
    wanted = heat(target, 3, 16, 20)                          # 15 centres, of 960 cells and classes
    student, soft = torch.zeros(2, 1, 7, 16, 20)
    student[:, :3] = torch.logit(tensor(background))
    soft[:, :3] = torch.logit((peak * wanted).clamp(min=0.02))
    student.requires_grad_()

    def pull(loss):
        return torch.autograd.grad(loss.sum(), student)[0][:, :3][wanted == 1]

    hard, kd = pull(detection_loss(student, target)) * (peak - background), pull(detection_distill(student, soft, temperature))
    assert len(hard) == 15 and (hard < 0).all() and (hard / 2 > kd).all() and (kd > 2.5 * hard).all()


def test_distill_weighs_about_as_much_as_the_labels_to_begin_with():
    model = build_detector("resnet8", 3, generator(0, "weights"), torch.device("cpu"), 64)
    image = torch.randn(4, 3, 64, 80, generator=torch.Generator().manual_seed(3))
    target = boxes(*([k % 3, 8 * k, 8, 8 * k + 12, 24, 0] for k in range(8))).expand(4, -1, -1)
    soft = torch.zeros(4, 7, 16, 20)
    soft[:, :3] = torch.logit(heat(target, 3, 16, 20), 2e-3)  # a teacher that knows them all

    def gradient(loss):
        grads = torch.autograd.grad(loss.mean(), list(model.parameters()))
        return torch.cat([g.flatten() for g in grads]).norm().item()

    hard = gradient(detection_loss(model(image), target))
    for temperature in (1, 4):
        kd = gradient(detection_distill(model(image), soft, temperature))
        assert hard / 10 < kd < 3 * hard, temperature


def test_distill_is_nothing_where_student_and_teacher_agree():
    soft = 5 * torch.randn(2, 7, 6, 6, generator=torch.Generator().manual_seed(1))
    student = soft.clone().requires_grad_()
    found = detection_distill(student, soft, 3.0)
    found.sum().backward()
    assert (found == 0).all() and (student.grad == 0).all()
    assert (detection_distill(soft + 0.5, soft, 3.0) > 0).all()


def test_mean_of_two():
    for temperature in (1, 4):
        one, two = (cell(temperature * math.log(p / (1 - p)), *rest) for p, rest in ((0.2, (1, 2, 3, 4)), (0.6, (3, 2, 1, 0))))
        found = detection_mean([one, two], temperature)
        assert (found[:, 0] / temperature).sigmoid().item() == pytest.approx(0.4)
        sees = [(cell[0, 0].sigmoid() ** 2).item() for cell in (one, two)]      # each box as far as it sees an object there
        mean = [(sees[0] * a + sees[1] * b) / sum(sees) for a, b in ((1, 3), (2, 2), (3, 1), (4, 0))]
        assert found[0, 1:].flatten().tolist() == pytest.approx(mean, rel=1e-4)
    assert torch.allclose(detection_mean([one], 3.0), one)
    assert detection_mean([cell(200, 0, 0, 0, 0), cell(100, 0, 0, 0, 0)], 1)[0, 0].item() == pytest.approx(100 + math.log(2))


def test_stats():
    target = torch.stack([tensor(rows, dtype=torch.float32) for rows in (
        [[0, 0, 0, 4, 4, 0], [1, 4, 0, 8, 4, 0]], [[1, 0, 0, 4, 4, 0], [0, 4, 0, 8, 4, 1]], [PADDING, PADDING])])
    p = tensor([[[0.4, 0.2], [0.1, 0.25]], [[0.5, 0.9], [0.6, 0.0001]], [[0.5, 0.5], [0.5, 0.5]]])    # [image, class, cell]
    output = torch.cat([p.logit(), torch.zeros(3, 4, 2)], 1)[:, :, None].requires_grad_()
    found = detection_stats(output, target)
    assert found["correct"].tolist() == [0.5, 1, 1]           # right with .25 is not found; a difficult one and none do not count
    assert torch.equal(found["loss"], detection_loss(output, target)) and not found["loss"].requires_grad
    wanted = tensor([[[1, 0], [0, 1]], [[0, 0], [1, 0]], [[0, 0], [0, 0]]])
    away = (p - wanted) ** 2
    away[1, 0, 1] = 0                                         # nothing is asked about a difficult one
    assert torch.allclose(found["el2n"], away.sum((1, 2)).sqrt() / tensor([2, 1, 1]).sqrt(), atol=1e-6)
    other = detection_stats(output[:2], boxes([1, 0, 0, 4, 4, 0], PADDING).expand(2, 2, 6))
    assert other["correct"].tolist() == [0, 1]                # of the first, .4 is sure enough but another class's


def encode(target, classes, h, w):
    """What a detector that has learned its target by heart puts out [B, C + 4, h, w]."""
    wanted, centers = slow_heat(target, classes, h, w)
    output = torch.cat([wanted.logit(1e-4), torch.zeros(len(target), 4, h, w)], 1)
    for b, _, column, row, box in centers:
        output[b, classes:, row, column] = box
    return output


def test_decode_returns_what_was_encoded():
    target = torch.stack([tensor(rows, dtype=torch.float32) for rows in (
        [[0, 3, 5, 30, 27, 0], [2, 12, 5, 31, 27, 0], [2, 40.5, 8, 64, 40, 0]], [[1, 0, 0, 64, 64, 0], PADDING, PADDING])])
    found = decode(encode(target, 3, 16, 16))
    assert found.shape == (2, 100, 6)
    for kept, wanted in zip(found, target, strict=True):
        wanted = wanted[wanted[:, 0] >= 0][:, :5]
        first = kept[:len(wanted)]
        assert first[:, 1].tolist() == pytest.approx([1 - 1e-4] * len(wanted), abs=1e-6) and (kept[len(wanted):, 1] < 1e-3).all()
        assert sorted(first[:, [0, 2, 3, 4, 5]].tolist()) == [pytest.approx(row, abs=1e-4) for row in sorted(wanted.tolist())]


def test_decode_keeps_the_largest_of_neighbours_in_each_class_and_stays_in_the_image():
    output = torch.full((1, 6, 2, 6), -5.0)
    output[:, 2:] = 0
    output[0, 0, 0, 1], output[0, 0, 1, 2], output[0, 1, 1, 2], output[0, 0, 1, 5] = 3, 2, 1, 0
    output[0, 2:, 0, 1] = tensor([4, 8, 0.5, 0.5])            # -2 to 14 px, -14 to 18 px, of an image of 24 x 8
    output[0, 2:, 1, 5] = tensor([-1, 1, 0, 0])               # no width: at 20 px
    found = decode(output, top=20)
    kept = found[0, found[0, :, 1] > 0.1]
    assert kept[:, 0].tolist() == [0, 1, 0]                   # (1, 2) of class 0 is next to a larger one, of class 1 it is not
    assert kept[:, 1].tolist() == pytest.approx([1 / (1 + math.exp(-logit)) for logit in (3, 1, 0)])
    assert kept[0, 2:].tolist() == [0, 0, 14, 8] and kept[2, 2:].tolist() == [20, 2, 20, 6]
    rest = found[0, 3:]
    background = rest[rest[:, 0] >= 0]                        # where flat -5 has no larger one near: peaks, but unlikely
    assert (background[:, 1] < 0.01).all() and (rest[len(background):, 0] == -1).all() and len(background) < len(rest)
    assert decode(output, top=30).shape == (1, 30, 6) and torch.equal(decode(output, top=2), found[:, :2])
    assert (decode(torch.full_like(output, math.nan))[..., 0] == -1).all()


def scored(found, truth, classes=2):
    return mean_average_precision([np.array(rows, np.float32).reshape(-1, 6) for rows in found],
                                  [np.array(rows, np.float32).reshape(-1, 6) for rows in truth], classes, "abcdefg"[:classes])


A, B, WIDE = [0, 10, 10, 40, 40, 0], [1, 50, 50, 60, 90, 0], [0, 100, 50, 200, 150, 0]


def seen(box, score=0.9):
    return [box[0], score, *box[1:5]]


def test_average_precision_of_all_none_and_the_wrong(capsys):
    truth = [[A, PADDING], [A, B], [PADDING, PADDING]]
    nothing = [-1, 0, 0, 0, 9, 9]
    perfect = [[seen(A), nothing], [seen(B, 0.2), seen(A, 0.3)], []]
    one = pytest.approx({"map50": 1.0, "map": 1.0})
    assert scored(perfect, truth) == one
    assert scored(perfect, truth, classes=5) == one           # classes without an object do not count
    tensors = [[tensor(rows, dtype=torch.float32) for rows in images[:2]] for images in (perfect, truth)]
    assert mean_average_precision(*tensors, 2, ["a", "b"]) == one
    zero = {"map50": 0.0, "map": 0.0}
    assert scored([[], [], []], truth) == zero and scored([[nothing]], [[A]]) == zero
    assert scored([[seen([1, *A[1:]])], [seen([0, *B[1:]])]], [[A], [B]]) == zero       # class of the other
    assert scored([[], [seen(A)]], [[A], []]) == zero                                   # in the other's image
    assert scored(perfect, [[], [PADDING], []]) == scored([], []) == scored([[]], [[[*A[:5], 1]]]) == zero
    assert scored([[[0, math.nan, *A[1:5]], [0, 0.9, math.nan, 0, math.inf, 9]]], [[A]]) == zero        # of a diverged model
    assert capsys.readouterr() == ("", "")


def test_average_precision_by_the_rule_of_101_points():
    half = 51 / 101                                           # precision 1 at recalls 0, .01, ... .5, then none
    assert scored([[seen(A)], []], [[A], [A]]) == pytest.approx({"map50": half, "map": half})
    assert scored([[seen(A)], []], [[A], [A, B]]) == pytest.approx({"map50": half / 2, "map": half / 2})
    close = [0, 100, 50, 200, 127, 0]                         # IoU .77: enough at .5, .55, .6, .65, .7, .75, of ten
    assert scored([[seen(close)]], [[WIDE]]) == pytest.approx({"map50": 1, "map": 0.6})
    apart = [0, 300, 300, 320, 320, 0]
    assert scored([[seen(apart, 0.9), seen(WIDE, 0.8)]], [[WIDE]])["map"] == pytest.approx(0.5)
    assert scored([[seen(apart, 0.7), seen(WIDE, 0.8)]], [[WIDE]])["map"] == pytest.approx(1)
    again = scored([[seen(A, 0.9), seen(A, 0.8), seen(WIDE, 0.7)]], [[A, WIDE]])["map"]     # found twice: 1, 1/2, 2/3
    assert again == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_average_precision_passes_over_difficult_boxes():
    hard = [*WIDE[:5], 1]
    inside = [0, 120, 70, 140, 90, 0]
    assert scored([[seen(A, 0.5)]], [[A, hard]])["map"] == pytest.approx(1)                         # not finding it is free
    assert scored([[seen(A, 0.5), seen(WIDE, 0.9)]], [[A, hard]])["map"] == pytest.approx(1)        # so is finding it
    assert scored([[seen(WIDE)], []], [[hard], [A]])["map"] == 0                                    # and it earns nothing
    assert scored([[seen(A, 0.5), seen(inside, 0.9)]], [[A, hard]])["map"] == pytest.approx(0.5)    # as wrong as elsewhere


def test_average_precision_needs_its_library_and_every_image(monkeypatch):
    with pytest.raises(ValueError, match="each of 2 images, got 1"):
        scored([[]], [[], []])
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(Refused, match="pip install pycocotools"):
        scored([[]], [[A]])


def test_boxes_move_as_the_pixels_of_every_view():
    height, width = 12, 16
    drawn = [(2, 3, 7, 9), (0, 0, 16, 12), (0, 0, 3, 2), (13, 10, 16, 12), (5, 0, 7, 12), (14, 5, 16, 8), (0, 9, 9, 12)]
    images = np.zeros((len(drawn), height, width, 3), np.uint8)
    for image, (x0, y0, x1, y1) in zip(images, drawn, strict=True):
        image[y0:y1, x0:x1] = 200
    n = np.arange(len(drawn))
    split = Split(images, n, n, torch.zeros(3), torch.ones(3), torch.device("cpu"), None, "crop-flip")
    view = torch.arange(162)
    gone = 0
    for k, box in enumerate(drawn):
        target = boxes([3, *box, k % 2], [-1, *box, 1]).expand(162, 2, 6)
        found = shifted(target, view // 9 % 9, view % 9, view // 81, height, width)
        for v, (image, got) in enumerate(zip(split.images(torch.full((162,), k), view)[:, 0], found.tolist(), strict=True)):
            y, x = torch.nonzero(image, as_tuple=True)
            tight = [x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1] if len(x) else [0, 0, 0, 0]
            small = tight[2] - tight[0] < 2 or tight[3] - tight[1] < 2
            assert got == [[3, *tight, max(k % 2, small)] if len(x) else PADDING, PADDING], (k, v)
            gone += small
    assert 100 < gone < 600                                   # of 7 x 162: both ways were tried


def xml(*objects):
    """An annotation whose size element is wrong; objects are (name, xmin, ymin, xmax, ymax) with more elements as text."""
    return "<annotation><size><width>400</width><height>300</height></size>" + "".join(
        f"<object><name>{name}</name>{''.join(more)}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>" for name, x0, y0, x1, y1, *more in objects) + "</annotation>"


@pytest.fixture
def folder(tmp_path):
    """write(name, text of its annotation, image) adds to a folder of VOC's layout, whose set `some` it returns."""
    def write(name, text, image=None, root=tmp_path, sets=("some",)):
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / part).mkdir(parents=True, exist_ok=True)
        if text is not None:
            (root / f"Annotations/{name}.xml").write_text(text)
        (image or Image.new("RGB", (40, 30), (9, 99, 199))).save(root / f"JPEGImages/{name}.png")
        for one in sets:
            with open(root / f"ImageSets/Main/{one}.txt", "a") as listed:
                listed.write(f"{name}  1 \n\n")               # a second column, as sets of one class have, and blanks
        return root
    return write


def read(root, classes=("cat", "dog"), size=(60, 20)):
    return boxfiles.read_voc(root, "some", classes, size)


def test_boxes_are_scaled_with_their_image(folder, capsys):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    difficult = "<difficult>1</difficult>", "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    folder("b", xml(("dog", 11, 4, 20, 18), ("cat", 1, 1, "40.0", 30, *difficult)), noise)
    images, found = read(folder("a", xml()))                  # an image without objects
    assert found.tolist() == [[[1, 5, 6, 10, 36, 0], [0, 0, 0, 20, 60, 1]], [PADDING, PADDING]]         # x by 1/2, y by 2
    assert found.dtype == np.float32 and images.dtype == np.uint8
    assert np.array_equal(images[0], noise.resize((20, 60), Image.Resampling.BILINEAR)) and (images[1] == (9, 99, 199)).all()
    assert capsys.readouterr().out == ""


def test_a_set_without_objects_has_a_row_of_padding(folder):
    assert read(folder("a", xml()))[1].tolist() == [[PADDING]]


def test_boxes_outside_are_clipped_or_left_out_with_one_warning(folder, capsys):
    folder("in", xml(("dog", -9, 21, 20, 90), ("cat", 3, 3, 6, 4)))
    folder("out", xml(("dog", 41, 1, 50, 30), ("cat", 1, 31, 11, 40), ("cat", 5, 5, 5, 9), ("dog", 1, 1, 4, 1)))
    _, found = read(folder("over", xml(("cat", 39, 31, 40, 99))))
    narrow = [0, 2, 8, 2.5, 18, 1]                            # half a pixel: not asked for, and not punished where it is found
    assert found.tolist() == [[[1, 0, 40, 10, 60, 0], [0, 1, 4, 3, 8, 0]], [narrow, [1, 0, 0, 2, 2, 0]], [PADDING] * 2]
    said = capsys.readouterr().out
    assert said.count("warning") == 1 and "4 boxes" in said and "of out.xml, over.xml." in said and "in.xml" not in said


def test_grey_palette_and_transparent_images(folder):
    colour = Image.new("RGB", (40, 30), (255, 0, 0))
    folder("palette", xml(), colour.convert("P"))
    folder("clear", xml(), Image.new("RGBA", (40, 30), (255, 0, 0, 7)))
    images, _ = read(folder("grey", xml(), Image.new("L", (40, 30), 77)))
    assert [image[0, 0].tolist() for image in images] == [[255, 0, 0], [255, 0, 0], [77, 77, 77]]
    assert images.shape == (3, 60, 20, 3)


@pytest.mark.parametrize("ending", ["tga", "gif", "PCX"])
def test_any_format_that_pillow_reads(folder, ending):
    root = folder("a", xml(), Image.new("RGB", (40, 30), (255, 0, 0)))
    Image.open(root / "JPEGImages/a.png").save(root / f"JPEGImages/a.{ending}")
    (root / "JPEGImages/a.png").unlink()
    assert read(root)[0][0, 0, 0].tolist() == [255, 0, 0]


BAD = {"an unknown class": (xml(("cow", 1, 1, 9, 9)), r"bad.xml: ValueError: it holds class 'cow', known are cat, dog"),
       "no name": ("<a><object><bndbox/></object></a>", r"bad.xml: ValueError: it holds class ''"),
       "no number": (xml(("cat", 1, "x", 9, 9)), r"bad.xml: ValueError: .*'x'"),
       "no end": (xml(("cat", 1, 1, 9, 9)).replace("<ymax>9</ymax>", ""), r"bad.xml: ValueError: .*None\], expected four"),
       "sides in the wrong order": (xml(("cat", 9, 1, 1, 9)), r"bad.xml: ValueError: .*xmin above xmax"),
       "no finite number": (xml(("cat", 1, "nan", 9, 9)), r"bad.xml: ValueError: .*expected four"),
       "damage": (xml()[:40], r"bad.xml: ParseError"), "nothing": (None, r"bad.xml: FileNotFoundError")}


@pytest.mark.parametrize("what", BAD)
def test_annotations_that_cannot_be_used_are_refused(folder, what):
    text, said = BAD[what]
    folder("good", xml())
    with pytest.raises(Refused, match=f"(?s)1 of 2 images of .*some.txt cannot be used.*{said}"):
        read(folder("bad", text))


def test_images_that_cannot_be_read_are_refused_by_name(folder):
    for n in range(12):
        root = folder(f"n{n}", xml())
        (root / f"JPEGImages/n{n}.png").write_bytes(b"\x89PNG, but no more")
    (root / "JPEGImages/n0.png").unlink()
    with pytest.raises(Refused) as refused:
        read(root)
    said = str(refused.value)
    assert "12 of 12 images" in said and "n0: FileNotFoundError" in said and "n9.png: Unidentified" in said and "n10" not in said
    assert said.endswith("\n    ...")


def test_sets_that_are_missing_or_empty_are_refused(folder):
    root = folder("a", xml())
    with pytest.raises(Refused, match="cannot read .*other.txt.*No such file"):
        boxfiles.read_voc(root, "other", ("cat",), (8, 8))
    (root / "ImageSets/Main/some.txt").write_text("\n \n")
    with pytest.raises(Refused, match="some.txt names no image"):
        read(root)


@pytest.mark.parametrize("place", ["BCCD", "BCCD_Dataset/BCCD"])
def test_bccd_is_read_from_either_place(folder, tmp_path, place):
    with pytest.raises(Refused, match="git clone https://github.com/Shenggan/BCCD_Dataset.*--data-dir"):
        boxfiles.read_bccd(str(tmp_path), (30, 40))
    folder("one", xml(("WBC", 1, 1, 9, 9), ("RBC", 1, 1, 40, 30)), root=tmp_path / place, sets=["trainval"])
    folder("two", xml(("Platelets", 2, 3, 20, 10)), root=tmp_path / place, sets=["test"])
    (images, found), (_, test), names = boxfiles.read_bccd(str(tmp_path), (30, 40))
    assert names == ["RBC", "WBC", "Platelets"] and images.shape == (1, 30, 40, 3)
    assert found.tolist() == [[[1, 0, 0, 9, 9, 0], [0, 0, 0, 40, 30, 0]]] and test.tolist() == [[[2, 1, 2, 20, 10, 0]]]
    assert boxfiles.read_bccd(str(tmp_path), (30, 40))[0][0] is images                  # kept


def test_voc_is_downloaded_where_it_is_missing(folder, tmp_path, monkeypatch):
    asked = []

    def download(root, year, image_set, download):
        asked.append((year, image_set, download))
        if len(asked) == 2:
            raise OSError("no route to host")
        folder(f"of-{image_set}", xml(("tvmonitor", 1, 1, 9, 9)), root=tmp_path / "VOCdevkit/VOC2007", sets=[image_set])
    monkeypatch.setattr(torchvision.datasets, "VOCDetection", download)
    with pytest.raises(Refused, match="test of VOC 2007 is not in .*download failed.*no route to host.*--data-dir"):
        boxfiles.read_voc_det(str(tmp_path), (30, 40))
    (_, found), (_, test), names = boxfiles.read_voc_det(str(tmp_path), (30, 40))
    assert asked == [("2007", "trainval", True), ("2007", "test", True), ("2007", "test", True)]      # only what was missing
    assert names == sorted(names) and len(names) == 20 and found.tolist() == test.tolist() == [[[19, 0, 0, 9, 9, 0]]]
    boxfiles.read_voc_det.cache_clear()
    boxfiles.read_voc_det(str(tmp_path), (30, 40))
    assert len(asked) == 3                                    # nothing was missing


def test_the_embedded_shapes_have_one_box_each():
    (images, found), (test_images, _), names = boxfiles.read_shapes_det("", (64, 64))
    drawn = shapes.render(shapes.TRAIN_SIZE, shapes.TRAIN_SEED, 64)
    assert images.shape == (shapes.TRAIN_SIZE, 64, 64, 3) and len(test_images) == shapes.TEST_SIZE
    assert found.dtype == np.float32 and found.shape == (shapes.TRAIN_SIZE, 1, 6) and (found[..., 5] == 0).all()
    assert np.array_equal(images.transpose(0, 3, 1, 2), drawn["image"])
    for mask, fine, (kind, x0, y0, x1, y1, _) in zip(drawn["mask"][:40], drawn["fine"], found[:, 0], strict=False):
        y, x = np.nonzero(mask)
        assert [x0, y0, x1, y1] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert shapes.CLASSES[fine].endswith(names[int(kind)])
    with pytest.raises(Refused, match="are square: give --image-size 32"):
        boxfiles.read_shapes_det("", (32, 64))
