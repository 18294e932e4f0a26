"""Built-in models in numpy alone: for small models on devices where nothing else is installed.

Inside, channels are last ([batch, positions..., channels]), so that the window of a convolution is one run of memory:
a convolution is a copy of windows and one matrix product. Each layer's forward half returns its pullback: the
function that takes d loss / d output to d loss / d input and the gradients of the layer's own parameters. Everything
has the type of the parameters: float32, or float64 where a test wants digits.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.algorithm import Model, Pullback
from edge_runtime.models import Conv, Flatten, GlobalAveragePool, GroupNorm, Layer, Linear, MaxPool, ModelSpec, Relu
from edge_runtime.tree import Tree

Array = NDArray[Any]
Grads = dict[str, Array]
Pull = Callable[[Array], tuple[Array | None, Grads]]


class NumpyOracle:
    """A `ModelSpec` as an Oracle. Parameters must not change between `vjp` and its pullback."""

    def __init__(self, spec: ModelSpec) -> None:
        self._layers = spec.named
        # Below the first layer with parameters nobody asks for a gradient.
        self._first = next(i for i, layer in enumerate(spec.layers) if layer.shapes)

    def vjp(self, params: Tree, x: Array) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model; see `algorithm.Oracle`."""
        dtype = next(iter(params.values())).dtype
        value = np.ascontiguousarray(np.moveaxis(np.asarray(x, dtype), 1, -1))
        pulls: list[tuple[str, Pull]] = []
        for index, (name, layer) in enumerate(self._layers):
            own = {key: params[f"{name}.{key}"] for key in layer.shapes}
            value, pull = _forward(layer, own, value, index > self._first)
            if index >= self._first:
                pulls.append((name, pull))

        def pullback(grad: Array) -> Grads:
            grads: Grads = {}
            above: Array | None = np.asarray(grad, dtype)
            for name, pull in reversed(pulls):
                assert above is not None  # noqa: S101  # only the first layer gives none
                above, own = pull(above)
                grads |= {f"{name}.{key}": value for key, value in own.items()}
            return grads

        return value, pullback


def from_spec(spec: ModelSpec) -> Model:
    """Make a built-in model."""
    return Model(spec.layout, NumpyOracle(spec))


def _forward(layer: Layer, own: Grads, x: Array, wants_input: bool) -> tuple[Array, Pull]:
    match layer:
        case Conv():
            return _conv(layer, own["weight"], own["bias"], x, wants_input)
        case Linear():
            return _linear(own["weight"], own["bias"], x, wants_input)
        case GroupNorm():
            return _group_norm(layer, own["weight"], own["bias"], x)
        case Relu():
            return _relu(x)
        case MaxPool():
            return _max_pool(layer.size, x)
        case GlobalAveragePool():
            return _average(x)
        case Flatten():
            return _flatten(x)


def _conv(layer: Conv, weight: Array, bias: Array, x: Array, wants_input: bool) -> tuple[Array, Pull]:
    dims = len(layer.kernel)
    space = tuple(range(1, dims + 1))
    padded = np.pad(x, [(0, 0), *[(layer.padding, layer.padding)] * dims, (0, 0)]) if layer.padding else x
    every: Any = (slice(None), *[slice(None, None, layer.stride)] * dims)
    windows: Array = np.lib.stride_tricks.sliding_window_view(padded, layer.kernel, space)[every]
    windows = np.moveaxis(windows, dims + 1, -1)  # [batch, positions..., kernel..., inputs]
    positions = windows.shape[1 : dims + 1]
    columns = windows.reshape(-1, math.prod(layer.kernel) * layer.inputs)
    matrix = np.moveaxis(weight, 1, -1).reshape(layer.outputs, -1)  # [outputs, kernel * inputs]
    y = columns @ matrix.T
    y += bias

    def pull(grad: Array) -> tuple[Array | None, Grads]:
        rows = grad.reshape(-1, layer.outputs)
        d_weight = (rows.T @ columns).reshape(layer.outputs, *layer.kernel, layer.inputs)
        own = {"weight": np.ascontiguousarray(np.moveaxis(d_weight, -1, 1)), "bias": _column_sums(rows)}
        return (_conv_input(layer, weight, rows, padded.shape, positions) if wants_input else None), own

    return y.reshape(len(x), *positions, layer.outputs), pull


