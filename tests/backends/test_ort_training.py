"""onnxruntime-training against the numpy backend. Runs in an environment of its own; `make test` sets it up."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.capi import _pybind_state as capi

from edge_runtime import bundle, models
from edge_runtime.backends import numpy as trusted
from edge_runtime.backends import onnx as stock
from edge_runtime.backends import ort_training
from edge_runtime.bundle import FORWARD, GRAPHS, Bundle, Memory
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.export import ort_training as export
from edge_runtime.tree import Layout

if not hasattr(capi, "CheckpointState"):
    pytest.skip("the onnxruntime of this environment cannot train", allow_module_level=True)

NAMES = models.names()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the artifacts of all built-in models by name."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name in NAMES:
        export.write(bundle.built_in(name), folder / name)
    return folder


def _case(name: str, batch: int = 9):
    spec = models.find(name)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(batch, *spec.input_shape)).astype(np.float32)
    return spec, models.initial(spec, 0), x, rng


def _close(got, wanted, tolerance: float, what: str) -> None:
    """Compare to `tolerance` of the largest value: sums of thousands of products in another order differ by 1e-6."""
    assert got.shape == wanted.shape, what
    assert got.dtype == np.float32, what
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max(), err_msg=what)


@pytest.mark.parametrize("backend", ["ort_training", "onnx"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_every_gradient_are_those_of_numpy(name: str, backend: str, artifacts: Path) -> None:
    spec, flat, x, rng = _case(name)
    params = spec.layout.views(flat)
    ours = (
        ort_training.from_bundle(bundle.built_in(name), artifacts / name)
        if backend == "ort_training"
        else stock.from_bundle(bundle.built_in(name), stock.Options())
    )

    (y, pull), (y_numpy, pull_numpy) = (m.oracle.vjp(params, x) for m in (ours, trusted.from_spec(spec)))
    direction = rng.normal(size=y.shape).astype(np.float32)
    grads, grads_numpy = pull(direction), pull_numpy(direction)

    assert ours.layout == spec.layout
    _close(y, y_numpy, 1e-4, "outputs")
    assert set(grads) == set(spec.layout.names)
    for key in spec.layout.names:
        _close(grads[key], grads_numpy[key], 1e-4, key)


@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_of_training_end_where_numpy_ends(name: str, artifacts: Path) -> None:
    spec, flat, _, rng = _case(name)
    x = rng.normal(size=(20, 16, *spec.input_shape)).astype(np.float32)
    y = rng.integers(0, spec.classes, (20, 16))
    way = _way(ort_training.from_bundle(bundle.built_in(name), artifacts / name), spec, flat, x, y)
    wanted = _way(trusted.from_spec(spec), spec, flat, x, y)
    if not _near(way, wanted):
        # A ReLU's input may be zero to the last bit, a pool's maximum a tie: there the way forks, and which branch is
        # taken depends on the processor's order of sums. The other branch is numpy's own, from a start a last bit off.
        up = np.where(rng.random(len(flat)) < 0.5, np.inf, -np.inf).astype(np.float32)
        wanted = _way(trusted.from_spec(spec), spec, np.nextafter(flat, up), x, y)
    _close(way, wanted, 1e-3, "the way from the start")


def _way(model, spec, flat, x, y):
    """Train, and say how far and where that led."""
    now = flat.copy()
    for batch, labels in zip(x, y, strict=True):
        outputs, pullback = model.oracle.vjp(spec.layout.views(now), batch)
        odds = np.exp(outputs - outputs.max(1, keepdims=True))
        grad = odds / odds.sum(1, keepdims=True) - np.eye(spec.classes, dtype=np.float32)[labels]
        now -= np.float32(0.05) * spec.layout.join(pullback(grad / np.float32(len(labels))))
    return now - flat


def _near(got, wanted) -> bool:
    return bool(np.allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max()))


def test_batches_of_any_size_and_memory_order_do(artifacts: Path) -> None:
    spec, flat, x, rng = _case("watch-cnn", 4)
    oracle = ort_training.from_bundle(bundle.built_in("watch-cnn"), artifacts / "watch-cnn").oracle
    whole, pullback = oracle.vjp(spec.layout.views(flat), np.asfortranarray(x, np.float64))
    direction = np.asfortranarray(rng.normal(size=whole.shape))
    together = spec.layout.join(pullback(direction))

    alone = np.zeros(spec.layout.size, np.float32)
    for index in range(len(x)):
        one, pullback = oracle.vjp(spec.layout.views(flat), x[index : index + 1])
        _close(one[0], whole[index], 1e-4, "outputs")
        alone += spec.layout.join(pullback(direction[index : index + 1]))

    _close(alone, together, 1e-4, "gradients")


def test_a_pullback_is_that_of_its_own_vjp_even_after_another(artifacts: Path) -> None:
    spec, flat, x, rng = _case("mlp")
    oracle = ort_training.from_bundle(bundle.built_in("mlp"), artifacts / "mlp").oracle
    direction = rng.normal(size=(len(x), spec.classes)).astype(np.float32)
    wanted = spec.layout.join(oracle.vjp(spec.layout.views(flat), x)[1](direction))

    _, first = oracle.vjp(spec.layout.views(flat), x)
    _, second = oracle.vjp(spec.layout.views(flat * np.float32(2)), x[:3])
    other = spec.layout.join(second(direction[:3]))

    assert np.array_equal(spec.layout.join(first(direction)), wanted)
    assert not np.array_equal(other, wanted)


def test_gradients_that_were_given_do_not_change_in_the_next_step(artifacts: Path) -> None:
    spec, flat, x, _ = _case("mlp")
    oracle = ort_training.from_bundle(bundle.built_in("mlp"), artifacts / "mlp").oracle
    given = oracle.vjp(spec.layout.views(flat), x)[1](np.ones((len(x), spec.classes), np.float32))
    before = spec.layout.join(given).copy()

    oracle.vjp(spec.layout.views(flat), x)[1](np.zeros((len(x), spec.classes), np.float32))

    assert np.array_equal(spec.layout.join(given), before)


def test_a_model_that_has_diverged_gives_nan_and_the_process_lives(artifacts: Path) -> None:
    # Without export.ort_training._bound_pooling this ends in "double free or corruption" after some steps.
    program = (
        "import sys, numpy as np; from pathlib import Path; from edge_runtime import bundle;"
        "from edge_runtime.backends import ort_training;"
        "m = ort_training.from_bundle(bundle.built_in('cnn'), Path(sys.argv[1]));"
        "p = m.layout.views(np.full(m.layout.size, np.nan, np.float32));"
        "x, g = np.ones((32, 1, 28, 28), np.float32), np.ones((32, 10), np.float32);"
        "runs = [(y, pull(g)) for y, pull in (m.oracle.vjp(p, x) for _ in range(10))];"
        "print(all(np.isnan(y).all() for y, _ in runs))"
    )

    done = _python(program, artifacts / "cnn")

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")


def test_neither_making_the_artifacts_nor_training_loads_torch(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from pathlib import Path; from edge_runtime import bundle;"
        "from edge_runtime.backends import ort_training; from edge_runtime.export import ort_training as export;"
        "made = bundle.built_in('watch-cnn'); export.write(made, Path(sys.argv[1]));"
        "m = ort_training.from_bundle(made, Path(sys.argv[1]));"
        "y, pull = m.oracle.vjp(m.layout.views(np.ones(m.layout.size, np.float32)), np.ones((2, 6, 100)));"
        "pull(y); print(sorted({'torch', 'onnxruntime.training'} & set(sys.modules)))"
    )

    done = _python(program, tmp_path)

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@pytest.mark.parametrize("damaged", [ort_training.TRAINING, ort_training.EVAL, ort_training.CHECKPOINT])
def test_damaged_and_missing_artifacts_are_named_in_one_line(damaged: str, tmp_path: Path) -> None:
    made = bundle.built_in("linear")
    export.write(made, tmp_path)
    path = tmp_path / damaged
    data = path.read_bytes()

    path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(ConfigError, match=rf"^[^\n]*{damaged}: is damaged[^\n]*$"):
        ort_training.from_bundle(made, tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match=rf"^[^\n]*{damaged}: cannot be read[^\n]*$"):
        ort_training.from_bundle(made, tmp_path)


def test_artifacts_that_onnxruntime_refuses_are_a_device_error_of_one_line(tmp_path: Path) -> None:
    made = bundle.built_in("linear")
    export.write(made, tmp_path)
    manifest = json.loads((tmp_path / ort_training.MANIFEST).read_text())
    (tmp_path / ort_training.TRAINING).write_bytes(b"no graph")
    manifest["files"][ort_training.TRAINING] = ort_training.digest(b"no graph")
    (tmp_path / ort_training.MANIFEST).write_text(json.dumps(manifest))

    with pytest.raises(DeviceError, match=r"^[^\n]*refuses it[^\n]*$"):
        ort_training.from_bundle(made, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "forward": "", "files": {}}'])
def test_a_manifest_that_is_none_is_named_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / ort_training.MANIFEST).write_text(text)

    with pytest.raises(ConfigError, match=r"^[^\n]*artifacts.json: is [^\n]*$"):
        ort_training.from_bundle(bundle.built_in("linear"), tmp_path)


def test_artifacts_of_another_bundle_are_refused(artifacts: Path) -> None:
    with pytest.raises(ConfigError, match="was not made of this bundle of 'linear'"):
        ort_training.from_bundle(bundle.built_in("linear"), artifacts / "mlp")


def test_inputs_of_the_wrong_shape_are_a_device_error(artifacts: Path) -> None:
    model = ort_training.from_bundle(bundle.built_in("linear"), artifacts / "linear")
    params = model.layout.views(np.zeros(model.layout.size, np.float32))

    with pytest.raises(DeviceError, match=r"^[^\n]+$"):
        model.oracle.vjp(params, np.zeros((2, 1, 28), np.float32))


def test_the_command_line_writes_artifacts_and_says_in_one_line_what_it_cannot(tmp_path: Path, capsys) -> None:
    made = bundle.built_in("linear")
    for name, data in bundle.files(made).items():
        (tmp_path / name).write_bytes(data)

    assert export.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert ort_training.from_bundle(made, tmp_path / "out").layout == made.layout
    assert export.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def _bundle(nodes: list[onnx.NodeProto], **shapes: list[int]) -> Bundle:
    """Make a bundle of [batch, 4, 3] -> [batch, 2]; nobody here needs its backward graph."""
    info = onnx.helper.make_tensor_value_info
    inputs = [info(name, 1, shape) for name, shape in {**shapes, "x": ["batch", 4, 3]}.items()]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, [info("outputs", 1, ["batch", 2])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    layout = Layout(tuple(shapes), tuple(map(tuple, shapes.values())))
    data = model.SerializeToString()
    return Bundle(
        "small", layout, (4, 3), "float32", 2, (), (), Memory(0, 0, 0), 18, 10, dict.fromkeys(GRAPHS, data), None
    )


@pytest.mark.parametrize("kind", ["InstanceNormalization", "LayerNormalization"])
def test_normalisation_as_the_exporter_writes_it_has_the_gradient_of_central_differences(
    kind: str, tmp_path: Path
) -> None:
    size = 4 if kind == "InstanceNormalization" else 3
    make = onnx.helper.make_node
    made = _bundle(
        [
            make("Mul", ["x", "scale"], ["scaled"]),
            make(kind, ["scaled", "weight", "bias"], ["normal"], epsilon=0.1),
            make("Flatten", ["normal"], ["flat"]),
            make("MatMul", ["flat", "matrix"], ["outputs"]),
        ],
        scale=[4, 3],
        weight=[size],
        bias=[size],
        matrix=[12, 2],
    )
    export.write(made, tmp_path)
    oracle = ort_training.from_bundle(made, tmp_path).oracle
    rng = np.random.default_rng(3)
    flat = rng.normal(size=made.layout.size).astype(np.float32)
    x, direction = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 4, 3), (5, 2)))

    gradient = made.layout.join(oracle.vjp(made.layout.views(flat), x)[1](direction))

    step = np.float32(1e-2)
    for index in range(made.layout.size):
        sides = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[index] += sign * step
            sides.append(float((oracle.vjp(made.layout.views(moved), x)[0].astype(np.float64) * direction).sum()))
        # In float32 the error is about step^2 and eps / step, each times values near 10.
        assert gradient[index] == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-2, abs=1e-2)


def test_an_operator_without_a_gradient_and_an_unused_parameter_are_named(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    head = [make("Flatten", ["x"], ["flat"]), make("MatMul", ["flat", "matrix"], ["product"])]

    with pytest.raises(ConfigError, match=r"^[^\n]*no gradient of the operator Selu[^\n]*$"):
        export.write(_bundle([*head, make("Selu", ["product"], ["outputs"])], matrix=[12, 2]), tmp_path)
    with pytest.raises(ConfigError, match=r"^[^\n]*'unused'[^\n]*$"):
        export.write(_bundle([*head, make("Relu", ["product"], ["outputs"])], matrix=[12, 2], unused=[1]), tmp_path)
    linear = bundle.built_in("linear")
    with pytest.raises(ConfigError, match="is not ONNX"):
        export.write(replace(linear, graphs={**linear.graphs, FORWARD: b"\xff"}), tmp_path)


def _python(program: str, argument: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, check=False)
