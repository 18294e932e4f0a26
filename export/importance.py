"""How much every parameter of a torch module matters, for choosing which channels a part of it keeps.

`magnitude` is w^2; `taylor` is that of a device's own training samples (`edge_runtime/importance.py`). A channel's is
the sum over its parameters (`submodel.chosen`).
"""

import torch

from edge_runtime import importance
from edge_runtime.algorithm import Model
from edge_runtime.backends import torch as torch_backend
from edge_runtime.data import Split
from edge_runtime.errors import ConfigError
from edge_runtime.tree import Flat


def magnitude(values: Flat) -> Flat:
    """Give w^2 of every parameter [size]."""
    return values**2


def taylor(module: torch.nn.Module, values: Flat, split: Split) -> Flat:
    """Score every parameter [size] on a device's training samples.

    Raises:
        ConfigError: the module does not take these samples, or has too few outputs for their classes.
    """
    model = Model(torch_backend.layout(module), torch_backend.TorchOracle(module, "cpu"))
    try:
        outputs, _ = model.oracle.vjp(model.layout.views(values), split.x_train[:1])
    except Exception as error:  # whatever a module of the user's makes of a wrong shape
        shape, reason = split.x_train.shape[1:], " ".join(str(error).split())[:200]
        raise ConfigError(f"--data: the module does not take samples of shape {shape}: {reason}") from error
    if outputs.ndim != 2 or outputs.shape[1] < split.classes:
        raise ConfigError(f"--data: the module gives {outputs.shape[1:]} values a sample for {split.classes} classes")
    return importance.taylor(model, values, split)
