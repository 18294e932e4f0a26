"""Models whose gradients are known in closed form, and a fleet that plays rounds through real bytes."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, wire
from edge_runtime.algorithm import Algorithm, Batch, Model, OwnModel
from edge_runtime.compression import codec
from edge_runtime.seed_set import SeedSet
from edge_runtime.tree import Layout


class Mlp:
    """tanh(x W1' + b1) W2' + b2, differentiated by hand."""

    def vjp(self, params: Any, x: Any) -> Any:
        hidden = np.tanh(x @ params["w1"].T + params["b1"])

        def pullback(slope: Any) -> Any:
            back = (slope @ params["w2"]) * (1 - hidden**2)
            return {"w1": back.T @ x, "b1": back.sum(0), "w2": slope.T @ hidden, "b2": slope.sum(0)}

        return hidden @ params["w2"].T + params["b2"], pullback


MLP = Model(Layout(("w1", "b1", "w2", "b2"), ((6, 4), (6,), (3, 6), (3,))), Mlp())


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


SEEDS = SeedSet(np.random.default_rng(5).normal(0, 1, (20, 4)).astype(np.float32), np.arange(20) % 3, ("a", "b", "c"))
"""Says more (20 x 3 posteriors) than the MLP has parameters (51)."""


class Cloud:
    """A device's samples x [samples, ...] and labels; implements `algorithm.Batches`."""

    def __init__(self, x: Any, y: Any, seed: Any, seed_set: Any = None) -> None:
        self.x, self.y, self.rng = x, y, np.random.default_rng(seed)
        self.class_names, self.seed_set = (), seed_set

    def __len__(self) -> int:
        return len(self.y)

    def epoch(self, batch_size: int) -> Any:
        order = self.rng.permutation(len(self))
        for start in range(0, len(self), batch_size):
            yield self._batch(order[start : start + batch_size])

    def sample(self, batch_size: int) -> Batch:
        return self._batch(self.rng.choice(len(self), min(batch_size, len(self)), replace=False))

    def _batch(self, where: Any) -> Batch:
        return Batch(self.x[where], self.y[where])


@dataclass
class Fleet:
    """A server half, and client halves that are made anew for every round, as in the field."""

    parts: Algorithm
    config: Any
    model: Model
    data: dict[str, tuple[Any, Any]]
    seed: int = 7
    initial: Any = None
    seed_set: Any = SEEDS
    devices: dict[str, bytes] = field(default_factory=dict)
    states: dict[str, bytes] = field(default_factory=dict)
    personal: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.initial is None:
            self.initial = np.random.default_rng(3).normal(0, 0.5, self.model.layout.size).astype(np.float32)
        self.private = algorithm.private_names(self.config, self.model.layout)
        self.server = self.new_server()

    def new_server(self) -> Any:
        return self.parts.Server(self.config, self.model.layout, self.initial.copy(), self.devices, self.seed)

    def down(self, device: str) -> bytes:
        return wire.encode(self.server.down(device, device not in self.states))

    def client(self, device: str) -> Any:
        held = self.states.get(device)
        size = 4 * self.model.layout.size
        model = self.own(device) if self.parts.Client.own_model else self.model
        return self.parts.Client(self.config, model, None if held is None else codec.decode_state(held, size))

    def own(self, device: str) -> OwnModel:
        """Make a device's own model: of the run's architecture, with initial values of its own."""
        drawn = np.random.default_rng([3, *device.encode()]).normal(0, 0.5, self.model.layout.size).astype(np.float32)
        return OwnModel(self.model.layout, self.model.oracle, shared=self.model, initial=drawn)

    def batches(self, device: str) -> Cloud:
        x, y = self.data[device]
        return Cloud(x, y, [self.seed, self.server.round, *device.encode()], self.seed_set)

    def train(self, device: str) -> tuple[bytes, bytes]:
        """Do a device's round: its encoded Up, and its encoded state."""
        client = self.client(device)
        up = client.round(self.decoded(self.down(device), self.parts.Down), self.batches(device))
        self.personal[device] = client.personal(None).dense()
        return wire.encode_up(up, self.model.layout, self.private)[0], codec.encode_state(client.state())

    def decoded(self, data: bytes, kind: Any) -> Any:
        return wire.decode(data, kind, self.model.layout, algorithm.wire_values(self.config))

    def absorb(self, device: str, up: bytes) -> None:
        most = algorithm.wire_values(self.config)
        self.server.absorb(device, wire.decode_up(up, self.parts.Up, self.model.layout, self.private, most))

    def round(self, devices: Iterable[str] | None = None) -> dict[str, bytes]:
        """Play a whole round; the updates arrive in the order of `devices`."""
        cohort = list(devices or self.data)
        done = {device: self.train(device) for device in sorted(cohort)}
        for device in cohort:
            self.absorb(device, done[device][0])
        self.states |= {device: state for device, (_, state) in done.items()}
        self.server.close()
        return {device: up for device, (up, _) in done.items()}


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
    rng = np.random.default_rng(0)
    return {
        f"device-{i}": (rng.normal(i / 2, 1, (5 + i, 4)).astype(np.float32), rng.integers(0, 3, 5 + i))
        for i in range(4)
    }


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
