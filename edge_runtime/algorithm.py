"""What an algorithm is: the waist between the mathematics and everything that moves, stores or trains.

An algorithm is one module in `edge_runtime/algorithms/` (or one of the user's own, which the owner of a device has
allowed there) with five names, in this order:

    Config    frozen dataclass: the paper's symbols paired with words; checks itself in __post_init__ (ConfigError)
    Down      frozen dataclass: what the server half sends to one device for one round
    Up        frozen dataclass: what that device sends back
    Client    the device's half
    Server    the coordinator's half

`Down` and `Up` hold only int, float, bytes, one-dimensional float32 arrays and `tree.Part`, so that the codec can carry
them (`wire.py`). Their types are the contract between the halves: `tree.Shared`, `Change` and `Posteriors` say what an
array holds, and so how a run may have it coded; any other travels bit for bit. A message has at most one of them.

Tensors that a run's Config names in a key `private` never leave their device. That is not left to the algorithm:
`wire.encode_up` does not write an Up that holds one, and `wire.decode_up` does not read it. An Up of such a run has no
field but int, float and Part, since nobody could say what lies in any other. (Whether an algorithm puts private values
where shared ones belong, no wire can see.) Down is free: a server never has private values, but those that all began
with.
"""

import dataclasses
import difflib
import importlib
import pkgutil
import typing
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime import own
from edge_runtime.compression.submodel import Cut
from edge_runtime.errors import ConfigError
from edge_runtime.mask import Mask
from edge_runtime.seed_set import SeedSet
from edge_runtime.tree import Flat, Layout, Part, Tree

