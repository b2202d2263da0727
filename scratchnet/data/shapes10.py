"""shapes10: ten classes of 32 x 32 colour images, drawn by code from a seed.

It is the set that needs no file and no network. Six shapes, a heart, and three textures appear at any place,
size and angle, in any two colours that can be told apart, on a background with a slope of light, soft
blotches and stray strokes. So neither colour nor brightness nor the place of a pixel gives the class away: a
linear classifier stays far below half right, while a small VGG, which sees edges and corners wherever they
are, gets nearly all.

How an image is made. Every class is a signed distance d(x, y) in pixels: negative inside, positive outside.
The share of a pixel that the shape covers is clip(1/2 - d, 0, 1), which draws smooth edges with no
supersampling; the image is ``background + coverage * (paint - background)``, plus noise. (Distances: Inigo
Quilez, "2D distance functions", https://iquilezles.org/articles/distfunctions2d/.)

Symbols: N images; S = 32 the side; V corners of a polygon. Arrays of one number per image are (N, 1, 1),
so that they meet (N, S, S) arrays of one number per pixel without a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from scratchnet import checks
from scratchnet.data._common import ImageData

# From a number of images and a generator to the coverage (n, S, S) of as many shapes.
DrawCoverage = Callable[[int, np.random.Generator], np.ndarray]

SIZE = 32
_CHUNK = 250  # images drawn at once: their planes stay in the processor's cache


def shapes10(n_train: int = 8000, n_test: int = 2000, seed: int = 0) -> ImageData:
    """Draw the built-in data set.

    Parameters
    ----------
    n_train, n_test : int
        Images in each split. Classes are balanced (to within one image) and shuffled.
    seed : int
        Same seed and same sizes, same bytes on the same platform. Each split has a random stream of its own,
        so the test images do not depend on `n_train`.

    Returns
    -------
    ImageData
        Images uint8 (N, 32, 32, 3), labels int64 (N,), ten class names, and the name ``"shapes10"``.

    Raises
    ------
    ValueError
        If a size or the seed is no whole number of at least 0.

    Examples
    --------
    >>> data = shapes10(n_train=20, n_test=10)
    >>> data.train_images.shape, data.train_images.dtype.name
    ((20, 32, 32, 3), 'uint8')
    >>> sorted(data.class_names[label] for label in data.test_labels)[:3]
    ['checkerboard', 'circle', 'cross']
    """
    checks.whole(0, n_train=n_train, n_test=n_test)
    checks.seed(seed)
    train_stream, test_stream = np.random.SeedSequence(seed).spawn(2)
    train = _draw_split(n_train, np.random.default_rng(train_stream))
    test = _draw_split(n_test, np.random.default_rng(test_stream))
    return ImageData(*train, *test, CLASS_NAMES, "shapes10")


def _draw_split(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return n images (n, S, S, 3) and their labels (n,), balanced and shuffled."""
    labels = rng.permutation(np.arange(n) % len(CLASS_NAMES))  # (n,)
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for label, draw_coverage in enumerate(_COVERAGES.values()):
        places = np.flatnonzero(labels == label)
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            images[chunk] = _draw_images(len(chunk), draw_coverage, rng)
    return images, labels


def _draw_images(n: int, draw_coverage: DrawCoverage, rng: np.random.Generator) -> np.ndarray:
    """Return n images of one class, uint8 (n, S, S, 3)."""
    ground, paint = _two_colours(n, rng)  # each (n, 1, 1, 3)
    image = ground + _blotches(n, rng)  # (n, S, S, 3)
    for _ in range(3):
        stroke = _stray_stroke(n, rng)[..., None]  # (n, S, S, 1)
        image += stroke * (_colours(n, rng) - image)
    coverage = draw_coverage(n, rng)[..., None]  # (n, S, S, 1)
    image += coverage * (paint + 0.5 * _blotches(n, rng) - image)
    image += _slope(n, rng)[..., None]  # light falls on shape and background alike
    grain = _uniform(rng, n, 0.01, 0.06)[..., None]  # (n, 1, 1, 1)
    image += grain * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


