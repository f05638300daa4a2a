"""Synthetic colour images with any number of classes, in place of CIFAR-100 and ImageNet-32.

A class is a random smooth pattern on the torus: a sum of plane waves with up to `WAVES` periods in each direction.
Their amplitudes fall with frequency as in natural images (Field, Relations between the statistics of natural images and
the response properties of cortical cells, J. Opt. Soc. Am. A 4, 1987). An image is the pattern of its class plus its
own pattern, shifted, zoomed, perhaps mirrored, with other contrast, brightness and colours, and with pixel noise. A sum
of waves has values at all coordinates, so nothing is interpolated.
"""

from __future__ import annotations

import math

import numpy as np

from plastax.data.base import Arrays, Entry, affordable, positive
from plastax.errors import ConfigError

WAVES = 4
CONTRAST = 40.0
"""Standard deviation of a pattern in grey levels; the mean is 127.5."""


def read(
    *,
    classes: int = 10,
    train_per_class: int = 600,
    test_per_class: int = 100,
    difficulty: float = 0.75,
    side: int = 32,
    channels: int = 3,
    seed: int = 0,
) -> Arrays:
    """Draws images, sorted by class.

    The same arguments give the same images, and class k is the same for any number of classes.

    Args:
      classes: number of classes.
      train_per_class: training images of a class.
      test_per_class: held-out images of a class, drawn independently.
      difficulty: at 0, every image is the pattern of its class. At 1, it has its own pattern of 1.5 times the class's
        standard deviation added, a shift of up to a quarter of its width, a zoom of up to 1.35, a mirror image in half
        of the cases, contrast, brightness and colours changed by up to a half, and noise as large as the pattern. In
        between, all of these grow in proportion. As a guide, the nearest class mean is right for 95 % of images of 2
        classes, 67 % of 10 and 27 % of 100 at 0.75 (100 training images a class), and for 80, 35 and 9 % at 1.
      side: height and width in pixels.
      channels: 3 for colour, 1 for grey.
      seed: of all draws.

    Raises:
      ConfigError: a count is below one, the difficulty is outside 0 .. 1, the seed is negative, or the images do not
        fit into memory.
    """
    positive(
        classes=classes, train_per_class=train_per_class, test_per_class=test_per_class, side=side, channels=channels
    )
    if not 0 <= difficulty <= 1:
        raise ConfigError(f"difficulty={difficulty} is not between 0 and 1")
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative")
    shape = (side, side, channels)
    most = max(train_per_class, test_per_class)
    affordable(classes, train_per_class + test_per_class, *shape, working=32 * most * math.prod(shape))
    train_images = np.empty((classes, train_per_class, *shape), np.uint8)
    test_images = np.empty((classes, test_per_class, *shape), np.uint8)
    for k in range(classes):
        waves = pattern(np.random.default_rng((seed, k, 0)), channels)
        train_images[k] = draw(np.random.default_rng((seed, k, 1)), waves, train_per_class, side, difficulty)
        test_images[k] = draw(np.random.default_rng((seed, k, 2)), waves, test_per_class, side, difficulty)

    def split(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images.reshape(-1, *shape), np.repeat(np.arange(classes, dtype=np.int32), images.shape[1])

    return Arrays(*split(train_images), *split(test_images), classes)


def pattern(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Random amplitudes of plane waves, complex64 ``[channels, 2 WAVES + 1, 2 WAVES + 1]``.

    Entry ``[c, j, k]`` belongs to ``exp(2 pi i ((j - WAVES) y + (k - WAVES) x))``. The real part has mean zero over the
    torus, and mean square one over the torus and the channels.
    """
    frequency = np.arange(-WAVES, WAVES + 1)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    falloff = np.where(radius > 0, 1 / np.maximum(radius, 1), 0)
    size = (channels, *radius.shape)
    waves = falloff * (rng.standard_normal(size) + 1j * rng.standard_normal(size))
    # Re(sum) has the amplitudes (a_f + conj(a_-f)) / 2.
    real = (waves + np.conj(waves[:, ::-1, ::-1])) / 2
    power = np.sum(np.abs(real) ** 2) / channels
    return (real / math.sqrt(power)).astype(np.complex64)


def draw(rng: np.random.Generator, waves: np.ndarray, number: int, side: int, difficulty: float) -> np.ndarray:
    """Images of one class, uint8 ``[number, side, side, channels]``; arguments as in `read`."""
    d, channels = difficulty, len(waves)

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape)

    zoom = np.exp(0.3 * d * uniform(number, 1))
    mirror = np.where(rng.random((number, 1)) < 0.5 * d, -1.0, 1.0)
    grid = (np.arange(side) + 0.5) / side - 0.5
    y = grid * zoom + 0.25 * d * uniform(number, 1)
    x = grid * zoom * mirror + 0.25 * d * uniform(number, 1)
    both = np.stack([waves + 1.5 * d * pattern(rng, channels) for _ in range(number)]) if d else waves[None]
    moved = evaluate(both, y, x)
    gain = 1 + 0.5 * d * uniform(number, channels, 1, 1)
    brightness = 0.5 * d * uniform(number, channels, 1, 1)
    noise = d * rng.standard_normal(moved.shape, np.float32)
    levels = 127.5 + CONTRAST * (gain * moved + brightness + noise)
    return np.round(np.clip(levels, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)


def evaluate(waves: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The patterns at the points of a grid, float32.

    Args:
      waves: amplitudes ``[N or 1, channels, 2 WAVES + 1, 2 WAVES + 1]``, see `pattern`.
      y: row coordinates in widths, ``[N, height]``.
      x: column coordinates, ``[N, width]``.

    Returns:
      ``[N, channels, height, width]``.
    """
    frequency = 2j * np.pi * np.arange(-WAVES, WAVES + 1)
    rows = np.exp(frequency * y[..., None]).astype(np.complex64)[:, None]
    columns = np.exp(frequency[:, None] * x[:, None]).astype(np.complex64)[:, None]
    along = rows @ waves
    # The real part of along @ columns, as one real product.
    return np.concatenate([along.real, -along.imag], -1) @ np.concatenate([columns.real, columns.imag], -2)


SYNTHETIC = Entry(
    description="SYNTHETIC colour images: random classes of smooth patterns, any number, a difficulty knob",
    source="plastax.data.synthetic",
    licence="none needed",
    notes="SYNTHETIC: results say nothing about real images; training and held-out images are independent draws",
    read=read,
    synthetic=True,
)
