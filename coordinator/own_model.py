"""A run's model that is a torch module of the user's own, `package.module:factory`."""

import tempfile
from pathlib import Path

from edge_runtime import bundle, config, models
from edge_runtime.bundle import Bundle
from edge_runtime.coordinator import exporting
from edge_runtime.tree import Flat, Layout


def initial(model: str, seed: int) -> tuple[Layout, Flat]:
    """Give the tensors of a module, and what they begin as [size].

    Raises:
        ConfigError: it cannot be made.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        exporting.start("initial", [model, "--seed", str(seed), "--out", str(path)])
        return models.read_initial(path)


def exported(model: str, shape: str, kind: str, seed: int) -> Bundle:
    """Make a bundle of a module; its graphs come from the cache if they were made before of the same code.

    Args:
        model: the factory.
        shape: of one sample, `3x32x32`.
        kind: of one sample, `float32` or `int64`.
        seed: of what its parameters begin as.

    Raises:
        ConfigError: it cannot be made, or not be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        ends = ["--input", shape, "--type", kind, "--seed", str(seed), "--out", str(out)]
        exporting.start("bundle", [model, *ends, "--kept", str(config.cache_folder()), "--quiet"])
        return bundle.read(out)
