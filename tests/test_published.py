"""`edge-agent measure --publish`: what is left in a store, what is said of it, and what a coordinator keeps."""

import contextlib
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import published
from edge_runtime.coordinator import profiles
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.device import Device
from edge_runtime.devices.profile import profile
from edge_runtime.measure_process import Measurement
from edge_runtime.message import MAX_CONTROL_BYTES, Hello, Message, Noted, Profile, Welcome, encode
from edge_runtime.store import FileStore, MemoryStore
from tests.coordinator.test_server import Told
from tests.ward import AGENT, COORDINATOR, Ward

MEASURED = Measurement(
    model="/home/somebody/bundles/net",
    backend="onnx",
    device="cpu",
    threads=1,
    arena=True,
    batch=8,
    steps=2,
    density=1.0,
    parameters=100,
    active=100,
    floor_bytes=1_200,
    baseline_rss_bytes=50,
    loaded_rss_bytes=60,
    training_peak_rss_bytes=70,
    peak_rss_bytes=80,
    over_baseline_bytes=20,
    peak_was_reset=True,
    import_s=0.1,
    load_s=0.1,
    first_step_ms=9.0,
    step_ms_p10=1.0,
    step_ms_median=2.5,
    step_ms_p90=3.0,
    step_cpu_ms=2.0,
    reference_ms=0.75,
    step=2.7,
    step_energy_j=0.0125,
    power="pmic: all rails",
)


def made(**changes: Any) -> Profile:
    board = dataclasses.replace(profile(), board="Raspberry Pi 5\nModel B", **changes)
    return published.made_of(board, [dataclasses.replace(MEASURED, step_ms_median=4.0), MEASURED], 30_000_000, "1.2")


class Silent:
    def start(self, task: object) -> None:
        raise AssertionError("no task was given")


def device(store: MemoryStore) -> tuple[Device, list[Message]]:
    said: list[Message] = []
    return Device(store, Silent(), lambda message: not said.append(message), Hello("boot"), lambda run: {}), said


def test_a_profile_names_the_board_the_fastest_backend_and_nobodys_folders() -> None:
    found = made()
    assert (found.board, found.model, found.backend) == ("Raspberry Pi 5Model B", "net", "onnx")
    assert (found.step_us, found.reference_us, found.step_uj, found.power) == (2500, 750, 12_500, "pmic: all rails")
    assert found.digest != made(cores=99).digest
    assert found == made()


def test_the_longest_profile_fits_into_a_message() -> None:
    long = made(cpu="c" * 500, os="o" * 500, kernel="k" * 500, accelerators=tuple(f"nvidia{n}" for n in range(64)))
    assert len(encode(long)) < MAX_CONTROL_BYTES / 2


def test_a_profile_is_read_back_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    published.write(tmp_path / "store", made())
    store = FileStore(tmp_path / "store")
    assert store.profile() == made()
    (tmp_path / "store" / "profile").write_bytes(encode(made())[:-1])
    assert store.profile() is None
    (tmp_path / "store" / "profile").write_bytes(encode(Welcome("run")))
    assert store.profile() is None
    store.close()


def test_a_device_says_it_to_each_run_until_it_is_noted() -> None:
    store = MemoryStore()
    store.introduces = made()
    mine, said = device(store)
    mine.tick()
    assert not [one for one in said if isinstance(one, Profile)], "there is no run yet"
    mine.handle(Welcome("first"))
    mine.handle(Welcome("first"))
    mine.tick()
    mine.handle(Noted("first", made().digest))
    mine.tick()
    assert [one for one in said if isinstance(one, Profile)] == [made()] * 2
    mine.handle(Welcome("second"))
    mine.handle(Noted("second", "0" * 64))
    mine.tick()
    assert len([one for one in said if isinstance(one, Profile)]) == 4


def test_a_device_without_one_says_none() -> None:
    mine, said = device(MemoryStore())
    mine.handle(Welcome("first"))
    mine.tick()
    assert not [one for one in said if isinstance(one, Profile)]


