"""The default data set: small colour images drawn from a seed, by shape (coarse) and shape and texture (fine).

One textured object of random size, place, tilt and colours lies on a background of a gradient, soft blotches and pixel
noise, among plain blobs and bars, one of which covers a small part of it. Every label is right and decidable by eye:
only the object is textured, and its lighter colour is lighter than the other and than the background's middle in every
channel. Colours are drawn alike for all classes. Classes survive mirroring and crops of four pixels.

    python -c "from common import shapes; print(shapes.render(8, seed=1)['fine'])"
"""

import numpy as np

SHAPES = ("disc", "square", "triangle", "cross", "star")
TEXTURES = ("striped", "checked", "dotted", "ringed")
CLASSES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
COARSE = SHAPES
COARSE_OF = tuple(fine // len(TEXTURES) for fine in range(len(CLASSES)))

TRAIN_SIZE, TRAIN_SEED = 2000, 1
TEST_SIZE, TEST_SEED = 1000, 2

MAX_TILT = 0.35     # radians from upright; sets the difficulty: with any tilt, three epochs learn hardly any shapes
CHUNK = 64          # images drawn at a time: their float32 planes stay in the second-level cache
BEHIND = 4          # plain distractors under the object; one more lies over it


def render(n: int, seed: int, size: int = 32) -> dict[str, np.ndarray]:
    """Draws `n` images of `size` x `size` pixels; a function of its arguments alone.

    Returns image uint8 [N, 3, H, W], fine int64 [N], coarse int64 [N], mask uint8 [N, H, W] (0, or 1 + fine class where
    the object is visible), box float32 [N, 4] (x0, y0, x1, y1 in pixels, half-open, tight around the mask).
    Raises ValueError where n or size is too small to draw anything.
    """
    if n < 1 or size < 16:
        raise ValueError(f"render needs n >= 1 and size >= 16 pixels, got n={n}, size={size}: ask for more")
    rng = np.random.default_rng(seed)
    fine = rng.permutation(np.arange(n) % len(CLASSES))
    scenes = _scenes(rng, n)
    image = np.empty((n, 3, size, size), np.uint8)
    visible = np.empty((n, size, size), bool)
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        chunk = {name: values[rows] for name, values in scenes.items()}
        image[rows], visible[rows] = _draw(rng, chunk, fine[rows], size)
    return {
        "image": image,
        "fine": fine,
        "coarse": np.asarray(COARSE_OF)[fine],
        "mask": visible * (1 + fine).astype(np.uint8)[:, None, None],
        "box": _boxes(visible),
    }


def _scenes(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Everything about n scenes but their class and pixel noise: lengths in image widths, angles in radians."""

    def uniform(low, high, *shape):
        return rng.uniform(low, high, (n, *shape)).astype(np.float32)

    radius = uniform(0.27, 0.40)
    reach = np.maximum(0.5 - 0.9 * radius, 0)[:, None]                           # nearly all of the object stays inside
    center = 0.5 + reach * uniform(-1, 1, 2)
    light = uniform(0.7, 1, 3)
    pair = np.stack([light, light - uniform(0.2, 0.5, 3)], 1)                    # [N, 2, RGB]
    # Dots cover less than half of the object: which of the pair they take is tossed, or its mean colour would tell.
    pair = np.where(rng.random((n, 1, 1)) < 0.5, pair, pair[:, ::-1])
    colors = np.concatenate([pair, uniform(0, 0.4, 1, 3)], 1)                    # [N, (object, ink, background), RGB]
    around = uniform(0, 2 * np.pi)
    front = center + 0.75 * radius[:, None] * np.stack([np.cos(around), np.sin(around)], 1)
    return {
        "center": center, "radius": radius, "angle": uniform(-MAX_TILT, MAX_TILT), "colors": colors,
        "period": uniform(0.14, 0.20), "phase": uniform(0, 1, 2),
        "slope": uniform(-0.25, 0.25, 3, 2), "blotches": uniform(-0.12, 0.12, 3, 5, 5),
        "blob_center": np.concatenate([uniform(0, 1, BEHIND, 2), front[:, None]], 1),
        "blob_half": np.concatenate([uniform(0.03, 0.16, BEHIND, 2), uniform(0.02, 0.08, 1, 2)], 1),
        "blob_angle": uniform(0, np.pi, BEHIND + 1), "blob_color": uniform(0, 1, BEHIND + 1, 3),
    }


def _draw(rng: np.random.Generator, scene: dict[str, np.ndarray], fine: np.ndarray, size: int):
    """Paints back to front. Returns image uint8 [n, 3, H, W] and where the object is visible, bool [n, H, W]."""
    n = len(fine)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size                      # pixel centres, in image widths
    image = _background(scene, axis)

    def blob(k):
        x, y = _frame(axis, scene["blob_center"][:, k], scene["blob_angle"][:, k])
        half = scene["blob_half"][:, k, :, None, None]
        return _paint(image, _rounded(x, y, half[:, 0], half[:, 1]) * size, scene["blob_color"][:, k])

    for k in range(BEHIND):
        blob(k)
    x, y = _frame(axis, scene["center"], scene["angle"])
    shape, texture = np.divmod(fine, len(TEXTURES))
    radius, period = scene["radius"][:, None, None], scene["period"][:, None, None]
    distance, wave = np.empty((2, n, size, size), np.float32)
    for k, outline in enumerate((_disc, _square, _triangle, _cross, _star)):
        rows = shape == k
        distance[rows] = outline(x[rows] / radius[rows], y[rows] / radius[rows]) * radius[rows]
    for k, weave in enumerate((_striped, _checked, _dotted, _ringed)):
        rows = texture == k
        wave[rows] = weave(x[rows] / period[rows], y[rows] / period[rows], scene["phase"][rows, :, None, None])
    ink = np.clip(0.5 + wave * (size * period / (2 * np.pi)), 0, 1)              # an edge about one pixel wide
    base, over = (scene["colors"][:, k, :, None, None] for k in (0, 1))
    alpha = _paint(image, distance * size, base + (over - base) * ink[:, None])
    alpha = np.where(blob(BEHIND) > 0.5, 0, alpha)
    image += 0.04 * rng.standard_normal(image.shape, np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), alpha > 0.5


def _background(scene, axis):
    """A gradient and 5 x 5 blotches, interpolated linearly, on the background colour: float32 [n, 3, H, W]."""
    place = axis * 4                                                             # the 5 knots lie at 0, 1, 2, 3, 4
    tent = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(5, dtype=np.float32)))        # [H, 5]
    slope = scene["slope"][..., None] * (axis - 0.5)                             # [n, 3, 2, W]
    flat = scene["colors"][:, 2, :, None, None] + slope[:, :, 0, None, :] + slope[:, :, 1, :, None]
    return flat + tent @ scene["blotches"] @ tent.T


def _frame(axis, center, angle):
    """Coordinates x, y [n, H, W] of every pixel from `center` [n, 2], turned by `angle` [n]."""
    x = axis - center[:, 0, None]                                                # [n, W]
    y = axis - center[:, 1, None]                                                # [n, H]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return (cos * x)[:, None, :] + (sin * y)[:, :, None], (cos * y)[:, :, None] - (sin * x)[:, None, :]


def _paint(image, distance, color):
    """Lays `color` over image where the signed `distance`, in pixels, is negative; returns how much, [n, H, W]."""
    alpha = np.clip(0.5 - distance, 0, 1)
    color = color if color.ndim == 4 else color[:, :, None, None]
    image += (color - image) * alpha[:, None]
    return alpha


# Outlines: signed distance from the edge (negative inside), in radii of the object.


def _rounded(x, y, half_x, half_y):
    corner = np.minimum(half_x, half_y) / 2
    x, y = np.abs(x) - half_x + corner, np.abs(y) - half_y + corner
    return np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2) + np.minimum(np.maximum(x, y), 0) - corner


def _disc(x, y):
    return np.sqrt(x * x + y * y) - 0.85


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 0.75


def _triangle(x, y):
    return np.maximum(np.abs(x) * np.float32(0.75**0.5) + y / 2, -y) - 0.55


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.95, np.minimum(x, y) - 0.30)


def _star(x, y):
    turn = np.float32(2 * np.pi / 5)
    angle = np.abs((np.arctan2(x, -y) + turn / 2) % turn - turn / 2)             # from the nearest of the five tips
    lean = np.float32(1.02)                                                      # of an edge's normal from its tip
    return np.sqrt(x * x + y * y) * np.cos(angle - lean) - 1.1 * np.cos(lean)


# Textures: a wave whose sign chooses the colour, in periods of the texture.


def _striped(x, y, phase):
    return np.sin(2 * np.pi * (x + phase[:, 0]))


def _checked(x, y, phase):
    return 1.4 * np.sin(np.pi * (x + phase[:, 0])) * np.sin(np.pi * (y + phase[:, 1]))


def _dotted(x, y, phase):
    return np.cos(2 * np.pi * (x + phase[:, 0])) + np.cos(2 * np.pi * (y + phase[:, 1])) - 0.5


def _ringed(x, y, phase):
    return np.sin(2 * np.pi * (np.sqrt(x * x + y * y) + phase[:, 0]))


def _boxes(visible):
    """Tight half-open boxes (x0, y0, x1, y1), float32 [N, 4], around masks [N, H, W] that are nowhere empty."""
    columns, rows = visible.any(1), visible.any(2)
    size = visible.shape[1]
    low = [np.argmax(side, 1) for side in (columns, rows)]
    high = [size - np.argmax(side[:, ::-1], 1) for side in (columns, rows)]
    return np.stack(low + high, 1).astype(np.float32)
