"""Models whose gradients are known in closed form, and fleets of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm
from edge_runtime.algorithm import Algorithm, Model
from edge_runtime.testing import MLP, SEEDS, Fleet, clouds
from edge_runtime.tree import Layout


class Gradient:
    """An oracle of one tensor `w` whose gradient is given: function(w [size], x of the batch) -> [size].

    Its outputs are a stub, so that the cross-entropy that every algorithm trains on does not matter.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def vjp(self, params: Any, x: Any) -> Any:
        w = params["w"]
        outputs = np.zeros((len(x), 2), np.float32)
        return outputs, lambda slope: {"w": self.function(w.ravel(), x).reshape(w.shape).astype(np.float32)}


class Gradients:
    """An oracle of several tensors whose gradients are given: function(params, x of the batch) -> {name: gradient}."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def vjp(self, params: Any, x: Any) -> Any:
        found = self.function({name: value.astype(np.float64) for name, value in params.items()}, x)
        outputs = np.zeros((len(x), 2), np.float32)
        return outputs, lambda slope: {name: value.astype(np.float32) for name, value in found.items()}


class Arrivals:
    """An asynchronous run: every device holds a Down from the start, and answers it when it is told to."""

    def __init__(self, name: str, config: Any, models: list[Model], batches: list[Any], initial: Any) -> None:
        self.parts, self.config = algorithm.load(name), config
        self.models, self.batches = models, batches
        self.server: Any = self.parts.Server(config, models[0].layout, np.asarray(initial, np.float32), {}, 0)
        self.downs = [self.server.down(str(device), True) for device in range(len(models))]

    def answer(self, device: int) -> None:
        client = self.parts.Client(self.config, self.models[device], None)
        self.server.absorb(str(device), client.round(self.downs[device], self.batches[device]))

    def arrive(self, device: int) -> Any:
        """Let a device's answer make a version, and give it that one; gives w."""
        self.answer(device)
        self.server.close()
        self.downs[device] = self.server.down(str(device), False)
        return self.downs[device].values

    def round(self) -> Any:
        """Let all answer this version, and give them the next; gives w."""
        for device in range(len(self.models)):
            self.answer(device)
        self.server.close()
        self.downs = [self.server.down(str(device), False) for device in range(len(self.models))]
        return self.server.shared()


def settings(parts: Algorithm, **wanted: Any) -> Any:
    """Make a Config from those of the wanted settings that this algorithm has."""
    known = {entry.name for entry in dataclasses.fields(parts.Config)}
    return parts.Config(**{key: value for key, value in wanted.items() if key in known})


@pytest.fixture
def mlp() -> Model:
    return MLP


@pytest.fixture
def mlp_data() -> dict[str, tuple[Any, Any]]:
    return clouds()


@pytest.fixture
def new_fleet(mlp: Model, mlp_data: dict[str, tuple[Any, Any]]) -> Callable[..., Fleet]:
    """Make a fleet: new_fleet(algorithm's name, settings that it may know..., model=, data=, initial=)."""

    def make(name: str, *, model: Any = mlp, data: Any = mlp_data, initial: Any = None, **wanted: Any) -> Fleet:
        parts = algorithm.load(name)
        plain = {"lr": 0.3, "batch_size": 4, "local_epochs": 2, "rounds": 5, "seed_set": SEEDS.identity.hex()}
        return Fleet(parts, settings(parts, **(plain | wanted)), model, data, initial=initial)

    return make


@pytest.fixture
def arrivals() -> type[Arrivals]:
    """Make an asynchronous run: arrivals(algorithm's name, Config, models, batches, initial)."""
    return Arrivals


@pytest.fixture
def flat_model() -> Callable[..., Model]:
    """Make a model of one tensor whose gradient is given: flat_model(function, shape)."""

    def make(function: Callable[[Any, Any], Any], shape: tuple[int, ...] = (4, 2)) -> Model:
        return Model(Layout(("w",), (shape,)), Gradient(function))

    return make


@pytest.fixture
def split_model() -> Callable[..., Model]:
    """Make a model of several vectors whose gradients are given: split_model(function, theta=3, w=2)."""

    def make(function: Callable[[Any, Any], Any], **sizes: int) -> Model:
        return Model(Layout(tuple(sizes), tuple((size,) for size in sizes.values())), Gradients(function))

    return make
