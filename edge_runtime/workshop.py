"""Where a task finds its model and its data: loaded for it alone, or kept at hand for the next one."""

import functools
from collections.abc import Callable
from pathlib import Path

from edge_runtime import backends, bundle, data
from edge_runtime.algorithm import Model
from edge_runtime.compute import Compute
from edge_runtime.data import DataConfig, Split
from edge_runtime.setup import ModelCard


def _same(split: Split) -> Split:
    return split


class Workshop:
    """Loads models and data, which tasks only ever read. One with room keeps those used last."""

    def __init__(self, models: int = 0, splits: int = 0, alter: Callable[[Split], Split] = _same) -> None:
        """Keep at most so many models and devices' data; `alter` makes of a device's data what is trained on."""
        self._model = functools.lru_cache(models)(_model)
        self._split = functools.lru_cache(splits)(lambda config, cache: alter(data.load(config, cache)))

    def model(self, compute: Compute, card: ModelCard) -> Model:
        """Make a model of its name, or of its bundle; see `backends.load`."""
        return self._model(compute, card)

    def split(self, config: DataConfig, cache: Path) -> Split:
        """Load a device's part; see `data.load`."""
        return self._split(config, cache)


def _model(compute: Compute, card: ModelCard) -> Model:
    return backends.load(compute, card.name, bundle.unpack(card.bundle) if card.bundle else None, card.cut)
