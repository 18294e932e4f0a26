"""A torch module becomes two ONNX graphs: forward with saved activations, backward to the parameters' gradients.

The joint computation (outputs, and gradients for a given output gradient) is traced to ATen operators with only the
batch dimension symbolic; torch's partitioner (the min-cut of AOT autograd; Chen et al. and the functorch authors)
decides what is saved and what is computed again; `torch.onnx` translates both halves. The `memory` knob:

    1             keep as few bytes as the min-cut can without repeating a matrix product or a reduction
    a fraction    of that, from 0 on: repeat expensive operators too, until so much is left
    a Budget      the largest of these fractions that keeps no more bytes for each sample

To keep all that the backward half uses (AOT autograd's default) would be no fourth: it holds what costs nothing to make
again, of LeNet-5 15 times as many bytes, and fails where the halves share a view.
"""

import contextlib
import logging
import math
import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._functorch import config as functorch_config
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from edge_runtime.bundle import Memory
from edge_runtime.errors import ConfigError
from edge_runtime.export import decompositions

OPSET, IR_VERSION = 18, 10
_FRACTIONS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.07, 0.0)
"""Tried one after the other for a Budget; the last keeps nothing, and computes all of it twice."""


@dataclass(frozen=True)
class Budget:
    """What may lie between the two graphs, in bytes for each sample."""

    saved_per_sample: int


Knob = float | Budget


@dataclass(frozen=True)
class Graphs:
    """The two halves as ONNX, and what they cost."""

    forward: bytes
    backward: bytes
    saved: tuple[str, ...]
    memory: Memory
    outputs: int


def export(module: torch.nn.Module, input_shape: Sequence[int], input_type: torch.dtype, memory: Knob) -> Graphs:
    """Export a module in the mode that it is in.

    Raises:
        ConfigError: it cannot be traced, split or translated; says which operator, and where.
    """
    names = [name for name, _ in module.named_parameters()]
    batch = _example_batch(module, input_shape)
    inputs = torch.zeros((batch, *input_shape), dtype=input_type)
    for knob in _FRACTIONS if isinstance(memory, Budget) else [memory]:
        joint = _trace(module, names, inputs)
        forward, backward = _split(joint, len(names), knob)
        saved = _wire(forward, backward, [*names, "x"])
        kept = [node for node in backward.graph.nodes if node.op == "placeholder" and node.meta["wire"] in saved]
        needs = Memory(*_peak(forward, backward), sum(_bytes(node, 1) for node in kept))
        if isinstance(memory, Budget) and needs.saved_per_sample <= memory.saved_per_sample:
            break
    outputs = next(node for node in joint.graph.nodes if node.op == "output").args[0][0].meta["val"].shape
    if len(outputs) != 2:
        raise ConfigError(f"model: its outputs have shape [batch, {', '.join(map(str, outputs[1:]))}], not [batch, n]")
    forward_names = ([*names, "x"], ["outputs", *saved])
    backward_names = (_inputs(backward), [f"d.{name}" for name in names])
    halves = _translate(forward, batch, *forward_names), _translate(backward, batch, *backward_names)
    return Graphs(*halves, saved, needs, outputs[1])


def _example_batch(module: torch.nn.Module, input_shape: Sequence[int]) -> int:
    """Choose a batch size to trace with: prime and no dimension of the model, so that nothing equals it by chance."""
    taken = {size for value in [*module.parameters(), *module.buffers()] for size in value.shape} | set(input_shape)
    return next(n for n in range(5, 10_000) if n not in taken and all(n % k for k in range(2, n)))


