"""Fashion-MNIST (arXiv 1708.07747): 70,000 images of 28 x 28 in 10 classes, dealt to any number of devices.

Read from the IDX files of the Debian package `dataset-fashion-mnist`. Every device's test set has its own label mix:
ceil(share * ceil(10,000 / parts)) images of each label, as in the experiments of FedSpa and DisPFL.

Dealt as rotations (`rotated_parts`), devices differ in what their images look like instead: each sees one domain, which
is all images turned by one angle.
"""

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import partition
from edge_runtime.errors import ConfigError

CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CLASSES = len(CLASS_NAMES)
FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.2860, 0.3530
"""Of the 60,000 training images, scaled to [0, 1]."""
_MAX_IDX_BYTES = 1 << 28
_SIDE = 28

Arrays = tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64]]
"""x_train, y_train, x_test, y_test; images as bytes [n, 28, 28]."""


@dataclass(frozen=True)
class Rotations:
    """How domains are made: domain d of `domains` is turned by `degrees` * d / (domains - 1)."""

    domains: int
    degrees: float
    samples: int
    """Training images of a device; 0: an even share of all."""
    test_samples: int
    """Test images of a domain, the same in all domains but for the angle."""
    test_all: bool
    """Whether a device is tested on all domains, or on its own."""

    def angle(self, domain: int) -> float:
        """Give a domain's angle in degrees."""
        return self.degrees * domain / max(self.domains - 1, 1)


def read(folder: Path) -> list[NDArray[np.uint8]]:
    """Read train images [60000, 28, 28], train labels, test images and test labels.

    Raises:
        ConfigError: not installed, or a damaged file.
    """
    if not folder.is_dir():
        raise ConfigError(
            "data: the data set 'fashion-mnist' is not installed; run: apt-get install dataset-fashion-mnist"
        )
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return [read_idx(folder / f"{stem}-ubyte.gz") for stem in stems]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: 0, 0, 8, dimensions, then each length as a big-endian uint32, then the values.

    Raises:
        ConfigError: missing, or anything else than that.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(_MAX_IDX_BYTES)
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); install its package again") from error
    dims = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    if not dims or len(data) != 4 + 4 * dims + math.prod(shape):
        raise ConfigError(f"{path}: not an IDX file of bytes; install its package again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def parts(raw: list[NDArray[np.uint8]], deal: partition.Deal, count: int, seed: int) -> list[Arrays]:
    """Deal what `read` gave to `count` devices."""
    x_train, y_train, x_test, y_test = raw[0], raw[1].astype(np.int64), raw[2], raw[3].astype(np.int64)
    rng = np.random.default_rng([seed, 0])
    result = []
    for mine in deal(y_train, count, rng):
        mix = np.bincount(y_train[mine], minlength=CLASSES) / len(mine)
        test = partition.like(y_test, mix, math.ceil(len(y_test) / count), rng)
        result.append((x_train[mine], y_train[mine], x_test[test], y_test[test]))
    return result


def rotated_parts(raw: list[NDArray[np.uint8]], how: Rotations, count: int, seed: int) -> list[Arrays]:
    """Deal what `read` gave to `count` devices at random, none twice: device p sees domain p modulo their number.

    Raises:
        ConfigError: there are not so many images.
    """
    x_train, y_train, x_test, y_test = raw[0], raw[1].astype(np.int64), raw[2], raw[3].astype(np.int64)
    rng = np.random.default_rng([seed, 1])
    share = len(y_train) // count
    size = how.samples or share
    if not 0 < size <= share or how.test_samples > len(y_test):
        raise ConfigError(f"data: there are {share} training images a device and {len(y_test)} for tests; ask for less")
    order, test = rng.permutation(len(y_train)), rng.choice(len(y_test), how.test_samples, replace=False)
    tests = [rotate(x_test[test], how.angle(domain)) for domain in range(how.domains)]
    result = []
    for part in range(count):
        mine, domain = order[part * share : part * share + size], part % how.domains
        seen = range(how.domains) if how.test_all else [domain]
        x, y = np.concatenate([tests[one] for one in seen]), np.tile(y_test[test], len(seen))
        result.append((rotate(x_train[mine], how.angle(domain)), y_train[mine], x, y))
    return result


def rotate(images: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Turn images [n, 28, 28] counter-clockwise about their centre: bilinear, with 0 from beyond the edge."""
    turn, middle = math.radians(degrees), (_SIDE - 1) / 2
    rows, columns = np.mgrid[:_SIDE, :_SIDE] - middle
    from_row = math.cos(turn) * rows + math.sin(turn) * columns + middle
    from_column = math.cos(turn) * columns - math.sin(turn) * rows + middle
    edged = np.pad(images, ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    row, column = (np.clip(found, -1, _SIDE) + 1 for found in (from_row, from_column))
    top, left = (np.minimum(found.astype(np.int64), _SIDE) for found in (row, column))
    down, right = (row - top).astype(np.float32), (column - left).astype(np.float32)
    upper = edged[:, top, left] * (1 - right) + edged[:, top, left + 1] * right
    lower = edged[:, top + 1, left] * (1 - right) + edged[:, top + 1, left + 1] * right
    return np.asarray(np.rint(upper * (1 - down) + lower * down).astype(np.uint8))


def scale(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn bytes [n, 28, 28] into normalised inputs [n, 1, 28, 28]."""
    return ((images.astype(np.float32) / 255 - MEAN) / DEVIATION)[:, None].astype(np.float32)
