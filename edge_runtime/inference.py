"""A fitted model put to use: outputs for samples, and how good it is on what the device holds out."""

import hashlib
import logging

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses, personal
from edge_runtime.algorithm import Fitted
from edge_runtime.compute import Compute
from edge_runtime.data import Split
from edge_runtime.errors import DecodeError
from edge_runtime.losses import Outputs
from edge_runtime.message import Task
from edge_runtime.personal import Origin
from edge_runtime.setup import Setup
from edge_runtime.workshop import Workshop

log = logging.getLogger(__name__)

_BATCH = 32
"""Small, so that this takes no more memory than a step of training."""


def outputs(fitted: Fitted, x: NDArray[np.generic]) -> Outputs:
    """Compute what a model gives for samples [samples, ...]: [samples, classes]."""
    params = fitted.model.layout.views(fitted.values)
    parts = [fitted.model.oracle.vjp(params, x[start : start + _BATCH])[0] for start in range(0, len(x), _BATCH)]
    return np.concatenate(parts)


def accuracy(fitted: Fitted, split: Split) -> float:
    """Say which part of the samples that a device holds out its model names rightly."""
    params = fitted.model.layout.views(fitted.values)
    right = 0
    for start in range(0, len(split.y_test), _BATCH):
        part = slice(start, start + _BATCH)
        found, _ = fitted.model.oracle.vjp(params, split.x_test[part])
        right += round(losses.accuracy(found, split.y_test[part]) * len(found))
    return right / len(split.y_test)


def origin(run: Setup, task: Task, device: str, split: Split, reached: float) -> Origin:
    """Say where the personal model comes from that a task has left, and which accuracy it reached."""
    held_out = hashlib.sha256(split.x_test.tobytes())
    held_out.update(split.y_test.tobytes())
    about = (split.class_names, reached, len(split.y_test), held_out.hexdigest())
    rounds = task.round + (task.phase != "evaluate")
    return Origin(task.run, rounds, device, run.algorithm, *about)


def accuracy_served(served: bytes, new: Origin, split: Split, compute: Compute, workshop: Workshop) -> float | None:
    """Say how good the model that a device serves is on what it holds out now; None: nothing to compare a `new` with.

    That is so if there is none, it is damaged, it was made for other classes, or it cannot be evaluated here.
    """
    if not served:
        return None
    try:
        old = personal.origin(served)
        if old.class_names != new.class_names:
            return None
        if old.data == new.data:
            return old.accuracy
        held = personal.decode(served)
        if ":" in held.card.name and not held.card.bundle:
            return None  # code, which this device need not allow any more
        model = workshop.model(compute, held.card)
        if model.layout != held.card.layout:
            raise DecodeError(f"model {held.card.name!r} has other tensors here")
        return accuracy(Fitted(model, held.values), split)
    except Exception as error:  # noqa: BLE001  # of any kind: a model of long ago must not stop this device's training
        log.warning("the personal model that was served is replaced: %s", " ".join(str(error).split())[:200])
        return None