def _trace(module: torch.nn.Module, names: Sequence[str], inputs: torch.Tensor) -> GraphModule:
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def example(tensor: torch.Tensor, batch: bool) -> torch.Tensor:
        kinds = [DimDynamic.DYNAMIC if batch and i == 0 else DimDynamic.STATIC for i in range(tensor.dim())]
        return fake.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(kinds))

    def joint(primals: list[torch.Tensor], tangents: list[torch.Tensor]) -> tuple[Any, Any]:
        parameters = [value.requires_grad_() for value in primals[:-1]]
        outputs = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (primals[-1],))
        if not isinstance(outputs, torch.Tensor):
            raise ConfigError(f"model: forward gives a {type(outputs).__name__}, not one tensor")
        grads = torch.autograd.grad([outputs], parameters, tangents, materialize_grads=True)
        return [outputs], list(grads)

    primals = [example(value.detach(), False) for value in module.parameters()]
    x = example(inputs, True)
    try:
        with _plain_operators(), fake, enable_python_dispatcher():  # which knows recurrent layers for any batch size
            shape = torch.func.functional_call(module, dict(zip(names, primals, strict=True)), (x,)).shape
            tangent = torch.empty((x.shape[0], *shape[1:]))
            joint_graph = make_fx(joint, tracing_mode="symbolic", decomposition_table=decompositions.table())(
                [*primals, x], [tangent]
            )
    except ConfigError:
        raise
    except Exception as error:  # the user's module, or an operator without a symbolic form: whatever torch raises
        raise ConfigError(f"model: cannot be traced: {_line(error)}") from error
    size: Any = x.shape[0]  # an int, once something has compared it with one
    if not isinstance(size, torch.SymInt) or size.node.expr.is_number:
        raise ConfigError(
            "model: it holds for one batch size only: an operator in it (an LSTMCell or GRUCell, most often) compares "
            "sizes as numbers; use nn.LSTM or nn.GRU, and shapes of the input"
        )
    joint_graph.graph.eliminate_dead_code()
    joint_graph.recompile()
    return joint_graph


@contextlib.contextmanager
def _plain_operators() -> Iterator[None]:
    """Keep torch from choosing fused CPU kernels, which have no decomposition."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.backends.mkldnn.flags(enabled=False),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _split(joint: GraphModule, parameters: int, memory: float) -> tuple[GraphModule, GraphModule]:
    static = list(range(parameters))
    with functorch_config.patch(recompute_views=True, activation_memory_budget=memory):
        return min_cut_rematerialization_partition(joint, None, num_fwd_outputs=1, static_lifetime_input_indices=static)


def _wire(forward: GraphModule, backward: GraphModule, names: list[str]) -> tuple[str, ...]:
    """Give the halves' inputs and outputs their names; gives those of the saved activations.

    A size that was saved is read from the gradient's shape instead, and a parameter or x is not saved but passed again.
    """
    (grad,) = (node for node in backward.graph.nodes if node.op == "placeholder" and "tangents" in node.name)
    last = [node for node in backward.graph.nodes if node.op == "placeholder"][-1]
    for node in list(backward.graph.nodes):
        if node.op == "placeholder" and isinstance(node.meta["val"], torch.SymInt):
            with backward.graph.inserting_before(last.next):
                size = _size_node(backward, grad, node.meta["val"])
            node.replace_all_uses_with(size)
            backward.graph.erase_node(node)
    (output,) = (node for node in forward.graph.nodes if node.op == "output")
    result, *others = output.args[0]
    kept = [node for node in others if node.op != "placeholder" and not isinstance(node.meta["val"], torch.SymInt)]
    output.args = ([result, *kept],)
    by_name = {node.name: f"saved.{index}" for index, node in enumerate(kept)}
    primals = [node for node in forward.graph.nodes if node.op == "placeholder"]
    by_name |= {node.name: name for node, name in zip(primals, names, strict=True)}
    for node in backward.graph.nodes:
        if node.op == "placeholder":
            node.meta["wire"] = "grad" if node is grad else by_name[node.name]
    forward.recompile()
    backward.recompile()
    return tuple(f"saved.{index}" for index in range(len(kept)))


def _size_node(graph: GraphModule, grad: Node, value: torch.SymInt) -> Node:
    """Compute a size that follows from the batch's, which `grad` has too; every such size is a multiple of it."""
    size = graph.graph.call_function(torch.ops.aten.sym_size.int, (grad, 0))
    batch = grad.meta["val"].shape[0]
    size.meta["val"] = batch
    factor = value.node.expr / batch.node.expr
    if factor == 1:
        return size
    if not factor.is_Integer:
        raise ConfigError(f"model: it needs a tensor of {value} times something, which is no multiple of the batch")
    product = graph.graph.call_function(operator.mul, (size, int(factor)))
    product.meta["val"] = value
    return product


