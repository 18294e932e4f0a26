"""Which channels of a torch module can be taken away, and the module without some of them.

torch-pruning's `DependencyGraph` (Fang et al., "DepGraph", CVPR 2023) follows what one layer gives to all that take it,
through residuals, concatenations and reshapes. What it finds is written down as a `submodel.Structure`, so that nobody
needs torch to know what a part of the model is. Every group is tried before it is believed: a module without half of it
must still run, and give outputs of the same shape; so channels that reach the outputs stay. What cannot be cut stays
whole, and `Found.whole` says why.
"""

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import nn

from edge_runtime.compression import submodel
from edge_runtime.compression.submodel import Cut, Group, Side, Structure
from edge_runtime.errors import ConfigError

_Conv = nn.modules.conv._ConvNd
_BatchNorm = nn.modules.batchnorm._NormBase
_ROOTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_KNOWN = (*_ROOTS, _BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Embedding, nn.PReLU)


@dataclass(frozen=True)
class Found:
    """What can be taken away of a module, and what not."""

    structure: Structure
    whole: dict[str, str]
    """Layers whose outputs stay whole, and why."""


class _StaysWholeError(Exception):
    """A group cannot be cut; the message says why."""


def find(module: nn.Module, x: torch.Tensor) -> Found:
    """Find the channels of a module that can be taken away.

    Args:
        module: with all of its channels.
        x: inputs that it takes [batch, ...].

    Raises:
        ConfigError: torch-pruning cannot follow this module.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of parameters that no layer has, `Found.whole` says as well
            graph = torch_pruning.DependencyGraph().build_dependency(copy.deepcopy(module), example_inputs=x)
    except Exception as error:  # whatever a module of the user's makes of being traced
        raise ConfigError(f"its channels cannot be followed: {' '.join(str(error).split())[:200]}") from error
    tensors = {id(value): i for i, value in enumerate(graph.model.parameters())}
    shapes = tuple(tuple(value.shape) for value in module.parameters())
    groups: list[Group] = []
    whole: dict[str, str] = {}
    seen: set[Side] = set()
    for name, layer in graph.model.named_modules():
        if not isinstance(layer, _ROOTS) or layer not in graph.module2node:
            continue
        try:
            group = _group(graph, name, layer, tensors)
            if not seen & set(group.sides):
                _try(module, Structure(shapes, (group,)), x)
                groups.append(group)
        except _StaysWholeError as reason:
            whole[name] = str(reason)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:  # a layer unlike any known here
            whole[name] = f"it cannot be followed: {' '.join(str(error).split())[:120]}"
        else:
            seen |= set(group.sides)
    return Found(Structure(shapes, tuple(groups)), whole)


def narrow(module: nn.Module, cut: Cut) -> nn.Module:
    """Make a module that has only what a cut keeps; `module` stays as it is."""
    made = copy.deepcopy(module)
    before = {name: tuple(value.shape) for name, value in module.named_parameters()}
    for parameter, axes in zip(made.parameters(), cut.axes, strict=True):
        value = parameter.data
        for axis, kept in enumerate(axes):
            value = value.index_select(axis, torch.from_numpy(kept.nonzero()[0]))
        parameter.data = value.contiguous()
    for name, layer in made.named_modules():
        _settle(layer, before.get(f"{name}.weight" if name else "weight", ()))
    return made


def _group(graph: Any, name: str, layer: nn.Module, tensors: dict[int, int]) -> Group:
    """Collect what goes with the outputs of a layer; `tensors` are the places of parameters by their `id`."""
    channels = int(layer.get_parameter("weight").shape[0])
    names = {id(part): part_name for part_name, part in graph.model.named_modules()}
    pruner = graph.get_pruner_of_module(layer).prune_out_channels
    sides: dict[Side, None] = {}
    unit = 1
    for item in graph.get_pruning_group(layer, pruner, idxs=list(range(channels))):
        target = item.dep.target.module
        if not isinstance(target, nn.Module):
            raise _StaysWholeError("it goes through a parameter that is no layer's")
        keys = [key for key, _ in target.named_parameters(recurse=True)]
        if not keys or (isinstance(target, nn.PReLU) and target.num_parameters == 1):
            continue
        where = names.get(id(target), type(target).__name__)
        grouped = isinstance(target, _Conv) and target.groups > 1 and not _is_depthwise(target)
        if not isinstance(target, _KNOWN) or grouped:
            kind = "grouped convolution" if grouped else type(target).__name__
            raise _StaysWholeError(f"it goes through {where} ({kind})")
        start, repeat = _run(list(item.idxs), list(item.root_idxs), channels, where)
        if isinstance(target, nn.GroupNorm):
            if start or repeat > 1:
                raise _StaysWholeError(f"{where} (GroupNorm) takes more than it")
            unit = math.lcm(unit, target.num_channels // target.num_groups)
        gives = graph.is_out_channel_pruning_fn(item.dep.handler)
        for key in keys:
            if (axis := _axis(target, key, gives)) is not None:
                sides[Side(tensors[id(target.get_parameter(key))], axis, repeat, start)] = None
    if channels // unit < 2:
        raise _StaysWholeError("it has one unit")
    return Group(name, channels, unit, tuple(sides))


def _run(places: list[int], roots: list[int], channels: int, where: str) -> tuple[int, int]:
    """Say from which place on, and how often, channels lie on an axis, each time one after the other."""
    start, repeat = places[0], len(places) // channels
    if places != list(range(start, start + channels * repeat)) or roots != [i // repeat for i in range(len(places))]:
        raise _StaysWholeError(f"its channels are mixed in {where}")
    return start, repeat


def _axis(target: nn.Module, key: str, gives: bool) -> int | None:
    """Say along which axis of a parameter channels lie, those that a layer gives or takes; None: along none."""
    if isinstance(target, nn.Embedding):
        return 1
    if isinstance(target, _Conv) and _is_depthwise(target):
        return 0  # it gives what it takes
    if isinstance(target, nn.Linear | _Conv) and not gives:
        return 1 if key == "weight" else None
    return 0


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _Conv) and 1 < layer.groups == layer.in_channels == layer.out_channels


def _settle(layer: nn.Module, before: tuple[int, ...]) -> None:
    """Let a layer know how large its parameters now are."""
    if not isinstance(layer, _KNOWN) or not isinstance(getattr(layer, "weight", None), nn.Parameter):
        return
    shape = tuple(layer.weight.shape)
    match layer:
        case _Conv():
            if _is_depthwise(layer):
                layer.groups = shape[0]
            layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
        case nn.Linear():
            layer.out_features, layer.in_features = shape
        case nn.GroupNorm():
            layer.num_groups, layer.num_channels = shape[0] * layer.num_groups // before[0], shape[0]
        case nn.LayerNorm():
            layer.normalized_shape = shape
        case nn.Embedding():
            layer.embedding_dim = shape[1]
        case nn.PReLU():
            layer.num_parameters = shape[0]
        case _:
            layer.num_features = shape[0]


def _try(module: nn.Module, structure: Structure, x: torch.Tensor) -> None:
    """Run a module without half of a group's channels."""
    part = narrow(module, submodel.nested(structure, 0.5))
    try:
        with torch.no_grad():
            wanted, found = (tuple(one(x).shape) for one in (module, part))
    except Exception as error:  # of the user's own module
        raise _StaysWholeError(f"without half of it: {' '.join(str(error).split())[:120]}") from error
    if wanted != found:
        raise _StaysWholeError("it is what the model gives")