def _conv_input(layer: Conv, weight: Array, rows: Array, shape: tuple[int, ...], positions: tuple[int, ...]) -> Array:
    """Give d loss / d input: every place of the kernel adds its share to the inputs that it saw."""
    total = np.zeros(shape, rows.dtype)
    for place in itertools.product(*map(range, layer.kernel)):
        seen = [slice(p, p + n * layer.stride, layer.stride) for p, n in zip(place, positions, strict=True)]
        there: Any = (..., *place)
        share = rows @ np.ascontiguousarray(weight[there])
        total[(slice(None), *seen)] += share.reshape(shape[0], *positions, layer.inputs)
    inner = [slice(layer.padding, n - layer.padding) for n in shape[1:-1]]
    return total[(slice(None), *inner)]


def _linear(weight: Array, bias: Array, x: Array, wants_input: bool) -> tuple[Array, Pull]:
    def pull(grad: Array) -> tuple[Array | None, Grads]:
        return (grad @ weight if wants_input else None), {"weight": grad.T @ x, "bias": _column_sums(grad)}

    return x @ weight.T + bias, pull


def _group_norm(layer: GroupNorm, weight: Array, bias: Array, x: Array) -> tuple[Array, Pull]:
    values = x.reshape(len(x), -1, layer.channels)
    centred = values - _group_mean(values, layer.groups)
    scale = 1 / np.sqrt(_group_mean(centred * centred, layer.groups) + layer.epsilon)
    normal = centred * scale

    def pull(grad: Array) -> tuple[Array, Grads]:
        rows = grad.reshape(values.shape)
        slopes = rows * normal
        own = {"weight": _column_sums(slopes), "bias": _column_sums(rows)}
        mean, slope = _group_mean(rows * weight, layer.groups), _group_mean(slopes * weight, layer.groups)
        return (scale * (rows * weight - mean - normal * slope)).reshape(x.shape), own

    return (normal * weight + bias).reshape(x.shape), pull


def _group_mean(values: Array, groups: int) -> Array:
    """Average [batch, positions, channels] over positions and each group's channels, to [batch, 1, channels]."""
    batch, positions, channels = values.shape
    sums = np.ones((1, positions), values.dtype) @ values
    means = sums.reshape(batch, 1, groups, -1).mean(3) / positions
    return np.repeat(means, channels // groups, 2)


def _column_sums(values: Array) -> Array:
    """Sum over all but the last dimension; as a matrix product, many times faster than numpy's sum."""
    rows = values.reshape(-1, values.shape[-1])
    return np.ones(len(rows), rows.dtype) @ rows


def _relu(x: Array) -> tuple[Array, Pull]:
    y = np.maximum(x, 0)
    return y, lambda grad: (grad * (y > 0), {})


def _max_pool(size: int, x: Array) -> tuple[Array, Pull]:
    lengths = [n // size for n in x.shape[1:-1]]
    views = [
        (slice(None), *[slice(p, n * size, size) for p, n in zip(place, lengths, strict=True)])
        for place in itertools.product(range(size), repeat=len(lengths))
    ]
    y = x[views[0]]
    for view in views[1:]:
        y = np.maximum(y, x[view])

    def pull(grad: Array) -> tuple[Array, Grads]:
        total = np.zeros(x.shape, grad.dtype)
        free = np.ones(y.shape, bool)
        for view in views:  # of equal values the first takes the gradient, as in torch
            hit = free & (x[view] == y)
            total[view] = grad * hit
            free &= ~hit
        return total, {}

    return y, pull


def _average(x: Array) -> tuple[Array, Pull]:
    count = math.prod(x.shape[1:-1])
    space = tuple(range(1, x.ndim - 1))

    def pull(grad: Array) -> tuple[Array, Grads]:
        return np.broadcast_to(np.expand_dims(grad / count, space), x.shape), {}

    return x.mean(space), pull


def _flatten(x: Array) -> tuple[Array, Pull]:
    first = np.moveaxis(x, -1, 1)

    def pull(grad: Array) -> tuple[Array, Grads]:
        return np.ascontiguousarray(np.moveaxis(grad.reshape(first.shape), 1, -1)), {}

    return first.reshape(len(x), -1), pull
