"""Where a task finds its model and its data: loaded for it alone, or kept at hand for the next one."""

import functools
from collections.abc import Callable
from pathlib import Path

from edge_runtime import backends, bundle, data
from edge_runtime.algorithm import Model
from edge_runtime.compute import Compute
from edge_runtime.data import DataConfig, Split


def _same(split: Split) -> Split:
    return split


class Workshop:
    """Loads models and data, which tasks only ever read. One with room keeps those used last."""

    def __init__(self, models: int = 0, splits: int = 0, alter: Callable[[Split], Split] = _same) -> None:
        """Keep at most so many models and devices' data; `alter` makes of a device's data what is trained on."""
        self._model = functools.lru_cache(models)(_model)
        self._split = functools.lru_cache(splits)(lambda config, cache: alter(data.load(config, cache)))

    def model(self, compute: Compute, name: str, packed: bytes) -> Model:
        """Make a model of its name, or of its bundle (`bundle.pack`); see `backends.load`."""
        return self._model(compute, name, packed)

    def split(self, config: DataConfig, cache: Path) -> Split:
        """Load a device's part; see `data.load`."""
        return self._split(config, cache)


def _model(compute: Compute, name: str, packed: bytes) -> Model:
    return backends.load(compute, name, bundle.unpack(packed) if packed else None)
