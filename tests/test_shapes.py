"""The embedded data set: its arrays against what their names promise, and no class given away by colour or place."""

import numpy as np
import pytest

from common import shapes


@pytest.fixture(scope="module")
def drawn():
    return shapes.render(1000, seed=7)


def test_classes_are_shape_times_texture():
    assert len(set(shapes.CLASSES)) == len(shapes.CLASSES) == len(shapes.COARSE_OF)
    assert sorted(set(shapes.COARSE_OF)) == list(range(len(shapes.COARSE)))
    assert all(name.endswith(shapes.COARSE[coarse])
               for name, coarse in zip(shapes.CLASSES, shapes.COARSE_OF, strict=True))


def test_types_and_shapes():
    found = shapes.render(5, seed=0, size=48)
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
        "image": ("uint8", (5, 3, 48, 48)), "fine": ("int64", (5,)), "coarse": ("int64", (5,)),
        "mask": ("uint8", (5, 48, 48)), "box": ("float32", (5, 4))}


def test_same_arguments_same_images_and_the_global_generator_is_left_alone():
    state = np.random.get_state()[1].copy()
    first, again, other = shapes.render(70, seed=3), shapes.render(70, seed=3), shapes.render(70, seed=4)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(not np.array_equal(first[name], other[name]) for name in first)
    assert np.array_equal(state, np.random.get_state()[1])


def test_train_and_test_splits_share_no_image():
    train, test = (shapes.render(200, seed) for seed in (shapes.TRAIN_SEED, shapes.TEST_SEED))
    assert len({image.tobytes() for split in (train, test) for image in split["image"]}) == 400


@pytest.mark.parametrize("n", [1, 20, 27, 1000])
def test_balanced_as_nearly_as_n_allows_and_shuffled(n):
    fine = shapes.render(n, seed=5)["fine"]
    counts = np.bincount(fine, minlength=len(shapes.CLASSES))
    assert counts.max() - counts.min() <= 1
    assert n < 20 or (np.diff(fine) < 0).sum() > n / 4                  # in order of class there would be next to none


def test_coarse_is_the_class_of_the_fine_label(drawn):
    assert np.array_equal(drawn["coarse"], np.array(shapes.COARSE_OF)[drawn["fine"]])


def test_mask_holds_the_fine_label_on_enough_pixels(drawn):
    mask, fine = drawn["mask"], drawn["fine"]
    assert np.array_equal(mask.max((1, 2)), 1 + fine)
    assert all(set(np.unique(one)) == {0, 1 + label} for one, label in zip(mask, fine, strict=True))
    assert (mask > 0).sum((1, 2)).min() >= 50                           # of 1024: enough to see shape and texture


def test_box_is_tight_and_inside(drawn):
    for mask, box in zip(drawn["mask"], drawn["box"], strict=True):
        y, x = np.nonzero(mask)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert box.min() >= 0 and box.max() <= 32


def test_mask_lies_on_the_object(drawn):
    """The object is lighter than its surroundings on average, so a mask that is shifted or turned loses contrast."""
    light = drawn["image"].mean(1)                                      # [N, H, W]

    def contrast(mask):
        return light[mask > 0].mean() - light[mask == 0].mean()

    there = contrast(drawn["mask"])
    assert there > 50
    for wrong in (np.roll(drawn["mask"], 3, 1), np.roll(drawn["mask"], 3, 2), drawn["mask"].transpose(0, 2, 1)):
        assert contrast(wrong) < 0.85 * there


def test_colour_does_not_give_the_class_away(drawn):
    """The object's mean colour, 0..255, has a standard deviation of 25 within a class: 50 images know it to 3.5."""
    inside = drawn["mask"][:, None] > 0
    color = (drawn["image"] * inside).sum((2, 3)) / inside.sum((2, 3))  # [N, RGB]
    shape, texture = drawn["coarse"], drawn["fine"] % len(shapes.TEXTURES)
    for label, tolerance in ((shape, 8), (texture, 8), (drawn["fine"], 22)):
        means = np.stack([color[label == k].mean(0) for k in range(label.max() + 1)])
        assert np.ptp(means, 0).max() < tolerance
    assert min(color[drawn["fine"] == k].std(0).min() for k in range(len(shapes.CLASSES))) > 10


def test_place_does_not_give_the_class_away(drawn):
    center = (drawn["box"][:, :2] + drawn["box"][:, 2:]) / 2            # pixels
    means = np.stack([center[drawn["fine"] == k].mean(0) for k in range(len(shapes.CLASSES))])
    assert np.abs(means - 16).max() < 2.5
    assert center.std(0).min() > 2


def test_a_larger_size_draws_the_same_scene():
    small, large = (shapes.render(20, seed=6, size=size) for size in (32, 64))
    assert np.array_equal(small["fine"], large["fine"])
    halved = large["image"].reshape(20, 3, 32, 2, 32, 2).mean((3, 5))
    assert np.abs(halved - small["image"]).mean() < 20                  # of 255; unrelated scenes differ by far more
    assert np.abs(halved - small["image"][::-1]).mean() > 40


@pytest.mark.parametrize("n, size", [(0, 32), (10, 8)])
def test_refuses_what_cannot_be_drawn(n, size):
    with pytest.raises(ValueError, match="ask for more"):
        shapes.render(n, seed=1, size=size)
