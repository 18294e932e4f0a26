"""The checks that every algorithm of this package passes, for tests of your own.

    import pytest
    from edge_runtime import testing

    @pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
    def test_the_algorithm_keeps_the_contract(check):
        check(testing.Subject("my_project.fedmine"))

Each holds an algorithm to the contract of `algorithm.py`: it plays rounds of four small devices through real bytes,
without a broker, and raises AssertionError with what is broken. What rests on them: a round that is done again after
a crash gives the same bytes, updates count once and in any order, a server goes on from its state, and what makes no
sense is refused and changes nothing.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import algorithm, coding, config, wire
from edge_runtime.algorithm import Algorithm, Model, OwnModel, SparseClient
from edge_runtime.compression import codec
from edge_runtime.data import SeededBatches
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.seed_set import SeedSet
from edge_runtime.tree import Flat, Layout, Part
from edge_runtime.wire import Uplink

Data = Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]]
"""Samples x [samples, ...] and class indices y [samples] of each device."""
_CODINGS = ("bf16", "step:0.5", "bits:4")


class Mlp:
    """The oracle of tanh(x W1' + b1) W2' + b2, differentiated by hand."""

    def vjp(self, params: Any, x: Any) -> Any:
        """Evaluate the model; see `algorithm.Oracle`."""
        hidden = np.tanh(x @ params["w1"].T + params["b1"])

        def pullback(slope: Any) -> Any:
            back = (slope @ params["w2"]) * (1 - hidden**2)
            return {"w1": back.T @ x, "b1": back.sum(0), "w2": slope.T @ hidden, "b2": slope.sum(0)}

        return hidden @ params["w2"].T + params["b2"], pullback


MLP = Model(Layout(("w1", "b1", "w2", "b2"), ((6, 4), (6,), (3, 6), (3,))), Mlp())
"""4 inputs, 3 classes, 51 parameters."""
SEEDS = SeedSet(np.random.default_rng(5).normal(0, 1, (20, 4)).astype(np.float32), np.arange(20) % 3, ("a", "b", "c"))
"""Says more (20 x 3 posteriors) than the MLP has parameters."""


def clouds() -> dict[str, tuple[NDArray[Any], NDArray[np.int64]]]:
    """Make the data of four devices for `MLP`: 5 to 8 samples of 3 classes, of another mean on each."""
    rng = np.random.default_rng(0)
    return {
        f"device-{i}": (rng.normal(i / 2, 1, (5 + i, 4)).astype(np.float32), rng.integers(0, 3, 5 + i))
        for i in range(4)
    }


@dataclass
class Fleet:
    """A server half, and client halves that are made anew for every round, as in the field."""

    parts: Algorithm
    config: Any
    model: Model = MLP
    data: Data = field(default_factory=clouds)
    seed: int = 7
    initial: Any = None
    """Initial parameters [size]; None: drawn."""
    seed_set: SeedSet | None = SEEDS
    devices: dict[str, bytes] = field(default_factory=dict)
    """What the server half remembers of each device."""
    states: dict[str, bytes] = field(default_factory=dict)
    """What each device keeps."""
    personal: dict[str, Flat] = field(default_factory=dict)
    """The personal model that each device has trained last, dense [size]."""

    def __post_init__(self) -> None:
        """Start the server half."""
        if self.initial is None:
            self.initial = self._drawn([3])
        self.private = algorithm.private_names(self.config, self.model.layout)
        self.most = algorithm.wire_values(self.config)
        self.server = self.new_server()

    def _drawn(self, seed: list[int]) -> Flat:
        return np.random.default_rng(seed).normal(0, 0.5, self.model.layout.size).astype(np.float32)

    def new_server(self) -> Any:
        """Make a server half that has seen nothing, with what this one remembers of devices."""
        return self.parts.Server(self.config, self.model.layout, self.initial.copy(), self.devices, self.seed)

    def down(self, device: str) -> bytes:
        """Give a device's Down of this round."""
        return wire.encode(self.server.down(device, device not in self.states))

    def client(self, device: str) -> Any:
        """Make a client half from what the device keeps."""
        held = self.states.get(device)
        model = self.own(device) if self.parts.Client.own_model else self.model
        state = None if held is None else codec.decode_state(held, 4 * self.model.layout.size)
        return self.parts.Client(self.config, model, state)

    def own(self, device: str) -> OwnModel:
        """Make a device's own model: of the run's architecture, with initial values of its own."""
        drawn = self._drawn([3, *device.encode()])
        return OwnModel(self.model.layout, self.model.oracle, shared=self.model, initial=drawn)

    def batches(self, device: str) -> SeededBatches:
        """Deal out a device's samples for this round."""
        seed = [self.seed, self.server.round, *device.encode()]
        return SeededBatches(*self.data[device], seed, (), self.seed_set)

    def train(self, device: str) -> tuple[bytes, bytes]:
        """Do a device's round: its encoded Up, and its encoded state."""
        client = self.client(device)
        up = client.round(self.decoded(self.down(device), self.parts.Down), self.batches(device))
        self.personal[device] = client.personal(None).dense()
        return wire.encode_up(up, self.model.layout, self.private)[0], codec.encode_state(client.state())

    def decoded(self, data: bytes, kind: Any) -> Any:
        """Read a message."""
        return wire.decode(data, kind, self.model.layout, self.most)

    def absorb(self, device: str, up: bytes) -> None:
        """Let the server half take a device's encoded Up."""
        self.server.absorb(device, wire.decode_up(up, self.parts.Up, self.model.layout, self.private, self.most))

    def round(self, devices: Iterable[str] | None = None) -> dict[str, bytes]:
        """Play a whole round; the updates arrive in the order of `devices`."""
        cohort = list(devices or self.data)
        done = {device: self.train(device) for device in sorted(cohort)}
        for device in cohort:
            self.absorb(device, done[device][0])
        self.states |= {device: state for device, (_, state) in done.items()}
        self.server.close()
        return {device: up for device, (up, _) in done.items()}

    def resume(self, state: bytes) -> None:
        """Start the server half anew from its encoded state."""
        self.server = self.new_server()
        self.server.restore(codec.decode_state(state, 4 * self.model.layout.size))

    def shared_bytes(self) -> bytes:
        """Give the shared model; empty: there is none."""
        shared = self.server.shared()
        return b"" if shared is None else bytes(shared.tobytes())

    def bits(self) -> tuple[bytes, bytes, dict[str, bytes]]:
        """Give all that the server half knows."""
        return self.shared_bytes(), codec.encode_state(self.server.state()), dict(self.devices)


@dataclass(frozen=True)
class Subject:
    """An algorithm, and with what it is checked."""

    name: str
    """As in `[run] algorithm`: one of the package's, or `package.module` of your own."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of [algorithm]. Unless they say otherwise, training is two epochs of batches of 4 at a rate of 0.3."""
    model: Model = MLP
    data: Data = field(default_factory=clouds)
    """Of four devices, device-0 to device-3."""

    def fleet(self) -> Fleet:
        """Start a fleet."""
        parts = algorithm.load(self.name)
        usual = {"lr": 0.3, "batch-size": 4, "local-epochs": 2, "rounds": 5, "seed-set": SEEDS.identity.hex()}
        known = {entry.name.replace("_", "-") for entry in dataclasses.fields(parts.Config)}
        table = {key: value for key, value in usual.items() if key in known} | dict(self.settings)
        return Fleet(parts, config.build(parts.Config, table, "algorithm"), self.model, self.data)


def its_settings_go_through_a_table(subject: Subject) -> None:
    """Settings that are written down and read again are the same, and an unknown key is refused by name."""
    parts, settings = algorithm.load(subject.name), subject.fleet().config
    back = config.build(parts.Config, config.table(settings), "algorithm")
    _expect(back == settings, f"settings come back as {back}, not {settings}: make Config a frozen dataclass")
    try:
        config.build(parts.Config, {"no-such-key": 3}, "algorithm")
    except ConfigError:
        return
    raise AssertionError("an unknown key of [algorithm] is taken")


def messages_come_through_their_bytes(subject: Subject) -> None:
    """A Down and an Up are the same after the wire."""
    fleet = subject.fleet()
    down = fleet.server.down("device-1", True)
    up = fleet.client("device-1").round(down, fleet.batches("device-1"))
    for message in (down, up):
        back = fleet.decoded(wire.encode(message), type(message))
        _expect(_same(back, message), f"{message} comes back as {back}")


def coded_updates_are_taken(subject: Subject) -> None:
    """Updates that travel in fewer bits are absorbed, whichever coding a run has."""
    for text in _CODINGS:
        fleet = subject.fleet()
        fleet.round()
        for device in fleet.data:
            fleet.server.absorb(device, _coded(fleet, device, text))
        fleet.server.close()


def _coded(fleet: Fleet, device: str, text: str) -> Any:
    """Do a device's round, and give its Up as it arrives in a coding."""
    client, layout = fleet.client(device), fleet.model.layout
    up = client.round(fleet.decoded(fleet.down(device), fleet.parts.Down), fleet.batches(device))
    held = client.support(None) if isinstance(client, SparseClient) else None
    uplink = Uplink(coding.parse(text, "coding"), columns=algorithm.wire_columns(fleet.config))
    data, _ = wire.encode_up(up, layout, fleet.private, uplink, held)
    return wire.decode_up(data, fleet.parts.Up, layout, fleet.private, fleet.most, lambda message: held)


def a_down_is_the_same_within_a_round(subject: Subject) -> None:
    """What a device is told does not depend on who was heard before it in the round."""
    fleet = subject.fleet()
    fleet.round()
    asked = {device: (fleet.down(device), fleet.server.down(device, True)) for device in fleet.data}
    for device in fleet.data:
        fleet.absorb(device, fleet.train(device)[0])
        for other, (down, first) in asked.items():
            changed = fleet.down(other) != down or not _same(fleet.server.down(other, True), first)
            _expect(not changed, f"the Down of {other} changed when {device} was absorbed: leave that to close")


def a_reader_cannot_change_the_model(subject: Subject) -> None:
    """Whoever writes into a Down, or into what `shared` gave, writes into a copy."""
    fleet = subject.fleet()
    before = fleet.bits()
    down = fleet.server.down("device-0", True)
    fleet.client("device-0").round(down, fleet.batches("device-0"))
    for value in vars(down).values():
        for array in (value, getattr(value, "values", None)):
            if isinstance(array, np.ndarray):
                array[:] = 99
    shared = fleet.server.shared()
    if shared is not None:
        shared[:] = 99
    _expect(fleet.bits() == before, "a Down, or shared(), is the server's own memory: give a copy")


def a_round_done_again_gives_the_same_bytes(subject: Subject) -> None:
    """Training draws from `batches.rng` and from nothing else."""
    fleet = subject.fleet()
    fleet.round()
    _expect(
        fleet.train("device-2") == fleet.train("device-2"), "a round done twice differs: draw from batches.rng alone"
    )


def the_order_of_arrival_changes_no_bit(subject: Subject) -> None:
    """Sums are exact (`aggregate.of`, `fixed.Total`)."""
    outcomes = []
    for order in itertools.islice(itertools.permutations(["device-0", "device-1", "device-2", "device-3"]), 0, 24, 5):
        fleet = subject.fleet()
        for _ in range(2):
            fleet.round(order)
        outcomes.append(fleet.bits())
    same = all(outcome == outcomes[0] for outcome in outcomes)
    _expect(same, "the model depends on the order of arrival: add updates up with aggregate.of")


def a_server_resumes_from_its_state(subject: Subject) -> None:
    """A coordinator that is killed between rounds goes on to identical bits."""
    straight, resumed = subject.fleet(), subject.fleet()
    for _ in range(2):
        straight.round()
        resumed.round()
    resumed.resume(codec.encode_state(resumed.server.state()))
    for _ in range(2):
        straight.round(["device-1", "device-3"])
        resumed.round(["device-1", "device-3"])
    _expect(resumed.server.round == 4, f"four rounds later it is round {resumed.server.round}: keep it in the state")
    _expect(resumed.bits() == straight.bits(), "a server that resumed goes another way: its state lacks something")


def updates_absorbed_again_count_once(subject: Subject) -> None:
    """A coordinator that is killed within a round absorbs its updates again from the journal."""
    straight, crashed = subject.fleet(), subject.fleet()
    straight.round()
    crashed.round()
    checkpoint = codec.encode_state(crashed.server.state())
    done = {device: crashed.train(device) for device in crashed.data}
    for device in ("device-2", "device-0"):
        crashed.absorb(device, done[device][0])
    crashed.resume(checkpoint)  # the sums are gone, what was written into `devices` is not
    for device in crashed.data:
        _expect(crashed.train(device) == done[device], f"after the crash {device} does another round")
        crashed.absorb(device, done[device][0])
    crashed.server.close()
    straight.round()
    _expect(
        crashed.bits() == straight.bits(), "an update that is absorbed again counts twice: see what devices[...] keeps"
    )


def a_device_that_lost_its_state_starts_over(subject: Subject) -> None:
    """A Down with `first` carries all that a device needs."""
    fleet = subject.fleet()
    for _ in range(2):
        fleet.round()
    del fleet.states["device-1"]
    before = len(fleet.shared_bytes())
    for _ in range(2):
        fleet.round()
    _expect(len(fleet.shared_bytes()) == before, "the shared model has another size after a device started over")
    _expect("device-1" in fleet.states, "a device that lost its state does not come back")


def a_client_shows_its_model(subject: Subject) -> None:
    """`shared` and `personal` give the whole model before training, and `personal(None)` the trained one."""
    fleet = subject.fleet()
    fleet.round()
    down, client, size = (
        fleet.decoded(fleet.down("device-1"), fleet.parts.Down),
        fleet.client("device-1"),
        fleet.model.layout.size,
    )
    shared, before = client.shared(down), client.personal(down).dense().copy()
    client.round(down, fleet.batches("device-1"))
    after = client.personal(None).dense()
    _expect(shared is None or shared.shape == (size,), f"shared gives {np.shape(shared)}, not ({size},) or None")
    _expect(before.shape == after.shape == (size,), f"personal gives {before.shape} and {after.shape}, not ({size},)")
    _expect(not np.array_equal(before, after), "training changed nothing")
    again = fleet.client("device-1").personal(down).dense()
    _expect(np.array_equal(before, again), "training wrote into what the client was made from: copy it")


def an_unfit_update_is_refused(subject: Subject) -> None:
    """Of hostile updates each raises DecodeError and changes nothing."""
    clean, fleet = subject.fleet(), subject.fleet()
    clean.round()
    fleet.round()
    good = {device: fleet.train(device)[0] for device in fleet.data}
    for device, up in good.items():
        for bad in _spoiled(fleet.decoded(up, fleet.parts.Up)):
            _refused(fleet.server.absorb, device, bad)
        fleet.absorb(device, up)
    fleet.server.close()
    clean.round()
    _expect(fleet.bits() == clean.bits(), "an update that was refused has changed something: check before you add")


def an_unfit_down_is_refused(subject: Subject) -> None:
    """Of hostile Downs each raises DecodeError."""
    fleet = subject.fleet()
    down = fleet.server.down("device-0", True)
    wrong = [dataclasses.replace(down, round=-1)]
    for entry in dataclasses.fields(down):
        others = _other_sizes(getattr(down, entry.name))
        wrong += [dataclasses.replace(down, **{entry.name: other}) for other in others]
    for bad in wrong:
        _refused(fleet.client("device-0").round, bad, fleet.batches("device-0"))


def a_round_that_nobody_answered_leaves_the_model(subject: Subject) -> None:
    """A round that closes empty counts, and moves nothing."""
    fleet = subject.fleet()
    fleet.round()
    before = fleet.shared_bytes()
    fleet.server.close()
    _expect(fleet.shared_bytes() == before, "a round without updates moves the model")
    _expect(fleet.server.round == 2, "a round without updates does not count")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    its_settings_go_through_a_table,
    messages_come_through_their_bytes,
    coded_updates_are_taken,
    a_down_is_the_same_within_a_round,
    a_reader_cannot_change_the_model,
    a_round_done_again_gives_the_same_bytes,
    the_order_of_arrival_changes_no_bit,
    a_server_resumes_from_its_state,
    updates_absorbed_again_count_once,
    a_device_that_lost_its_state_starts_over,
    a_client_shows_its_model,
    an_unfit_update_is_refused,
    an_unfit_down_is_refused,
    a_round_that_nobody_answered_leaves_the_model,
)
"""All that an algorithm must do."""


