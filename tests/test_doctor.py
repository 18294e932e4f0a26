"""`edge-agent doctor` where things are broken: each for its real cause, at a real broker."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from edge_runtime import checkup, doctor, identity, station
from edge_runtime.checkup import Check, bad, good, warn
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import pki
from edge_runtime.errors import ConfigError
from edge_runtime.store import FileStore
from tests.ward import COORDINATOR, Ward, verdicts

needs_mosquitto = pytest.mark.skipif(brokers.find_mosquitto() is None, reason="mosquitto is not installed")
needs_faketime = pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
LINKS = ("--only", "coordinator", "--only", "may-not", "--only", "speed", "--only", "clock", "--only", "certificate")
KINDS = ["amqtt", pytest.param("mosquitto", marks=needs_mosquitto)]


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    with contextlib.ExitStack() as stack:
        yield Ward(tmp_path, stack)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_to_which_nothing_is_wanting_is_told_so(kind: str, ward: Ward) -> None:
    ward.enrolled("left")
    ward.broker(kind)
    code, found = ward.doctor("--data", str(ward.data()), "--backend", "numpy")
    told = {name: check for name, check in found.items() if check["verdict"] != "PASS"}
    # No run is on; and a machine of tests may have any memory and disk.
    assert told.keys() - {"memory", "disk", "hardware"} == {"coordinator"}, told
    assert told["coordinator"]["verdict"] == "WARN"
    assert code == 0
    assert list(found) == [check.name for check in doctor.CHECKS]
    assert found["packet"]["figures"]["largest_bytes"] == 120_000
    assert 0 < found["speed"]["figures"]["round_trip_ms"] < 5_000
    assert found["data"]["figures"] == {"train_samples": 20, "test_samples": 20, "classes": 2}


def test_without_a_broker_the_rest_is_not_tried(ward: Ward) -> None:
    ward.enrolled("left")
    code, found = ward.doctor(*LINKS)
    assert code == 3
    assert f"no broker answers at 127.0.0.1:{ward.port} (connection refused)" in found["broker"]["seen"]
    assert verdicts(found)["clock"] == "PASS"
    rest = {name: found[name]["verdict"] for name in ("tls", "login", "may", "may-not", "speed", "coordinator")}
    assert set(rest.values()) == {"SKIP"}
    assert "see broker" in found["tls"]["seen"]


def test_something_else_at_the_brokers_port_is_no_broker(ward: Ward) -> None:
    with socket.create_server(("127.0.0.1", ward.port)):
        code, found = ward.doctor("--id", "left", "-p", str(ward.port), "--only", "login")
    assert (code, found["broker"]["verdict"], found["login"]["verdict"]) == (3, "PASS", "FAIL")
    assert "does not answer as an MQTT broker would" in found["login"]["seen"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_of_another_authority_is_named(kind: str, ward: Ward) -> None:
    ward.enrolled("left", pki.create(ward.folder / "other", "default", ["127.0.0.1"], ward.port))
    ward.broker(kind)
    code, found = ward.doctor("--only", "login")
    assert (code, found["tls"]["verdict"], found["login"]["verdict"]) == (3, "FAIL", "SKIP")
    assert "is not accepted" in found["tls"]["seen"]
    assert "it shows CN=broker, by CN=edge fleet default" in found["tls"]["seen"]


@needs_mosquitto
def test_a_certificate_that_ended_is_named_by_both_sides(ward: Ward) -> None:
    key, certificate = ward.fleet.issue("left", 0, ExtendedKeyUsageOID.CLIENT_AUTH, ())
    files = ward.fleet.identity_of("left", key, certificate)
    theirs = (ward.fleet.coordinator / identity.CERTIFICATE).read_bytes()
    ward.installed("left", identity.pack({**files, identity.COORDINATOR: theirs}))
    ward.broker()
    code, found = ward.doctor("--only", "certificate", "--only", "login")
    assert code == 2
    assert found["certificate"]["verdict"] == found["tls"]["verdict"] == "FAIL"
    assert "the certificate of left in fleet default ended on" in found["certificate"]["seen"]
    assert "device enroll left --again" in found["certificate"]["todo"]
    assert "this side's certificate has ended" in found["tls"]["todo"]


def test_a_brokers_certificate_that_ended_is_named(ward: Ward) -> None:
    ward.enrolled("left")
    key, certificate = ward.fleet.issue("broker", 0, ExtendedKeyUsageOID.SERVER_AUTH, ["127.0.0.1"])
    (ward.fleet.broker / identity.KEY).write_bytes(key)
    (ward.fleet.broker / identity.CERTIFICATE).write_bytes(pki.pem(certificate))
    ward.broker("amqtt")
    code, found = ward.doctor("--only", "tls")
    assert (code, found["tls"]["verdict"]) == (3, "FAIL")
    assert "certificate has expired" in found["tls"]["seen"]


@needs_mosquitto
def test_a_device_that_was_revoked_is_told_so(ward: Ward) -> None:
    ward.enrolled("left")
    ward.fleet.revoke("left")
    ward.broker()
    code, found = ward.doctor("--only", "login")
    assert (code, found["tls"]["verdict"]) == (3, "FAIL")
    assert "left was taken out of the fleet" in found["tls"]["todo"]


def test_the_embedded_broker_lets_in_nobody_who_was_revoked(ward: Ward) -> None:
    ward.enrolled("left")
    ward.fleet.revoke("left")
    ward.broker("amqtt")
    code, found = ward.doctor("--only", "login")
    assert (code, found["login"]["verdict"]) == (3, "FAIL")
    assert "revoked" in found["login"]["seen"]


@needs_mosquitto
def test_a_broker_that_lets_everybody_do_everything_fails_a_device_with_an_identity(ward: Ward) -> None:
    ward.enrolled("left")
    ward.mosquitto(rules=None)
    code, found = ward.doctor("--only", "may-not")
    assert (code, found["may"]["verdict"], found["may-not"]["verdict"]) == (3, "PASS", "FAIL")
    for leak in ("hear what others are told", "speak for another device", "speak for the coordinator"):
        assert leak in found["may-not"]["seen"]


@needs_mosquitto
@pytest.mark.parametrize(
    ("extra", "leak"),
    [
        ("pattern read edge/default/ask/#", "hear what others are told"),
        ("pattern write edge/default/peer/#", "speak for another device"),
        ("pattern write edge/default/all/#", "speak for the coordinator"),
    ],
)
def test_one_rule_too_many_is_found(extra: str, leak: str, ward: Ward) -> None:
    ward.enrolled("left")
    ward.mosquitto(rules=f"{ward.usual_rules()}{extra}\n")
    _, found = ward.doctor("--only", "may-not")
    assert found["may-not"]["verdict"] == "FAIL"
    assert found["may-not"]["seen"] == f"the broker lets 'left' {leak}"


@needs_mosquitto
def test_one_rule_too_few_is_found(ward: Ward) -> None:
    ward.enrolled("left")
    kept = [line for line in ward.usual_rules().splitlines() if "write edge/default/ask/" not in line]
    ward.mosquitto(rules="\n".join(kept) + "\n")
    code, found = ward.doctor("--only", "may-not")
    assert (code, found["may"]["verdict"], found["may-not"]["verdict"]) == (3, "FAIL", "SKIP")
    assert "what 'left' says on edge/default/ask/left/left does not come back" in found["may"]["seen"]
    assert "broker-config" in found["may"]["todo"]


def test_in_clear_on_this_machine_an_open_broker_is_a_warning(ward: Ward) -> None:
    made = brokers.start("amqtt", "127.0.0.1", ward.port, folder=ward.folder / "broker")
    ward.stack.enter_context(made)
    code, found = ward.doctor("--id", "left", "-p", str(ward.port), "--only", "may-not", "--only", "tls")
    assert (code, found["may-not"]["verdict"], found["identity"]["verdict"]) == (0, "WARN", "WARN")
    assert "in clear" in found["tls"]["seen"]


def test_a_link_that_others_could_read_is_refused_and_not_tried(ward: Ward) -> None:
    code, found = ward.doctor("--id", "left", "-h", "broker.example", "--only", "broker")
    assert (code, found["identity"]["verdict"], found["broker"]["verdict"]) == (2, "FAIL", "SKIP")
    assert "would be in clear" in found["identity"]["seen"]


@needs_mosquitto
def test_larger_packets_that_vanish_without_a_word_are_a_failure(ward: Ward) -> None:
    ward.enrolled("left")
    ward.mosquitto("message_size_limit 20000", rules=ward.usual_rules())
    code, found = ward.doctor("--only", "packet")
    assert (code, found["packet"]["verdict"]) == (3, "FAIL")
    assert "vanishes without a word" in found["packet"]["seen"]
    assert "[run] chunk-bytes = 16384" in found["packet"]["todo"]


@needs_mosquitto
def test_a_broker_that_hangs_up_on_larger_packets_is_a_warning(ward: Ward) -> None:
    ward.enrolled("left")
    ward.mosquitto("max_packet_size 20000", rules=ward.usual_rules())
    code, found = ward.doctor("--only", "packet")
    assert (code, found["packet"]["verdict"]) == (0, "WARN")
    assert "hangs up on more" in found["packet"]["seen"]
    assert found["packet"]["figures"]["largest_bytes"] == 16_384 + 42


@needs_mosquitto
def test_a_broker_that_takes_hardly_anything_fails(ward: Ward) -> None:
    ward.enrolled("left")
    ward.mosquitto("message_size_limit 500", rules=ward.usual_rules())
    code, found = ward.doctor("--only", "packet")
    assert (code, found["packet"]["verdict"]) == (3, "FAIL")
    assert "not even 1,066 bytes come through" in found["packet"]["seen"]


@needs_faketime
def test_a_clock_that_begins_in_1970_is_a_warning_and_the_link_is_tried_all_the_same(ward: Ward) -> None:
    ward.enrolled("left")
    ward.broker("amqtt")
    only = ("--only", "clock", "--only", "tls")
    code, found = ward.doctor(*only, before=["faketime", "1970-01-02 00:00:00"])
    assert (code, found["clock"]["verdict"], found["tls"]["verdict"]) == (0, "WARN", "PASS")
    assert "this machine's clock says 1970-01-02" in found["clock"]["seen"]
    assert "set the clock" in found["clock"]["todo"]


@needs_faketime
def test_a_clock_that_is_ahead_of_all_certificates_is_told_with_them(ward: Ward) -> None:
    ward.enrolled("left")
    ward.broker("amqtt")
    code, found = ward.doctor("--only", "certificate", "--only", "tls", before=["faketime", "2060-01-01 00:00:00"])
    assert (code, found["certificate"]["verdict"], found["tls"]["verdict"]) == (2, "FAIL", "FAIL")
    assert "this machine's clock says 2060-01-01" in found["tls"]["seen"]


def test_an_identity_that_cannot_be_read_is_a_failure_and_the_device_is_looked_at_all_the_same(ward: Ward) -> None:
    held = ward.enrolled("left").key
    held.write_bytes(b"no key")
    code, found = ward.doctor("--only", "identity", "--only", "data", "--data", str(ward.data()))
    assert (code, found["identity"]["verdict"], found["data"]["verdict"]) == (2, "FAIL", "PASS")
    assert "do not belong together" in found["identity"]["seen"]
    held.chmod(0o644)
    _, found = ward.doctor("--only", "identity")
    assert "others may read this key" in found["identity"]["seen"]


def test_an_agent_that_is_at_work_keeps_its_connection(ward: Ward) -> None:
    ward.enrolled("left")
    ward.broker("amqtt")
    store = FileStore(ward.folder / "state" / "edge-runtime" / "devices" / "left")
    code, found = ward.doctor("--only", "may")
    assert (code, found["running"]["verdict"], found["login"]["verdict"]) == (0, "WARN", "SKIP")
    assert f"process {os.getpid()}" in found["running"]["seen"]
    _, found = ward.doctor("--only", "may", "--take-over")
    store.close()
    assert (found["running"]["verdict"], found["may"]["verdict"]) == ("WARN", "PASS")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_coordinator_answers_and_its_run_hears_of_no_device(kind: str, ward: Ward) -> None:
    who = ward.enrolled("left")
    ward.broker(kind)
    run = ["--folder", "run", "--algorithm", "fedavg", "--rounds", "1", "--set", "run.devices=1", "--no-baseline"]
    ward.start(COORDINATOR, "start", *run)
    deadline_s = time.monotonic() + 30
    while True:
        code, found = ward.doctor("--only", "coordinator")
        if found["coordinator"]["verdict"] == "PASS" or time.monotonic() > deadline_s:
            break
    assert (code, found["coordinator"]["verdict"]) == (0, "PASS"), (ward.folder / "start.log").read_text()
    _, out, _ = ward.run(COORDINATOR, "run", "show", "run", "--json")
    assert '"devices": 0' in out
    assert who.coordinator is not None
    other = pki.create(ward.folder / "other", "default", ["127.0.0.1"])
    who.coordinator.write_bytes((other.coordinator / identity.CERTIFICATE).read_bytes())
    code, found = ward.doctor("--only", "coordinator")
    assert (code, found["coordinator"]["verdict"]) == (3, "FAIL")
    assert "enrol this device again" in found["coordinator"]["todo"]


DATA = ("--id", "left", "--only", "data", "--data")


def test_data_that_are_not_there_damaged_or_of_the_wrong_shape_are_named(ward: Ward) -> None:
    x = np.zeros((20, 6, 100), np.float32)
    holes = x.copy()
    holes[3] = np.nan
    cases = {
        "flat": ({"x": np.zeros(20, np.float32)}, "x must be numbers [samples, ...]"),
        "short": ({"y": np.zeros(7, np.int64)}, "y has 7 labels for the 20 samples"),
        "other": ({"x": np.zeros((20, 3, 50), np.float32)}, "but (3, 50) in train.npz; make them alike"),
        "holes": ({"x": holes}, "x holds a NaN or infinity in sample 3"),
        "texts": ({"y": np.array(["a"] * 20)}, "y must be whole numbers"),
    }
    for name, (changes, words) in cases.items():
        code, found = ward.doctor(*DATA, str(ward.data(name, **changes)))
        assert (code, found["data"]["verdict"]) == (2, "FAIL")
        assert words in found["data"]["seen"]
    cut = ward.data("cut") / "train.npz"
    cut.write_bytes(cut.read_bytes()[:500])
    for folder, words in (
        (str(cut.parent), "train.npz: cannot be read"),
        ("none", "is neither a data set nor a folder"),
    ):
        code, found = ward.doctor(*DATA, folder)
        assert code == 2
        assert words in found["data"]["seen"]


def test_data_that_only_say_little_are_a_warning(ward: Ward) -> None:
    _, found = ward.doctor(*DATA, str(ward.data("few", samples=4)))
    assert (found["data"]["verdict"], found["data"]["todo"]) == ("WARN", "fewer than 10 tell little: collect more")
    _, found = ward.doctor(*DATA, str(ward.data("one", y=np.zeros(20, np.int64), classes=np.int64(2))))
    assert found["data"]["verdict"] == "WARN"
    assert "samples of one class" in found["data"]["todo"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become nobody")
def test_data_that_this_user_may_not_read_are_named() -> None:
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:  # pytest's own is for its user alone
        Path(place).chmod(0o755)
        ward = Ward(Path(place), stack)
        data = ward.data()
        (data / "train.npz").chmod(0o600)
        home = ward.folder / "nobody"
        home.mkdir()
        home.chmod(0o777)
        before = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        homes = {"XDG_STATE_HOME": str(home), "XDG_CACHE_HOME": str(home)}
        code, found = ward.doctor(*DATA, str(data), "--only", "disk", "--store", str(ward.folder / "fleet"),
                                  before=before, **homes)  # fmt: skip
        assert (code, found["data"]["verdict"], found["disk"]["verdict"]) == (4, "FAIL", "FAIL")
        assert "Permission denied" in found["data"]["seen"]
        assert "nothing can be written (Permission denied)" in found["disk"]["seen"]
        home.chmod(0o700)
        code, found = ward.doctor("--id", "left", "--only", "identity", before=before, **homes)
        assert (code, found["identity"]["verdict"]) == (2, "FAIL")
        assert "Permission denied" in found["identity"]["seen"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_a_failure(ward: Ward, small_disk: Path) -> None:
    with contextlib.suppress(OSError), (small_disk / "full").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    code, found = ward.doctor("--id", "left", "--only", "disk", "--store", str(small_disk / "store"))
    assert (code, found["disk"]["verdict"]) == (4, "FAIL")
    assert "nothing can be written (No space left on device)" in found["disk"]["seen"]
    assert [path.name for path in small_disk.iterdir()] == ["full"]


def test_a_disk_with_little_room_fails_before_it_is_full(ward: Ward, small_disk: Path) -> None:
    code, found = ward.doctor("--id", "left", "--only", "disk", "--store", str(small_disk / "store"))
    assert (code, found["disk"]["verdict"]) == (4, "FAIL")
    assert "1 MB free" in found["disk"]["seen"]
    assert not list(small_disk.iterdir())


def overlay(ward: Ward, files: dict[str, str]) -> str:
    """Put modules before the installed ones; gives what PYTHONPATH must be."""
    for name, text in files.items():
        path = ward.folder / "overlay" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return f"{ward.folder / 'overlay'}:{ward.environment.get('PYTHONPATH', '')}"


BACKENDS = ("--id", "left", "--only", "backends")


def test_every_installed_backend_makes_a_step_as_numpy_does(ward: Ward) -> None:
    code, found = ward.doctor(*BACKENDS)
    assert (code, found["backends"]["verdict"]) == (0, "PASS")
    figures = found["backends"]["figures"]
    assert figures["numpy_difference"] == 0
    assert all(value < 1e-3 for name, value in figures.items() if name.endswith("_difference"))


def test_without_onnxruntime_numpy_computes_and_that_is_a_warning(ward: Ward) -> None:
    hidden = "import sys\nsys.modules.update(onnxruntime=None, torch=None)\n"
    path = overlay(ward, {"sitecustomize.py": hidden})
    code, found = ward.doctor(*BACKENDS, PYTHONPATH=path)
    assert (code, found["backends"]["verdict"]) == (0, "WARN")
    assert "onnxruntime is not installed: numpy computes" in found["backends"]["seen"]
    assert found["backends"]["figures"]["backend"] == "numpy"
    code, found = ward.doctor(*BACKENDS, "--backend", "onnx", PYTHONPATH=path)
    assert (code, found["backends"]["verdict"]) == (4, "FAIL")
    assert "pip install 'edge-runtime[onnx]'" in found["backends"]["seen"]


def test_a_backend_that_is_broken_takes_nothing_along(ward: Ward) -> None:
    broken = "import os\nos.abort()\n"
    hidden = "import sys\nsys.modules.update(torch=None)\n"
    path = overlay(ward, {"onnxruntime/__init__.py": broken, "sitecustomize.py": hidden})
    code, found = ward.doctor(*BACKENDS, PYTHONPATH=path)
    assert (code, found["backends"]["verdict"]) == (4, "FAIL")
    assert "onnx does not work" in found["backends"]["seen"]
    assert "numpy: a step in" in found["backends"]["seen"]


def test_a_trainer_process_is_started_and_says_what_it_has(ward: Ward) -> None:
    data = str(ward.data())
    code, found = ward.doctor("--id", "left", "--only", "trainer", "--data", data, "--memory-mb", "20")
    assert (code, found["trainer"]["verdict"]) == (0, "WARN")
    assert found["trainer"]["figures"]["room_bytes"] == 20_000_000


def test_what_was_set_aside_as_damaged_is_told(ward: Ward) -> None:
    store = ward.folder / "store"
    store.mkdir()
    (store / "memory.json.corrupt-1").write_text("{")
    _, found = ward.doctor("--id", "left", "--only", "state", "--store", str(store))
    assert found["state"]["verdict"] == "WARN"
    assert "memory.json.corrupt-1" in found["state"]["seen"]


def test_people_get_lines_of_eighty_columns_with_an_arrow_before_what_to_do(ward: Ward) -> None:
    code, out, said = ward.run("edge_runtime.cli", "doctor", "--id", "left", "-p", str(ward.port), "--only", "may")
    assert (code, said) == (3, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "FAIL  broker" in out
    assert "-> enrol it" in out
    assert out.endswith("SKIP\n")


def test_a_check_that_does_not_exist_is_answered_with_the_nearest(ward: Ward) -> None:
    code, _, said = ward.run("edge_runtime.cli", "doctor", "--only", "packets")
    assert (code, said) == (2, "edge-agent: --only: there is no check 'packets'; did you mean 'packet'?\n")


def boom(context: int) -> checkup.Finding:
    return good(str(1 // context))


def refused(context: int) -> checkup.Finding:
    raise ConfigError(f"{context}: not so")


def test_a_check_up_comes_to_its_end_whatever_a_check_does() -> None:
    checks = [
        Check("breaks", boom, 4),
        Check("refuses", refused, 2),
        Check("after", lambda context: good("well"), 1, ("refuses",)),
        Check("warns", lambda context: warn("hm", "look"), 1),
        Check("fine", lambda context: good("well"), 1, ("warns",)),
    ]
    results = checkup.run(checks, 0)
    assert [result.finding.verdict for result in results] == ["FAIL", "FAIL", "SKIP", "WARN", "PASS"]
    assert "ZeroDivisionError" in results[0].finding.seen
    assert checkup.exit_code(results) == 4
    assert checkup.exit_code(results[2:]) == 0


def test_several_findings_together_are_as_bad_as_the_worst() -> None:
    found = checkup.worst([good("a", x=1), bad("b", "mend", y=2), warn("c", "mend")])
    assert (found.verdict, found.seen, found.todo, found.blocks) == ("FAIL", "a; b; c", "mend", True)
    assert found.figures == {"x": 1, "y": 2}


@pytest.mark.parametrize(("days", "verdict"), [(400, "PASS"), (29, "WARN"), (0.5, "WARN"), (-1, "FAIL")])
def test_what_ends_soon_is_told_in_time(days: float, verdict: str) -> None:
    assert checkup.ending("it", 1e9 + days * 86_400, "renew", 1e9).verdict == verdict


def test_every_check_needs_only_what_comes_before_it() -> None:
    from edge_runtime.coordinator import doctor as theirs

    for checks in (doctor.CHECKS, theirs.CHECKS):
        names = [check.name for check in checks]
        assert len(set(names)) == len(names)
        for place, check in enumerate(checks):
            assert set(check.needs) <= set(names[:place]), check.name


def test_heat_and_a_weak_supply_are_told(tmp_path: Path) -> None:
    from edge_runtime.devices.sensors import Sensors
    from tests.devices.test_sensors import put, vcgencmd

    zone = "sys/class/thermal/thermal_zone0"
    root = put(
        vcgencmd(tmp_path, throttled="throttled=0x50005\n"), {f"{zone}/type": "cpu\n", f"{zone}/temp": "91000\n"}
    )
    at = station.Station("f", "left", None, None, ())
    agent = doctor.Agent(at, "", tmp_path, tmp_path, {"compute": {}}, sensors=Sensors(root))
    found = doctor.hardware(agent)
    assert found.verdict == "WARN"
    assert "temperature (91 °C)" in found.seen
    assert "the supply is too weak (under-voltage), throttled" in found.seen
    cool = doctor.hardware(dataclasses.replace(agent, sensors=Sensors(tmp_path / "nothing")))
    assert (cool.verdict, cool.figures["temperature_c"]) == ("PASS", None)
