"""What every algorithm in the package must do, whichever it is."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, config, wire
from edge_runtime.compression import codec
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.tree import Part

pytestmark = pytest.mark.parametrize("name", algorithm.names())
Make = Callable[..., Any]


def same(one: Any, other: Any) -> bool:
    pairs = [(getattr(one, entry.name), getattr(other, entry.name)) for entry in dataclasses.fields(one)]
    return all(type(a) is type(b) and (same(a, b) if isinstance(a, Part) else np.array_equal(a, b)) for a, b in pairs)


def shared_bytes(fleet: Any) -> bytes:
    shared = fleet.server.shared()
    return b"" if shared is None else bytes(shared.tobytes())


def bits(fleet: Any) -> tuple[bytes, bytes, dict[str, bytes]]:
    return shared_bytes(fleet), codec.encode_state(fleet.server.state()), dict(fleet.devices)


def test_its_default_settings_stand_and_go_through_a_table(name: str) -> None:
    parts = algorithm.load(name)
    assert config.build(parts.Config, config.table(parts.Config()), "algorithm") == parts.Config()


def test_an_unknown_key_is_refused_with_the_nearest_one(name: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'batch-size'"):
        config.build(algorithm.load(name).Config, {"batchsize": 3}, "algorithm")


def test_messages_come_through_their_bytes_unchanged(name: str, new_fleet: Make) -> None:
    fleet = new_fleet(name)
    down = fleet.server.down("device-1", True)
    up = fleet.client("device-1").round(down, fleet.batches("device-1"))
    assert same(fleet.decoded(wire.encode(down), fleet.parts.Down), down)
    assert same(fleet.decoded(wire.encode(up), fleet.parts.Up), up)


def test_a_down_is_the_same_whenever_it_is_asked_within_a_round(name: str, new_fleet: Make) -> None:
    fleet = new_fleet(name)
    fleet.round()
    asked = {device: (fleet.down(device), fleet.server.down(device, True)) for device in fleet.data}
    for device in fleet.data:
        fleet.absorb(device, fleet.train(device)[0])
        assert all(fleet.down(other) == asked[other][0] for other in fleet.data)
        assert all(same(fleet.server.down(other, True), asked[other][1]) for other in fleet.data)


def test_a_down_that_is_changed_by_its_reader_does_not_change_the_model(name: str, new_fleet: Make) -> None:
    fleet = new_fleet(name)
    before = bits(fleet)
    down = fleet.server.down("device-0", True)
    fleet.client("device-0").round(down, fleet.batches("device-0"))
    for value in vars(down).values():
        for array in (value, getattr(value, "values", None)):
            if isinstance(array, np.ndarray):
                array[:] = 99
    if fleet.server.shared() is not None:
        fleet.server.shared()[:] = 99
    assert bits(fleet) == before


def test_a_round_that_is_done_again_gives_the_same_bytes(name: str, new_fleet: Make) -> None:
    fleet = new_fleet(name)
    fleet.round()
    assert fleet.train("device-2") == fleet.train("device-2")


def test_the_order_of_arrival_does_not_change_one_bit(name: str, new_fleet: Make) -> None:
    outcomes = []
    for order in itertools.islice(itertools.permutations(["device-0", "device-1", "device-2", "device-3"]), 0, 24, 5):
        fleet = new_fleet(name)
        for _ in range(2):
            fleet.round(order)
        outcomes.append(bits(fleet))
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_a_server_resumes_from_its_state_to_identical_bits(name: str, new_fleet: Make) -> None:
    straight, resumed = new_fleet(name), new_fleet(name)
    for _ in range(2):
        straight.round()
        resumed.round()
    state = codec.encode_state(resumed.server.state())
    resumed.server = resumed.new_server()
    resumed.server.restore(codec.decode_state(state, 4 * resumed.model.layout.size))
    for _ in range(2):
        straight.round(["device-1", "device-3"])
        resumed.round(["device-1", "device-3"])
    assert resumed.server.round == 4
    assert bits(resumed) == bits(straight)


def test_updates_that_are_absorbed_again_after_a_crash_count_once(name: str, new_fleet: Make) -> None:
    straight, crashed = new_fleet(name), new_fleet(name)
    straight.round()
    crashed.round()
    checkpoint = crashed.server.state()
    checkpoint = codec.decode_state(codec.encode_state(checkpoint), 4 * crashed.model.layout.size)
    done = {device: crashed.train(device) for device in crashed.data}
    for device in ("device-2", "device-0"):
        crashed.absorb(device, done[device][0])
    crashed.server = crashed.new_server()  # the sums are gone, what was written into `devices` is not
    crashed.server.restore(checkpoint)
    for device in crashed.data:
        assert crashed.train(device) == done[device]
        crashed.absorb(device, done[device][0])
    crashed.server.close()
    straight.round()
    assert bits(crashed) == bits(straight)


def test_a_device_that_lost_its_state_starts_over_and_goes_on(name: str, new_fleet: Make) -> None:
    fleet = new_fleet(name)
    for _ in range(2):
        fleet.round()
    del fleet.states["device-1"]
    before = len(shared_bytes(fleet))
    for _ in range(2):
        fleet.round()
    assert len(shared_bytes(fleet)) == before
    assert "device-1" in fleet.states


def test_a_client_shows_its_model_before_and_after_training(name: str, new_fleet: Make) -> None:
    fleet = new_fleet(name)
    fleet.round()
    down, client = fleet.decoded(fleet.down("device-1"), fleet.parts.Down), fleet.client("device-1")
    shared, before = client.shared(down), client.personal(down).dense().copy()
    client.round(down, fleet.batches("device-1"))
    size = fleet.model.layout.size
    assert shared is None or shared.shape == (size,)
    assert before.shape == client.personal(None).dense().shape == (size,)
    assert not np.array_equal(before, client.personal(None).dense())
    assert np.array_equal(before, fleet.client("device-1").personal(down).dense())


def spoiled(up: Any) -> list[Any]:
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
            wrong += [dataclasses.replace(up, **{entry.name: part}) for part in spoiled(value)]
    return wrong


def test_an_unfit_update_is_refused_and_changes_nothing(name: str, new_fleet: Make) -> None:
    clean, fleet = new_fleet(name), new_fleet(name)
    clean.round()
    fleet.round()
    good = {device: fleet.train(device) for device in fleet.data}
    for device, (up, _) in good.items():
        wrong = spoiled(fleet.decoded(up, fleet.parts.Up))
        assert wrong
        for bad in wrong:
            with pytest.raises(DecodeError):
                fleet.server.absorb(device, bad)
        fleet.absorb(device, up)
    fleet.server.close()
    clean.round()
    assert bits(fleet) == bits(clean)


def test_an_unfit_down_is_refused(name: str, new_fleet: Make) -> None:
    fleet = new_fleet(name)
    down = fleet.server.down("device-0", True)
    wrong = [dataclasses.replace(down, round=-1)]
    for entry in dataclasses.fields(down):
        value = getattr(down, entry.name)
        if isinstance(value, np.ndarray):
            wrong += [dataclasses.replace(down, **{entry.name: part}) for part in (value[:-1], np.append(value, value))]
        elif isinstance(value, bytes):
            wrong.append(dataclasses.replace(down, **{entry.name: b"\x07nonsense"}))
        elif isinstance(value, Part):
            parts = [Part(value.tensors, np.append(value.values, np.float32(1))), Part(b"\x07nonsense", value.values)]
            wrong += [dataclasses.replace(down, **{entry.name: part}) for part in parts]
    for bad in wrong:
        with pytest.raises(DecodeError):
            fleet.client("device-0").round(bad, fleet.batches("device-0"))


def test_a_round_that_nobody_answered_leaves_the_model(name: str, new_fleet: Make) -> None:
    fleet = new_fleet(name)
    fleet.round()
    before = shared_bytes(fleet)
    fleet.server.close()
    assert shared_bytes(fleet) == before
    assert fleet.server.round == 2
