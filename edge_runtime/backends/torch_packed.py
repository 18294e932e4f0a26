"""A torch module on the active values of a mask: each dense tensor lives only while an operator uses it.

Reading a masked parameter of the module puts the dense tensor together anew. What autograd would save of it for the way
back is only a note of which tensor it was; the way back puts it together once more, and picks the active values (or the
places to grow) out of the dense gradient as soon as it is there.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime import packed
from edge_runtime.algorithm import Pullback
from edge_runtime.mask import Mask, Places
from edge_runtime.packed import Slope
from edge_runtime.tree import Tree

Tensors = dict[str, torch.Tensor]
Use = Callable[[str, torch.Tensor], torch.Tensor]
"""Takes a parameter's name and its dense gradient to the gradient of its active values."""


class PackedTorchOracle:
    """A torch module as an Oracle on active values; see `packed.Steep`."""

    def __init__(self, module: torch.nn.Module, mask: Mask, to_tensor: Callable[[NDArray[Any]], torch.Tensor]) -> None:
        self._module, self._mask, self._tensor = module, mask, to_tensor
        shapes = dict(zip(mask.layout.names, mask.layout.shapes, strict=True))
        pairs = zip(mask.layout.names, mask.places, strict=True)
        self._at = {name: to_tensor(at) for name, at in pairs if at is not None}
        self._shapes = {name: shapes[name] for name in self._at}

    def vjp(self, params: Tree, x: NDArray[Any]) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model; see `algorithm.Oracle`."""
        at = self._at
        leaves, outputs, _ = self._forward(params, x, lambda name, grad: grad.reshape(-1)[at[name]])

        def pullback(grad: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            grads = self._backward(outputs, leaves, grad)
            return {name: value.cpu().numpy() for name, value in zip(leaves, grads, strict=True)}

        return outputs.detach().cpu().numpy(), pullback

    def largest(
        self, params: Tree, x: NDArray[Any], slope: Slope, barred: Mask, numbers: Sequence[int]
    ) -> list[Places]:
        """Find where the dense gradient is largest; see `packed.Steep`."""
        names = self._mask.layout.names
        asked = {name: (at, n) for name, at, n in zip(names, barred.places, numbers, strict=True)}
        parts: Tensors = {}
        found: dict[str, Places] = {}

        def use(name: str, grad: torch.Tensor) -> torch.Tensor:
            reads[name] -= 1
            if name in parts:  # of a layer that the model uses several times
                grad = parts.pop(name) + grad
            if reads[name]:
                parts[name] = grad
            else:
                found[name] = packed.largest(grad.detach().reshape(-1).cpu().numpy(), *asked[name])
            return self._unused(name)

        leaves, outputs, reads = self._forward(params, x, use)
        self._backward(outputs, leaves, slope(outputs.detach().cpu().numpy()))
        return [found.get(name, np.empty(0, np.int32)) for name in names]

    def _unused(self, name: str) -> torch.Tensor:
        return torch.zeros(len(self._at[name]), device=self._at[name].device)

    def _forward(self, params: Tree, x: NDArray[Any], use: Use) -> tuple[Tensors, torch.Tensor, dict[str, int]]:
        """Evaluate; gives the leaves, the outputs, and how often each masked parameter was read."""
        leaves = {name: self._tensor(value).requires_grad_() for name, value in params.items()}
        whole = {name: value for name, value in leaves.items() if name not in self._at}
        dense = _Dense({name: leaves[name] for name in self._at}, self._at, self._shapes, use)
        with _reading(self._module, dense), torch.autograd.graph.saved_tensors_hooks(dense.note, dense.restore):
            outputs = torch.func.functional_call(self._module, whole, (self._tensor(x),))
        return leaves, outputs, dense.reads

    def _backward(self, outputs: torch.Tensor, leaves: Tensors, grad: NDArray[np.float32]) -> tuple[torch.Tensor, ...]:
        wanted = list(leaves.values())
        return torch.autograd.grad(outputs, wanted, self._tensor(grad), materialize_grads=True)


def can_pack(module: torch.nn.Module, mask: Mask) -> bool:
    """Say whether masked parameters are read by their names: recurrent layers keep a list, tied ones have two names."""
    owners = [name for name, at in zip(mask.layout.names, mask.places, strict=True) if at is not None]
    every = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    recurrent = {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, torch.nn.RNNBase)
        for name, _ in part.named_parameters(recurse=False)
    }
    return len(every) == len(mask.layout.names) and not recurrent.intersection(owners)


class _Put(torch.autograd.Function):
    """Active values to a dense tensor; the gradient goes through `use`."""

    @staticmethod
    def forward(ctx: Any, _values: torch.Tensor, dense: "_Dense", name: str) -> torch.Tensor:
        ctx.dense, ctx.name = dense, name
        return dense.put(name)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.dense.use(ctx.name, grads[0]), None, None


class _Dense:
    """The dense tensors of one forward pass and its way back, as long as they live."""

    def __init__(self, values: Tensors, at: Tensors, shapes: dict[str, tuple[int, ...]], use: Use) -> None:
        self.values, self._at, self._shapes, self.use = values, at, shapes, use
        self._alive: dict[int, str] = {}
        self.reads = dict.fromkeys(values, 0)

    def read(self, name: str) -> torch.Tensor:
        self.reads[name] += 1
        tensor: torch.Tensor = _Put.apply(self.values[name], self, name)  # type: ignore[no-untyped-call]
        address = tensor.data_ptr()
        self._alive[address] = name
        weakref.finalize(tensor, self._alive.pop, address, None)
        return tensor

    def put(self, name: str) -> torch.Tensor:
        values, shape = self.values[name].detach(), self._shapes[name]
        flat = values.new_zeros(torch.Size(shape).numel())
        flat[self._at[name]] = values
        return flat.reshape(shape)

    def note(self, saved: torch.Tensor) -> Any:
        name = self._alive.get(saved.data_ptr())
        return saved if name is None else (name, saved.shape, saved.stride())

    def restore(self, note: Any) -> torch.Tensor:
        if isinstance(note, torch.Tensor):
            return note
        name, shape, stride = note
        return self.put(name).as_strided(shape, stride)


class _Reading(dict[str, Any]):
    """A module's table of parameters in which some are read from somewhere else."""

    def __init__(self, old: dict[str, Any], names: dict[str, str], dense: _Dense) -> None:
        super().__init__(old)
        self._names, self._dense = names, dense

    def __getitem__(self, key: str) -> Any:
        return self._dense.read(self._names[key]) if key in self._names else super().__getitem__(key)


@contextlib.contextmanager
def _reading(module: torch.nn.Module, dense: _Dense) -> Iterator[None]:
    """Let masked parameters be read from `dense` for a while."""
    changed: list[tuple[torch.nn.Module, Any]] = []
    try:
        for prefix, part in module.named_modules():
            names = {key: f"{prefix}.{key}" if prefix else key for key in part._parameters}
            masked = {key: name for key, name in names.items() if name in dense.values}
            if masked:
                changed.append((part, part._parameters))
                part._parameters = _Reading(part._parameters, masked, dense)
        yield
    finally:
        for part, old in changed:
            part._parameters = old
