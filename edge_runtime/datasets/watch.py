"""Smartwatch recordings of 7 shoulder exercises: 10 people x 2 sides = 20 devices that differ by nature.

140 recordings of 6 channels (accelerometer ax ay az, gyroscope wx wy wz) at 50 Hz, one per person, side and exercise
(Burns et al., Physiological Measurement 39, 2018, doi 10.1088/1361-6579/aacfd9). The PyPI package `seglearn` 1.2.5
ships them as a pickled dict. It is the one pickle that this project reads, and only after checking its SHA-256.

Each recording is cut in time: windows of 2 s, a second apart, from its first 70 % for training, and, after a gap of
1 s, from the rest for testing, so that no sample is in both. Channels are normalised per device by mean and standard
deviation of its training stretches (which takes no labels).
"""

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError

Arrays = tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64]]
"""x_train, y_train, x_test, y_test."""

CLASS_NAMES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
"""Pendulum, abduction, forward elevation, internal and external rotation, trapezius extension, row."""
CLASSES = len(CLASS_NAMES)
WINDOW = 100
HOP = 50
GAP = 50
TRAIN_SHARE = 0.7
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
_INSTALL = "run: pip install --no-deps seglearn==1.2.5"
_SIDES = ("left", "right")


def names() -> list[str]:
    """Name the 20 devices, person by person."""
    return [f"person-{person:02d}-{side}" for person in range(1, 11) for side in _SIDES]


def find() -> Path:
    """Find the data file in the installed package, without importing the package.

    Raises:
        ConfigError: it is not installed.
    """
    spec = importlib.util.find_spec("seglearn")
    path = Path(spec.origin or "").parent / "data" / "watch_dataset.npy" if spec else None
    if path is None or not path.is_file():
        raise ConfigError(f"data: the data set 'watch' is not installed; {_INSTALL}")
    return path


def parts(path: Path) -> list[Arrays]:
    """Read the recordings and make every device's windows [windows, 6, 100], in the order of `names()`.

    Raises:
        ConfigError: the file is not the one that we know.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ConfigError(f"{path}: not the file of seglearn 1.2.5; {_INSTALL}")
    record = np.load(io.BytesIO(data), allow_pickle=True).item()
    result = []
    for person in range(1, 11):
        for side in range(2):
            mine = np.flatnonzero((record["subject"] == person) & (record["side"] == side))
            result.append(device([record["X"][i] for i in mine], [int(record["y"][i]) for i in mine]))
    return result


def device(recordings: list[NDArray[np.float64]], labels: list[int]) -> Arrays:
    """Cut and normalise one device's recordings, each [samples, channels] of one label."""
    cuts = [int(TRAIN_SHARE * len(recording)) for recording in recordings]
    seen = np.concatenate([recording[:cut] for recording, cut in zip(recordings, cuts, strict=True)])
    mean, deviation = seen.mean(0), np.maximum(seen.std(0), 1e-9)  # a channel that stands still
    train, test = [], []
    for recording, cut in zip(recordings, cuts, strict=True):
        normal = ((recording - mean) / deviation).astype(np.float32)
        train.append(windows(normal[:cut]))
        test.append(windows(normal[cut + GAP :]))
    ys = [np.repeat(np.array(labels, np.int64), [len(part) for part in side]) for side in (train, test)]
    return np.concatenate(train), ys[0], np.concatenate(test), ys[1]


def windows(recording: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut a stretch [samples, channels] into all whole windows [windows, channels, 100], 50 samples apart."""
    if len(recording) < WINDOW:
        return np.empty((0, recording.shape[1], WINDOW), np.float32)
    return np.lib.stride_tricks.sliding_window_view(recording, WINDOW, 0)[::HOP]
