"""Whether a bundle computes what torch computes: outputs and every gradient, on random batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime.backends import onnx
from edge_runtime.bundle import Bundle
from edge_runtime.errors import ConfigError

TOLERANCE = 1e-4
"""Of the largest value of a tensor; float32 sums in another order differ by some 1e-6."""
_BATCHES = (1, 6)


@dataclass(frozen=True)
class Parity:
    """The largest differences found, relative to the largest value of the tensor."""

    outputs: float
    gradients: float
    worst: str
    """Name of the parameter whose gradient differs most."""


def parity(module: torch.nn.Module, bundle: Bundle, seed: int = 0) -> Parity:
    """Compare a bundle on onnxruntime with the torch module that it was made of.

    Raises:
        ConfigError: they differ by more than `TOLERANCE`.
    """
    rng = np.random.default_rng(seed)
    model = onnx.from_bundle(bundle, onnx.Options())
    params = dict(module.named_parameters())
    values = {name: value.detach().numpy() for name, value in params.items()}
    outputs_error, errors = 0.0, dict.fromkeys(params, 0.0)
    for batch in _BATCHES:
        x = _inputs(rng, bundle, batch)
        expected = module(torch.from_numpy(x))
        found, pullback = model.oracle.vjp(values, x)
        outputs_error = max(outputs_error, _difference(found, expected.detach().numpy()))
        grad = rng.normal(size=found.shape).astype(np.float32)
        wanted = torch.autograd.grad(expected, list(params.values()), torch.from_numpy(grad), materialize_grads=True)
        grads = pullback(grad)
        for name, want in zip(params, wanted, strict=True):
            errors[name] = max(errors[name], _difference(grads[name], want.numpy()))
    worst = max(errors, key=lambda name: errors[name])
    if outputs_error > TOLERANCE or errors[worst] > TOLERANCE:
        raise ConfigError(
            f"model {bundle.model!r}: its graphs differ from torch by {outputs_error:.1e} in the outputs and by "
            f"{errors[worst]:.1e} in the gradient of {worst!r}, more than {TOLERANCE:.0e}; please report this model"
        )
    return Parity(outputs_error, errors[worst], worst)


def _inputs(rng: np.random.Generator, bundle: Bundle, batch: int) -> NDArray[Any]:
    shape = (batch, *bundle.input_shape)
    if bundle.input_type == "int64":
        return rng.integers(0, 2, shape)  # every embedding has entries 0 and 1
    return rng.normal(size=shape).astype(np.float32)


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if not expected.size:
        return 0.0
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))
