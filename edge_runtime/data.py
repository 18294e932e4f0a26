"""A device's data: `load` gives its part of a data set, and `SeededBatches` deals it out for one round.

A task's process is started afresh every time and loads one part only, so parts of the built-in data sets are made once
and kept, one uncompressed NPZ file each, in a folder of the cache that is named after the configuration.
"""

import dataclasses
import difflib
import fcntl
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import partition
from edge_runtime.algorithm import Batch
from edge_runtime.datasets import adapter, fashion_mnist, folder, watch
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.files import write_atomic
from edge_runtime.seed_set import SeedSet

Arrays = watch.Arrays
_SETS = ("watch", "fashion-mnist")
_PARTITIONS = ("dirichlet", "classes", "rotations")
_TESTS = ("own", "all")
_KEYS = ("x_train", "y_train", "x_test", "y_test")
_CACHE_VERSION = 1


@dataclass(frozen=True)
class DataConfig:
    """Which data, and which part of it."""

    name: str = "watch"
    """watch, fashion-mnist, the path of a folder of your own (see `datasets/folder.py`), or `package.module:Class` of
    your own (see `datasets/adapter.py`)."""
    source: str = ""
    """What that class is made with."""
    part: int = 0
    """Which device's part, from 0."""
    parts: int = 20
    """How many devices share the data; at most 20 for watch; a folder of your own says it itself."""
    labels_per_class: int = 0
    """Training samples to keep of each class, the first ones; 0 keeps all. Test sets stay whole."""
    partition: str = "dirichlet"
    """How fashion-mnist is dealt: dirichlet, classes or rotations."""
    alpha: float = 0.3
    """Of the Dirichlet distribution; small for devices with few labels."""
    classes_per_device: int = 2
    """For the partition `classes`."""
    domains: int = 6
    """For the partition `rotations`: how many angles; part p has angle p modulo that."""
    degrees: float = 75.0
    """The largest angle; the others lie evenly between 0 and it."""
    samples: int = 1000
    """Training samples of a part of `rotations`; 0: an even share of all."""
    test: str = "own"
    """What a part of `rotations` is tested on: its `own` domain, or `all`."""
    test_samples: int = 300
    """Test samples of each domain of `rotations`."""
    seed: int = 0
    """Of the partition."""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.name in _SETS and not 1 <= self.parts <= 60_000:
            raise ConfigError(f"data: parts must be from 1 to 60000, not {self.parts}")
        if self.name == "watch" and self.parts > len(watch.names()):
            raise ConfigError(f"data: watch has data of {len(watch.names())} devices, so parts cannot be {self.parts}")
        if self.part < 0 or (self.name in _SETS and self.part >= self.parts):
            raise ConfigError(f"data: part must be from 0 to {self.parts - 1} (parts - 1), not {self.part}")
        if self.labels_per_class < 0:
            raise ConfigError(f"data: labels-per-class must be 0 (all) or more, not {self.labels_per_class}")
        if self.partition not in _PARTITIONS:
            raise ConfigError(f"data: partition must be one of {', '.join(_PARTITIONS)}, not {self.partition!r}")
        if not 1e-3 <= self.alpha <= 1e6:
            raise ConfigError(f"data: alpha must be from 0.001 to 1000000, not {self.alpha}")
        if not 1 <= self.classes_per_device <= fashion_mnist.CLASSES:
            raise ConfigError(f"data: classes-per-device must be from 1 to 10, not {self.classes_per_device}")
        if self.domains < 1 or self.test_samples < 1 or self.samples < 0:
            raise ConfigError("data: domains and test-samples must be 1 or more, and samples 0 (all) or more")
        if not abs(self.degrees) <= 360:
            raise ConfigError(f"data: degrees must be from -360 to 360, not {self.degrees}")
        if self.test not in _TESTS:
            raise ConfigError(f"data: test must be one of {', '.join(_TESTS)}, not {self.test!r}")
        self._check_source()
        if self.seed < 0:
            raise ConfigError(f"data: seed must be 0 or more, not {self.seed}")

    def _check_source(self) -> None:
        if self.source and not self.by_class:
            raise ConfigError(f"data: source goes with a class of your own, package.module:Class, not {self.name!r}")

    @property
    def by_class(self) -> bool:
        """Say whether a class of the user's own reads the data."""
        return ":" in self.name and not Path(self.name).expanduser().is_dir()


