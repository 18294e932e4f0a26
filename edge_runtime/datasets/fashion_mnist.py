"""Fashion-MNIST (arXiv 1708.07747): 70,000 images of 28 x 28 in 10 classes, dealt to any number of devices.

Read from the IDX files of the Debian package `dataset-fashion-mnist`. Every device's test set has its own label mix:
ceil(share * ceil(10,000 / parts)) images of each label, as in the experiments of FedSpa and DisPFL.
"""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import partition
from edge_runtime.errors import ConfigError

CLASSES = 10
FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.2860, 0.3530
"""Of the 60,000 training images, scaled to [0, 1]."""
_MAX_IDX_BYTES = 1 << 28


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


def parts(
    raw: list[NDArray[np.uint8]], deal: partition.Deal, count: int, seed: int
) -> list[tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64]]]:
    """Deal what `read` gave to `count` devices: each x_train, y_train, x_test, y_test, images as bytes [n, 28, 28]."""
    x_train, y_train, x_test, y_test = raw[0], raw[1].astype(np.int64), raw[2], raw[3].astype(np.int64)
    rng = np.random.default_rng([seed, 0])
    result = []
    for mine in deal(y_train, count, rng):
        mix = np.bincount(y_train[mine], minlength=CLASSES) / len(mine)
        test = partition.like(y_test, mix, math.ceil(len(y_test) / count), rng)
        result.append((x_train[mine], y_train[mine], x_test[test], y_test[test]))
    return result


def scale(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn bytes [n, 28, 28] into normalised inputs [n, 1, 28, 28]."""
    return ((images.astype(np.float32) / 255 - MEAN) / DEVIATION)[:, None].astype(np.float32)
