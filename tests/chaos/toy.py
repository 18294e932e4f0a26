"""A toy algorithm whose end depends on everything: on each update, and on the state that it was made from.

An update that is lost, or counted twice, shows in the end.

It is an algorithm as any other: `edge-coordinator start --algorithm tests.chaos.toy` runs it. A device counts the
rounds in which it was applied, and sends a number that depends on that count and on the model; the coordinator adds the
numbers up. Noise that depends on these numbers makes payloads as long as one likes.
"""

import hashlib
import typing
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.algorithm import Batches, Fitted, Model, State
from edge_runtime.compression import codec
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Flat, Layout

_PRIME = 2_147_483_647


@dataclass(frozen=True)
class Config:
    """How long messages are."""

    down: int = 2_500
    """Values that a Down carries beside what it must."""
    up: int = 2_500


@dataclass(frozen=True)
class Down:
    """What the model is, and how often this device was absorbed, as the coordinator remembers it."""

    round: int
    model: int
    seen: int
    rest: NDArray[np.float32]
    up: int
    """Length of the Up to send."""


@dataclass(frozen=True)
class Up:
    """A number, and how often this device was absorbed once this is."""

    round: int
    value: int
    seen: int
    rest: NDArray[np.float32]


@dataclass(frozen=True)
class Past:
    """What a device keeps: how often it was applied, and a number that depends on all that it was told and sent."""

    times: int = 0
    chain: int = 0


def answer(down: Down, device: str, past: Past) -> tuple[Up, Past]:
    """Do a device's work, and say what it leaves.

    Raises:
        DecodeError: device and coordinator do not agree about the device's state.
    """
    if down.seen != past.times or not np.array_equal(down.rest, noise(down.model, len(down.rest))):
        raise DecodeError(f"this device was applied {past.times} times, and its coordinator says {down.seen}")
    name = hashlib.sha256(device.encode()).digest()
    value = (past.chain + int.from_bytes(name[:3], "big") + 7 * down.model) % _PRIME
    after = Past(past.times + 1, (31 * past.chain + value + down.round) % _PRIME)
    return Up(down.round, value, after.times, noise(value, down.up)), after


def expected(devices: Sequence[str], rounds: int, seed: int) -> tuple[int, dict[str, Past]]:
    """Say what a run ends with: the model, and what each device keeps."""
    model, pasts = seed, dict.fromkeys(devices, Past())
    for round_ in range(rounds):
        down = Down(round_, model, round_, noise(model, 0), 0)
        done = {device: answer(down, device, past) for device, past in pasts.items()}
        pasts = {device: after for device, (_, after) in done.items()}
        model = _following(model, sum(up.value for up, _ in done.values()), round_ + 1)
    return model, pasts


def _following(model: int, total: int, round_: int) -> int:
    return (3 * model + total + round_) % _PRIME


def noise(seed: int, size: int) -> NDArray[np.float32]:
    """Give values that no codec makes much smaller."""
    return np.random.default_rng(seed).random(size, np.float32) if size else np.empty(0, np.float32)


class Client:
    """The device's half, as far as the contract asks for it; `light.py` plays it without model and data."""

    own_model: typing.ClassVar[bool] = False

    def __init__(self, config: Config, model: Model, state: State | None) -> None:
        raise NotImplementedError("light.py plays the devices of this algorithm")

    def shared(self, down: Down) -> Flat | None:
        raise NotImplementedError

    def personal(self, down: Down | None) -> Fitted:
        raise NotImplementedError

    def round(self, down: Down, batches: Batches) -> Up:
        raise NotImplementedError

    def state(self) -> State:
        raise NotImplementedError


class Server:
    """The coordinator's half: adds the numbers up, and remembers of each device how often it was absorbed."""

    habits: typing.ClassVar[tuple[str, ...]] = ("synchronous",)

    def __init__(
        self, config: Config, layout: Layout, initial: Flat, devices: MutableMapping[str, bytes], seed: int
    ) -> None:
        self.round, self._model, self._sum = 0, seed, 0
        self._config, self._size, self._devices = config, layout.size, devices

    def down(self, device: str, first: bool) -> Down:
        held = self._devices.get(device)
        seen = 0 if held is None else codec.decode(held, 0)[0]
        rest = noise(self._model, self._config.down)
        return Down(self.round, self._model, typing.cast(int, seen), rest, self._config.up)

    def absorb(self, device: str, up: Up) -> None:
        if up.round != self.round or not np.array_equal(up.rest, noise(up.value, self._config.up)):
            raise DecodeError(f"Up: it is of round {up.round}, not {self.round}, or its values are others")
        self._devices[device] = codec.encode([up.seen])
        self._sum += up.value

    def close(self) -> None:
        self.round += 1
        self._model, self._sum = _following(self._model, self._sum, self.round), 0

    def shared(self) -> Flat | None:
        """Give the model as values that name it: noise of as many values as the run's model has."""
        return noise(self._model, self._size)

    def state(self) -> dict[str, Any]:
        return {"round": self.round, "model": self._model}

    def restore(self, state: State) -> None:
        self.round, self._model = typing.cast(int, state["round"]), typing.cast(int, state["model"])
