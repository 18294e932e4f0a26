"""How much every parameter of a module matters, for choosing which channels a part of it keeps.

`magnitude` is w^2. `taylor` is (w dL/dw)^2, to first order the change of the loss without w (Molchanov et al.,
"Importance Estimation for Neural Network Pruning", CVPR 2019, eq. 8), with the gradient of a batch, in the mean over
batches of a device's own training samples. A channel's is the sum over its parameters (`submodel.chosen`).
"""

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime import losses
from edge_runtime.backends import torch as torch_backend
from edge_runtime.data import Split
from edge_runtime.errors import ConfigError
from edge_runtime.tree import Flat, Layout

_BATCH = 32
_SAMPLES = 1024
"""More say little more; a fixed choice of them makes the part the same whenever it is made."""


def magnitude(values: Flat) -> Flat:
    """Give w^2 of every parameter [size]."""
    return values**2


def taylor(module: torch.nn.Module, layout: Layout, values: Flat, split: Split) -> NDArray[np.float64]:
    """Give the mean of (w dL/dw)^2 of every parameter [size] over batches of a device's training samples.

    Raises:
        ConfigError: the module does not take these samples, or has too few outputs for their classes.
    """
    oracle = torch_backend.TorchOracle(module, "cpu")
    order = np.random.default_rng(0).permutation(len(split.y_train))[:_SAMPLES]
    sums, batches, params = np.zeros(layout.size), 0, layout.views(values)
    for start in range(0, len(order), _BATCH):
        some = order[start : start + _BATCH]
        try:
            outputs, pullback = oracle.vjp(params, split.x_train[some])
        except Exception as error:  # whatever a module of the user's makes of a wrong shape
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"--data: the module does not take samples of shape {split.x_train.shape[1:]}: {reason}"
            ) from error
        if outputs.ndim != 2 or outputs.shape[1] < split.classes:
            raise ConfigError(
                f"--data: the module gives {outputs.shape[1:]} values a sample for {split.classes} classes"
            )
        gradient = layout.join(pullback(losses.cross_entropy(outputs, split.y_train[some])[1]))
        sums += (values * gradient).astype(np.float64) ** 2
        batches += 1
    return sums / batches
