"""What a task of a run takes of a device: the coordinator asks before it sends it, the device before it begins."""

import math
from typing import Any

from edge_runtime.algorithm import Algorithm, SparseClient
from edge_runtime.coding import Coding
from edge_runtime.devices import budget
from edge_runtime.devices.budget import Costs

_MESSAGES_BYTES = 4_096
"""Of a round's control messages and headers, both ways."""
_TENSOR_BYTES = 64
"""Of what is said of a tensor beside its values, both ways."""
_STALE_BITS = 2.0
"""More bits of a value downwards, in steps of what the model moves in a round: it moves on while a device is away."""


def density_of(parts: Algorithm, settings: Any) -> float:
    """Say which part of the parameters a device trains."""
    return float(getattr(settings, "density", 1.0)) if issubclass(parts.Client, SparseClient) else 1.0


def batch_of(settings: Any) -> int:
    """Say how many samples a step has."""
    return int(getattr(settings, "batch_size", 1))


def memory_bytes(
    costs: Costs | None, pass_bytes: int, backend: str, density: float, batch: int, values: int, own: bool
) -> int:
    """Say how much memory a task may take beside what its process holds with everything imported.

    Args:
        costs: of the model; None: not measured.
        pass_bytes: what the graphs alone say of a batch, for a model that was not measured: too little, but better
            than nothing.
        backend: which computes.
        density: the part of the parameters that is trained.
        batch: samples of a step.
        values: parameters of the model, all of them.
        own: whether it is the device's own model, beside the shared one.
    """
    vectors = budget.OWN_VECTORS if own else budget.VECTORS
    found = costs and budget.estimate(costs, backend, density, batch)
    return budget.task_bytes(found.peak_bytes if found else pass_bytes, values, vectors)


def round_bytes(values: int, tensors: int, density: float, down: Coding, up: Coding) -> int:
    """Say about how many bytes a round of training takes, received and sent, the first one included.

    Values that travel bit for bit or rounded take no more than that; of those in steps this is what values take that
    lie about a mean as in a normal distribution.

    Args:
        values: parameters of the model.
        tensors: how many tensors they lie in.
        density: the part of them that travels.
        down: how the model travels.
        up: how updates travel.
    """
    stale = _STALE_BITS if down.kind == "step" else 0.0
    bits = density * (down.cost + stale + up.cost) + 2 * _entropy(density)
    return math.ceil(values * bits / 8) + tensors * _TENSOR_BYTES + _MESSAGES_BYTES


def _entropy(density: float) -> float:
    """Give the bits for each value that a mask of that density takes at most, however it is coded."""
    if density >= 1:
        return 0.0
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)
