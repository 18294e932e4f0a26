"""What a device keeps of the wire from one round to the next: the shared model as it was told, and what it owes."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_runtime import grid
from edge_runtime.compression import codec, mask
from edge_runtime.grid import Bits, Grid
from edge_runtime.tree import Flat, Layout


@dataclass(frozen=True, eq=False)
class Debt:
    """What quantising an update lost: it is added to the next."""

    values: Flat
    held: Bits | None
    """Where they lie in the model [size]; None: everywhere."""

    def at(self, held: Bits | None) -> Flat:
        """Give what is owed at other places; what is owed elsewhere is forgotten."""
        if self.held is held or (self.held is not None and held is not None and np.array_equal(self.held, held)):
            return self.values
        size = len(self.values) if self.held is None else len(self.held)
        dense = np.zeros(size, np.float32)
        dense[slice(None) if self.held is None else self.held] = self.values
        return dense if held is None else dense[held]


@dataclass(frozen=True)
class Account:
    """What a device keeps of a run beside its algorithm's state."""

    held: Grid | None = None
    """The shared model, as far as it was told."""
    debt: Debt | None = None


def encode(account: Account) -> dict[str, codec.Value]:
    """Write down what a device keeps, as named values of a state; the inverse of `decode`."""
    state: dict[str, codec.Value] = {}
    if account.held is not None:
        state["wire.grid"] = grid.pack(account.held)
        state |= _encode_held("wire.grid-at", account.held.held)
    if account.debt is not None:
        state["wire.debt"] = account.debt.values
        state |= _encode_held("wire.debt-at", account.debt.held)
    return state


def decode(state: Mapping[str, codec.Value], layout: Layout) -> tuple[Account, dict[str, codec.Value]]:
    """Read what a device kept, and give the rest of the state, which is its algorithm's.

    Raises:
        DecodeError: malformed.
    """
    rest = {name: value for name, value in state.items() if not name.startswith("wire.")}
    held = debt = None
    if "wire.grid" in state:
        at = _decode_held("wire.grid-at", state, layout)
        held = grid.unpack(typing.cast(bytes, state["wire.grid"]), layout, at)
    if "wire.debt" in state:
        debt = Debt(typing.cast(Flat, state["wire.debt"]), _decode_held("wire.debt-at", state, layout))
    return Account(held, debt), rest


def _encode_held(name: str, held: Bits | None) -> dict[str, codec.Value]:
    return {} if held is None else {name: mask.encode(held)}


def _decode_held(name: str, state: Mapping[str, codec.Value], layout: Layout) -> Bits | None:
    return mask.decode(typing.cast(bytes, state[name]), layout.size) if name in state else None
