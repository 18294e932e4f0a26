"""What devices are told: differences from what they hold, whatever happens to them or the coordinator in between."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, coding, setup, trainer, wire
from edge_runtime.accounts import Account
from edge_runtime.compression import mask, submodel
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.errors import ConfigError
from edge_runtime.message import Blob, Chunk, Fate, Hello, Message, Need, Offer, Task
from edge_runtime.wire import Uplink

NAMES = ("a", "b", "c")
FEDSPA = {"density": 0.2, "prune-rate": 0.2}
WIDTHS = {"half": {"devices": "b", "width": 0.5}, "quarter": {"devices": "c", "width": 0.25}}


class Device:
    """A device that moves the model at random instead of training it; the rest of it is real."""

    def __init__(self, name: str, run: Run) -> None:
        self.name, self.run = name, run
        self.account, self.state = Account(), None
        self.model: Any = None
        self.down_bytes: list[int] = []

    def answer(self, task: Task, received: bytes) -> bytes:
        run, setup = self.run, (self.run.named(self.name) or self.run.others).setup
        layout = setup.model.layout
        client = run.parts.Client(run.settings, algorithm.Model(layout, None), self.state)  # type: ignore[arg-type]
        sparse = isinstance(client, algorithm.SparseClient)
        support = client.support if sparse else lambda message: None
        initial = trainer._initial(setup.model, setup.seed)
        down, held = wire.decode_down(received, run.parts.Down, layout, 0, support, self.account.held, initial)
        self.model, self.down_bytes = down.values, [*self.down_bytes, len(received)]
        at = support(down)
        rng = np.random.default_rng([task.round, *self.name.encode()])
        change = rng.normal(0, 0.01, len(down.values)).astype(np.float32)
        wanted = {field.name for field in dataclasses.fields(run.parts.Up)}
        extra = {name: value for name, value in (("mask", b""), ("samples", 1)) if name in wanted}
        up = run.parts.Up(round=down.round, values=change, **extra)
        uplink = Uplink(coding.parse(setup.up, "up"))
        sent, debt = wire.encode_up(up, layout, (), uplink, at, self.account.debt)
        self.account = Account(held, debt)
        if sparse:
            self.state = {"mask": mask.encode(at)}
        return sent


class Fleet:
    """A coordinator and its devices, joined by hand."""

    def __init__(self, folder: Path, name: str = "fedavg", settings: dict[str, Any] | None = None, **how: Any) -> None:
        self.asks: dict[str, str] = how.pop("asks", {})
        variants = how.pop("variants", None)
        how = {"up": "step:0.5", "down": "step:0.5", **how}
        config = RunConfig(name, "mlp", rounds=4, devices=3, evaluate=False, **how)
        self.folder, self.run = folder, prepare(config, settings or {}, variants)
        self.devices = {name: Device(name, self.run) for name in NAMES}
        self.queue: list[tuple[str, Message]] = []
        self.now_s = 0.0
        self.boot()

    def boot(self) -> None:
        self.journal = Journal(self.folder)
        plan = self.run.plan("run", self.journal.next_epoch())
        self.coordinator = Coordinator(plan, self.run, self.journal, self)
        self.coordinator.start()

    def crash(self) -> None:
        self.journal.rollback()
        self.journal.close()
        self.queue.clear()
        self.boot()

    def send(self, device: str, message: Message) -> bool:
        """Take a message; with `share` and `room` this is the coordinator's network."""
        self.queue.append((device, message))
        return True

    def share(self, chunk: Chunk) -> bool:
        raise AssertionError("who asks alone is answered alone")

    def room(self) -> bool:
        return True

    def hello(self) -> None:
        for name in NAMES:
            self.coordinator.handle(name, Hello("boot", self.asks.get(name, "")))

    def tasks(self) -> dict[str, Task]:
        found = {device: message for device, message in self.queue if isinstance(message, Task)}
        self.queue.clear()
        return found

    def fetch(self, name: str, blob: Blob) -> bytes:
        self.queue.clear()
        self.now_s += 60.0  # who fetched it before does so no more
        for index in range(blob.chunks):
            self.coordinator.handle(name, Need(blob.digest, (index,)))
        self.coordinator.pump(self.now_s)
        self.coordinator.pump(self.now_s + 1.0)
        data = b"".join(m.data for device, m in self.queue if device == name and isinstance(m, Chunk))
        self.queue.clear()
        assert hashlib.sha256(data).hexdigest() == blob.digest
        return data

    def give(self, name: str, task: Task, data: bytes) -> None:
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        self.coordinator.handle(name, Offer(task.run, task.round, task.phase, blob, {}))
        for index in range(blob.chunks):
            start, end = blob.span(index)
            self.coordinator.handle(name, Chunk(blob.digest, index, data[start:end]))

    def round(self, names: tuple[str, ...] = NAMES, between: Any = lambda fleet: None) -> None:
        tasks = self.tasks()
        received = {name: self.fetch(name, tasks[name].down) for name in names}
        for name in names:
            data = self.devices[name].answer(tasks[name], received[name])
            self.give(name, tasks[name], data)
            between(self)

    @property
    def model(self) -> Any:
        return self.coordinator.server.shared()