def _expect(holds: bool, broken: str) -> None:
    if not holds:
        raise AssertionError(broken)


def _refused(take: Callable[..., object], *arguments: Any) -> None:
    try:
        take(*arguments)
    except DecodeError:
        return
    raise AssertionError(f"{arguments} is taken: raise DecodeError, before anything changes")


def _same(one: Any, other: Any) -> bool:
    pairs = [(getattr(one, entry.name), getattr(other, entry.name)) for entry in dataclasses.fields(one)]
    return all(type(a) is type(b) and (_same(a, b) if isinstance(a, Part) else np.array_equal(a, b)) for a, b in pairs)


def _spoiled(up: Any) -> list[Any]:
    """Make updates that are wrong in one way each."""
    wrong = []
    for entry in dataclasses.fields(up):
        value = getattr(up, entry.name)
        if entry.name == "round":
            wrong += [dataclasses.replace(up, round=value + 1), dataclasses.replace(up, round=-1)]
        elif isinstance(value, np.ndarray):
            poison = [np.where(np.arange(len(value)) == 3, bad, value) for bad in (np.nan, np.inf, 1e30, -600)]
            arrays = [value[:-1], np.append(value, value[:1]), value[:0], *poison]
            wrong += [dataclasses.replace(up, **{entry.name: array.astype(np.float32)}) for array in arrays]
        elif isinstance(value, bytes):
            wrong.append(dataclasses.replace(up, **{entry.name: b"\x07nonsense"}))
        elif isinstance(value, Part):
            wrong += [dataclasses.replace(up, **{entry.name: part}) for part in _spoiled(value)]
    return wrong


def _other_sizes(value: Any) -> list[Any]:
    """Give what a field of a Down may not be instead."""
    if isinstance(value, np.ndarray):
        return [value[:-1], np.append(value, value)]
    if isinstance(value, Part):
        return [Part(value.tensors, np.append(value.values, np.float32(1))), Part(b"\x07nonsense", value.values)]
    return [b"\x07nonsense"] if isinstance(value, bytes) else []