@dataclass(frozen=True)
class Split:
    """One device's samples: x [samples, channels, ...], y class indices [samples]; the model's outputs: `classes`."""

    x_train: NDArray[Any]
    y_train: NDArray[np.int64]
    x_test: NDArray[Any]
    y_test: NDArray[np.int64]
    classes: int
    class_names: tuple[str, ...]


class SeededBatches:
    """Deals a device's training samples for one round; implements `algorithm.Batches`."""

    def __init__(
        self,
        x: NDArray[Any],
        y: NDArray[np.int64],
        seed: int | Sequence[int],
        class_names: tuple[str, ...] = (),
        seed_set: SeedSet | None = None,
    ) -> None:
        self._x, self._y = x, y
        self.class_names, self.seed_set = class_names, seed_set
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Count the training samples."""
        return len(self._y)

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        """Go once through all samples in a new random order; the last batch may be smaller."""
        order = self.rng.permutation(len(self))
        for start in range(0, len(self), batch_size):
            yield self._batch(order[start : start + batch_size])

    def sample(self, batch_size: int) -> Batch:
        """Draw one batch of min(batch_size, len) different samples."""
        return self._batch(self.rng.choice(len(self), min(batch_size, len(self)), replace=False))

    def _batch(self, indices: NDArray[np.int64]) -> Batch:
        return Batch(self._x[indices], self._y[indices])


def device_names(config: DataConfig) -> list[str]:
    """Name the devices that share the data, in the order of their parts.

    Raises:
        ConfigError: a folder or class of the user's own that has no data, or no such data set.
    """
    if config.by_class:
        return adapter.names(config.name, config.source)
    if config.name == "watch":
        return watch.names()[: config.parts]
    if config.name == "fashion-mnist":
        return [f"device-{part:03d}" for part in range(config.parts)]
    return folder.names(_own(config.name))


def load(config: DataConfig, cache: Path) -> Split:
    """Load one device's part.

    Raises:
        ConfigError: no such data set (or not installed, with the command that does it), or a damaged file.
        DeviceError: `cache` cannot be written.
    """
    if config.by_class:
        read, called = adapter.read(config.name, config.source, config.part)
        split = Split(*read, len(called), called)
    elif config.name == "watch":
        key = {"name": "watch"}
        arrays = _cached(cache, key, config.part, lambda: watch.parts(watch.find()))
        split = Split(*arrays, watch.CLASSES, watch.CLASS_NAMES)
    elif config.name == "fashion-mnist":
        kept = {field: getattr(config, field) for field in ("name", "parts", "partition", "seed", *_dealing(config))}
        arrays = _cached(cache, kept, config.part, functools.partial(_deal, config))
        split = Split(*arrays, fashion_mnist.CLASSES, fashion_mnist.CLASS_NAMES)
    else:
        own = _own(config.name)
        split = Split(*folder.read(own, config.part), folder.class_names(own, config.part))
    if config.labels_per_class:
        chosen = partition.few(split.y_train, config.labels_per_class)
        split = dataclasses.replace(split, x_train=split.x_train[chosen], y_train=split.y_train[chosen])
    if config.name == "fashion-mnist":  # last, as it takes four times the memory of what was read
        x_train, x_test = fashion_mnist.scale(split.x_train), fashion_mnist.scale(split.x_test)
        split = dataclasses.replace(split, x_train=x_train, x_test=x_test)
    return split


def seed_set(config: DataConfig, samples: int, cache: Path) -> SeedSet:
    """Make a seed set of every part's training samples, equally many of each; no part loses them.

    Args:
        config: the data set; its `part` makes no difference.
        samples: how many there shall be; what does not divide evenly is left out.
        cache: where prepared data sets are kept.

    Raises:
        ConfigError: as `load`; or fewer samples than parts, or parts whose classes are not alike.
    """
    parts = [dataclasses.replace(config, part=part) for part in range(len(device_names(config)))]
    each = samples // len(parts)
    if not each:
        raise ConfigError(f"data: a seed set of {samples} samples gives less than one of each of {len(parts)} parts")
    found = []
    for part in parts:
        split = load(part, cache)
        chosen = partition.mixed(split.y_train, each, np.random.default_rng([config.seed, 2, part.part]))
        found.append(SeedSet(split.x_train[chosen], split.y_train[chosen], split.class_names))
    if len({seeds.class_names for seeds in found}) > 1:
        raise ConfigError(f"data: the devices of {config.name!r} have different classes; give all the same class_names")
    x, y = np.concatenate([seeds.x for seeds in found]), np.concatenate([seeds.y for seeds in found])
    return SeedSet(x, y, found[0].class_names)


def _own(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_dir():
        near = difflib.get_close_matches(name, _SETS, 1)
        known = f" (known: {', '.join(_SETS)}, or a folder or package.module:Class of your own)"
        hint = f"; did you mean {near[0]!r}?" if near else known
        raise ConfigError(f"data: {name!r} is neither a data set nor a folder{hint}")
    return path


def _dealing(config: DataConfig) -> tuple[str, ...]:
    if config.partition == "rotations":
        return ("domains", "degrees", "samples", "test", "test_samples")
    return ("alpha",) if config.partition == "dirichlet" else ("classes_per_device",)


def _deal(config: DataConfig) -> list[Arrays]:
    if config.partition == "rotations":
        how = fashion_mnist.Rotations(
            config.domains, config.degrees, config.samples, config.test_samples, config.test == "all"
        )
        return fashion_mnist.rotated_parts(fashion_mnist.read(fashion_mnist.FOLDER), how, config.parts, config.seed)
    if config.partition == "dirichlet":
        deal = functools.partial(partition.dirichlet, alpha=config.alpha)
    else:
        deal = functools.partial(partition.by_classes, classes=config.classes_per_device)
    return fashion_mnist.parts(fashion_mnist.read(fashion_mnist.FOLDER), deal, config.parts, config.seed)


def _cached(cache: Path, key: dict[str, Any], part: int, make: Callable[[], list[Arrays]]) -> Arrays:
    """Read a part from the cache; make all parts if it is missing, while other processes wait."""
    digest = hashlib.sha256(json.dumps([_CACHE_VERSION, key], sort_keys=True).encode()).hexdigest()
    home = cache / f"{key['name']}-{digest[:16]}"
    found = _read_part(home, part)
    if found is not None:
        return found
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _read_part(home, part)
            return found if found is not None else _write_parts(home, make())[part]
    except OSError as error:
        raise DeviceError(f"{home}: the data cache cannot be written: {error.strerror}") from error


def _read_part(home: Path, part: int) -> Arrays | None:
    """Read a part; None if it is missing or damaged, which making it anew mends."""
    try:
        with (home / f"{part:05d}.npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            x_train, y_train, x_test, y_test = (file[key] for key in _KEYS)
            return x_train, y_train, x_test, y_test
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_parts(home: Path, parts: list[Arrays]) -> list[Arrays]:
    for index, arrays in enumerate(parts):
        file = io.BytesIO()
        np.savez(file, **dict(zip(_KEYS, arrays, strict=True)))  # type: ignore[arg-type]
        write_atomic(home / f"{index:05d}.npz", file.getvalue())
    return parts