@pytest.fixture
def fleets(tmp_path: Path) -> Iterator[Any]:
    made: list[Fleet] = []

    def make(*arguments: Any, **how: Any) -> Fleet:
        made.append(Fleet(tmp_path / str(len(made)), *arguments, **how))
        made[-1].hello()
        return made[-1]

    yield make
    for fleet in made:
        fleet.journal.close()


@pytest.mark.parametrize(("name", "settings"), [("fedavg", {}), ("fedspa", FEDSPA)])
def test_every_device_holds_the_model_to_half_a_step_and_is_told_differences(
    fleets: Any, name: str, settings: dict[str, Any]
) -> None:
    fleet = fleets(name, settings)
    for _ in range(3):
        before = fleet.model
        fleet.round()
    for device in fleet.devices.values():
        held = device.account.held
        assert held.round == 2
        at = slice(None) if held.held is None else held.held
        steps = np.repeat(2.0**held.exponents, [int(n) for n in fleet.run.description.model.layout.sizes])[at]
        assert (np.abs(device.model - before[at]) <= steps / 2).all()
        # The model began as everybody can draw it; its steps were guessed in the first two rounds.
        assert device.down_bytes[0] < 100 < device.down_bytes[2] < len(device.model)


@pytest.mark.parametrize("down", ["lossless", "step:0.5"])
@pytest.mark.parametrize(("name", "settings"), [("fedavg", {}), ("fedbuff", {}), ("fedspa", FEDSPA)])
def test_devices_with_parts_of_the_model_are_told_these_and_a_value_is_averaged_over_those_who_have_it(
    fleets: Any, name: str, settings: dict[str, Any], down: str
) -> None:
    fleet = fleets(name, settings, variants=WIDTHS, up="lossless", down=down, habit="synchronous")
    cuts = {device: fleet.coordinator.choices.cut_of(device) for device in NAMES}
    has = {device: np.ones(len(fleet.model), np.bool_) if cut is None else cut.bits for device, cut in cuts.items()}
    assert [int(has[device].sum()) for device in NAMES] == [25_450, 12_730, 6_370]
    for round_ in range(3):
        before = fleet.model
        supports = _supports(fleet, has)
        fleet.round()
        sums, owners = np.zeros(len(before)), np.zeros(len(before))
        for device in NAMES:
            where, told = supports[device], fleet.devices[device].model
            assert len(told) == np.count_nonzero(where)
            assert np.allclose(told, before[where], atol=0 if down == "lossless" else 0.02)
            change = np.random.default_rng([round_, *device.encode()]).normal(0, 0.01, len(told)).astype(np.float32)
            sums[where] += change
            owners[where] += 1
        assert (fleet.model[owners == 0] == before[owners == 0]).all()
        assert np.allclose(before - fleet.model, sums / np.maximum(owners, 1), atol=1e-6)
    held = [len(device.account.held.values) for device in fleet.devices.values() if device.account.held]
    assert len(held) == (0 if down == "lossless" else 3)


def _supports(fleet: Fleet, has: dict[str, Any]) -> dict[str, Any]:
    """Say where in the whole model the values lie that each device is told."""
    server = fleet.coordinator.server
    if not isinstance(server, algorithm.SparseServer):
        return has
    return {device: submodel.within(has[device], server.support(device, server.round)) for device in NAMES}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("fedavg", {}), ("fedavg", {"weights": "samples"}), ("fedspa", {**FEDSPA, "aggregate": "owners"})],
)
def test_parts_that_are_the_whole_model_are_averaged_to_the_same_bits(
    fleets: Any, name: str, settings: dict[str, Any]
) -> None:
    plain = fleets(name, settings)
    cut = fleets(name, settings, variants={"all": {"devices": "*", "width": 1.0}})
    assert cut.run.settings.aggregate == "owners"
    for fleet in (plain, cut):
        fleet.round()
        fleet.round()
    assert np.array_equal(plain.model, cut.model)
    sizes = [[device.down_bytes for device in fleet.devices.values()] for fleet in (plain, cut)]
    assert sizes[0] == sizes[1]


