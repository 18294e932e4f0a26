"""The models that come with the package, as plain data: what their layers are, and how they begin.

A `ModelSpec` knows nothing of any framework; a backend turns it into something that computes. A user's own torch
module needs no spec: `export/initial.py` writes its layout and initial values to a file that `read_initial` takes.
"""

import difflib
import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.tree import Flat, Layout

Shapes = dict[str, tuple[int, ...]]

_TILE = 1 << 16
"""Values drawn at a time."""
_SHIFT = np.uint64(11)


@dataclass(frozen=True)
class Conv:
    """Convolution over one or two dimensions, as many as `kernel` has: [inputs, ...] to [outputs, ...]."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0

    @property
    def shapes(self) -> Shapes:
        """Name the parameters."""
        return {"weight": (self.outputs, self.inputs, *self.kernel), "bias": (self.outputs,)}


@dataclass(frozen=True)
class Linear:
    """A dense layer: [inputs] to [outputs]."""

    inputs: int
    outputs: int

    @property
    def shapes(self) -> Shapes:
        """Name the parameters."""
        return {"weight": (self.outputs, self.inputs), "bias": (self.outputs,)}


@dataclass(frozen=True)
class GroupNorm:
    """Normalisation over all positions and the channels of a group (Wu and He, 2018); keeps no running state."""

    groups: int
    channels: int
    epsilon: float = 1e-5

    @property
    def shapes(self) -> Shapes:
        """Name the parameters."""
        return {"weight": (self.channels,), "bias": (self.channels,)}


@dataclass(frozen=True)
class Relu:
    """max(x, 0), with the derivative 0 at 0."""

    shapes = Shapes()


@dataclass(frozen=True)
class MaxPool:
    """Maximum over windows of `size` in every dimension that do not overlap; a rest at the end is left out."""

    size: int
    shapes = Shapes()


@dataclass(frozen=True)
class GlobalAveragePool:
    """Mean over all positions: [channels, ...] to [channels]."""

    shapes = Shapes()


@dataclass(frozen=True)
class Flatten:
    """Lay out all values in one row, channels first."""

    shapes = Shapes()


Layer = Conv | Linear | GroupNorm | Relu | MaxPool | GlobalAveragePool | Flatten


@dataclass(frozen=True)
class ModelSpec:
    """A chain of layers from inputs of `input_shape` (channels first, without the batch) to `classes` outputs."""

    name: str
    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    classes: int

    @cached_property
    def named(self) -> tuple[tuple[str, Layer], ...]:
        """Give every layer a name by its kind and place: conv1, relu1, conv2, ..."""
        seen: Counter[str] = Counter()
        pairs = []
        for layer in self.layers:
            kind = type(layer).__name__.lower()
            seen[kind] += 1
            pairs.append((f"{kind}{seen[kind]}", layer))
        return tuple(pairs)

    @cached_property
    def layout(self) -> Layout:
        """List the parameters by name (`conv1.weight`) and shape."""
        pairs = [(f"{name}.{key}", shape) for name, layer in self.named for key, shape in layer.shapes.items()]
        return Layout(tuple(name for name, _ in pairs), tuple(shape for _, shape in pairs))


def initial(spec: ModelSpec, seed: int, held: NDArray[np.bool_] | None = None) -> Flat:
    """Draw initial parameters [size]: the same bits for the same seed on every machine: the wire counts from them.

    Hence the raw draws of PCG64, which numpy promises for ever (NEP 19), and one float64 operation after the other. Of
    a sparse model only those `held` [size] are kept, so that the others never lie in memory all at once.

    Weights and biases of Conv and Linear are uniform in +-1 / sqrt(fan in), torch's default, which is LeCun's rule
    (Efficient BackProp, 1998, section 4.6) up to a factor sqrt(3); a GroupNorm begins as the identity.
    """
    parts, start = [np.empty(0, np.float32)], 0
    for part in _drawn(spec, np.random.PCG64(seed)):
        end = start + len(part)
        parts.append(part if held is None else part[held[start:end]])
        start = end
    return np.concatenate(parts)


def _drawn(spec: ModelSpec, generator: np.random.PCG64) -> Iterator[Flat]:
    """Draw initial parameters, some at a time."""
    for layer in spec.layers:
        for key, shape in layer.shapes.items():
            size = math.prod(shape)
            if isinstance(layer, GroupNorm):
                yield np.full(size, float(key == "weight"), np.float32)
                continue
            bound = 1 / math.sqrt(math.prod(layer.shapes["weight"][1:]))
            for done in range(0, size, _TILE):
                even = (generator.random_raw(min(_TILE, size - done)) >> _SHIFT) * 2.0**-53  # of [0, 1)
                yield (2 * bound * even - bound).astype(np.float32)


def _watch_cnn() -> ModelSpec:
    layers = (
        Conv(6, 32, (11,), stride=2, padding=5),
        GroupNorm(8, 32),
        Relu(),
        MaxPool(2),
        Conv(32, 64, (5,), padding=2),
        GroupNorm(8, 64),
        Relu(),
        MaxPool(2),
        Conv(64, 64, (5,), padding=2),
        GroupNorm(8, 64),
        Relu(),
        GlobalAveragePool(),
        Linear(64, 7),
    )
    return ModelSpec("watch-cnn", layers, (6, 100), 7)


def _watch_cnn_small() -> ModelSpec:
    layers = (
        Conv(6, 16, (7,), stride=2, padding=3),
        GroupNorm(4, 16),
        Relu(),
        MaxPool(2),
        Conv(16, 32, (5,), padding=2),
        GroupNorm(4, 32),
        Relu(),
        GlobalAveragePool(),
        Linear(32, 7),
    )
    return ModelSpec("watch-cnn-small", layers, (6, 100), 7)


def _watch_mlp() -> ModelSpec:
    return ModelSpec("watch-mlp", (Flatten(), Linear(600, 64), Relu(), Linear(64, 7)), (6, 100), 7)


_CNN_FEATURES = (
    *(Conv(1, 32, (5, 5), padding=2), Relu(), MaxPool(2)),
    *(Conv(32, 64, (5, 5), padding=2), Relu(), MaxPool(2), Flatten()),
)


def _cnn() -> ModelSpec:
    """The CNN of McMahan et al. (2017), section 3: 1,663,370 parameters."""
    return ModelSpec("cnn", (*_CNN_FEATURES, Linear(3136, 512), Relu(), Linear(512, 10)), (1, 28, 28), 10)


def _cnn_large() -> ModelSpec:
    """The `cnn` with 9,639,306 parameters, to measure what grows with them: its activations are those of the `cnn`."""
    head = (Linear(3136, 2048), Relu(), Linear(2048, 1536), Relu(), Linear(1536, 10))
    return ModelSpec("cnn-large", (*_CNN_FEATURES, *head), (1, 28, 28), 10)


def _cnn_wide() -> ModelSpec:
    """Two 3x3 convolutions without padding, and one pooling after both: 1,199,882 parameters, 98 % in one matrix."""
    features = (Conv(1, 32, (3, 3)), Relu(), Conv(32, 64, (3, 3)), Relu(), MaxPool(2), Flatten())
    return ModelSpec("cnn-wide", (*features, Linear(9216, 128), Relu(), Linear(128, 10)), (1, 28, 28), 10)


def _lenet() -> ModelSpec:
    """LeNet-5 with the layer sizes of LeCun et al. (1998), section II.B, but ReLU, max-pooling and full connections."""
    features = (Conv(1, 6, (5, 5), padding=2), Relu(), MaxPool(2), Conv(6, 16, (5, 5)), Relu(), MaxPool(2))
    head = (Flatten(), Linear(400, 120), Relu(), Linear(120, 84), Relu(), Linear(84, 10))
    return ModelSpec("lenet", features + head, (1, 28, 28), 10)


def _mlp() -> ModelSpec:
    return ModelSpec("mlp", (Flatten(), Linear(784, 32), Relu(), Linear(32, 10)), (1, 28, 28), 10)


def _linear() -> ModelSpec:
    return ModelSpec("linear", (Flatten(), Linear(784, 10)), (1, 28, 28), 10)


_MODELS = {
    "cnn": _cnn,
    "cnn-large": _cnn_large,
    "cnn-wide": _cnn_wide,
    "lenet": _lenet,
    "linear": _linear,
    "mlp": _mlp,
    "watch-cnn": _watch_cnn,
    "watch-cnn-small": _watch_cnn_small,
    "watch-mlp": _watch_mlp,
}


def names() -> list[str]:
    """List the built-in models."""
    return list(_MODELS)


def find(name: str) -> ModelSpec:
    """Find a built-in model.

    Raises:
        ConfigError: there is none of that name (with the nearest one).
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"model: {name!r} is unknown{hint} (known: {', '.join(_MODELS)}, or package.module:factory of your own)"
        )
    return _MODELS[name]()


def write_initial(path: Path, layout: Layout, flat: Flat) -> None:
    """Write a layout and initial parameters [size] to an NPZ file; the inverse of `read_initial`."""
    with path.open("wb") as file:
        np.savez(file, layout=np.array(json.dumps([layout.names, layout.shapes])), flat=flat)


def read_initial(path: Path) -> tuple[Layout, Flat]:
    """Read what `write_initial` wrote.

    Raises:
        ConfigError: the file is missing, damaged, or holds values that are not finite.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            names_, shapes = json.loads(str(file["layout"]))
            layout, flat = Layout(tuple(names_), tuple(tuple(shape) for shape in shapes)), file["flat"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: not a file of initial parameters ({error}); make it again") from error
    if flat.dtype != np.float32 or flat.shape != (layout.size,) or not np.isfinite(flat).all():
        raise ConfigError(f"{path}: its values are not {layout.size} finite float32 numbers; make it again")
    return layout, flat
