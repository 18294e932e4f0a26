"""Narrower models: a built-in model with fewer channels, as a chain of layers of its own.

Which channels can go follows from the chain: what a Conv or a Linear gives, up to the next one, which takes it. The
inputs of the first layer and the outputs of the last one stay. `compression/submodel.py` says what a cut is.
"""

import dataclasses

from edge_runtime import models
from edge_runtime.compression import submodel
from edge_runtime.compression.submodel import Cut, Group, Side, Structure
from edge_runtime.models import Conv, GroupNorm, Layer, Linear, ModelSpec
from edge_runtime.tree import Layout


def structure(spec: ModelSpec) -> Structure:
    """Say which channels of a built-in model can be taken away."""
    place = {name: i for i, name in enumerate(spec.layout.names)}
    groups: list[Group] = []
    open_: Group | None = None
    last = max(i for i, layer in enumerate(spec.layers) if isinstance(layer, Conv | Linear))
    for i, (name, layer) in enumerate(spec.named):
        if isinstance(layer, Conv | Linear):
            weight, bias = place[f"{name}.weight"], place[f"{name}.bias"]
            if open_ is not None:
                groups.append(_with(open_, Side(weight, 1, layer.inputs // open_.channels)))
            open_ = Group(name, layer.outputs, 1, (Side(weight, 0), Side(bias, 0))) if i < last else None
        elif isinstance(layer, GroupNorm) and open_ is not None:
            sides = (Side(place[f"{name}.{key}"], 0) for key in ("weight", "bias"))
            open_ = dataclasses.replace(_with(open_, *sides), unit=layer.channels // layer.groups)
    return Structure(spec.layout.shapes, tuple(groups))


def _with(group: Group, *sides: Side) -> Group:
    return dataclasses.replace(group, sides=(*group.sides, *sides))


def find(name: str, cut: bytes = b"") -> ModelSpec:
    """Find a built-in model, or the part of one that an encoded cut leaves.

    Raises:
        ConfigError: there is no such model.
        DecodeError: the cut is none, or of another model.
    """
    spec = models.find(name)
    return narrow(spec, submodel.decode(cut, structure(spec))) if cut else spec


def layout(whole: Layout, cut: Cut) -> Layout:
    """Lay out what is kept of a model."""
    return Layout(whole.names, cut.shapes)


def narrow(spec: ModelSpec, cut: Cut) -> ModelSpec:
    """Make the chain of layers that is left of a built-in model; its layout is `layout(spec.layout, cut)`."""
    shapes = dict(zip(spec.layout.names, cut.shapes, strict=True))
    made = tuple(_narrowed(layer, name, shapes) for name, layer in spec.named)
    found = dataclasses.replace(spec, layers=made)
    if found.layout != layout(spec.layout, cut):
        raise AssertionError(f"{spec.name}: its layers do not fit the cut")
    return found


def _narrowed(layer: Layer, name: str, shapes: dict[str, tuple[int, ...]]) -> Layer:
    match layer:
        case Conv() | Linear():
            outputs, inputs = shapes[f"{name}.weight"][:2]
            return dataclasses.replace(layer, inputs=inputs, outputs=outputs)
        case GroupNorm():
            (channels,) = shapes[f"{name}.weight"]
            groups = channels // (layer.channels // layer.groups)
            return dataclasses.replace(layer, groups=groups, channels=channels)
        case _:
            return layer
