"""Bundles on onnxruntime: two plain inference graphs that together are an Oracle. The default on devices.

The forward graph's saved activations stay in the runtime until the backward graph has used them; parameters and
gradients are memory of ours that the runtime reads and writes in place. `edge_runtime/bundle.py` has the graphs' form.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge_runtime.algorithm import Model, Pullback
from edge_runtime.bundle import BACKWARD, FORWARD, GROWTH, PACKED_BACKWARD, PACKED_FORWARD, Bundle, row_bounds
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.mask import Mask, Places
from edge_runtime.packed import Slope
from edge_runtime.tree import Tree


@dataclass(frozen=True)
class Options:
    """How onnxruntime runs."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    threads: int = 1
    arena: bool = True
    """Keep freed memory for the next step instead of asking the system for it every time."""


class OnnxOracle:
    """A bundle as an Oracle. Parameters must not change between `vjp` and its pullback."""

    def __init__(self, bundle: Bundle, options: Options) -> None:
        self._bundle, self._graphs = bundle, _Graphs(bundle, options)

    def vjp(self, params: Tree, x: NDArray[Any]) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model; see `algorithm.Oracle`."""
        bundle = self._bundle
        given = {**params, "x": _inputs(bundle, x)}
        outputs, *kept = self._graphs[FORWARD].run(given, {}, ["outputs", *bundle.saved])
        saved = dict(zip(bundle.saved, kept, strict=True))

        def pullback(grad: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            grads = bundle.layout.views(np.empty(bundle.layout.size, np.float32))
            into = {f"d.{name}": value for name, value in grads.items()}
            self._graphs[BACKWARD].run({**given, "grad": np.ascontiguousarray(grad, np.float32)}, saved, [], into)
            saved.clear()
            return grads

        return outputs.numpy(), pullback

    def pass_bytes(self, batch: int) -> int:
        """Estimate what a step takes; see `algorithm.Weighs`."""
        return self._bundle.memory.fixed + batch * self._bundle.memory.per_sample

    def packed(self, mask: Mask) -> "PackedOracle | None":
        """Compute on active values; None if some of a one-dimensional parameter are not: graphs have it whole."""
        shapes = zip(mask.layout.shapes, mask.places, strict=True)
        if any(len(shape) < 2 and at is not None for shape, at in shapes):
            return None
        return PackedOracle(self._bundle, self._graphs, mask)


class PackedOracle:
    """A bundle on the active values of a mask: the runtime has a dense tensor only while it uses it."""

    def __init__(self, bundle: Bundle, graphs: "_Graphs", mask: Mask) -> None:
        self._bundle, self._graphs, self._packed = bundle, graphs, mask.packed
        self._at = _indices(mask)

    def vjp(self, params: Tree, x: NDArray[Any]) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model; see `algorithm.Oracle`."""
        given, outputs, saved = self._run(params, x)

        def pullback(grad: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            grads = self._packed.views(np.empty(self._packed.size, np.float32))
            into = {f"d.{name}": value for name, value in self._rows(grads).items()}
            graph = self._graphs[PACKED_BACKWARD]
            graph.run({**given, "grad": np.ascontiguousarray(grad, np.float32)}, saved, [], into)
            saved.clear()
            return grads

        return outputs, pullback

    def largest(
        self, params: Tree, x: NDArray[Any], slope: Slope, barred: Mask, numbers: Sequence[int]
    ) -> list[Places]:
        """Find where the dense gradient is largest; see `packed.Steep`."""
        names = self._packed.names
        given, outputs, saved = self._run(params, x)
        given["grad"] = np.ascontiguousarray(slope(outputs), np.float32)
        lists = _indices(barred)
        given |= {f"barred.{name}": at for name, at in lists.items()} | self._cuts(lists, GROWTH, "barred-cuts")
        given |= {f"number.{name}": np.array([number]) for name, number in zip(names, numbers, strict=True)}
        found = self._graphs[GROWTH].run(given, saved, [f"top.{name}" for name in self._at])
        tops = {name: value.numpy().astype(np.int32) for name, value in zip(self._at, found, strict=True)}
        return [tops.get(name, np.empty(0, np.int32)) for name in names]

    def pass_bytes(self, batch: int) -> int:
        """Estimate what a step takes; see `algorithm.Weighs`."""
        dense = 4 * max(self._bundle.layout.sizes)  # a tensor and its gradient, one parameter at a time
        return 2 * dense + batch * self._bundle.memory.per_sample

    def _run(
        self, params: Tree, x: NDArray[Any]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32], dict[str, Any]]:
        """Run the forward graph; gives its inputs, its outputs and what it saved."""
        bundle = self._bundle
        given: dict[str, NDArray[Any]] = {**self._rows(params), "x": _inputs(bundle, x)}
        given |= {f"at.{name}": at for name, at in self._at.items()}
        given |= self._cuts(self._at, PACKED_FORWARD, "cuts") | self._cuts(self._at, PACKED_BACKWARD, "cuts")
        outputs, *kept = self._graphs[PACKED_FORWARD].run(given, {}, ["outputs", *bundle.saved])
        return given, outputs.numpy(), dict(zip(bundle.saved, kept, strict=True))

    def _cuts(self, lists: Mapping[str, Places], file: str, prefix: str) -> dict[str, NDArray[Any]]:
        """Say for every matrix that a graph cuts into tiles where in a list of its places each tile begins."""
        inputs = self._graphs[file].inputs
        shapes = dict(zip(self._bundle.layout.names, self._bundle.layout.shapes, strict=True))
        cuts = {}
        for name, at in lists.items():
            if f"{prefix}.{name}" in inputs:
                rows, width = shapes[name]
                bounds = row_bounds(rows, inputs[f"{prefix}.{name}"].shape[0] - 1)
                cuts[f"{prefix}.{name}"] = np.searchsorted(at, np.array(bounds) * width).astype(np.int64)
        return cuts

    def _rows(self, tree: Tree) -> dict[str, NDArray[np.float32]]:
        return {name: value.reshape(-1) if name in self._at else value for name, value in tree.items()}


