"""A model in whole numbers of 8 bits, a scale for each output of a filter or matrix; what it says changes a little.

weights      held as bytes, the largest magnitude as 127, and multiplied by their scale once, when the file is loaded.
             DequantizeLinear would say the same, but onnxruntime computes it anew for every sample.
everything   onnxruntime's static quantisation (QuantizeLinear and DequantizeLinear around every operator, which it
             fuses): activations too, in the ranges that samples show
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edge_runtime.bundle import Bundle
from edge_runtime.export import inference
from edge_runtime.export.inference import INPUT, Graph

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_QUANTISED = (*_WEIGHTED, "Relu", "MaxPool", "Reshape", "Squeeze", "Unsqueeze")
"""Not norms and sums: a ResNet-20 with all of them in 8 bits took 16 ms, with these 3.4."""


def weights(graph: Graph) -> None:
    """Hold the filters and matrices of a graph that has its parameters as whole numbers, in place."""
    graph.fold()
    for node in graph.nodes:
        if node.op_type in _WEIGHTED and (value := graph.constants.get(node.input[1])) is not None and value.ndim > 1:
            turned = any(one.name == "transB" and one.i for one in node.attribute)
            _round(graph, node.input[1], value, 0 if node.op_type == "Conv" or turned else value.ndim - 1)


def _round(graph: Graph, name: str, value: NDArray[Any], axis: int) -> None:
    largest = np.abs(value).max(axis=tuple(i for i in range(value.ndim) if i != axis), keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    del graph.constants[name]
    held = graph.constant(np.rint(value / scale).astype(np.int8))
    wide = graph.put_in_front("Cast", [held], to=TensorProto.FLOAT)
    graph.put_in_front("Mul", [wide, graph.constant(scale)], name)


def everything(data: bytes, bundle: Bundle, samples: NDArray[Any]) -> bytes:
    """Quantise an ONNX file that infers, with the ranges that `samples` [n, ...] show."""
    # Unsigned activations are faster on x86-64, and without VNNI some sums saturate: twice the error.
    form = {"per_channel": True, "weight_type": QuantType.QInt8, "activation_type": QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder, _silence():
        path, reader = Path(folder) / "int8.onnx", _Samples(samples)
        operators = list(_QUANTISED)
        quantize_static(
            onnx.load_from_string(data), path, reader, QuantFormat.QDQ, op_types_to_quantize=operators, **form
        )
        return inference.write(inference.strip(path.read_bytes(), bundle))


class _Samples(CalibrationDataReader):  # type: ignore[misc]  # has no types
    def __init__(self, samples: NDArray[Any]) -> None:
        self._left = iter(samples)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        sample = next(self._left, None)
        return None if sample is None else {INPUT: sample[None]}


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back the quantiser's advice to prepare graphs, which ours need not."""
    log = logging.getLogger()
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
