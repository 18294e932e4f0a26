"""Who takes part in a run, as another process reads it."""

import json
from pathlib import Path

import pytest

from edge_runtime import config
from edge_runtime.coordinator import presence, session
from edge_runtime.coordinator.presence import Presence
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.simulate import Scene
from edge_runtime.data import DataConfig, device_names
from edge_runtime.message import Hello

DATA = DataConfig(parts=2, labels_per_class=3)
NAMES = device_names(DATA)


def play(folder: Path, watch: object = lambda coordinator: None) -> None:
    run = prepare(RunConfig(rounds=1, devices=2), {"local-epochs": 1})
    hellos = {NAMES[0]: Hello("boot", backend="onnx", room=5_000_000, step_ms=9)}
    session.in_memory(run, Scene(DATA, NAMES, config.cache_folder(), hellos=hellos), folder, watch)  # type: ignore[arg-type]


def test_a_run_leaves_what_devices_said_of_themselves_and_when_they_were_seen(tmp_path: Path) -> None:
    play(tmp_path)
    found = presence.read(tmp_path)
    assert found is not None
    assert sorted(found.devices) == NAMES
    one = found.devices[NAMES[0]]
    assert (one.profile["backend"], one.profile["room_bytes"], one.profile["step_ms"]) == ("onnx", 5_000_000, 9)
    assert [found.devices[name].state for name in NAMES] == ["unfit", "idle"]
    assert one.seen is not None
    assert found.written - 60 < one.seen <= found.written


def test_it_is_written_once_a_period_and_a_silent_device_keeps_its_time(tmp_path: Path) -> None:
    times, held = [100.0], []

    def watch(coordinator: Coordinator) -> None:
        held.append(coordinator)

    play(tmp_path / "run", watch)
    coordinator = held[-1]
    kept = Presence(tmp_path, lambda: 5000.0 + times[0], lambda: times[0])
    kept.note(coordinator)
    coordinator.heard.add(NAMES[1])
    kept.note(coordinator)  # too soon
    assert (found := presence.read(tmp_path)) is not None
    assert [found.devices[name].seen for name in NAMES] == [5100.0, 5100.0]
    times[0] = 102.0
    coordinator.heard.add(NAMES[1])
    kept.note(coordinator)
    assert (found := presence.read(tmp_path)) is not None
    assert [found.devices[name].seen for name in NAMES] == [5100.0, 5102.0]


def test_a_coordinator_that_was_started_anew_goes_on_from_what_was_there(tmp_path: Path) -> None:
    record = {"written": 7.0, "devices": {"gone": {"state": "done", "seen": 6.0}}, "dropped": {}}
    (tmp_path / presence.NAME).write_text(json.dumps(record))
    play(tmp_path)
    found = presence.read(tmp_path)
    assert found is not None
    assert found.devices["gone"].seen == 6.0


@pytest.mark.parametrize(
    "data", ["", "[]", "nonsense", '{"written": 1}', '{"written":1,"devices":{"a":{"x":1}},"dropped":{}}']
)
def test_what_is_no_such_file_is_as_if_it_were_not_there(tmp_path: Path, data: str) -> None:
    (tmp_path / presence.NAME).write_text(data)
    assert presence.read(tmp_path) is None


def test_a_disk_that_does_not_take_it_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / presence.NAME / "in the way").mkdir(parents=True)
    play(tmp_path)
    assert (tmp_path / "model.bin").exists()
    assert "cannot be written" in caplog.text