def test_all_devices_are_told_the_same_bytes(fleets: Any) -> None:
    fleet = fleets()
    fleet.round()
    digests = {task.down.digest for task in fleet.tasks().values()}
    assert len(digests) == 1


def test_error_feedback_makes_the_sum_of_updates_right(fleets: Any) -> None:
    fleet = fleets(up="bits:1")
    start = fleet.model
    for _ in range(3):
        fleet.round()
    owed = np.mean([device.account.debt.values for device in fleet.devices.values()], axis=0)
    moved = [
        np.mean([np.random.default_rng([t, *name.encode()]).normal(0, 0.01, len(start)) for name in NAMES], axis=0)
        for t in range(3)
    ]
    assert np.allclose(start - fleet.model, np.sum(moved, axis=0) - owed, atol=1e-5)


@pytest.mark.parametrize("variants", [None, WIDTHS], ids=["whole", "parts"])
@pytest.mark.parametrize(("name", "settings"), [("fedavg", {}), ("fedspa", FEDSPA)])
def test_a_coordinator_killed_after_any_update_ends_in_the_same_bits(
    fleets: Any, name: str, settings: dict[str, Any], variants: Any
) -> None:
    calm, killed = fleets(name, settings, variants=variants), fleets(name, settings, variants=variants)

    def crash(fleet: Fleet) -> None:
        fleet.crash()
        fleet.hello()

    for _ in range(3):
        calm.round()
        killed.round(between=crash)
        checkpoint = max(killed.folder.glob("checkpoint-*"))
        assert b"wire.steps" in checkpoint.read_bytes()
    assert np.array_equal(calm.model, killed.model)
    assert [d.down_bytes for d in calm.devices.values()] == [d.down_bytes for d in killed.devices.values()]


def test_a_coordinator_killed_while_it_closes_the_first_round_chooses_the_same_steps_after_it(
    fleets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, killed = fleets(), fleets()
    calm.round()

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(killed.journal, "close_round", die)
        with pytest.raises(KeyboardInterrupt):
            killed.round()
    killed.crash()  # all updates are journalled: it closes the round without making a Down of it again
    killed.hello()
    downs = [{name: task.down.digest for name, task in fleet.tasks().items()} for fleet in (calm, killed)]
    assert sorted(downs[0]) == list(NAMES)
    assert downs[0] == downs[1]


def test_a_device_that_asks_for_coarser_steps_is_told_less_in_the_same_round(fleets: Any) -> None:
    fleet = fleets(asks={"c": "step:4"})
    fleet.round()
    fleet.round()
    sizes = {name: device.down_bytes[-1] for name, device in fleet.devices.items()}
    assert sizes["a"] == sizes["b"] > 1.3 * sizes["c"]


def test_a_device_may_ask_for_steps_where_the_run_is_lossless_but_not_the_other_way_round(fleets: Any) -> None:
    plain, stepped = fleets(down="lossless", asks={"a": "step:1"}), fleets(asks={"a": "lossless"})
    for fleet in (plain, stepped):
        fleet.round()
        fleet.round()
    assert plain.devices["a"].down_bytes[1] < plain.devices["b"].down_bytes[1] / 4
    assert stepped.devices["a"].down_bytes == stepped.devices["b"].down_bytes


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"nonsense")])
def test_a_grid_that_is_lost_or_damaged_costs_one_whole_model(fleets: Any, damage: Any) -> None:
    calm, hurt = fleets(), fleets()
    for fleet in (calm, hurt):
        for _ in range(3):
            fleet.round()
        for path in (fleet.folder / "grids").iterdir():
            if fleet is hurt and path.name.startswith("000002"):
                damage(path)
        fleet.crash()
        fleet.hello()
        fleet.round()
    usual, again = (fleet.devices["a"].down_bytes[3] for fleet in (calm, hurt))
    assert again > 1.1 * usual
    assert np.array_equal(calm.devices["a"].model, hurt.devices["a"].model)


def test_a_device_of_another_version_of_the_wire_is_not_heard(fleets: Any, caplog: pytest.LogCaptureFixture) -> None:
    fleet = fleets()
    fleet.coordinator.handle("new", dataclasses.replace(Hello("boot"), wire=coding.WIRE_VERSION + 1))
    assert "new" not in fleet.coordinator.core.progress.known
    assert f"speaks version {coding.WIRE_VERSION + 1} of the wire" in caplog.text