M = typing.TypeVar("M")
Value = int | float | bytes | Flat
State = Mapping[str, Value]
Pullback = Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]
Bend = Callable[[NDArray[np.float32], NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Takes outputs and a change of them to d loss / d outputs and its change; all [batch, classes]."""


class Oracle(Protocol):
    """A model that can be evaluated and differentiated: all that an algorithm sees of a backend."""

    def vjp(self, params: Tree, x: NDArray[Any]) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model and offer its vector-Jacobian product.

        Args:
            params: the named parameters.
            x: inputs [batch, ...].

        Returns:
            The outputs [batch, classes], and a function that takes d loss / d outputs (same shape) to
            d loss / d params, which are the caller's to change. The function may be called once, or never.
        """
        ...


@typing.runtime_checkable
class Weighs(Protocol):
    """An Oracle that knows, before it has run, what it will take."""

    def pass_bytes(self, batch: int) -> int:
        """Estimate what a pass over a batch and back holds at its peak, without parameters and their gradients."""
        ...


@typing.runtime_checkable
class Curved(Protocol):
    """An Oracle that can be differentiated twice."""

    def hvp(self, params: Tree, x: NDArray[Any], direction: Tree, bend: Bend) -> dict[str, NDArray[np.float32]]:
        """Multiply the Hessian of a loss of the outputs by a vector: differentiate the gradient along it.

        Args:
            params: the named parameters.
            x: inputs [batch, ...].
            direction: the vector, named and shaped as the parameters.
            bend: the loss: asked once, with the outputs and their derivative along `direction`.

        Returns:
            The product, which is the caller's to change.
        """
        ...


@dataclass(frozen=True)
class Model:
    """A layout and the oracle that gives its flat vectors a meaning."""

    layout: Layout
    oracle: Oracle


@dataclass(frozen=True)
class OwnModel(Model):
    """A device's own model, which may be of another architecture than the one that the run's devices share."""

    shared: Model
    """The run's model."""
    initial: Flat
    """Initial parameters of the own model [size], drawn from the run's seed and the device."""


@dataclass(frozen=True)
class Fitted:
    """A model and parameters for it [its layout's size]; of a sparse model the active values only."""

    model: Model
    values: Flat
    mask: Mask | None = None
    """Where the values lie in the dense model; None: they are all."""

    def dense(self) -> Flat:
        """Give the parameters of the dense model [size]."""
        return self.values if self.mask is None else self.mask.unpack(self.values)


@dataclass(frozen=True)
class Batch:
    """Inputs [batch, ...] and class indices [batch]."""

    x: NDArray[Any]
    y: NDArray[np.int64]


class Batches(Protocol):
    """A device's training data for one round, and the only source of randomness in it.

    Seeded by (run seed, device, round), so that a repeated round is the same round, bit for bit.
    """

    rng: np.random.Generator
    class_names: tuple[str, ...]
    """Of the device's data, in the order of the class indices; empty: not known."""
    seed_set: SeedSet | None
    """What all devices of the run know beside their own data; None: nothing."""

    def __len__(self) -> int:
        """Count the training samples."""
        ...

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        """Go once through all samples in a new random order; the last batch may be smaller."""
        ...

    def sample(self, batch_size: int) -> Batch:
        """Draw one batch of min(batch_size, len) different samples."""
        ...


class Client(Protocol):
    """The device's half. Made anew for every round from the state that the last applied round left."""

    own_model: typing.ClassVar[bool]
    """Whether `model` is an OwnModel, so that devices may have models of their own. If not, all have the run's."""

    def __init__(self, config: Any, model: Model, state: State | None) -> None:
        """Start from `state` (what `state()` gave), or None on a device that has none for this run."""
        ...

    def shared(self, down: Any) -> Flat | None:
        """Give the whole shared model where `down` carries it, else None (a masked part is not the whole)."""
        ...

    def personal(self, down: Any | None) -> Fitted:
        """Give the personal model: before local training as `down` makes it, or (None) after `round`."""
        ...

    def round(self, down: Any, batches: Batches) -> Any:
        """Train, and give the Up. Raises DecodeError if `down` does not fit this device's state."""
        ...

    def state(self) -> State:
        """Give what must survive until the next round; committed only once the coordinator took the Up."""
        ...


@dataclass(frozen=True)
class Quantised:
    """A model whose larger tensors are codes into codebooks."""

    bits: int
    """Of a code, from 1."""
    names: tuple[str, ...]
    """The tensors that are codes, in the layout's order."""
    data: bytes
    """Codes, codebooks and the values of all other tensors (`compression/quantize.py`)."""


@typing.runtime_checkable
class Deploys(Protocol):
    """A Client whose personal model may be one of codes, much smaller than its values."""

    def deployed(self) -> Quantised | None:
        """Give the personal model as a device stores it; None: as its values."""
        ...


@typing.runtime_checkable
class SparseClient(Protocol):
    """A Client that is told, and tells, a part of the shared model's values."""

    def support(self, down: Any | None) -> NDArray[np.bool_]:
        """Say which values of the shared model [size] a Down holds, or (None) the Up that `round` has just made.

        Of the Down all is known but these values. Each tensor has as many of them in both.
        """
        ...


@typing.runtime_checkable
class SparseServer(Protocol):
    """A Server whose Down has a part of the shared model's values."""

    def support(self, device: str, round_: int) -> NDArray[np.bool_]:
        """Say which values of the shared model [size] a device is told in this round, or was in the last it did."""
        ...


@typing.runtime_checkable
class CutServer(Protocol):
    """A Server that lets devices have sub-models: it tells them of, and hears from them, the values that they have."""

    cut_of: Callable[[str], Cut | None]
    """Gives what a device has of the model; None: all of it. Until it is set all devices have all."""


@typing.runtime_checkable
class NarrowingServer(CutServer, Protocol):
    """A CutServer that may let a device train a narrower part of the model than its own for a round."""

    cuts: Sequence[Cut]
    """All parts of the model that there are in the run."""


def no_cut(device: str) -> None:  # as `CutServer.cut_of` is asked
    """Say that a device has the whole model."""


class Server(Protocol):
    """The coordinator's half. Holds one shared model, however many devices there are.

    A synchronous run absorbs the updates of a round and closes it. An asynchronous one closes after every update (or
    every few), so that `round` counts the versions of the shared model, and absorbs updates made from older versions.
    """

    habits: typing.ClassVar[tuple[str, ...]]
    """How a run of it may go, the usual way first: `synchronous`, `asynchronous` (`absorb` takes an Up of an earlier
    round), `decentralised` (every device has a server half of its own, for its neighbours)."""
    round: int

    def __init__(
        self, config: Any, layout: Layout, initial: Flat, devices: MutableMapping[str, bytes], seed: int
    ) -> None:
        """Start at round 0 from the flat vector `initial` [size].

        `devices` holds what is remembered of each device (its mask, say). It lies on disk in a real coordinator:
        read and write whole values, keep no copies.
        """
        ...

    def down(self, device: str, first: bool) -> Any:
        """Make the Down of the current round; changes nothing and gives the same whenever it is asked.

        `first`: the device holds no state for this run (its first round, or its disk was lost), so the Down must
        carry all that the device needs.
        """
        ...

    def absorb(self, device: str, up: Any) -> None:
        """Fold one device's Up into the running sums, at once. Raises DecodeError, changing nothing, if it is unfit."""
        ...

    def close(self) -> None:
        """End the round: move the shared model by what was absorbed, and count the round up."""
        ...

    def shared(self) -> Flat | None:
        """Give the shared model [size] as it stands; None: the devices share none."""
        ...

    def state(self) -> State:
        """Give what must survive between rounds (asked only when a round has just closed)."""
        ...

    def restore(self, state: State) -> None:
        """Take back what `state()` gave."""
        ...


@dataclass(frozen=True)
class Algorithm:
    """The five names of one algorithm's module, typed."""

    name: str
    Config: type[Any]
    Down: type[Any]
    Up: type[Any]
    Client: type[Client]
    Server: type[Server]


def names() -> list[str]:
    """List the algorithms that come with the package."""
    package = importlib.import_module("edge_runtime.algorithms")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def is_own(name: str) -> bool:
    """Say whether an algorithm is code of the user's own, which a device imports only if its owner allows it."""
    return "." in name


def load(name: str) -> Algorithm:
    """Find an algorithm: a name from `names()`, or the dotted path of a user's own module.

    It is imported: where somebody else said the name, ask `is_own` first.

    Raises:
        ConfigError: no such algorithm (with the nearest name), or the module is none.
    """
    known = names()
    if name not in known and "." not in name:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"algorithm: {name!r} is unknown{hint} (known: {', '.join(known)}, or package.module of yours)"
        )
    if ":" in name:
        raise ConfigError(f"algorithm: {name!r}: an algorithm is a whole module; write {name.partition(':')[0]!r}")
    if name in known:
        module = importlib.import_module(f"edge_runtime.algorithms.{name}")
    else:
        module = own.module(name, "algorithm")
        check_module(name, module)
    return Algorithm(name, *(getattr(module, part) for part in _FIVE))


_FIVE = ("Config", "Down", "Up", "Client", "Server")
_SETTINGS = (int, float, bool, str)
_CARRIED = (int, float, bytes, Part)
_METHODS = {
    "Client": ("shared", "personal", "round", "state"),
    "Server": ("down", "absorb", "close", "shared", "state", "restore"),
}


def check_module(name: str, module: Any) -> None:
    """See that a module has the form of an algorithm, so that what is missing shows before a run and not within it.

    Raises:
        ConfigError: what it lacks.
    """
    for part in _FIVE:
        if not isinstance(getattr(module, part, None), type):
            raise ConfigError(f"algorithm: {name!r} lacks the class {part}; it must have {', '.join(_FIVE)}")
    for part, kinds in (("Config", _SETTINGS), ("Down", _CARRIED), ("Up", _CARRIED)):
        _check_fields(f"algorithm: {name}.{part}", getattr(module, part), kinds)
    for part, methods in _METHODS.items():
        for method in methods:
            if not callable(getattr(getattr(module, part), method, None)):
                raise ConfigError(f"algorithm: {name}.{part} lacks the method {method} (see edge_runtime/algorithm.py)")
    if type(getattr(module.Client, "own_model", None)) is not bool:
        raise ConfigError(f"algorithm: {name}.Client lacks own_model; write own_model = False in the class")
    habits = getattr(module.Server, "habits", ())
    if not isinstance(habits, tuple) or not habits or not set(habits) <= set(_HABITS):
        raise ConfigError(f"algorithm: {name}.Server lacks habits; write habits = ('synchronous',) in the class")


_HABITS = ("synchronous", "asynchronous", "decentralised")


def _check_fields(where: str, kind: Any, allowed: tuple[Any, ...]) -> None:
    """See that a class is a dataclass of fields that settings may have, or that the wire carries."""
    if not dataclasses.is_dataclass(kind):
        raise ConfigError(f"{where} is not a dataclass; put @dataclass(frozen=True) above it")
    hints, marks = typing.get_type_hints(kind), typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if hint not in allowed and not (Part in allowed and typing.get_origin(hint) is np.ndarray):
            spoken = ", ".join(one.__name__ for one in allowed) + (" and tree.Flat" if Part in allowed else "")
            raise ConfigError(f"{where}.{field.name} is a {getattr(hint, '__name__', hint)}; it may be {spoken}")
    if sum(hasattr(mark, "__metadata__") for mark in marks.values()) > 1:
        raise ConfigError(f"{where}: of its vectors only one may be Shared, Change or Posteriors; make the others Flat")


def private_names(settings: Any, layout: Layout) -> tuple[str, ...]:
    """List the tensors of `layout` that a Config keeps on the device (`Layout.matching`); none without a key `private`.

    Raises:
        ConfigError: a pattern of the key fits no tensor.
    """
    return layout.matching(getattr(settings, "private", ""))


def wire_values(settings: Any) -> int:
    """Count the values that a message of an algorithm may hold however small the model is: a Config's `wire_values`."""
    return int(getattr(settings, "wire_values", 0))


def wire_columns(settings: Any) -> int:
    """Count the classes of an algorithm's posteriors: a Config's `wire_columns`; 0: it has none."""
    return int(getattr(settings, "wire_columns", 0))
