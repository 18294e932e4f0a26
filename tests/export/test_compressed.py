"""Deployable files: stock onnxruntime says what the trained model said, from as few bytes as its compression takes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("cryptography")

from onnx import ModelProto, StringStringEntryProto, TensorProto, checker, helper

from edge_runtime import backends, bundle, models, personal
from edge_runtime.algorithm import Fitted, Quantised
from edge_runtime.bundle import FORWARD, Bundle
from edge_runtime.compression import quantize
from edge_runtime.compute import Compute
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.export import compressed, inference, int8, manifest, storage, trial, try_out
from edge_runtime.mask import from_bits
from edge_runtime.personal import Origin, Personal
from edge_runtime.setup import ModelCard
from edge_runtime.tree import Layout

ORIGIN = Origin("a" * 32, 7, "gateway-7", "quped", ("walk", "run"), 0.875, 64, "c" * 16)
NAMES = ("watch-cnn", "lenet", "cnn")
FIXED, PER_TENSOR = 560, 95
"""Bytes of what unpacks, at most: measured 300 to 540, and 60 to 85 for each tensor."""


def dense(name: str) -> Personal:
    spec = models.find(name)
    return Personal(ORIGIN, ModelCard(name, spec.layout), models.initial(spec, 3))


def masked(model: Personal, density: float) -> Personal:
    layout = model.card.layout
    active = np.random.default_rng(0).random(layout.size) < density
    for shape, where in zip(layout.shapes, layout.slices, strict=True):
        active[where] |= len(shape) < 2
    return dataclasses.replace(model, values=np.where(active, model.values, np.float32(0)), active=active)


def quantised(model: Personal, bits: int) -> Personal:
    """Quantise everything but biases and norms, and the first and last of the others."""
    layout = model.card.layout
    names = tuple(name for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) > 1)[1:-1]
    parts = layout.views(model.values)
    centres = [quantize.initial(parts[name].reshape(-1), bits) for name in names]
    codes = [quantize.assign(parts[name].reshape(-1), row) for name, row in zip(names, centres, strict=True)]
    others = np.concatenate([parts[name].reshape(-1) for name in layout.names if name not in names])
    form = quantize.Form(bits, tuple(map(len, codes)), len(others))
    held = Quantised(bits, names, quantize.encode(form, np.concatenate(codes), np.stack(centres), others))
    return dataclasses.replace(model, values=personal.dense(held, layout), quantised=held)


def graphs(name: str) -> Bundle:
    return bundle.built_in(name)


def with_forward(found: Bundle, model: ModelProto) -> Bundle:
    return dataclasses.replace(found, graphs={**found.graphs, FORWARD: model.SerializeToString()})


def forward(name: str) -> ModelProto:
    return ModelProto.FromString(graphs(name).graphs[FORWARD])


@pytest.mark.parametrize("name", NAMES)
def test_every_lossless_form_says_bit_for_bit_what_float32_says_and_that_is_what_was_trained(name: str) -> None:
    found, whole = graphs(name), dense(name)
    x = trial.random_inputs(found, 5)
    made = [(masked(whole, 0.3), "sparse"), *((quantised(whole, bits), "codes") for bits in range(1, 9))]
    forms = [compressed.build(model, found, form) for model, form in made]
    plain = [compressed.build(model, found, "float32") for model, _ in made]
    outputs = trial.run([*forms, *plain], x).outputs
    for (model, _), ours, theirs in zip(made, outputs[:9], outputs[9:], strict=True):
        assert ours.tobytes() == theirs.tobytes()
        assert trial.difference(ours, trial.trained(model, found, x)) <= compressed.TOLERANCE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_take_their_bits_and_the_graph_little(name: str, bits: int) -> None:
    found, model = graphs(name), quantised(dense(name), bits)
    assert model.quantised is not None
    made, plain = (compressed.build(model, found, form) for form in ("codes", "float32"))
    graph = len(plain) - model.values.nbytes
    assert 0 < graph < 1500
    unpacking = len(made) - graph - len(model.quantised.data)
    assert 0 < unpacking <= FIXED + PER_TENSOR * len(model.quantised.names)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
def test_a_masked_model_takes_a_bit_for_each_value_and_the_active_ones(density: float) -> None:
    found, model = graphs("lenet"), masked(dense("lenet"), density)
    assert model.active is not None
    made, plain = (compressed.build(model, found, form) for form in ("sparse", "float32"))
    held = 4 * int(model.active.sum()) + model.card.layout.size // 8
    assert 0 < len(made) - held - (len(plain) - model.values.nbytes) <= FIXED + PER_TENSOR * 5


def test_fedspa_at_density_a_tenth_is_a_seventh_of_float32() -> None:
    found, model = graphs("cnn"), masked(dense("cnn"), 0.1)
    made, plain = (compressed.build(model, found, form) for form in ("sparse", "float32"))
    assert 7 * len(made) <= len(plain)


def resnet20() -> tuple[Bundle, Personal]:
    """Make the graph that `edge-coordinator export edge_runtime.export.resnet:resnet20` makes, but what it saves."""
    nodes, shapes = [], {}

    def add(operator: str, inputs: list[str], **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def conv(x: str, name: str, inputs: int, outputs: int, size: int, stride: int) -> str:
        shapes[name] = (outputs, inputs, size, size)
        edges = {"strides": [stride] * 2, "pads": [size // 2] * 4, "dilations": [1, 1], "group": 1}
        return add("Conv", [x, name], kernel_shape=[size] * 2, **edges)

    def norm(x: str, name: str, channels: int) -> str:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)
        groups = add("InstanceNormalization", [add("Reshape", [x, "groups"]), "ones", "zeros"], epsilon=1e-5)
        value = add("Reshape", [groups, add("Shape", [x])], allowzero=1)
        scale, shift = (add("Unsqueeze", [f"{name}.{key}", "axes"]) for key in ("weight", "bias"))
        return add("Add", [add("Mul", [value, scale]), shift])

    x, inputs = add("Relu", [norm(conv("x", "conv", 1, 16, 3, 1), "norm", 16)]), 16
    for block in range(9):
        outputs = 16 << block // 3
        stride = 1 if inputs == outputs else 2
        inner = add("Relu", [norm(conv(x, f"{block}.conv1", inputs, outputs, 3, stride), f"{block}.norm1", outputs)])
        inner = norm(conv(inner, f"{block}.conv2", outputs, outputs, 3, 1), f"{block}.norm2", outputs)
        short = x if stride == 1 else conv(x, f"{block}.shortcut", inputs, outputs, 1, stride)
        x, inputs = add("Relu", [add("Add", [inner, short])]), outputs
    shapes |= {"linear.weight": (10, 64), "linear.bias": (10,)}
    turned = add("Transpose", ["linear.weight"], perm=[1, 0])
    pooled = add("Reshape", [add("ReduceMean", [x, "places"], keepdims=1), "flat"])
    nodes.append(helper.make_node("Gemm", [pooled, turned, "linear.bias"], ["outputs"]))
    constants = {"groups": [0, 8, -1], "axes": [1, 2], "places": [2, 3], "flat": [-1, 64]}
    tensors = [helper.make_tensor(key, TensorProto.INT64, [len(v)], v) for key, v in constants.items()]
    tensors += [helper.make_tensor(k, TensorProto.FLOAT, [8], [v] * 8) for k, v in (("ones", 1), ("zeros", 0))]
    layout = Layout(tuple(shapes), tuple(shapes.values()))
    ends = {"x": ["n", 1, 28, 28], "outputs": ["n", 10], **shapes}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in ends.items()}
    takes = [info for name, info in infos.items() if name != "outputs"]
    graph = helper.make_graph(nodes, "resnet20", takes, [infos["outputs"]], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    like = dataclasses.replace(graphs("cnn"), model="resnet20", layout=layout, input_shape=(1, 28, 28), saved=())
    values = np.random.default_rng(0).normal(size=layout.size, scale=0.1).astype(np.float32)
    return with_forward(like, model), Personal(ORIGIN, ModelCard("resnet20", layout), values)


def test_a_resnet20_is_a_twelfth_in_two_bits_and_two_thirteenths_in_four() -> None:
    found, whole = resnet20()
    assert whole.card.layout.size == 271_994
    x, plain = trial.random_inputs(found, 3), len(compressed.build(whole, found, "float32"))
    for bits, smaller in ((2, 12.0), (4, 6.5)):
        model = quantised(whole, bits)
        made = compressed.build(model, found, "codes")
        assert smaller * len(made) <= plain
        (outputs,) = trial.run([made], x).outputs
        assert trial.difference(outputs, trial.trained(model, found, x)) <= compressed.TOLERANCE


@pytest.mark.parametrize("form", ["float32", "sparse", "codes", "int8"])
def test_a_file_is_correct_onnx_with_one_input_one_output_and_a_free_batch(form: str) -> None:
    model = quantised(masked(dense("watch-cnn"), 0.5), 3)
    made = ModelProto.FromString(compressed.build(model, graphs("watch-cnn"), form))
    checker.check_model(made, full_check=True)
    ends = [*made.graph.input, *made.graph.output]
    dims = [[one.dim_param or one.dim_value for one in end.type.tensor_type.shape.dim] for end in ends]
    assert ([end.name for end in ends], dims) == (["x", "outputs"], [["n", 6, 100], ["n", 7]])
    assert not any(one.name.startswith("saved") for node in made.graph.node for one in node.attribute)


def test_of_a_network_without_what_is_masked_whole_tensors_may_vanish() -> None:
    model = dense("lenet")
    layout = model.card.layout
    active = np.ones(layout.size, np.bool_)
    active[layout.slices[layout.names.index("linear1.weight")]] = False
    model = dataclasses.replace(model, values=model.values * active, active=active)
    found, x = graphs("lenet"), trial.random_inputs(graphs("lenet"), 2)
    (outputs,) = trial.run([compressed.build(model, found, "sparse")], x).outputs
    assert trial.difference(outputs, trial.trained(model, found, x)) <= compressed.TOLERANCE


def test_auto_is_the_form_of_the_models_compression() -> None:
    whole = dense("watch-cnn")
    made = [compressed.choose(model, "auto") for model in (whole, masked(whole, 0.5), quantised(whole, 2))]
    assert made == ["float32", "sparse", "codes"]
    assert compressed.choose(whole, "int8") == "int8"


@pytest.mark.parametrize("form", ["sparse", "codes"])
def test_a_form_that_the_model_does_not_have_is_refused(form: str) -> None:
    model = dense("watch-cnn")
    for one in (model, dataclasses.replace(model, active=np.ones(model.card.layout.size, np.bool_))):
        with pytest.raises(ConfigError, match=f"--format {form}: this model"):
            compressed.build(one, graphs("watch-cnn"), form)


@pytest.mark.parametrize("name", ["watch-cnn", "watch-mlp", "cnn"])
def test_weights_in_eight_bits_are_off_by_half_a_step_of_their_channel_at_most(name: str) -> None:
    graph, model = inference.strip(graphs(name).graphs[FORWARD], graphs(name)), dense(name)
    storage.float32(graph, model)
    graph.fold()
    before = dict(graph.constants)
    int8.weights(graph)
    rounded = {node.output[0]: node for node in graph.in_front if node.op_type == "Mul" and node.output[0] in before}
    assert sum(before[one].size for one in rounded) > 0.98 * model.values.size
    for one, node in rounded.items():
        (cast,) = (other for other in graph.in_front if other.output[0] == node.input[0])
        held, scale = graph.constants[cast.input[0]], graph.constants[node.input[1]]
        assert held.dtype == np.int8
        assert np.abs(held).max() == 127
        assert (np.abs(held * scale - before[one]) <= scale / 2 * 1.0001).all()


def test_eight_bits_are_a_quarter_and_say_nearly_the_same() -> None:
    found, model = graphs("cnn"), dense("cnn")
    x = trial.random_inputs(found, 32)
    contents = [compressed.build(model, found, "int8"), compressed.build(model, found, "int8", x)]
    plain, expected = len(compressed.build(model, found, "float32")), trial.trained(model, found, x)
    for made, outputs in zip(contents, trial.run(contents, x).outputs, strict=True):
        assert 3.9 < plain / len(made) < 4
        assert 1e-5 < trial.difference(outputs, expected) < 0.3
    operators = [{node.op_type for node in ModelProto.FromString(made).graph.node} for made in contents]
    assert ["QuantizeLinear" in one for one in operators] == [False, True]


def test_the_process_that_tries_a_file_out_has_only_numpy_and_onnxruntime(tmp_path: Path) -> None:
    found = graphs("watch-mlp")
    (tmp_path / "it.onnx").write_bytes(compressed.build(dense("watch-mlp"), found, "float32"))
    np.save(tmp_path / "x.npy", trial.random_inputs(found, 1))
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__');"
        "print({name.partition('.')[0] for name in sys.modules} & {'edge_runtime', 'onnx', 'torch', 'export'})"
    )
    command = [sys.executable, "-P", "-c", program, try_out.__file__, str(tmp_path), str(tmp_path / "it.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, last = done.stdout.splitlines()
    assert len(json.loads(first)["load_ms"]) == 1
    assert last == "set()"


def test_a_file_that_says_something_else_than_the_trained_model_is_not_written() -> None:
    model = quantised(dense("lenet"), 4)
    other = dataclasses.replace(model, values=model.values * np.float32(1.0001))
    with pytest.raises(ConfigError, match="nothing is written"):
        compressed.judge(other, graphs("lenet"), "codes", None)


def external(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(StringStringEntryProto(key="location", value="/etc/passwd"))


def foreign(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def unknown(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Colour"


def inner(model: ModelProto) -> None:
    attribute = helper.make_attribute("body", helper.make_graph([], "inner", [], []))
    model.graph.node[0].attribute.append(attribute)


def old(model: ModelProto) -> None:
    model.opset_import[0].version = 7


def outputless(model: ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = [name.replace("outputs", "elsewhere") for name in node.output]


def torn(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        tensor.raw_data = b"abc"


@pytest.mark.parametrize("change", [external, foreign, unknown, inner, old, outputless, torn])
def test_a_hostile_graph_is_refused(change: object) -> None:
    model = forward("watch-cnn")
    change(model)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"forward\.onnx (is|holds|has) .*export the model again"):
        compressed.build(dense("watch-cnn"), with_forward(graphs("watch-cnn"), model), "float32")


def test_bytes_that_are_no_graph_are_refused() -> None:
    found = graphs("watch-cnn")
    broken = dataclasses.replace(found, graphs={**found.graphs, FORWARD: b"\xff\xff\xff"})
    with pytest.raises(ConfigError, match="is not an ONNX graph"):
        compressed.build(dense("watch-cnn"), broken, "float32")


def test_what_onnxruntime_cannot_run_is_one_line() -> None:
    with pytest.raises(DeviceError, match=r"onnxruntime does not run the file: [^\n]+$"):
        trial.run([b"nothing"], np.zeros((1, 2), np.float32))


def test_a_model_that_is_code_of_its_devices_is_refused_by_name() -> None:
    layout = models.find("watch-cnn").layout
    with pytest.raises(ConfigError, match="'mine:net': is code that its devices have"):
        compressed.graphs(ModelCard("mine:net", layout))


def test_a_model_is_refused_that_is_not_its_graphs() -> None:
    other = models.find("lenet").layout
    with pytest.raises(ConfigError, match="has other tensors"):
        compressed.graphs(ModelCard("watch-cnn", other))
    with pytest.raises(ConfigError, match="its graphs are damaged"):
        compressed.graphs(ModelCard("mine:net", other, b"nothing"))


def test_a_models_own_graphs_go_before_built_in_ones() -> None:
    card = ModelCard("mine:net", models.find("lenet").layout, bundle.pack(graphs("lenet")))
    assert compressed.graphs(card).graphs == graphs("lenet").graphs


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def encoded(model: Personal) -> bytes:
    layout = model.card.layout
    mask = from_bits(layout, np.ones(layout.size, np.bool_) if model.active is None else model.active)
    fitted = Fitted(backends.load(Compute(backend="onnx"), model.card.name), mask.pack(model.values), mask)
    return personal.encode(model.origin, model.card, fitted, model.quantised)


def write(folder: Path, model: Personal) -> str:
    (folder / "personal.bin").write_bytes(encoded(model))
    return str(folder / "personal.bin")


def data(folder: Path, **changes: NDArray[np.generic]) -> str:
    found = graphs("watch-cnn")
    arrays = {"x": trial.random_inputs(found, 40), "y": np.arange(40) % found.outputs}
    np.savez(folder / "data.npz", **(arrays | changes))
    return str(folder / "data.npz")


def test_the_program_writes_a_file_and_its_manifest(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = write(state, quantised(dense("watch-cnn"), 2)), state / "new" / "it.onnx"
    assert compressed.main([given, "--out", str(out), "--data", data(state), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "codes"
    assert report["bytes"] == out.stat().st_size
    assert report["accuracy"] == report["accuracy_before"]
    assert report["samples"] == 40
    assert report["parity"] <= compressed.TOLERANCE
    said = manifest.verify(out, manifest.own_key(manifest.key_folder()).public_key())
    assert (said["format"], said["device"], said["round"], said["accuracy"]) == ("codes", "gateway-7", 7, 0.875)
    assert said["input"] == {"shape": [6, 100], "type": "float32"}
    assert manifest.main([str(out)]) == 0


def test_the_program_says_in_words_what_became_of_a_model(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = write(state, dense("watch-cnn")), state / "it.onnx"
    assert (
        compressed.main([given, "--out", str(out), "--format", "int8", "--data", data(state), "--calibrate", "8"]) == 0
    )
    said = capsys.readouterr().out
    assert "watch-cnn as int8 (weights and activations, in the ranges of 8 samples)" in said
    assert "on random inputs" not in said
    assert len(said.splitlines()) == 6


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "it.bin"], "must end in .onnx"),
        (["--format", "codes"], "is not quantised"),
        (["--format", "int8", "--calibrate", "5"], "--calibrate needs samples"),
        (["--calibrate", "5"], "for --format int8"),
        (["--data", "fashion"], "fashion"),
        (["--data", "missing.npz"], "cannot be read"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    state: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write(state, dense("watch-cnn"))
    assert compressed.main([given, "--out", str(state / "it.onnx"), *flags]) == ConfigError.exit_code
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (state / "it.onnx").exists()


def test_data_of_another_kind_is_refused(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = write(state, dense("watch-cnn"))
    changes: list[dict[str, NDArray[np.generic]]] = [
        {"x": np.zeros((40, 3), np.float32)},
        {"x": np.zeros((40, 6, 100), np.int64)},
        {"y": np.arange(40)},
    ]
    for change in changes:
        path = data(state, **change)
        assert compressed.main([given, "--out", str(state / "it.onnx"), "--data", path]) == ConfigError.exit_code
        assert path in capsys.readouterr().err


def test_a_damaged_or_missing_personal_model_is_refused(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(encoded(dense("watch-cnn")))
    content[50] ^= 1
    (state / "damaged.bin").write_bytes(content)
    nowhere = dataclasses.replace(dense("watch-cnn"), origin=dataclasses.replace(ORIGIN, accuracy=2.0))
    write(state, nowhere)
    for name, said in (("damaged.bin", "damaged"), ("none.bin", "cannot be read"), ("personal.bin", "no fraction")):
        assert compressed.main([str(state / name), "--out", str(state / "it.onnx")]) == ConfigError.exit_code
        assert said in capsys.readouterr().err
