"""What turns a model into an Oracle. A backend is loaded only when it is asked for."""

import importlib.util
from pathlib import Path

from edge_runtime import bundle, narrow
from edge_runtime.algorithm import Model
from edge_runtime.bundle import Bundle
from edge_runtime.compute import Compute, usual
from edge_runtime.errors import ConfigError, DeviceError


def load(compute: Compute, model: str, graphs: Bundle | None = None, cut: bytes = b"") -> Model:
    """Make a model that can be trained.

    Args:
        compute: how.
        model: a name from `models.names()`, or `package.module:factory` of a torch module.
        graphs: the model's bundle, for one that is not built in, or of which only a part is wanted.
        cut: which part of the model (`compression/submodel.py`); empty: all of it.

    Raises:
        ConfigError: no such model, or the backend cannot compute it.
        DeviceError: this device lacks what the backend needs.
        DecodeError: the cut is of another model.
    """
    own = graphs is None and ":" in model
    spec = None if ":" in model or (graphs is not None and not cut) else narrow.find(model, cut)
    match choose(compute, model, graphs, cut):
        case "onnx" if own:
            raise ConfigError(f"backend: onnx needs a bundle of {model!r}; make one with `edge-coordinator export`")
        case "onnx":
            _require("onnxruntime", model, "onnx")
            from edge_runtime.backends import onnx

            options = onnx.Options(compute.device, compute.threads, compute.arena)
            return onnx.from_bundle(bundle.built_in(model) if graphs is None else graphs, options)
        case "torch" if own or spec is not None:
            _require("torch", model, "torch")
            from edge_runtime.backends import torch

            torch.set_threads(compute.threads)
            return torch.from_spec(spec, compute.device) if spec else torch.from_factory(model, compute.device)
        case "ort_training" if not own:
            _require("onnxruntime", model, "ort-training")
            if not compute.artifacts:
                raise ConfigError(
                    "backend: ort_training needs --artifacts DIR; make it with "
                    "`python -m edge_runtime.export.ort_training BUNDLE --out DIR`"
                )
            from edge_runtime.backends import ort_training

            chosen = bundle.built_in(model) if graphs is None else graphs
            return ort_training.from_bundle(chosen, Path(compute.artifacts), compute.threads)
        case "numpy" if spec is not None:
            if compute.device != "cpu":
                raise DeviceError(f"backend: numpy computes only on the CPU, not on {compute.device!r}; use another")
            from edge_runtime.backends import numpy

            return numpy.from_spec(spec)
        case other:
            raise ConfigError(f"backend: {other} cannot compute {model!r}; use --backend {'torch' if own else 'onnx'}")


def choose(compute: Compute, model: str, graphs: Bundle | None = None, cut: bytes = b"") -> str:
    """Say which backend `load` takes."""
    if compute.backend != "auto":
        return compute.backend
    if ":" in model and graphs is None:
        return "torch"
    return usual(compute) if ":" not in model and (graphs is None or cut) else "onnx"


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _require(package: str, model: str, extra: str) -> None:
    if not _has(package):
        raise DeviceError(f"backend: model {model!r} needs {package} here; run: pip install 'edge-runtime[{extra}]'")
