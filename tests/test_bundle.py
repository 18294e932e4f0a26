"""Bundles that are wrong get one line that names what is wrong, wherever they come from."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import backends, bundle, models, packed, setup
from edge_runtime.backends import onnx as onnx_backend
from edge_runtime.bundle import BACKWARD, FORWARD, INITIAL, MANIFEST, PACKED_FORWARD, Bundle
from edge_runtime.compute import Compute
from edge_runtime.errors import ConfigError, DecodeError, DeviceError
from edge_runtime.mask import Mask

onnx = pytest.importorskip("onnx")


@pytest.fixture
def linear() -> Bundle:
    return bundle.built_in("linear")


def write(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_bundle_survives_files_and_wire(linear: Bundle, tmp_path: Path) -> None:
    made = dataclasses.replace(linear, private=("linear1.bias",), initial=np.arange(7850, dtype=np.float32))
    back = bundle.read(write(bundle.files(made), tmp_path / "bundle"))
    assert back.initial is not None
    assert np.array_equal(back.initial, np.arange(7850))
    assert dataclasses.replace(back, initial=None) == dataclasses.replace(made, initial=None)
    assert bundle.unpack(bundle.pack(made)) == dataclasses.replace(made, initial=None)


def test_every_built_in_model_has_a_bundle_of_its_layout() -> None:
    for name in models.names():
        made, spec = bundle.built_in(name), models.find(name)
        assert (made.layout, made.input_shape, made.outputs) == (spec.layout, spec.input_shape, spec.classes)
        assert (made.opset, made.ir_version) == (18, 10)
        for data in made.graphs.values():
            graph = onnx.ModelProto.FromString(data)
            assert {node.domain for node in graph.graph.node} == {""}
            assert graph.ir_version <= 10


def changed(record: Any, **fields: Any) -> bytes:
    return json.dumps({**record, **fields}).encode()


WRONG: dict[str, tuple[Callable[[dict[str, bytes], Any], dict[str, bytes]], str]] = {
    "no manifest": (lambda f, r: {k: v for k, v in f.items() if k != MANIFEST}, "holds no manifest.json"),
    "a missing file": (lambda f, r: {k: v for k, v in f.items() if k != BACKWARD}, "backward.onnx is missing"),
    "a wrong hash": (lambda f, r: {**f, FORWARD: f[FORWARD] + b"\0"}, "forward.onnx is not the file"),
    "not JSON": (lambda f, r: {**f, MANIFEST: b"{"}, "is not JSON"),
    "another format": (lambda f, r: {**f, MANIFEST: changed(r, format=2)}, "format 2"),
    "a key too many": (lambda f, r: {**f, MANIFEST: changed(r, code="rm")}, "malformed"),
    "a file elsewhere": (lambda f, r: {**f, MANIFEST: changed(r, files={**r["files"], "../x": ""})}, "malformed"),
    "no list": (lambda f, r: {**f, MANIFEST: changed(r, parameters=3)}, "malformed"),
    "a size below 1": (lambda f, r: {**f, MANIFEST: changed(r, parameters=[["w", [0]]])}, "malformed"),
    "two of a name": (lambda f, r: {**f, MANIFEST: changed(r, parameters=[["w", [1]]] * 2)}, "different names"),
    "an unknown private name": (lambda f, r: {**f, MANIFEST: changed(r, private=["w"])}, "private"),
    "an input of text": (lambda f, r: {**f, MANIFEST: changed(r, input={"shape": [1], "type": "str"})}, "'str'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_damaged_bundle_is_refused_by_name(wrong: str, linear: Bundle, tmp_path: Path) -> None:
    files = bundle.files(linear)
    change, words = WRONG[wrong]
    with pytest.raises(ConfigError, match=words) as caught:
        bundle.read(write(change(files, json.loads(files[MANIFEST])), tmp_path / "bundle"))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "bundle") in str(caught.value)


def test_initial_parameters_that_are_not_finite_are_refused(linear: Bundle, tmp_path: Path) -> None:
    made = bundle.files(dataclasses.replace(linear, initial=np.full(7850, np.nan, np.float32)))
    with pytest.raises(ConfigError, match=f"{INITIAL} does not hold 7850 finite values"):
        bundle.read(write(made, tmp_path / "bundle"))


@pytest.mark.parametrize("data", [b"", b"ER\x01\x00", b"ER\x01\x01i" + bytes(8)])
def test_hostile_bytes_are_no_bundle(data: bytes) -> None:
    with pytest.raises(DecodeError):
        bundle.unpack(data)


def test_a_manifest_from_the_network_is_checked_as_one_from_a_file(linear: Bundle) -> None:
    wrong = dataclasses.replace(linear, private=("w",))
    with pytest.raises(DecodeError, match="private"):
        bundle.unpack(bundle.pack(wrong))


def with_graph(made: Bundle, file: str, change: Callable[[Any], None]) -> Bundle:
    graph = onnx.ModelProto.FromString(made.graphs[file])
    change(graph)
    return dataclasses.replace(made, graphs={**made.graphs, file: graph.SerializeToString()})


def run(made: Bundle, mask: Mask | None = None) -> None:
    model = onnx_backend.from_bundle(made, onnx_backend.Options())
    model = model if mask is None else packed.of(model, mask)
    flat = np.zeros(model.layout.size, np.float32)
    outputs, pullback = model.oracle.vjp(model.layout.views(flat), np.zeros((2, *made.input_shape), np.float32))
    pullback(outputs)


def unknown_operator(graph: Any) -> None:
    graph.graph.node[0].op_type = "Levitate"


def newer_opset(graph: Any) -> None:
    graph.opset_import[0].version = 999


def data_elsewhere(graph: Any) -> None:
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


@pytest.mark.parametrize(
    ("change", "words"),
    [(unknown_operator, "Levitate"), (newer_opset, "999"), (data_elsewhere, "refuses it")],
)
@pytest.mark.parametrize("file", [FORWARD, PACKED_FORWARD])
def test_a_graph_that_the_runtime_cannot_run_is_a_device_error_of_one_line(
    change: Callable[[Any], None], words: str, file: str, linear: Bundle
) -> None:
    places = tuple(np.arange(5, dtype=np.int32) if len(shape) > 1 else None for shape in linear.layout.shapes)
    mask = Mask(linear.layout, places) if file == PACKED_FORWARD else None
    with pytest.raises(DeviceError, match=words) as caught:
        run(with_graph(linear, file, change), mask)
    assert "\n" not in str(caught.value)
    assert f"{file} of 'linear'" in str(caught.value)


def test_a_manifest_that_disagrees_with_its_graph_is_refused(linear: Bundle) -> None:
    def rename(graph: Any) -> None:
        graph.graph.output[0].name = "result"
        graph.graph.node[-1].output[0] = "result"

    with pytest.raises(ConfigError, match="'outputs' is not there"):
        run(with_graph(linear, FORWARD, rename))
    other = dataclasses.replace(linear.layout, shapes=((11, 784), (10,)))
    with pytest.raises(ConfigError, match="weight' has shape"):
        run(dataclasses.replace(linear, layout=other))
    model = onnx_backend.from_bundle(dataclasses.replace(linear, input_shape=(784,)), onnx_backend.Options())
    with pytest.raises(DeviceError, match=r"does not take samples of shape \(1, 28, 28\)"):
        model.oracle.vjp({}, np.zeros((1, 1, 28, 28), np.float32))


def test_a_setup_carries_a_bundle(linear: Bundle) -> None:
    made = setup.Setup("fedavg", {}, setup.ModelCard("own", linear.layout, bundle.pack(linear)), 0)
    assert bundle.unpack(setup.decode(setup.encode(made)).model.bundle) == linear


def test_a_bundle_for_a_devices_own_model_carries_its_initial_parameters(linear: Bundle) -> None:
    initial = np.arange(linear.layout.size, dtype=np.float32)
    begun = dataclasses.replace(linear, initial=initial)
    assert np.array_equal(bundle.unpack(bundle.pack(begun, initial=True)).initial, initial)  # type: ignore[arg-type]
    assert bundle.unpack(bundle.pack(begun)).initial is None


def test_packed_training_holds_little_more_than_the_active_values() -> None:
    density, layout = 0.1, models.find("cnn-large").layout
    rng = np.random.default_rng(0)
    pairs = zip(layout.shapes, layout.sizes, strict=True)
    places = tuple(
        np.flatnonzero(rng.random(size) < density).astype(np.int32) if len(shape) > 1 else None for shape, size in pairs
    )
    mask = Mask(layout, places)
    indices = sum(at.nbytes for at in places if at is not None)
    held = 3 * 4 * mask.packed.size + indices  # parameters, gradients, momentum, and where they are
    assert held <= 1.25 * (density * 3 * 4 * layout.size + layout.size / 8)


def test_what_a_step_takes_is_estimated_before_it_runs() -> None:
    model = backends.load(Compute("onnx"), "cnn")
    per_sample = bundle.built_in("cnn").memory.per_sample
    assert model.oracle.pass_bytes(32) - model.oracle.pass_bytes(1) == 31 * per_sample