def test_what_a_coordinator_keeps_says_none_where_it_is_not_known(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    (folder / "profiles").mkdir(parents=True)
    (folder / "journal.sqlite").touch()
    (folder / "profiles" / "left.json").write_bytes(encode(dataclasses.replace(made(), board="", step_uj=0)))
    (folder / "profiles" / "bad.json").write_bytes(b"{")
    found = profiles.read(folder)
    assert found.keys() == profiles.newest(tmp_path / "runs").keys() == {"left"}
    assert (found["left"]["board"], found["left"]["step_uj"], found["left"]["step_us"]) == (None, None, 2500)
    assert "net on onnx: 2.5 ms a step" in profiles.line(found["left"])
    json.dumps(found)


def test_a_coordinator_notes_what_devices_say_that_it_has_heard_of_and_not_without_end(tmp_path: Path) -> None:
    run, journal, post = prepare(RunConfig("fedavg", devices=2), {}), Journal(tmp_path), Told()
    coordinator = Coordinator(run.plan("run", 1), run, journal, post)
    coordinator.handle("left", made())
    assert (post.told, profiles.read(tmp_path)) == ([], {})
    coordinator.handle("left", Hello("boot"))
    coordinator.handle("left", made())
    assert ("left", Noted("run", made().digest)) in post.told
    assert profiles.read(tmp_path)["left"]["cores"] == made().cores
    for cores in range(1, 40):
        coordinator.handle("left", made(cores=1000 + cores))
    journal.close()
    assert profiles.read(tmp_path)["left"]["cores"] == 1015
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == ["left.json"]


def hot_machine(folder: Path) -> list[str]:
    """Give words before a command that let it see a hot processor, held back, in /sys; none where that may not be."""
    zone, cooling = folder / "thermal_zone0", folder / "cooling_device0"
    for place, files in (
        (zone, {"type": "cpu", "temp": "63500"}),
        (cooling, {"type": "cpufreq-cpu0", "cur_state": "2"}),
    ):
        place.mkdir(parents=True)
        for name, text in files.items():
            (place / name).write_text(f"{text}\n")
    script = f'mount --bind {folder} /sys/class/thermal && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    seen = subprocess.run([*before, "ls", "/sys/class/thermal"], capture_output=True, check=False)
    return before if seen.stdout.split() == [b"cooling_device0", b"thermal_zone0"] else []


@pytest.mark.slow
def test_what_is_measured_on_a_device_stands_in_the_report_and_in_the_list(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        ward = Ward(tmp_path, stack)
        ward.enrolled("left")
        ward.broker("amqtt")
        flags = ["--model", "linear", "--backend", "numpy", "--batch", "4", "--steps", "2", "--publish", "--json"]
        code, out, said = ward.run(AGENT, "measure", *flags)
        assert (code, "the agent of this device tells it to every run" in said) == (0, True), said
        measured = json.loads(out)
        before = hot_machine(tmp_path / "thermal")
        ward.start(AGENT, "start", "--data", str(ward.data()), "--backend", "numpy", "--verbose", before=before)
        run = ["--algorithm", "fedavg", "--rounds", "12", "--json", "--set", "run.devices=1", "--folder", "runs/first"]
        run += ["--set", "algorithm.local-steps=1", "--set", "run.model='watch-mlp'"]
        code, out, said = ward.run(COORDINATOR, "start", *run)
        assert code == 0, said
        (told,) = json.loads(out)["devices"]
        assert told["profile"]["step_us"] == round(1000 * measured["measurements"][0]["step_ms_median"])
        assert told["profile"]["cpu"] == measured["profile"]["cpu"]
        assert (told["profile"]["model"], told["profile"]["backend"]) == ("linear", "numpy")
        _, out, _ = ward.run(COORDINATOR, "device", "list", "--json")
        assert json.loads(out)[0]["profile"] == told["profile"]
        if before:
            assert (told["temperature_c"], told["throttled"]) == (63.5, 1.0)
        _, out, _ = ward.run(COORDINATOR, "device", "list")
        assert "linear on numpy" in out
