import itertools
import subprocess
import time
from pathlib import Path

import pytest

from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import broker_config, pki
from edge_runtime.coordinator.broker_config import allows, covers
from edge_runtime.errors import ConfigError
from edge_runtime.message import all_topic, ask_topic, down_topic, peer_topic, up_topic

LEVELS = ("a", "b")


def matches(filter_: list[str], topic: list[str]) -> bool:
    """MQTT 3.1.1, section 4.7, as it is told."""
    if not filter_:
        return not topic
    if filter_[0] == "#":
        return True
    return bool(topic) and filter_[0] in ("+", topic[0]) and matches(filter_[1:], topic[1:])


def filters(longest: int) -> list[list[str]]:
    plain = [list(one) for n in range(1, longest + 1) for one in itertools.product((*LEVELS, "+"), repeat=n)]
    return [*plain, ["#"], *([*one, "#"] for one in plain if len(one) < longest)]


def test_a_filter_covers_another_only_if_it_matches_all_that_the_other_does() -> None:
    # "z" stands for any level that no filter names, and topics go one level further than filters do.
    topics = [list(one) for n in range(1, 5) for one in itertools.product((*LEVELS, "z"), repeat=n)]
    seen = 0
    for allowed, asked in itertools.product(filters(3), repeat=2):
        wanted = all(matches(allowed, topic) for topic in topics if matches(asked, topic))
        if allowed[-2:] == ["+", "#"] and asked[-1] == "#":  # +/# matches all that # does, and may refuse it
            wanted = wanted and covers(allowed, asked)
        assert covers(allowed, asked) == wanted, (allowed, asked)
        seen += wanted
    assert seen > 300


@pytest.fixture
def fleet(tmp_path: Path) -> pki.Fleet:
    return pki.create(tmp_path / "fleet", "homes", ["127.0.0.1"])


def test_a_device_may_do_what_the_protocol_asks_of_it_and_nothing_else(fleet: pki.Fleet) -> None:
    rules = broker_config.rules(fleet)
    digest = "0" * 64
    writes = {up_topic("homes", "left"), peer_topic("homes", "left"), ask_topic("homes", "right", "left")}
    reads = {down_topic("homes", "left"), all_topic("homes", digest), peer_topic("homes", "right")}
    reads |= {ask_topic("homes", "left", "+"), all_topic("homes", "+")}
    for topic in writes:
        assert allows(rules, "left", "write", topic), topic
    for topic in reads:
        assert allows(rules, "left", "read", topic), topic
        assert not allows(rules, "left", "write", topic), topic
    for topic in ("#", "+", "edge/#", "edge/homes/#", "edge/homes/down/+", "edge/homes/+/left", "edge/homes/up/+"):
        assert not allows(rules, "left", "read", topic), topic
    for topic in (ask_topic("homes", "left", "right"), up_topic("homes", "right"), up_topic("other", "left"), "a"):
        assert not allows(rules, "left", "write", topic), topic


def test_the_coordinator_may_do_what_the_protocol_asks_of_it(fleet: pki.Fleet) -> None:
    rules = broker_config.rules(fleet)
    assert allows(rules, "coordinator", "read", up_topic("homes", "+"))
    for topic in (down_topic("homes", "left"), all_topic("homes", "0" * 64)):
        assert allows(rules, "coordinator", "write", topic)
        assert not allows(rules, "left", "write", topic)


def test_more_rules_stand_in_a_file_and_a_line_that_is_none_is_named(fleet: pki.Fleet) -> None:
    path = broker_config.rules_file(fleet)
    path.write_text("# who may ask whom\n\nsensor write edge/homes/infer/left_infer/in\n")
    assert allows(broker_config.rules(fleet), "sensor", "write", "edge/homes/infer/left_infer/in")
    assert not allows(broker_config.rules(fleet), "left", "write", "edge/homes/infer/left_infer/in")
    path.write_text("sensor writes edge\n")
    with pytest.raises(ConfigError, match=r"rules:1: write NAME read\|write TOPIC"):
        broker_config.rules(fleet)


@pytest.mark.skipif(brokers.find_mosquitto() is None, reason="mosquitto is not installed")
def test_mosquitto_takes_what_is_generated(fleet: pki.Fleet, tmp_path: Path) -> None:
    fleet.enroll("left")
    fleet.revoke("left")
    out = tmp_path / "out"
    broker_config.export(fleet, out, out)
    assert (out / "key.pem").stat().st_mode & 0o777 == 0o600
    assert "user left\ntopic deny #" in (out / "acl").read_text()
    conf = (out / "mosquitto.conf").read_text()
    assert "\nallow_anonymous false\n" in conf
    (out / "mosquitto.conf").write_text(conf.replace("listener 8883", "listener 0 127.0.0.1") + "user root\n")
    with subprocess.Popen(
        [str(brokers.find_mosquitto()), "-c", str(out / "mosquitto.conf")], stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(0.7)
        ended = process.poll()
        process.terminate()
        said = process.stderr.read() if process.stderr else ""
    assert ended is None, said
    assert "Error" not in said
