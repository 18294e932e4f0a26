"""Any torch module as an Oracle, on the CPU or a CUDA device.

The module never holds the parameters: they are handed in at every call, so one module serves any number of parameter
vectors. It stands in evaluation mode (dropout is off, since the same task must give the same bits), and layers that
would keep running statistics (BatchNorm) take those of the batch instead: nothing in the module ever changes.
"""

import importlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime.algorithm import Bend, Model, Pullback
from edge_runtime.backends.torch_packed import PackedTorchOracle, can_pack
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.mask import Mask
from edge_runtime.models import Conv, Flatten, GlobalAveragePool, GroupNorm, Layer, Linear, MaxPool, ModelSpec, Relu
from edge_runtime.tree import Layout, Tree


class TorchOracle:
    """A torch module as an Oracle. Parameters must not change between `vjp` and its pullback."""

    def __init__(self, module: torch.nn.Module, device: str) -> None:
        self._device = _device(device)
        self._module = prepare(module).to(self._device)

    @property
    def module(self) -> torch.nn.Module:
        """Give the module, in evaluation mode and with parameters that mean nothing: copy it to train it otherwise."""
        return self._module

    @property
    def device(self) -> torch.device:
        """Say where it computes."""
        return self._device

    def vjp(self, params: Tree, x: NDArray[Any]) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model; see `algorithm.Oracle`."""
        leaves = {name: self._tensor(value).requires_grad_() for name, value in params.items()}
        with _exact():
            outputs = torch.func.functional_call(self._module, leaves, (self._tensor(x),))

        def pullback(grad: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            tensors = list(leaves.values())
            with _exact():
                grads = torch.autograd.grad(outputs, tensors, self._tensor(grad), materialize_grads=True)
            return {name: value.cpu().numpy() for name, value in zip(leaves, grads, strict=True)}

        return outputs.detach().cpu().numpy(), pullback

    def hvp(self, params: Tree, x: NDArray[Any], direction: Tree, bend: Bend) -> dict[str, NDArray[np.float32]]:
        """Multiply a Hessian by a vector; see `algorithm.Curved`.

        With outputs z, J = dz/dw, s = d loss/dz and its change ds along u = J v, it is J^T ds + d<J^T s, v>/dw. All are
        derivatives backwards, which every operator of torch has: u is the derivative of <J^T t, v> by t.
        """
        leaves = {name: self._tensor(value).requires_grad_() for name, value in params.items()}
        tensors, along = list(leaves.values()), [self._tensor(direction[name]) for name in leaves]
        with _exact():
            outputs = torch.func.functional_call(self._module, leaves, (self._tensor(x),))
            free = torch.zeros_like(outputs, requires_grad=True)
            change = torch.autograd.grad(_advance(outputs, tensors, free, along), free)[0]
            slope, bent = (
                self._tensor(part) for part in bend(outputs.detach().cpu().numpy(), change.detach().cpu().numpy())
            )
            bending = _advance(outputs, tensors, slope, along) + (outputs * bent).sum()
            products = torch.autograd.grad(bending, tensors, materialize_grads=True)
        return {name: value.cpu().numpy() for name, value in zip(leaves, products, strict=True)}

    def packed(self, mask: Mask) -> PackedTorchOracle | None:
        """Compute on active values; None for modules that do not read each parameter once and by its name."""
        if not can_pack(self._module, mask):
            return None
        return PackedTorchOracle(self._module, mask, self._tensor)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
        array = np.ascontiguousarray(array, kind)
        if not array.flags.writeable:
            array = array.copy()  # torch warns about memory that it could not write to
        return torch.from_numpy(array).to(self._device)


def set_threads(number: int) -> None:
    """Let torch compute with so many threads in this process."""
    torch.set_num_threads(number)


def from_spec(spec: ModelSpec, device: str) -> Model:
    """Make a built-in model.

    Raises:
        DeviceError: CUDA is asked for and absent.
    """
    return Model(spec.layout, TorchOracle(module_of(spec), device))


def module_of(spec: ModelSpec) -> torch.nn.Module:
    """Build a built-in model as a torch module, with torch's own initial values."""
    layers = OrderedDict((name, _layer(layer, len(spec.input_shape) - 1)) for name, layer in spec.named)
    return torch.nn.Sequential(layers)


def from_factory(path: str, device: str) -> Model:
    """Make a model of a user's own torch module, `package.module:factory`.

    Raises:
        ConfigError: the module cannot be made.
        DeviceError: CUDA is asked for and absent.
    """
    module = make(path)
    return Model(layout(module), TorchOracle(module, device))


def make(path: str) -> torch.nn.Module:
    """Call `package.module:factory`.

    Raises:
        ConfigError: it cannot be imported or called, or makes no torch module with float32 parameters.
    """
    module_name, _, attribute = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
        module = factory()
    except Exception as error:  # it is the user's code, which may raise anything
        reason = " ".join(str(error).split())  # one line, whatever the user's code had to say
        raise ConfigError(f"model: {path!r} cannot be made: {type(error).__name__}: {reason}") from error
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"model: {path!r} gives a {type(module).__name__}, not a torch.nn.Module")
    kinds = {parameter.dtype for parameter in module.parameters()}
    if kinds != {torch.float32}:
        found = ", ".join(sorted(str(kind) for kind in kinds)) or "none"
        raise ConfigError(f"model: {path!r} must have float32 parameters, found {found}; call .float() on it")
    return module


def layout(module: torch.nn.Module) -> Layout:
    """List a module's parameters (not its buffers) in the order of its state."""
    pairs = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
    return Layout(tuple(name for name, _ in pairs), tuple(shape for _, shape in pairs))


def _layer(layer: Layer, dims: int) -> torch.nn.Module:
    match layer:
        case Conv():
            kind = torch.nn.Conv1d if dims == 1 else torch.nn.Conv2d
            kernel: Any = layer.kernel
            return kind(layer.inputs, layer.outputs, kernel, layer.stride, layer.padding)
        case Linear():
            return torch.nn.Linear(layer.inputs, layer.outputs)
        case GroupNorm():
            return torch.nn.GroupNorm(layer.groups, layer.channels, layer.epsilon)
        case Relu():
            return torch.nn.ReLU()
        case MaxPool():
            return torch.nn.MaxPool1d(layer.size) if dims == 1 else torch.nn.MaxPool2d(layer.size)
        case GlobalAveragePool():
            return _GlobalAveragePool()
        case Flatten():
            return torch.nn.Flatten()


class _GlobalAveragePool(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(2)


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is unknown (known: cpu, cuda)")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device: torch finds no CUDA device here; use cpu, or install a torch built for CUDA")
    return torch.device(name)


def prepare(module: torch.nn.Module) -> torch.nn.Module:
    """Put a module into the state that it is trained in: see above."""
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._NormBase):
            part.track_running_stats = False
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(part, name, None)
    return module.eval()


def _advance(
    outputs: torch.Tensor, leaves: list[torch.Tensor], slope: torch.Tensor, direction: list[torch.Tensor]
) -> torch.Tensor:
    """Give <J^T slope, direction>, which can be differentiated further."""
    grads = torch.autograd.grad(outputs, leaves, slope, create_graph=True, materialize_grads=True)
    return torch.stack([(grad * part).sum() for grad, part in zip(grads, direction, strict=True)]).sum()


@contextmanager
def _exact() -> Iterator[None]:
    """Keep CUDA from rounding to TF32 and from picking another algorithm at every start."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