def test_a_device_refuses_a_run_of_another_version_of_the_wire(fleets: Any) -> None:
    described = dataclasses.replace(fleets().run.description, wire=9)
    with pytest.raises(wire.DecodeError, match=f"version 9 of the wire, this device {coding.WIRE_VERSION}: update it"):
        setup.decode(setup.encode(described))


def test_an_update_of_any_coding_counts_in_the_same_round(fleets: Any) -> None:
    fleet = fleets()
    start = fleet.model
    for name, up in (("a", "lossless"), ("b", "bits:4"), ("c", "bf16")):
        run = fleet.devices[name].run
        fleet.devices[name].run = dataclasses.replace(run, description=dataclasses.replace(run.description, up=up))
    fleet.round()
    wanted = np.mean([np.random.default_rng([0, *n.encode()]).normal(0, 0.01, len(start)) for n in NAMES], axis=0)
    error = start - fleet.model - wanted
    assert np.sqrt(np.mean(error**2)) < 0.1 * np.sqrt(np.mean(wanted**2))


@pytest.mark.parametrize("text", ["step:0", "step:99", "bits:9", "bits:x", "int8", "lossless:1", "step"])
def test_a_coding_that_there_is_not_is_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"run: up: .* is none of lossless, bf16, step"):
        RunConfig(up=text)


def test_the_fate_of_an_update_is_told(fleets: Any) -> None:
    fleet = fleets()
    tasks = fleet.tasks()
    data = fleet.devices["a"].answer(tasks["a"], fleet.fetch("a", tasks["a"].down))
    fleet.give("a", tasks["a"], data)
    assert [m.fate for device, m in fleet.queue if isinstance(m, Fate)] == ["applied"]


@pytest.mark.parametrize("asks", ["bits:9", "step:0", "int8"])
def test_a_device_that_asks_for_a_coding_that_there_is_not_is_not_heard(
    fleets: Any, asks: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = fleets()
    fleet.coordinator.handle("new", Hello("boot", asks))
    assert "new" not in fleet.coordinator.core.progress.known
    assert f"dropped from new: down: '{asks}'" in caplog.text


def test_a_device_that_asks_for_what_a_model_does_not_take_is_told_as_the_others(
    fleets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = fleets(asks={"c": "bits:2"})
    assert "device c asks for bits:2, which this run has not" in caplog.text
    assert len({task.down.digest for task in fleet.tasks().values()}) == 1


@pytest.mark.parametrize(
    ("asked", "model", "posteriors"),
    [("lossless", True, True), ("bf16", True, False), ("step:1", True, False), ("bits:4", False, True)],
)
def test_a_coding_suits_a_model_or_posteriors(asked: str, model: bool, posteriors: bool) -> None:
    assert coding.suits(coding.parse(asked, "x"), True) is model
    assert coding.suits(coding.parse(asked, "x"), False) is posteriors


def test_a_task_that_is_repeated_is_not_encoded_again(fleets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = fleets("fedspa", FEDSPA)
    before = {name: task.down for name, task in fleet.tasks().items()}
    encoded = []
    downlink = fleet.coordinator._downlink
    encode = downlink.encode
    monkeypatch.setattr(downlink, "encode", lambda device, *how: (encoded.append(device), encode(device, *how))[1])
    fleet.coordinator.tick()
    assert {name: task.down for name, task in fleet.tasks().items()} == before
    assert encoded == []
    fleet.coordinator.handle("b", Hello("boot"))
    assert fleet.tasks()["b"].down == before["b"]
    assert encoded == []


@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize(("name", "settings"), [("fedavg", {}), ("fedspa", FEDSPA), ("fedasync", {})])
def test_a_device_that_asks_anew_while_its_update_is_on_the_way_is_told_so_from_its_next_task_on(
    fleets: Any, name: str, settings: dict[str, Any], crashes: bool
) -> None:
    fleet = fleets(name, settings)
    for _ in range(2):
        fleet.round()
    tasks = fleet.tasks()
    received = {device: fleet.fetch(device, tasks[device].down) for device in NAMES}
    answers = {device: fleet.devices[device].answer(tasks[device], received[device]) for device in NAMES}
    fleet.asks = {"c": "step:4"}
    if crashes:
        fleet.crash()
    fleet.hello()
    assert fleet.tasks()["c"].down.digest == tasks["c"].down.digest
    for device in NAMES:
        fleet.give(device, tasks[device], answers[device])
    fleet.round()  # a wrong guess of what the device holds would be refused
    steps = [fleet.devices[device].account.held.exponents.astype(int) for device in NAMES]
    if name != "fedasync":  # there, the devices are told of different versions
        assert (steps[2] == steps[0] + 3).all()
    assert (steps[2] > steps[0]).all()
