"""FedAvg: all devices train one shared model.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data" (AISTATS 2017), Algorithm 1.
In round t device k starts from the shared w_t, trains for a few epochs to x_N, and sends U_k = w_t - x_N. Then

    w_{t+1} = w_t - sum_k p_k U_k,    p_k = 1/S, or in proportion to its number of samples

over the S devices that answered. (The paper averages the x_N, which is the same; differences are smaller numbers.)

Where devices have parts of the model (`compression/submodel.py`), a device may in some rounds train a narrower part of
the run than its own, drawn from the run's seed: ordered dropout (Horvath et al., "FjORD", NeurIPS 2021, arXiv
2102.13451; there anew for every batch). All else of the device's model is zero meanwhile, which computes what that part
computes, and counts nowhere in the average.
"""

import functools
import hashlib
import typing
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime import aggregate, fixed, sgd
from edge_runtime.algorithm import Batch, Batches, Fitted, Model, State, no_cut
from edge_runtime.compression import mask
from edge_runtime.compression.submodel import Bits, Cut
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Change, Flat, Layout, Shared

_KEPT_MASKS = 8


@dataclass(frozen=True)
class Config(aggregate.OwnedAveraging):
    """Local training, and how updates are averaged: p_k is `weights` (`samples` is the paper's n_k / n)."""

    ordered_dropout: float = 0.0
    """Probability with which a device trains, for a round, one of the run's parts that are narrower than its own."""
    rounds: int = 0
    """Of the run, set from it: after them nothing is dropped."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require("ordered-dropout", self.ordered_dropout, low=0.0, high=1.0)
        sgd.require("rounds", self.rounds, low=0)


@dataclass(frozen=True)
class Down:
    """The shared model w_t [size]."""

    round: int
    values: Shared
    kept: bytes = b""
    """Which of the values to train (`compression/mask.py`), all others at zero; empty: all of them."""


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
        return checked(down, self._model.layout, narrower=True)

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
        if down.kept:
            self._trained = self._narrowly(start, mask.decode(down.kept, len(start)), batches, down.round)
        else:
            self._trained = sgd.descend(self._model, start, batches, self._config, down.round)
        return Up(down.round, len(batches), start - self._trained)

    def _narrowly(self, start: Flat, kept: Bits, batches: Batches, round_: int) -> Flat:
        """Train the values that are `kept` while the others are zero; these stay as they are in what is given."""

        def slope(x: Flat, batch: Batch) -> Flat:
            return sgd.gradient(self._model, x, batch) * kept

        trained = sgd.descend(self._model, start * kept, batches, self._config, round_, slope=slope)
        return np.where(kept, trained, start)

    def state(self) -> State:
        """Give nothing: a device remembers nothing."""
        return {}


def checked(down: Down, layout: Layout, narrower: bool = False) -> Flat:
    """Give the values of a Down, or raise DecodeError if it is unfit; `narrower`: some of them may be left out."""
    if down.round < 0 or len(down.values) != layout.size:
        raise DecodeError(f"Down: {len(down.values)} values in round {down.round} where {layout.size} are expected")
    if down.kept and not narrower:
        raise DecodeError("Down: it asks for a narrower part, and with this algorithm a device trains all that it has")
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
        self.round, self._seed = 0, seed
        self._dropout, self._rounds = (
            (config.ordered_dropout, config.rounds) if isinstance(config, Config) else (0.0, 0)
        )
        self._model = initial.astype(np.float32)
        self.total: aggregate.Aggregate = aggregate.of(config, layout.size, seed, owners=config.aggregate == "owners")
        self.cut_of: Callable[[str], Cut | None] = no_cut
        self.cuts: Sequence[Cut] = ()
        self._encoded = functools.lru_cache(_KEPT_MASKS)(_encoded)

    def down(self, device: str, first: bool) -> Down:  # noqa: ARG002
        """Give everyone w_t, or what the device has of it."""
        own, narrower = self.cut_of(device), self._narrower(device)
        values = self._model.copy() if own is None else self._model[own.bits]
        return Down(self.round, values, b"" if narrower is None else self._encoded(narrower, own))

    def absorb(self, device: str, up: Up) -> None:
        """Fold in an update.

        Raises:
            DecodeError: it is of another round or unfit; nothing has changed.
        """
        if up.round != self.round:
            raise DecodeError(f"Up: it is of round {up.round}, not {self.round}")
        has, narrower = self._has(device), self._narrower(device)
        values = up.values
        if narrower is not None:
            fixed.check(values, has, len(self._model))
            values, has = values[narrower.bits if has is None else narrower.bits[has]], narrower.bits
        self.total.add(device, values, up.samples, has)

    def _has(self, device: str) -> Bits | None:
        """Say which values of the model a device has; None: all."""
        cut = self.cut_of(device)
        return None if cut is None else cut.bits

    def _narrower(self, device: str) -> Cut | None:
        """Draw the part that a device trains in this round instead of its own; None: its own."""
        if not self._dropout or self.round >= self._rounds:
            return None
        own = self.cut_of(device)
        found = [cut for cut in self.cuts if cut is not own and _within(cut, own)]
        digest = hashlib.sha256(f"{self._seed}/{device}/{self.round}/narrower".encode()).digest()
        rng = np.random.default_rng(list(digest))
        return found[rng.integers(len(found))] if found and rng.random() < self._dropout else None

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


def _within(cut: Cut, own: Cut | None) -> bool:
    """Say whether a part lies within what a device has (None: all), and is not all of that."""
    if own is None:
        return not all(kept.all() for kept in cut.kept)
    pairs = list(zip(cut.kept, own.kept, strict=True))
    return all((some <= all_).all() for some, all_ in pairs) and any((some < all_).any() for some, all_ in pairs)


def _encoded(narrower: Cut, own: Cut | None) -> bytes:
    return mask.encode(narrower.bits if own is None else narrower.bits[own.bits])