def _inputs(graph: GraphModule) -> list[str]:
    return [node.meta["wire"] for node in graph.graph.nodes if node.op == "placeholder"]


def _translate(graph: GraphModule, batch: int, inputs: list[str], outputs: list[str]) -> bytes:
    """Translate to ONNX, and give inputs and outputs their names."""
    examples, dynamic = [], []
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            value = node.meta["val"]
            examples.append(torch.zeros([_size(n, batch) for n in value.shape], dtype=value.dtype))
            dynamic.append({i: torch.export.Dim.AUTO for i, n in enumerate(value.shape) if isinstance(n, torch.SymInt)})
    try:
        with _quiet():
            program = torch.onnx.export(
                graph.eval(),
                tuple(examples),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(dynamic),
                verbose=False,
            )
    except Exception as error:  # an operator without a translation: torch.onnx raises several types of its own
        raise ConfigError(f"model: cannot be translated to ONNX: {_line(error)}") from error
    assert program is not None  # noqa: S101  # only without dynamo
    _rename(program.model, inputs, outputs)
    proto = program.model_proto
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker's own types, and those of shape inference
        raise ConfigError(f"model: its ONNX graph does not hold: {_line(error)}") from error
    _check(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _rename(model: Any, inputs: list[str], outputs: list[str]) -> None:
    """Name the graph's ends; what passes through unchanged gets a node, since one value cannot have two names."""
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = f"/{name}"  # first out of the way of values inside that have the name by chance
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = f"/{name}"
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.name = value.name.removeprefix("/")
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "edge-runtime", ""
    model.graph.name = "graph"
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _check(proto: Any) -> None:
    strange = {node.domain for node in proto.graph.node} - {"", "ai.onnx"}
    if strange or proto.functions:
        raise ConfigError(
            f"model: its graph needs operators of {', '.join(sorted(strange)) or 'its own'}; none are allowed"
        )


def _peak(*graphs: GraphModule) -> tuple[int, int]:
    """Bound what the graphs hold at a time: the larger peak of both, as bytes for no sample and for each."""
    none, one = (max(_peak_of(graph, batch) for graph in graphs) for batch in (0, 1))
    return none, one - none


def _peak_of(graph: GraphModule, batch: int) -> int:
    """Play a graph through and count what is alive: inputs but parameters always, the rest from first to last use."""
    nodes = list(graph.graph.nodes)
    last: dict[Node, int] = {}
    for place, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[source] = place
    alive = peak = 0
    for place, node in enumerate(nodes):
        if node.op == "placeholder" and not any(
            isinstance(n, torch.SymInt) for n in getattr(node.meta["val"], "shape", ())
        ):
            continue
        alive += _bytes(node, batch)
        peak = max(peak, alive)
        for source in node.all_input_nodes:
            if last[source] == place and source.op != "placeholder":
                alive -= _bytes(source, batch)
    return peak


_VIEWS = {"view", "alias", "detach", "unsqueeze", "squeeze", "sym_size", "_unsafe_view", "expand", "permute"}


def _bytes(node: Node, batch: int) -> int:
    """Count the bytes that a node's value takes: none if it is a view, a size, or several values in one."""
    value = node.meta.get("val")
    operator_name = getattr(node.target, "__name__", "").partition(".")[0]
    if not isinstance(value, torch.Tensor) or operator_name in _VIEWS:
        return 0
    return math.prod(_size(n, batch) for n in value.shape) * value.element_size()


def _size(n: Any, batch: int) -> int:
    """Give the size of a dimension for a batch size; every symbolic one is the batch, or a multiple of it."""
    if not isinstance(n, torch.SymInt):
        return int(n)
    expression = n.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


def _line(error: BaseException) -> str:
    """Give the innermost cause, which names the operator; what torch.onnx wraps around it is advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.onnx, which tells of packages that are not there and of its own progress."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
