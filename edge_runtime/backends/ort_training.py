"""Bundles on onnxruntime-training 1.19.2: its own gradient graph and kernels, without importing torch.

`export/ort_training.py` writes the artifacts that this reads:

    FOLDER/artifacts.json        the bundle that they were made of, and the SHA-256 of every other file
    FOLDER/training_model.onnx   x, grad, parameters -> sum(outputs * grad), and the parameters' gradients of it
    FOLDER/eval_model.onnx       x, parameters -> outputs
    FOLDER/checkpoint            names and types of the parameters, no values

The gradient of sum(outputs * grad) IS the vector-Jacobian product for `grad`. onnxruntime's training step computes
forward and backward in one go while the waist needs the outputs before there is a `grad`, so a step with a gradient
costs a second forward pass: about a fifth of it (`README.md` has the numbers).

`onnxruntime.training` imports torch, hence the C API beneath it. The package shares its import name with the stock
`onnxruntime`: never both in one environment.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import _pybind_state as capi

from edge_runtime.algorithm import Model, Pullback
from edge_runtime.bundle import Bundle
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.tree import Tree

MANIFEST, TRAINING, EVAL, CHECKPOINT = "artifacts.json", "training_model.onnx", "eval_model.onnx", "checkpoint"
FORMAT = 1


def digest(data: bytes) -> str:
    """Hash what a file holds, as the artifacts' manifest does."""
    return hashlib.sha256(data).hexdigest()


def require() -> None:
    """Check that the onnxruntime of this environment is the one that trains.

    Raises:
        DeviceError: it is the stock package.
    """
    if not hasattr(capi, "CheckpointState"):
        raise DeviceError(
            f"backend: onnxruntime {onnxruntime.__version__} here cannot train; in an environment of its own, run: "
            "pip install 'edge-runtime[ort-training]'"
        )


class OrtTrainingOracle:
    """A bundle's artifacts as an Oracle. Parameters must not change between `vjp` and its pullback."""

    def __init__(self, bundle: Bundle, folder: Path, threads: int) -> None:
        self._bundle, self._name = bundle, f"artifacts of {bundle.model!r}"
        settings = _settings(threads)
        device = capi.OrtDevice(capi.OrtDevice.cpu(), capi.OrtDevice.default_memory(), 0)
        paths = [str(folder / name) for name in (TRAINING, CHECKPOINT, EVAL)]
        try:
            self._state = capi.load_checkpoint(paths[1])
            self._module = capi.Module(paths[0], self._state, paths[2], device, settings)
        except Exception as error:  # onnxruntime has a type for each of its codes, without a common base
            raise DeviceError(
                f"{folder}: onnxruntime {onnxruntime.__version__} refuses it: {_line(error)}; make the artifacts again"
            ) from error
        self._turn = object()
        """Stands for the parameters that the module holds."""

    def vjp(self, params: Tree, x: NDArray[Any]) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model; see `algorithm.Oracle`."""
        inputs = np.ascontiguousarray(x, self._bundle.input_type)
        turn = self._take(params)
        outputs: NDArray[np.float32] = self._run(self._module.eval_step, inputs)

        def pullback(grad: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            if self._turn is not turn:  # another `vjp` came in between
                self._take(params)
            self._module.lazy_reset_grad()  # without it, gradients add up over the steps
            self._run(self._module.train_step, inputs, np.ascontiguousarray(grad, np.float32))
            return self._gradients()

        return outputs, pullback

    def _take(self, params: Tree) -> object:
        """Copy the parameters into the module; gives what stands for them."""
        flat = np.ascontiguousarray(self._bundle.layout.join(params), np.float32)
        buffer = onnxruntime.OrtValue.ortvalue_from_numpy(flat)._ortvalue
        self._guard(lambda: self._module.copy_buffer_to_parameters(buffer, False))
        self._turn = object()
        return self._turn

    def _gradients(self) -> dict[str, NDArray[np.float32]]:
        """Copy the gradients out of the module, laid end to end so that nobody needs to join them."""
        layout = self._bundle.layout
        grads = layout.views(np.empty(layout.size, np.float32))
        for name, into in grads.items():
            into[...] = np.from_dlpack(self._state.get_parameter(name).grad)
        return grads

    def _run(self, step: Callable[[list[Any], Any], None], *inputs: NDArray[Any]) -> Any:
        fetched = capi.OrtValueVector()
        self._guard(lambda: step(list(inputs), fetched))
        return fetched[0].numpy()

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # see above; out of memory, most often
            raise DeviceError(f"{self._name}: {_line(error)}") from error


def from_bundle(bundle: Bundle, folder: Path, threads: int = 1) -> Model:
    """Make a model of a bundle and the artifacts that were made of it.

    Raises:
        ConfigError: the artifacts are missing, damaged, or those of another bundle.
        DeviceError: this onnxruntime cannot train, or refuses them.
    """
    require()
    _check(bundle, folder)
    return Model(bundle.layout, OrtTrainingOracle(bundle, folder, threads))


def _check(bundle: Bundle, folder: Path) -> None:
    """Compare the files with their manifest: onnxruntime can crash on a damaged checkpoint."""
    again = "make it again with `python -m edge_runtime.export.ort_training`"
    try:
        record = json.loads(_read(folder / MANIFEST, again))
        known, made_of, files = record["format"] == FORMAT, record["forward"], dict(record["files"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / MANIFEST}: is malformed; {again}") from error
    if not known or set(files) != {TRAINING, EVAL, CHECKPOINT}:
        raise ConfigError(f"{folder / MANIFEST}: is of another version; {again}")
    if made_of != digest(bundle.forward):
        raise ConfigError(f"{folder}: was not made of this bundle of {bundle.model!r}; {again}")
    for name, wanted in files.items():
        if digest(_read(folder / name, again)) != wanted:
            raise ConfigError(f"{folder / name}: is damaged (another SHA-256 than in {MANIFEST}); {again}")


def _read(path: Path, again: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; {again}") from error


def _settings(threads: int) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.enable_cpu_mem_arena, settings.enable_mem_pattern = False, False  # as in `backends/onnx.py`
    settings.log_severity_level = 4  # what goes wrong is raised as well
    return settings


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
