"""Bundles on onnxruntime: two plain inference graphs that together are an Oracle. The default on devices.

The forward graph's saved activations stay in the runtime until the backward graph has used them; parameters and
gradients are memory of ours that the runtime reads and writes in place. `edge_runtime/bundle.py` has the graphs' form.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge_runtime.algorithm import Model, Pullback
from edge_runtime.bundle import Bundle
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.tree import Tree

_NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


@dataclass(frozen=True)
class Options:
    """How onnxruntime runs."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    threads: int = 1
    arena: bool = False
    """Keep freed memory for the next step: a few per cent faster, and more memory at the peak."""


class OnnxOracle:
    """A bundle as an Oracle. Parameters must not change between `vjp` and its pullback."""

    def __init__(self, bundle: Bundle, options: Options) -> None:
        self._bundle = bundle
        self._forward = Graph(bundle.forward, f"forward graph of {bundle.model!r}", options)
        self._backward = Graph(bundle.backward, f"backward graph of {bundle.model!r}", options)
        shapes = dict(zip(bundle.layout.names, bundle.layout.shapes, strict=True))
        ends = {"x": ("batch", *bundle.input_shape)}
        self._forward.check({**shapes, **ends}, ["outputs", *bundle.saved])
        given = {**shapes, **ends, "grad": ("batch", bundle.outputs)}
        self._backward.check(given, [f"d.{name}" for name in bundle.layout.names], also=bundle.saved)

    def vjp(self, params: Tree, x: NDArray[Any]) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model; see `algorithm.Oracle`."""
        bundle = self._bundle
        given = {**params, "x": np.ascontiguousarray(x, bundle.input_type)}
        outputs, *kept = self._forward.run(given, {}, ["outputs", *bundle.saved])
        saved = dict(zip(bundle.saved, kept, strict=True))

        def pullback(grad: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            flat = np.empty(bundle.layout.size, np.float32)
            grads = bundle.layout.views(flat)
            into = {f"d.{name}": value for name, value in grads.items()}
            self._backward.run({**given, "grad": np.ascontiguousarray(grad, np.float32)}, saved, [], into)
            saved.clear()
            return grads

        return outputs.numpy(), pullback


class Graph:
    """One ONNX graph in a session of its own."""

    def __init__(self, data: bytes, name: str, options: Options) -> None:
        self._name, self._device = name, options.device
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
        settings.enable_cpu_mem_arena, settings.enable_mem_pattern = options.arena, False
        settings.log_severity_level = 4  # what goes wrong is raised as well
        try:
            self._session = onnxruntime.InferenceSession(data, settings, providers=_providers(options.device))
        except Exception as error:  # onnxruntime has a type for each of its codes, without a common base
            raise DeviceError(f"{name}: onnxruntime {onnxruntime.__version__} refuses it: {_line(error)}") from error
        self.inputs = {one.name: one for one in self._session.get_inputs()}
        self.outputs = [one.name for one in self._session.get_outputs()]

    def check(self, given: Mapping[str, tuple[Any, ...]], outputs: Iterable[str], also: Iterable[str] = ()) -> None:
        """Compare the graph's ends with what the manifest says: names, and the shapes of what is `given`.

        Raises:
            ConfigError: they differ.
        """
        if unknown := set(self.inputs) - set(given) - set(also):
            raise ConfigError(
                f"{self._name}: its input {min(unknown)!r} is not in the manifest; export the model again"
            )
        if missing := set(outputs) - set(self.outputs):
            raise ConfigError(f"{self._name}: the manifest's {min(missing)!r} is not there; export the model again")
        for name, shape in given.items():
            found = tuple(self.inputs[name].shape) if name in self.inputs else shape
            if len(found) != len(shape) or any(a != b for a, b in zip(found, shape, strict=True) if b != "batch"):
                raise ConfigError(
                    f"{self._name}: its input {name!r} has shape {found}, not {shape} as in the manifest; "
                    "export the model again"
                )

    def run(
        self,
        given: Mapping[str, NDArray[Any]],
        saved: Mapping[str, Any],
        wanted: Iterable[str],
        into: Mapping[str, NDArray[Any]] | None = None,
    ) -> list[Any]:
        """Run once.

        Args:
            given: inputs by name, contiguous; what the graph does not use may be there too.
            saved: inputs that are OrtValues.
            wanted: outputs to give as OrtValues; the first on the CPU, the others where the graph runs.
            into: arrays that outputs are written to.

        Raises:
            DeviceError: onnxruntime fails: out of memory, most often.
        """
        binding = self._session.io_binding()
        for name, value in given.items():
            if name in self.inputs:
                binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        for name, value in saved.items():
            if name in self.inputs:
                binding.bind_ortvalue_input(name, value)
        for index, name in enumerate(wanted):
            binding.bind_output(name, "cpu" if index == 0 else self._device)
        for name, target in (into or {}).items():
            binding.bind_output(name, "cpu", 0, target.dtype.type, target.shape, target.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # see above
            raise DeviceError(f"{self._name}: {_line(error)}") from error
        return [] if into else list(binding.get_outputs())


def from_bundle(bundle: Bundle, options: Options) -> Model:
    """Make a model of a bundle.

    Raises:
        ConfigError: the bundle's manifest and graphs disagree.
        DeviceError: this onnxruntime cannot run them, or CUDA is asked for and absent.
    """
    return Model(bundle.layout, OnnxOracle(bundle, options))


def _providers(device: str) -> list[str]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if device != "cuda":
        raise ConfigError(f"device: {device!r} is unknown (known: cpu, cuda)")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceError("device: this onnxruntime has no CUDA; install onnxruntime-gpu, or use cpu")
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
