"""Make onnxruntime-training's artifacts of a bundle, without torch.

    python -m edge_runtime.export.ort_training BUNDLE --out FOLDER

Of the bundle's forward graph the nodes remain that `outputs` needs, and onnxruntime's gradient builder differentiates

    loss = sum(outputs * grad),  with `grad` [batch, outputs] as a further input,

by the parameters: that is the vector-Jacobian product for `grad`, all that an Oracle asks for. This does what
`onnxruntime.training.artifacts.generate_artifacts` does, with the C API that lies beneath it, because that module
imports torch. SGD is ours, so there is no optimizer model. `backends/ort_training.py` has the artifacts' form; run
this with the same onnxruntime-training 1.19.2 that will train.
"""

import argparse
import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import _pybind_state as capi

from edge_runtime import bundle as bundles
from edge_runtime import models
from edge_runtime.backends.ort_training import CHECKPOINT, EVAL, FORMAT, MANIFEST, TRAINING, digest, require
from edge_runtime.bundle import FORWARD, Bundle
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.export import program

MAX_IR_VERSION = 10
"""The newest that onnxruntime 1.19.2 reads."""
_LOSS = "/loss"


def write(bundle: Bundle, folder: Path) -> None:
    """Write the artifacts of a bundle into `folder`, which is made where it is missing.

    Raises:
        ConfigError: its forward graph is none, onnxruntime has no gradient of an operator in it, or `folder` cannot
            be written.
        DeviceError: this environment's onnxruntime cannot train.
    """
    require()
    evaluation = _evaluation(bundle)
    training = _training(evaluation, bundle)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # last, so that half-written artifacts are none
        (folder / EVAL).write_bytes(evaluation.SerializeToString())
        (folder / TRAINING).write_bytes(training.SerializeToString())
        _write_checkpoint(bundle, folder / CHECKPOINT)
        hashes = {name: digest((folder / name).read_bytes()) for name in (TRAINING, EVAL, CHECKPOINT)}
        record = {"format": FORMAT, "forward": digest(bundle.graphs[FORWARD]), "files": hashes}
        (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error


def _evaluation(bundle: Bundle) -> onnx.ModelProto:
    """Cut the forward graph down to x, parameters -> outputs, in operators that have a gradient."""
    try:
        model = onnx.load_from_string(bundle.graphs[FORWARD])
    except Exception as error:  # protobuf's errors have changed their base over its versions
        raise ConfigError(f"model: the forward graph of {bundle.model!r} is not ONNX; export it again") from error
    graph = model.graph
    nodes, wanted = [], {"outputs"}
    for node in reversed(graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= set(node.input)
    plain = [new for node in reversed(nodes) for new in _differentiable(node)]
    inputs = {value.name: value for value in graph.input}
    if missing := {"x", *bundle.layout.names} - set(inputs):
        raise ConfigError(
            f"model: the forward graph of {bundle.model!r} has no input {min(missing)!r}; export it again"
        )
    if unused := set(bundle.layout.names) - wanted:
        raise ConfigError(
            f"model: its outputs do not depend on the parameter {min(unused)!r}; leave it out of the model"
        )
    _replace(graph.node, plain)
    _replace(graph.initializer, [value for value in graph.initializer if value.name in wanted])
    _replace(graph.input, [inputs[name] for name in ("x", *bundle.layout.names)])
    _replace(graph.output, [value for value in graph.output if value.name == "outputs"])
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    return model


def _differentiable(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Rewrite the two operators that onnxruntime 1.19.2 runs but cannot differentiate as the exporter wrote them."""
    if node.op_type == "InstanceNormalization":
        yield from _instance_normalization(node)
        return
    if node.op_type == "LayerNormalization":  # its gradient is made of the optional outputs, mean and 1 / deviation
        names = [*node.output, *[f"{node.output[0]}/{index}" for index in range(len(node.output), 3)]]
        _replace(node.output, [name or f"{node.output[0]}/{index}" for index, name in enumerate(names)])
    yield node


def _instance_normalization(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Write InstanceNormalization (x [batch, channels, ...], scale, bias) as arithmetic."""
    x, scale, bias = node.input
    (y,) = node.output
    epsilon = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)

    def make(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        own = [f"{y}{name}" if name.startswith("/") else name for name in inputs]
        return onnx.helper.make_node(kind, own, [f"{y}{output}"], **attributes)

    def constant(output: str, value: Any) -> onnx.NodeProto:
        return make("Constant", [], output, value=onnx.numpy_helper.from_array(np.asarray(value)))

    yield constant("/flat", np.array([0, 0, -1], np.int64))
    yield constant("/last", np.array([2], np.int64))
    yield constant("/one", np.array([1], np.int64))
    yield constant("/epsilon", np.float32(epsilon))
    yield make("Reshape", [x, "/flat"], "/x")
    yield make("ReduceMean", ["/x", "/last"], "/mean")
    yield make("Sub", ["/x", "/mean"], "/centred")
    yield make("Mul", ["/centred", "/centred"], "/squares")
    yield make("ReduceMean", ["/squares", "/last"], "/variance")
    yield make("Add", ["/variance", "/epsilon"], "/positive")
    yield make("Sqrt", ["/positive"], "/deviation")
    yield make("Div", ["/centred", "/deviation"], "/normal")
    yield make("Unsqueeze", [scale, "/one"], "/scale")
    yield make("Unsqueeze", [bias, "/one"], "/bias")
    yield make("Mul", ["/normal", "/scale"], "/scaled")
    yield make("Add", ["/scaled", "/bias"], "/shifted")
    yield make("Shape", [x], "/shape")
    yield make("Reshape", ["/shifted", "/shape"], "")


def _training(evaluation: onnx.ModelProto, bundle: Bundle) -> onnx.ModelProto:
    """Add the loss and the gradients of the parameters, each accumulated into a buffer as the C API expects it."""
    model = copy.deepcopy(evaluation)
    x, *parameters = model.graph.input
    batch = x.type.tensor_type.shape.dim[0].dim_param
    grad = onnx.helper.make_tensor_value_info("grad", onnx.TensorProto.FLOAT, [batch, bundle.outputs])
    loss = onnx.helper.make_tensor_value_info(_LOSS, onnx.TensorProto.FLOAT, [])
    model.graph.node.extend(
        [
            onnx.helper.make_node("Mul", ["outputs", "grad"], ["/products"]),
            onnx.helper.make_node("ReduceSum", ["/products"], [_LOSS], keepdims=0),
        ]
    )
    _replace(model.graph.input, [x, grad, *parameters])
    _replace(model.graph.output, [loss])
    model = _differentiate(model, bundle)
    _bound_pooling(model.graph)
    _accumulate(model.graph, bundle.layout.names)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    return model


def _differentiate(model: onnx.ModelProto, bundle: Bundle) -> onnx.ModelProto:
    names = set(bundle.layout.names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)  # the optimizer tells every rewrite to the default log
    try:
        optimized = capi.get_optimized_model(model.SerializeToString(), names, options)
        builder = capi.GradientGraphBuilder(optimized, {_LOSS}, names, _LOSS, options)
        builder.build()
        return onnx.load_from_string(builder.get_model())
    except Exception as error:  # onnxruntime has a type for each of its codes, without a common base
        text = " ".join(str(error).split()).rpartition(" was false. ")[2]  # before it stands the place in C++
        if unknown := re.search(r"gradient builder has not been registered: (\w+)", text):
            text = f"it has no gradient of the operator {unknown[1]}; use the backend onnx"
        raise ConfigError(
            f"model: onnxruntime {onnxruntime.__version__} cannot differentiate {bundle.model!r}: {text[:300]}"
        ) from error


def _bound_pooling(graph: onnx.GraphProto) -> None:
    """Keep the gradient of MaxPool inside its memory: for a window of NaN alone, MaxPool gives an index below 0.

    Without this, a model that has diverged corrupts the heap of the process.
    """
    nodes = []
    for node in graph.node:
        if node.op_type == "MaxPoolGrad":
            indices, least, bounded = node.input[1], f"{node.input[1]}/least", f"{node.input[1]}/bounded"
            zero = onnx.numpy_helper.from_array(np.array(0, np.int64))
            nodes.append(onnx.helper.make_node("Constant", [], [least], value=zero))
            nodes.append(onnx.helper.make_node("Max", [indices, least], [bounded]))
            node.input[1] = bounded
        nodes.append(node)
    _replace(graph.node, nodes)


def _accumulate(graph: onnx.GraphProto, names: tuple[str, ...]) -> None:
    """End in one accumulator per parameter, in the layout's order; the names are those that the C API looks for."""
    found = {value.name: value for value in graph.output}
    outputs = [found[_LOSS]]
    for name in names:
        buffer = copy.deepcopy(found[f"{name}_grad"])
        buffer.name, done = f"{name}_grad.accumulation.buffer", f"{name}_grad.accumulation.out"
        graph.input.append(buffer)
        graph.node.append(
            onnx.helper.make_node(
                "InPlaceAccumulatorV2",
                [buffer.name, f"{name}_grad", "lazy_reset_grad"],
                [done],
                domain="com.microsoft",
            )
        )
        outputs.append(onnx.helper.make_tensor_value_info(done, onnx.TensorProto.BOOL, [1]))
    graph.input.append(onnx.helper.make_tensor_value_info("lazy_reset_grad", onnx.TensorProto.BOOL, [1]))
    _replace(graph.output, outputs)


def _write_checkpoint(bundle: Bundle, path: Path) -> None:
    """Write what the parameters are, without values: every step brings its own."""
    pairs = zip(bundle.layout.names, bundle.layout.shapes, strict=True)
    tensors = [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in pairs]
    try:
        capi.save_checkpoint([one.SerializeToString() for one in tensors], [], str(path), True)
    except Exception as error:  # see above
        raise DeviceError(f"{path}: cannot be written: {' '.join(str(error).split())[:300]}") from error


def _replace(repeated: Any, values: list[Any]) -> None:
    del repeated[:]
    repeated.extend(values)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; gives the exit code (see `errors.py`)."""
    parser = argparse.ArgumentParser(
        prog="python -m edge_runtime.export.ort_training", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", help="the folder of a bundle, or the name of a built-in model")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; made where it is missing")
    options = parser.parse_args(arguments)

    def work() -> None:
        built_in = options.bundle in models.names()
        write(bundles.built_in(options.bundle) if built_in else bundles.read(Path(options.bundle)), options.out)

    return program.exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
