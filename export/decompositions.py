"""Backward operators of torch in terms of its forward ones, chosen for what onnxruntime computes fast.

torch's own table (`core_aten_decompositions`) covers most backward operators. It leaves out those of convolution and
max-pooling, and what it makes of ReLU's is slow where `Where` is. `table()` gives both together.

Every function here has the signature of the ATen operator that it stands for.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def table() -> dict[Any, Callable[..., Any]]:
    """Give the decompositions by operator."""
    return {
        **torch._decomp.core_aten_decompositions(),
        aten.convolution_backward.default: convolution_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
        aten.max_pool3d_with_indices_backward.default: max_pool_backward,
        aten.threshold_backward.default: threshold_backward,
        aten.avg_pool2d_backward.default: avg_pool_backward,
        aten.avg_pool3d_backward.default: avg_pool_backward,
        aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool_backward,
        aten._adaptive_avg_pool3d_backward.default: adaptive_avg_pool_backward,
    }


def convolution_backward(  # noqa: PLR0913, PLR0917  # the operator's signature
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,  # noqa: ARG001
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],  # noqa: ARG001  # it follows from the shapes
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Give the gradients of a convolution's input, weight and bias, each where `output_mask` asks for it.

    The input's gradient is the opposite convolution: transposed of a plain one, plain of a transposed one.
    """
    dims = len(stride)
    d_input, d_weight, d_bias = None, None, None
    if output_mask[0]:
        extra = [0] * dims
        if not transposed:
            kernel = weight.shape[2:]
            least = [
                (grad.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1
                for i in range(dims)
            ]
            extra = [x.shape[2 + i] - least[i] for i in range(dims)]
        d_input = aten.convolution(grad, weight, None, stride, padding, dilation, not transposed, extra, groups)
    if output_mask[1]:
        # A transposed convolution is the pullback of a plain one, so that input and gradient change places.
        seen, slope = (grad, x) if transposed else (x, grad)
        d_weight = _weight_gradient(slope, seen, weight.shape, stride, padding, dilation, groups)
    if output_mask[2]:
        d_bias = grad.sum([0, *range(2, 2 + dims)])
    return d_input, d_weight, d_bias


def _weight_gradient(
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Give d loss / d weight [outputs, inputs / groups, kernel...] as matrix products over all samples and positions.

    One product for each row of the kernel: windows for all places of the kernel at once would take as many times the
    memory of the input as the kernel has places, and one product for each place would be too small to be fast.
    """
    outputs, inputs, kernel = shape[0], shape[1], list(shape[2:])
    dims = len(kernel)
    positions = grad.shape[2:]
    # A dimension for the groups only where there are some: without it the runtime multiplies plain matrices, in place.
    lead = [groups] if groups > 1 else []
    rows = grad.transpose(0, 1).reshape(*lead, outputs // groups, -1)  # [(groups), outputs, batch * positions]
    padded = x.transpose(0, 1)
    if any(padding):
        padded = aten.constant_pad_nd(padded, [size for pad in reversed(padding) for size in (pad, pad)])
    products = []
    for outer in itertools.product(*map(range, kernel[:-1])):
        windows = []
        for place in itertools.product(*([index] for index in outer), range(kernel[-1])):
            seen = padded
            for i in range(dims):
                start = place[i] * dilation[i]
                seen = aten.slice(seen, 2 + i, start, start + stride[i] * (positions[i] - 1) + 1, stride[i])
            windows.append(seen.reshape(*lead, inputs, -1))
        columns = torch.cat(windows, len(lead)) if len(windows) > 1 else windows[0]
        products.append(torch.matmul(rows, columns.transpose(-1, -2)))
    joined = torch.cat(products, -1) if len(products) > 1 else products[0]
    joined = joined.reshape(outputs, *kernel, inputs)
    return joined.permute(0, dims + 1, *range(1, dims + 1)).contiguous()


def max_pool_backward(  # noqa: PLR0913, PLR0917
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,  # noqa: ARG001  # onnxruntime's MaxPool is several times slower when it must give them
) -> Tensor:
    """Give the gradient of max-pooling's input: of equal values in a window the first takes all, as in torch."""
    dims = len(kernel)
    stride, padding, dilation = _each(stride or kernel, dims), _each(padding, dims), _each(dilation, dims)
    pool = aten.max_pool2d_with_indices if dims == 2 else aten.max_pool3d_with_indices
    y = pool(x, kernel, stride, padding, dilation, ceil_mode)[0]
    positions, sizes = y.shape[-dims:], x.shape[-dims:]
    ends = [(positions[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i in range(dims)]
    after = [max(0, ends[i] - padding[i] - sizes[i]) for i in range(dims)]
    padded = x
    if any(padding) or any(after):
        pads = [size for i in reversed(range(dims)) for size in (padding[i], after[i])]
        padded = aten.constant_pad_nd(x, pads, -math.inf)
    widths = [sizes[i] + padding[i] + after[i] for i in range(dims)]
    strides = [math.prod(widths[i + 1 :]) for i in range(dims)]
    index = None
    for place in reversed(list(itertools.product(*map(range, kernel)))):  # the first place is written last: it wins
        seen = padded
        for i in range(dims):
            start = place[i] * dilation[i]
            seen = aten.slice(seen, x.dim() - dims + i, start, start + stride[i] * (positions[i] - 1) + 1, stride[i])
        offset = sum(place[i] * dilation[i] * strides[i] for i in range(dims))
        index = (
            torch.full_like(y, offset, dtype=torch.int64) if index is None else torch.where(seen == y, offset, index)
        )
    assert index is not None  # noqa: S101  # a kernel has a place
    for i in range(dims):
        corner = torch.arange(positions[i]) * (stride[i] * strides[i])
        index = index + corner.reshape(-1, *[1] * (dims - 1 - i))
    lead = x.shape[:-dims]
    flat = torch.zeros((*lead, math.prod(widths)), dtype=grad.dtype)
    index, grad = index.reshape(*lead, -1), grad.reshape(*lead, -1)
    apart = all(stride[i] > dilation[i] * (kernel[i] - 1) for i in range(dims))
    flat = flat.scatter(len(lead), index, grad) if apart else flat.scatter_add(len(lead), index, grad)
    total = flat.reshape(*lead, *widths)
    for i in range(dims):
        total = aten.slice(total, len(lead) + i, padding[i], padding[i] + sizes[i])
    return total


def avg_pool_backward(  # noqa: PLR0913, PLR0917
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,  # noqa: ARG001  # it shows in the shape of grad
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Give the gradient of average-pooling's input: each window's share, added up by a transposed convolution."""
    dims = len(kernel)
    stride, padding = _each(stride or kernel, dims), _each(padding, dims)
    sizes, positions, channels = x.shape[-dims:], grad.shape[-dims:], x.shape[-dims - 1]
    share = grad
    for i in range(dims):
        starts = [place * stride[i] - padding[i] for place in range(positions[i])]
        if divisor_override is None:
            edges = (-padding[i], sizes[i] + padding[i]) if count_include_pad else (0, sizes[i])
            counts = [min(start + kernel[i], edges[1]) - max(start, edges[0]) for start in starts]
            share = share / torch.tensor(counts, dtype=grad.dtype).reshape(-1, *[1] * (dims - 1 - i))
    share = share / divisor_override if divisor_override is not None else share
    ones = torch.ones((channels, 1, *kernel), dtype=grad.dtype)
    nothing, once = [0] * dims, [1] * dims
    total: Tensor = aten.convolution(share, ones, None, stride, nothing, once, True, nothing, channels)
    for i in range(dims):
        missing = padding[i] + sizes[i] - ((positions[i] - 1) * stride[i] + kernel[i])
        if missing > 0:  # inputs after the last window
            total = aten.constant_pad_nd(total, [0, 0] * (dims - 1 - i) + [0, missing])
        total = aten.slice(total, total.dim() - dims + i, padding[i], padding[i] + sizes[i])
    return total


def adaptive_avg_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Give the gradient of adaptive average-pooling's input: along each dimension the pullback of a fixed matrix."""
    dims = grad.dim() - 2
    for i in range(2, 2 + dims):
        size, count = x.shape[i], grad.shape[i]
        bounds = [(place * size // count, -(-(place + 1) * size // count)) for place in range(count)]
        rows = [[(a <= k < b) / (b - a) for k in range(size)] for a, b in bounds]
        moved = torch.matmul(grad.movedim(i, -1), torch.tensor(rows, dtype=grad.dtype))
        grad = moved.movedim(-1, i)
    return grad


def threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    """Give the gradient of a threshold's (ReLU's) input; a product, as `Where` is several times slower."""
    return grad * (x > threshold).to(grad.dtype)


def _each(values: Sequence[int], dims: int) -> list[int]:
    return list(values) * dims if len(values) == 1 else list(values)
