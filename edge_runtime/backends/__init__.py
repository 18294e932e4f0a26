"""What turns a model into an Oracle. A backend is loaded only when it is asked for."""

import importlib.util

from edge_runtime import models
from edge_runtime.algorithm import Model
from edge_runtime.errors import ConfigError, DeviceError

NAMES = ("auto", "numpy", "torch")


def load(backend: str, model: str, device: str = "cpu") -> Model:
    """Make a model that can be trained.

    Args:
        backend: one of `NAMES`; "auto" is numpy for built-in models on the CPU, and else torch.
        model: a name from `models.names()`, or `package.module:factory` of a torch module.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: no such backend or model.
        DeviceError: this device lacks what the backend needs.
    """
    if backend not in NAMES:
        raise ConfigError(f"backend: {backend!r} is unknown (known: {', '.join(NAMES)})")
    spec = None if ":" in model else models.find(model)
    if backend == "auto":
        backend = "numpy" if spec is not None and device == "cpu" else "torch"
    if backend == "numpy":
        return _numpy(model, spec, device)
    if importlib.util.find_spec("torch") is None:
        raise DeviceError(f"backend: model {model!r} needs torch here; run: pip install 'edge-runtime[torch]'")
    from edge_runtime.backends import torch

    return torch.from_spec(spec, device) if spec is not None else torch.from_factory(model, device)


def _numpy(model: str, spec: models.ModelSpec | None, device: str) -> Model:
    if spec is None:
        raise ConfigError(f"backend: numpy computes only built-in models, not {model!r}; use --backend torch")
    if device != "cpu":
        raise DeviceError(f"backend: numpy computes only on the CPU, not on {device!r}; use --backend torch")
    from edge_runtime.backends import numpy

    return numpy.from_spec(spec)
