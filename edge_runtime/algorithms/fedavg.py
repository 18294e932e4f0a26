"""FedAvg: all devices train one shared model.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data" (AISTATS 2017), Algorithm 1.
In round t device k starts from the shared w_t, trains for a few epochs to x_N, and sends U_k = w_t - x_N. Then

    w_{t+1} = w_t - sum_k p_k U_k,    p_k = 1/S, or in proportion to its number of samples

over the S devices that answered. (The paper averages the x_N, which is the same; differences are smaller numbers.)
"""

import typing
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

import numpy as np

from edge_runtime import aggregate, sgd
from edge_runtime.algorithm import Batches, Fitted, Model, State, no_cut
from edge_runtime.compression.submodel import Bits, Cut
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Change, Flat, Layout, Shared


@dataclass(frozen=True)
class Config(aggregate.OwnedAveraging):
    """Local training, and how updates are averaged: p_k is `weights` (`samples` is the paper's n_k / n)."""


@dataclass(frozen=True)
class Down:
    """The shared model w_t [size]."""

    round: int
    values: Shared


@dataclass(frozen=True)
class Up:
    """The update U = w_t - x_N [size], and the number of training samples behind it."""

    round: int
    samples: int
    values: Change


class Client:
    """The device's half: no state but the model that it has just trained."""

    own_model = False

    def __init__(self, config: Config, model: Model, state: State | None) -> None:  # noqa: ARG002  # the contract's
        self._config, self._model = config, model
        self._trained: Flat | None = None

    def shared(self, down: Down) -> Flat:
        """Give w_t."""
        return checked(down, self._model.layout)

    def personal(self, down: Down | None) -> Fitted:
        """Give w_t, or x_N after training."""
        if down is not None:
            return Fitted(self._model, self.shared(down))
        if self._trained is None:
            raise ValueError("personal(None) is asked before round")
        return Fitted(self._model, self._trained)

    def round(self, down: Down, batches: Batches) -> Up:
        """Train w_t to x_N."""
        start = self.shared(down)
        self._trained = sgd.descend(self._model, start, batches, self._config, down.round)
        return Up(down.round, len(batches), start - self._trained)

    def state(self) -> State:
        """Give nothing: a device remembers nothing."""
        return {}


def checked(down: Down, layout: Layout) -> Flat:
    """Give the values of a Down, or raise DecodeError if it is unfit."""
    if down.round < 0 or len(down.values) != layout.size:
        raise DecodeError(f"Down: {len(down.values)} values in round {down.round} where {layout.size} are expected")
    return down.values


class Server:
    """The coordinator's half: w, and the round's updates."""

    habits: typing.ClassVar[tuple[str, ...]] = ("synchronous",)

    def __init__(
        self,
        config: aggregate.OwnedAveraging,
        layout: Layout,
        initial: Flat,
        devices: MutableMapping[str, bytes],  # noqa: ARG002  # nothing is remembered of a device
        seed: int,
    ) -> None:
        self.round = 0
        self._model = initial.astype(np.float32)
        self.total: aggregate.Aggregate = aggregate.of(config, layout.size, seed, owners=config.aggregate == "owners")
        self.cut_of: Callable[[str], Cut | None] = no_cut

    def down(self, device: str, first: bool) -> Down:  # noqa: ARG002
        """Give everyone w_t, or what the device has of it."""
        return Down(self.round, self._model.copy() if (has := self._has(device)) is None else self._model[has])

    def absorb(self, device: str, up: Up) -> None:
        """Fold in an update.

        Raises:
            DecodeError: it is of another round or unfit; nothing has changed.
        """
        if up.round != self.round:
            raise DecodeError(f"Up: it is of round {up.round}, not {self.round}")
        self.total.add(device, up.values, up.samples, self._has(device))

    def _has(self, device: str) -> Bits | None:
        """Say which values of the model a device has; None: all."""
        cut = self.cut_of(device)
        return None if cut is None else cut.bits

    def close(self) -> None:
        """Move w by the mean update, or what the aggregator makes of them."""
        self.total.step(self._model)
        self.total.clear()
        self.round += 1

    def shared(self) -> Flat:
        """Give w [size]."""
        return self._model.copy()

    def state(self) -> State:
        """Give the round, w, and what the aggregator keeps."""
        return {"round": self.round, "model": self._model.copy(), **self.total.state()}

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self.round = int(state["round"])
        self._model[:] = np.asarray(state["model"])
        self.total.restore(state)