# ---- colours and backgrounds -------------------------------------------------------------------------------


def _uniform(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    """Return one number per image, float32 (n, 1, 1)."""
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def _colours(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return n colours (n, 1, 1, 3): hue, saturation and value drawn evenly, since even RGB is mostly mud."""
    limits = ((0, 6), (0.1, 0.95), (0.12, 1))
    hue, saturation, value = (_uniform(rng, n, *pair)[..., None] for pair in limits)
    from_primary = np.abs((hue + np.array([0, 4, 2], np.float32)) % 6 - 3)  # (n, 1, 1, 3)
    wheel = np.clip(from_primary - 1, 0, 1)  # the pure hue
    return value * (1 + saturation * (wheel - 1))


def _two_colours(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a background and a paint (n, 1, 1, 3) that an eye can tell apart."""
    ground, paint = _colours(n, rng), _colours(n, rng)
    for _ in range(4):  # draw again those that are too close; after four times one in a thousand is left
        close = np.abs(paint - ground).sum(axis=-1, keepdims=True) < 0.6
        paint = np.where(close, _colours(n, rng), paint)
    return ground, paint


_ROW, _COLUMN = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - (SIZE - 1) / 2  # (S, S) each, 0 at the centre


def _interpolation(points: int) -> np.ndarray:
    """Return the matrix (S, points) that stretches `points` values linearly over S pixels."""
    place = np.linspace(0, points - 1, SIZE)[:, None]  # (S, 1)
    return np.clip(1 - np.abs(place - np.arange(points)), 0, None).astype(np.float32)


_STRETCH = _interpolation(5)


def _blotches(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return soft spots of colour around zero (n, S, S, 3): a 5 x 5 grid of random values, stretched."""
    strength = _uniform(rng, n, 0.0, 0.16)[..., None]
    grid = strength * rng.standard_normal((n, 5, 5, 3), dtype=np.float32)
    tall = np.tensordot(grid, _STRETCH, axes=(1, 1))  # (n, 5, 3, S): rows are now the last axis
    return np.tensordot(tall, _STRETCH, axes=(1, 1)).transpose(0, 2, 3, 1)  # (n, 3, S, S) to (n, S, S, 3)


def _slope(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return light that grows in a random direction (n, S, S)."""
    angle, strength = _uniform(rng, n, 0, 2 * np.pi), _uniform(rng, n, 0.0, 0.25)
    return strength / SIZE * (np.cos(angle) * _COLUMN + np.sin(angle) * _ROW)


def _stray_stroke(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the coverage (n, S, S) of one short line per image, anywhere."""
    x, y = _turned(n, rng, reach=14)
    half_length, half_width = _uniform(rng, n, 0.5, 4), _uniform(rng, n, 0.4, 1)
    beyond = np.maximum(np.abs(x) - half_length, 0)  # how far past the nearer end of the line
    return _covered(np.hypot(beyond, y) - half_width)


# ---- the ten classes ---------------------------------------------------------------------------------------


def _covered(distance: np.ndarray) -> np.ndarray:
    """Return how much of each pixel lies inside, given signed distances in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def _turned(n: int, rng: np.random.Generator, reach: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates x, y (n, S, S) around a random centre within `reach`, turned by any angle."""
    x = _COLUMN - reach * _uniform(rng, n, -1, 1)
    y = _ROW - reach * _uniform(rng, n, -1, 1)
    angle = _uniform(rng, n, 0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _placed(n: int, rng: np.random.Generator, extent: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y (n, S, S) in units of a random radius, and that radius in pixels (n, 1, 1).

    A shape that reaches `extent` radii from its centre stays within the image but for two pixels at most.
    One axis is squeezed by up to a sixth.
    """
    radius = _uniform(rng, n, 6, 9.5) * np.minimum(1, np.float32(1.45 / extent))
    x, y = _turned(n, rng, reach=np.maximum(SIZE / 2 + 1 - extent * radius, 0))
    squeeze = _uniform(rng, n, 0.92, 1.09)
    return x * squeeze / radius, y / squeeze / radius, radius


def _circle(n: int, rng: np.random.Generator) -> np.ndarray:
    x, y, radius = _placed(n, rng, 1.1)
    return _covered(radius * (np.hypot(x, y) - 1.1))


def _ring(n: int, rng: np.random.Generator) -> np.ndarray:
    x, y, radius = _placed(n, rng, 1.25)
    half_width = _uniform(rng, n, 0.18, 0.3)
    return _covered(radius * (np.abs(np.hypot(x, y) - 0.95) - half_width))


def _polygon(points: Sequence[tuple[float, float]] | np.ndarray) -> DrawCoverage:
    """Return the coverage function of a polygon with the corners (V, 2), in radii.

    The distance to a polygon is the least distance to one of its edges; its sign changes at each edge that a
    ray from the point to the right crosses.
    """
    corners = np.asarray(points, np.float32)
    extent = float(np.hypot(*corners.T).max())

    def draw_coverage(n: int, rng: np.random.Generator) -> np.ndarray:
        x, y, radius = _placed(n, rng, extent)
        squared = np.full_like(x, np.inf)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay  # edge, and point as seen from its first corner
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            squared = np.minimum(squared, (px - ex * along) ** 2 + (py - ey * along) ** 2)
            if ey:  # a level edge is crossed by no level ray
                inside ^= ((y < ay) != (y < by)) & (px < ex * py / ey)
        return _covered(radius * np.where(inside, -1, 1) * np.sqrt(squared))

    return draw_coverage


def _around(radii: Sequence[float]) -> np.ndarray:
    """Return corners (V, 2) at equal angles and the given distances from the centre."""
    angle = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.asarray(radii)[:, None]


def _heart_corners() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -height - 2.5], axis=1) / 13


def _cross_corners() -> list[tuple[float, float]]:
    a, w = 1.35, 0.42  # length of an arm, half its width
    # fmt: off
    return [(w, w), (w, a), (-w, a), (-w, w), (-a, w), (-a, -w),
            (-w, -w), (-w, -a), (w, -a), (w, -w), (a, -w), (a, w)]
    # fmt: on


def _stripes(n: int, rng: np.random.Generator) -> np.ndarray:
    x, _ = _turned(n, rng, reach=8)
    period = _uniform(rng, n, 4.5, 10)
    return _covered(_wave(x, period, _uniform(rng, n, 0.4, 0.6)))


def _checkerboard(n: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _turned(n, rng, reach=8)
    period = _uniform(rng, n, 7, 13)
    across, down = _wave(x, period, 0.5), _wave(y, period, 0.5)  # negative in every other stripe
    # Inside where exactly one of the two is negative, as the product of their signs tells.
    return _covered(np.sign(across * down) * np.minimum(np.abs(across), np.abs(down)))


def _dots(n: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _turned(n, rng, reach=8)
    period = _uniform(rng, n, 6.5, 11)
    dx, dy = (np.abs((place / period) % 1 - 0.5) * period for place in (x, y))  # from the middle of the cell
    return _covered(np.hypot(dx, dy) - period * _uniform(rng, n, 0.24, 0.36))


def _wave(x: np.ndarray, period: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """Return the distance to stripes that fill `share` of each period, negative inside."""
    return (np.abs((x / period) % 1 - 0.5) - share / 2) * period


_COVERAGES = {
    "circle": _circle,
    "square": _polygon(_around([1.35] * 4)),
    "triangle": _polygon(_around([1.5] * 3)),
    "star": _polygon(_around([1.6, 0.66] * 5)),
    "heart": _polygon(_heart_corners()),
    "cross": _polygon(_cross_corners()),
    "ring": _ring,
    "stripes": _stripes,
    "checkerboard": _checkerboard,
    "dots": _dots,
}
CLASS_NAMES = tuple(_COVERAGES)
