"""No collaboration: every device trains a model of its own, from common initial values. The baseline to beat.

Device k starts from w_0 once, and in every round trains its x on its own data alone. Nothing but a round's number goes
up, and nothing but that comes down after the first time.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np

from edge_runtime import sgd
from edge_runtime.algorithm import Batches, Fitted, Model, State
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Flat, Layout


@dataclass(frozen=True)
class Config(sgd.Sgd):
    """Local training; there is nothing else."""


@dataclass(frozen=True)
class Down:
    """The initial values w_0 [size] for a device that has no model yet, else no values."""

    round: int
    values: Flat


@dataclass(frozen=True)
class Up:
    """A sign that the round is done."""

    round: int


class Client:
    """The device's half: its own model x is its state."""

    own_model = False

    def __init__(self, config: Config, model: Model, state: State | None) -> None:
        self._config, self._model = config, model
        self._own: Flat | None = None if state is None else np.asarray(state["personal"], np.float32)

    def shared(self, down: Down) -> Flat | None:
        """Give w_0 where it has come, which is all that is ever shared."""
        return _checked(down, self._model.layout) if len(down.values) else None

    def personal(self, down: Down | None) -> Fitted:
        """Give x, before or after training."""
        return Fitted(self._model, self._values(down))

    def _values(self, down: Down | None) -> Flat:
        fresh = None if down is None else self.shared(down)
        if fresh is not None:
            return fresh
        if self._own is None:
            raise DecodeError("Down: it has no initial values, and this device has no model of its own")
        return self._own

    def round(self, down: Down, batches: Batches) -> Up:
        """Train x."""
        self._own = sgd.descend(self._model, self._values(down), batches, self._config, down.round)
        return Up(down.round)

    def state(self) -> State:
        """Give x."""
        return {"personal": self._values(None)}


def _checked(down: Down, layout: Layout) -> Flat:
    if down.round < 0 or len(down.values) != layout.size:
        raise DecodeError(f"Down: {len(down.values)} values in round {down.round} where {layout.size} are expected")
    return down.values


class Server:
    """The coordinator's half: w_0, and the number of the round."""

    habits = ("synchronous",)

    def __init__(
        self,
        config: Config,  # noqa: ARG002  # the contract's
        layout: Layout,
        initial: Flat,
        devices: MutableMapping[str, bytes],  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> None:
        self.round = 0
        self._initial = initial.astype(np.float32).reshape(layout.size)

    def down(self, device: str, first: bool) -> Down:  # noqa: ARG002
        """Give w_0 to a device without a model."""
        return Down(self.round, self._initial.copy() if first else np.empty(0, np.float32))

    def absorb(self, device: str, up: Up) -> None:  # noqa: ARG002
        """See that the round is done.

        Raises:
            DecodeError: another round is.
        """
        if up.round != self.round:
            raise DecodeError(f"Up: it is of round {up.round}, not {self.round}")

    def close(self) -> None:
        """Count the round."""
        self.round += 1

    def shared(self) -> Flat:
        """Give w_0 [size], for ever."""
        return self._initial.copy()

    def state(self) -> State:
        """Give the round."""
        return {"round": self.round}

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self.round = int(state["round"])
