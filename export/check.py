"""Whether a bundle computes what torch computes: outputs and every gradient, on random batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime.algorithm import Model
from edge_runtime.backends import onnx
from edge_runtime.bundle import Bundle
from edge_runtime.errors import ConfigError

TOLERANCE = 1e-4
"""Of the largest value of a tensor; float32 sums in another order differ by some 1e-6."""
_BATCHES = (1, 6)
_TRIES = 4


@dataclass(frozen=True)
class Parity:
    """The largest differences found, relative to the largest value of the tensor."""

    outputs: float
    gradients: float
    worst: str
    """Name of the parameter whose gradient differs most."""


def parity(module: torch.nn.Module, bundle: Bundle, seed: int = 0) -> Parity:
    """Compare a bundle on onnxruntime with the torch module that it was made of.

    Of several random batches of each size the best counts: where two values are equal but for rounding, a maximum or a
    ReLU may go the other way, which is no mistake, and moves a gradient. A mistake shows in every batch.

    Raises:
        ConfigError: they differ by more than `TOLERANCE`.
    """
    rng = np.random.default_rng(seed)
    model = onnx.from_bundle(bundle, onnx.Options())
    found = []
    for size in _BATCHES:
        tries = (_compare(module, model, _inputs(rng, bundle, size), rng) for _ in range(_TRIES))
        found.append(next((one for one in tries if max(one.outputs, one.gradients) <= TOLERANCE), None))
    good = [one for one in found if one is not None]
    if len(good) == len(found):
        return max(good, key=lambda one: one.gradients)
    worst = _compare(module, model, _inputs(rng, bundle, _BATCHES[-1]), rng)
    raise ConfigError(
        f"model {bundle.model!r}: its graphs differ from torch by {worst.outputs:.1e} in the outputs and by "
        f"{worst.gradients:.1e} in the gradient of {worst.worst!r}, more than {TOLERANCE:.0e}; please report this model"
    )


def _compare(module: torch.nn.Module, model: Model, x: NDArray[Any], rng: np.random.Generator) -> Parity:
    params = dict(module.named_parameters())
    expected = module(torch.from_numpy(x))
    outputs, pullback = model.oracle.vjp({name: value.detach().numpy() for name, value in params.items()}, x)
    grad = rng.normal(size=outputs.shape).astype(np.float32)
    wanted = torch.autograd.grad(expected, list(params.values()), torch.from_numpy(grad), materialize_grads=True)
    grads = pullback(grad)
    # A gradient that is zero but for rounding (a bias before a norm) is measured by those that are not.
    least = 1e-3 * max(float(want.abs().max()) for want in wanted if want.numel())
    errors = {name: _difference(grads[name], want.numpy(), least) for name, want in zip(params, wanted, strict=True)}
    worst = max(errors, key=lambda name: errors[name])
    return Parity(_difference(outputs, expected.detach().numpy(), 1e-6), errors[worst], worst)


def _inputs(rng: np.random.Generator, bundle: Bundle, batch: int) -> NDArray[Any]:
    shape = (batch, *bundle.input_shape)
    if bundle.input_type == "int64":
        return rng.integers(0, 2, shape)  # every embedding has entries 0 and 1
    return rng.normal(size=shape).astype(np.float32)


def _difference(found: NDArray[Any], expected: NDArray[Any], least: float) -> float:
    if not expected.size:
        return 0.0
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), least))
