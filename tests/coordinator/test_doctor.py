"""`edge-coordinator doctor` where things are broken: each for its real cause."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from edge_runtime import identity
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import database, doctor, pki
from edge_runtime.coordinator.journal import Journal
from edge_runtime.errors import RunError
from tests.ward import COORDINATOR, Found, Ward

needs_mosquitto = pytest.mark.skipif(brokers.find_mosquitto() is None, reason="mosquitto is not installed")
KINDS = ["amqtt", pytest.param("mosquitto", marks=needs_mosquitto)]
FLEET = (
    "--only",
    "authority",
    "--only",
    "broker-cert",
    "--only",
    "revocations",
    "--only",
    "rules",
    "--only",
    "devices",
)


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    with contextlib.ExitStack() as stack:
        yield Ward(tmp_path, stack)


def examined(ward: Ward, *arguments: str) -> tuple[int, Found]:
    return ward.doctor(*arguments, program=COORDINATOR)


def journal(ward: Ward, name: str = "first", devices: tuple[str, ...] = ()) -> Path:
    """Make a run of which a coordinator has written something."""
    folder = ward.folder / "runs" / name
    made = Journal(folder)
    made.set("run", name)
    made.set("description", '{"run": {"algorithm": "fedavg", "model": "watch-cnn", "rounds": 3}}')
    for device in devices:
        made.devices.register(device)
    made.close()
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_coordinator_to_which_nothing_is_wanting_is_told_so(kind: str, ward: Ward) -> None:
    ward.enrolled("left")
    ward.broker(kind)
    journal(ward, devices=("left",))
    code, found = examined(ward)
    told = {name: check for name, check in found.items() if check["verdict"] != "PASS"}
    assert not told.keys() - {"memory", "disk"}, told
    assert code == 0
    assert list(found) == [check.name for check in doctor.CHECKS]
    assert found["devices"]["figures"] == {"enrolled": 1, "revoked": 0, "expired": 0}
    assert found["never-seen"]["figures"] == {"never": 0}
    assert "something listens" in found["port"]["seen"]


def test_without_a_broker_the_fleet_and_the_runs_are_looked_at_all_the_same(ward: Ward) -> None:
    journal(ward)
    code, found = examined(ward)
    assert (code, found["broker"]["verdict"], found["journals"]["verdict"]) == (3, "FAIL", "PASS")
    assert found["authority"]["verdict"] == found["broker-cert"]["verdict"] == found["revocations"]["verdict"] == "PASS"
    assert found["devices"]["verdict"] == "WARN"
    assert f"port {ward.port} is free here" in found["port"]["seen"]


def test_without_a_fleet_that_is_a_warning(ward: Ward, tmp_path: Path) -> None:
    (ward.folder / "fleet").rename(ward.folder / "elsewhere")
    code, found = examined(ward, *FLEET)
    assert (code, found["identity"]["verdict"], found["authority"]["verdict"]) == (0, "WARN", "SKIP")
    code, found = examined(ward, "--fleet-folder", "none", "--only", "identity")
    assert (code, found["identity"]["verdict"]) == (2, "FAIL")
    assert "no fleet there" in found["identity"]["seen"]


def test_an_authority_whose_key_others_may_read_or_that_is_another_fails(ward: Ward) -> None:
    key = ward.fleet.folder / "authority" / "ca.key"
    key.chmod(0o644)
    code, found = examined(ward, *FLEET)
    assert (code, found["authority"]["verdict"]) == (2, "FAIL")
    assert f"chmod 600 {key.relative_to(ward.folder)}" in found["authority"]["todo"]
    other = pki.create(ward.folder / "other", "default", ["127.0.0.1"])
    key.write_bytes((other.folder / "authority" / "ca.key").read_bytes())
    key.chmod(0o600)
    _, found = examined(ward, *FLEET)
    assert "is not the key of ca.pem" in found["authority"]["seen"]


def test_an_authoritys_key_that_is_kept_elsewhere_is_no_fault(ward: Ward) -> None:
    (ward.fleet.folder / "authority" / "ca.key").unlink()
    code, found = examined(ward, *FLEET)
    assert (code, found["authority"]["verdict"]) == (0, "PASS")
    assert "its key is not here" in found["authority"]["seen"]


def test_a_brokers_certificate_for_other_names_or_that_ended_fails(ward: Ward) -> None:
    (ward.fleet.folder / "fleet.toml").write_text(f'name = "default"\nhost = "broker.lan"\nport = {ward.port}\n')
    code, found = examined(ward, *FLEET)
    assert (code, found["broker-cert"]["verdict"]) == (2, "FAIL")
    assert "devices look for broker.lan" in found["broker-cert"]["seen"]
    assert "edge-coordinator fleet hosts broker.lan" in found["broker-cert"]["todo"]
    _, certificate = ward.fleet.issue("broker", 0, ExtendedKeyUsageOID.SERVER_AUTH, ["broker.lan"])
    (ward.fleet.broker / identity.CERTIFICATE).write_bytes(pki.pem(certificate))
    _, found = examined(ward, *FLEET)
    assert "the broker's certificate ended on" in found["broker-cert"]["seen"]


def test_revocations_that_cannot_be_read_or_are_another_fleets_fail(ward: Ward) -> None:
    ward.enrolled("left")
    ward.fleet.revoke("left")
    _, found = examined(ward, *FLEET)
    assert "the list of 1 revoked certificates is good until" in found["revocations"]["seen"]
    other = pki.create(ward.folder / "other", "default", ["127.0.0.1"])
    ward.fleet.revocations.write_bytes(other.revocations.read_bytes())
    code, found = examined(ward, *FLEET)
    assert (code, found["revocations"]["verdict"]) == (2, "FAIL")
    assert "not signed by this fleet's authority" in found["revocations"]["seen"]
    ward.fleet.revocations.write_text("nothing")
    code, found = examined(ward, *FLEET)
    assert (code, found["revocations"]["verdict"], found["devices"]["verdict"]) == (
        2,
        "FAIL",
        "SKIP" if not code else "FAIL",
    )


def test_devices_whose_certificate_ends_and_lines_that_are_no_rules_are_named(ward: Ward) -> None:
    ward.fleet.enroll("soon", days=3)
    ward.fleet.enroll("later")
    _, certificate = ward.fleet.issue("ended", 0, ExtendedKeyUsageOID.CLIENT_AUTH, ())
    (ward.fleet.folder / "devices" / "ended.pem").write_bytes(pki.pem(certificate))
    (ward.fleet.folder / "rules").write_text("left may everything\n")
    code, found = examined(ward, *FLEET)
    assert (code, found["devices"]["verdict"], found["rules"]["verdict"]) == (2, "WARN", "FAIL")
    assert found["devices"]["seen"] == "2 enrolled, 0 revoked, 1 expired; ended: ended; soon: soon"
    assert "rules:1: write NAME read|write TOPIC" in found["rules"]["seen"]


def test_a_device_that_was_enrolled_and_never_heard_of_is_named(ward: Ward) -> None:
    for name in ("left", "right"):
        ward.fleet.enroll(name)
    journal(ward)
    _, found = examined(ward, "--only", "never-seen")
    assert found["never-seen"]["verdict"] == "PASS"
    journal(ward, "second", devices=("left",))
    _, found = examined(ward, "--only", "never-seen")
    assert (found["never-seen"]["verdict"], found["never-seen"]["seen"]) == (
        "WARN",
        "1 of 2 were never heard of: right",
    )


def test_a_damaged_journal_is_named_and_nothing_is_changed(ward: Ward) -> None:
    journal(ward)
    path = journal(ward, "second") / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as changed, changed:
        changed.execute("UPDATE run SET value = 'other' WHERE key = 'run'")
    before = path.read_bytes()
    code, found = examined(ward, "--only", "journals")
    assert (code, found["journals"]["verdict"]) == (5, "FAIL")
    assert (
        "runs/second/journal.sqlite: the journal is damaged: its rows do not fit their sum" in found["journals"]["seen"]
    )
    assert path.read_bytes() == before


def test_a_journal_that_lost_transactions_or_was_cut_is_damaged(ward: Ward) -> None:
    path = journal(ward) / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as changed, changed:
        changed.execute("UPDATE total SET commits = commits - 1")
    with pytest.raises(RunError, match="the last 1 of 2 transactions are gone"):
        database.examine(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RunError, match="the journal is damaged"):
        database.examine(path)


def test_a_journal_that_is_being_written_is_sound(ward: Ward) -> None:
    made = Journal(ward.folder / "runs" / "open")
    try:
        made.set("run", "open")
        made.set("description", '{"run": {}}')
        _, found = examined(ward, "--only", "journals", "--only", "login")
    finally:
        made.close()
    assert (found["journals"]["verdict"], found["running"]["verdict"], found["login"]["verdict"]) == (
        "PASS",
        "WARN",
        "SKIP",
    )
    assert "has runs/open" in found["running"]["seen"]
    assert "1 running" in found["journals"]["seen"]


def test_a_checkpoint_that_is_lost_with_its_copy_is_damage(ward: Ward) -> None:
    folder = journal(ward)
    with contextlib.closing(Journal(folder)) as made:
        progress = made.progress()
        following = type(progress)(1, "train")
        made.open_round(0, "train", ("left",))
        progress = made.progress()
        made.close_round(progress, b"state", following)
    code, found = examined(ward, "--only", "journals")
    assert (code, found["journals"]["verdict"]) == (0, "PASS")
    (folder / "checkpoint-000001").write_bytes(b"other")
    assert examined(ward, "--only", "journals")[0] == 0
    (folder / "checkpoint-000001.copy").unlink()
    code, found = examined(ward, "--only", "journals")
    assert (code, found["journals"]["verdict"]) == (5, "FAIL")
    assert "this checkpoint and its copy are lost or damaged" in found["journals"]["seen"]


@needs_mosquitto
def test_a_broker_that_lets_everybody_do_everything_fails_a_coordinator_too(ward: Ward) -> None:
    ward.mosquitto(rules=None)
    code, found = examined(ward, "--only", "may-not")
    assert (code, found["may-not"]["verdict"]) == (3, "FAIL")
    assert "hear what others are told and speak for a device" in found["may-not"]["seen"]


def test_a_run_folder_that_cannot_be_written_fails(ward: Ward) -> None:
    (ward.folder / "runs").write_text("a file, where a folder should be")
    code, found = examined(ward, "--only", "disk")
    assert (code, found["disk"]["verdict"]) == (4, "FAIL")


def test_a_port_that_is_taken_by_nobody_who_answers_is_told(ward: Ward) -> None:
    code, found = examined(ward, "--only", "port")
    assert (code, found["port"]["verdict"]) == (0, "PASS")
    assert "`edge-coordinator broker` would start" in found["port"]["seen"]


def test_extras_are_those_of_this_program(ward: Ward) -> None:
    code, found = examined(ward, "--only", "extras")
    assert code == 0
    assert "coordinator" in found["extras"]["seen"].split("; not:")[0]