def _inputs(bundle: Bundle, x: NDArray[Any]) -> NDArray[Any]:
    """Bring inputs into the type that the graphs take.

    Raises:
        DeviceError: samples have another shape than the model's.
    """
    if x.shape[1:] != bundle.input_shape:
        raise DeviceError(
            f"model {bundle.model!r} does not take samples of shape {x.shape[1:]}, but of {bundle.input_shape}"
        )
    return np.ascontiguousarray(x, bundle.input_type)


def _indices(mask: Mask) -> dict[str, Places]:
    """Give the places in every parameter that the packed graphs have as a row; all of them where it is dense."""
    layout = mask.layout
    tensors = zip(layout.names, layout.shapes, layout.sizes, mask.places, strict=True)
    return {
        name: np.arange(size, dtype=np.int32) if at is None else at
        for name, shape, size, at in tensors
        if len(shape) >= 2
    }


class _Graphs:
    """The graphs of a bundle, each loaded when it is first asked for."""

    def __init__(self, bundle: Bundle, options: Options) -> None:
        self._bundle, self._options = bundle, options
        self._loaded: dict[str, Graph] = {}

    def __getitem__(self, file: str) -> "Graph":
        if file not in self._loaded:
            graph = Graph(self._bundle, file, self._options)
            graph.check(*_ends(self._bundle, file))
            self._loaded[file] = graph
        return self._loaded[file]


def _ends(bundle: Bundle, file: str) -> tuple[dict[str, tuple[int | None, ...]], list[str]]:
    """Say what a graph takes (with shapes; None is any number) and gives."""
    layout = bundle.layout
    packs = file not in (FORWARD, BACKWARD)
    rows = {name for name, shape in zip(layout.names, layout.shapes, strict=True) if packs and len(shape) >= 2}
    takes: dict[str, tuple[int | None, ...]] = {
        name: (None,) if name in rows else shape for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
    takes |= {
        "x": (None, *bundle.input_shape),
        "grad": (None, bundle.outputs),
        **{f"{kind}.{name}": (None,) for name in rows for kind in ("at", "cuts")},
    }
    if file == GROWTH:
        takes |= {f"{kind}.{name}": (None,) for name in rows for kind in ("barred", "barred-cuts", "number", "cuts")}
        return takes, [f"top.{name}" for name in rows]
    if file in (FORWARD, PACKED_FORWARD):
        return takes, ["outputs", *bundle.saved]
    return takes, [f"d.{name}" for name in layout.names]


class Graph:
    """One ONNX graph in a session of its own."""

    def __init__(self, bundle: Bundle, file: str, options: Options) -> None:
        """Load the file of `bundle.GRAPHS`.

        Raises:
            DeviceError: this onnxruntime refuses it, or has no CUDA that is asked for.
        """
        name, data = f"{file} of {bundle.model!r}", bundle.graphs[file]
        self._name, self._device = name, options.device
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
        settings.enable_cpu_mem_arena, settings.enable_mem_pattern = options.arena, False
        settings.log_severity_level = 4  # what goes wrong is raised as well
        # A thread that spins while it waits takes the core from what runs between two graphs: 95 ms a step, not 70.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if options.arena:
            _share_arena()
            settings.add_session_config_entry("session.use_env_allocators", "1")
        # Folded, the zeros that a dense tensor begins as would be a constant of that size for the whole session.
        kept = {"disabled_optimizers": ["ConstantFolding"]} if file not in (FORWARD, BACKWARD) else {}
        try:
            self._session = onnxruntime.InferenceSession(data, settings, providers=_providers(options.device), **kept)
        except Exception as error:  # onnxruntime has a type for each of its codes, without a common base
            raise DeviceError(f"{name}: onnxruntime {onnxruntime.__version__} refuses it: {_line(error)}") from error
        self.inputs = {one.name: one for one in self._session.get_inputs()}
        self.outputs = [one.name for one in self._session.get_outputs()]

    def check(self, takes: Mapping[str, tuple[int | None, ...]], gives: Iterable[str]) -> None:
        """Compare the graph's ends with what the manifest says.

        Raises:
            ConfigError: they differ.
        """
        again = "export the model again"
        if missing := set(gives) - set(self.outputs):
            raise ConfigError(f"{self._name}: the manifest's {min(missing)!r} is not there; {again}")
        for name, end in self.inputs.items():
            if name.startswith("saved."):
                continue
            if name not in takes:
                raise ConfigError(f"{self._name}: its input {name!r} is not in the manifest; {again}")
            wanted, found = takes[name], tuple(end.shape)
            pairs = zip(found, wanted, strict=False)
            if len(found) != len(wanted) or any(have != want for have, want in pairs if want is not None):
                raise ConfigError(f"{self._name}: its input {name!r} has shape {found}, not {wanted}; {again}")

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


@functools.cache
def _share_arena() -> None:
    """Make one arena for all graphs of this process, which grows by what is asked for and not by doubling."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    grow = {"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(grow))


def _providers(device: str) -> list[str]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if device != "cuda":
        raise ConfigError(f"device: {device!r} is unknown (known: cpu, cuda)")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceError("device: this onnxruntime has no CUDA; install onnxruntime-gpu, or use cpu")
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _line(error: Exception) -> str:
    """Give what onnxruntime says in one line, without the place in its source."""
    return re.sub(r"/onnxruntime_src/\S+ .*?\) (?=[A-Z])", "", " ".join(str(error).split()))[:300]
