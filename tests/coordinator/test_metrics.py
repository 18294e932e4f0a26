"""What Prometheus is told, and whether the dashboard asks for what is there."""

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib import resources
from types import SimpleNamespace
from typing import Any

import pytest

from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import fleet
from edge_runtime.coordinator.tally import Tally, reason_of
from edge_runtime.errors import ConfigError
from edge_runtime.message import Chunk, Status
from edge_runtime.transport import Traffic

metrics = pytest.importorskip("edge_runtime.coordinator.metrics")
prometheus = pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

MEMORY = {"agent-peak-rss-bytes": 40e6, "trainer-peak-rss-bytes": 60e6}


def coordinator(round_: int = 0, **tally: Any) -> Any:
    """What is read of a coordinator, without a run behind it."""
    core = SimpleNamespace(
        standing=(round_, 1, 2),
        online={"a", "b"},
        progress=SimpleNamespace(known={"a", "b", "c"}),
        refused={},
        doing={"a": "training"},
        plan=SimpleNamespace(run="r1"),
    )
    latest = {
        name: {
            "accuracy-personal": value,
            "staleness": 2.0,
            "agent-peak-rss-bytes": 40e6,
            "trainer-peak-rss-bytes": 60e6,
        }
        for name, value in (("a", 0.5), ("b", 0.9))
    }
    counts = {"a": {"stale": 2}, "b": {"stale": 1, "forged": 4}}
    made = Tally(traffic=lambda: Traffic(1000, 2000), **tally)
    return SimpleNamespace(core=core, latest=latest, tally=made, dropped=SimpleNamespace(counts=counts), unfit={})


RUN: Any = SimpleNamespace(config=SimpleNamespace(algorithm="fedspa", model="watch-cnn", rounds=5))


def samples(found: Any) -> dict[tuple[str, ...], float]:
    """Give name and label values -> value, as a scrape shows them."""
    text = prometheus.generate_latest(found.registry).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_figures_are_those_of_the_coordinator() -> None:
    found, it = metrics.Metrics(clock=lambda: 0.0), coordinator(lost=3)
    it.tally.heard(Status("r1", 0, "training"), 80)
    it.tally.said(Chunk("d", 0, b"x"), 500)
    for reason in ("", "", "update: its norm 9 is above 2 times 1, the median of those accepted (norm-limit)"):
        it.tally.judged(reason)
    found.look(RUN, it)
    shown = samples(found)
    name = "edge_coordinator_"
    assert shown[f"{name}round",] == 0
    assert shown[f"{name}rounds_planned",] == 5
    assert shown[f"{name}devices_online",] == 2
    assert (shown[f"{name}devices", "training"], shown[f"{name}devices", "late"]) == (1, 1)
    assert (shown[f"{name}updates_accepted_total",], shown[f"{name}updates_rejected_total", "norm"]) == (2, 1)
    assert shown[f"{name}messages_dropped_total", "stale"] == 3
    assert shown[f"{name}messages_dropped_total", "forged"] == 4
    assert shown[f"{name}messages_dropped_total", "queue full"] == 3
    assert (shown[f"{name}received_bytes_total", "status"], shown[f"{name}sent_bytes_total", "chunk"]) == (80, 500)
    assert shown[f"{name}socket_bytes_total", "down"] == 2000
    assert shown[f"{name}accuracy_ratio", "personal", "mean"] == pytest.approx(0.7)
    assert shown[f"{name}accuracy_ratio", "personal", "p10"] == pytest.approx(0.54)
    assert shown[f"{name}update_staleness", "max"] == 2
    assert shown[f"{name}device_memory_bytes", "max"] == 100e6


def test_rounds_are_counted_and_timed_when_they_close() -> None:
    now = [0.0]
    found = metrics.Metrics(clock=lambda: now[0])
    found.look(RUN, coordinator(2))
    now[0] = 4.0
    found.look(RUN, coordinator(3))
    now[0] = 10.0
    found.look(RUN, coordinator(5))
    shown = samples(found)
    assert shown["edge_coordinator_rounds_total",] == 3
    assert shown["edge_coordinator_round_duration_seconds_sum",] == pytest.approx(10.0)
    assert shown["edge_coordinator_round_duration_seconds_bucket", "2.0"] == 0
    assert shown["edge_coordinator_round_duration_seconds_bucket", "5.0"] == 3


def test_no_label_is_a_device_and_every_reason_is_one_of_few() -> None:
    found, it = metrics.Metrics(), coordinator()
    for text in ("wire: a value is not finite", "Up: it is of round 7, not 3", "update: 3 values where 9 are expected"):
        it.tally.judged(text)
    for number in range(1000):
        it.tally.judged(f"whatever {number}")
    found.look(RUN, it)
    labels = {value for key in samples(found) for value in key[1:]}
    assert not labels & {"a", "b", "c"}
    assert set(it.tally.rejected) == {"not finite", "other round", "size", "malformed"}
    assert reason_of("(norm-limit)") == "norm"


@pytest.mark.parametrize("address", ["", "port", "0", "70000", ":9464", "host:", "256.256.256.256:9464"])
def test_an_address_that_cannot_be_is_one_line(address: str) -> None:
    with pytest.raises(ConfigError, match="--metrics"), metrics.serving(address):
        raise AssertionError("it listens")


def queries(node: Any) -> Iterator[str]:
    """Give every query of a dashboard."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        if isinstance(node.get("query"), str):
            yield node["query"]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from queries(inner)


def exported(text: str) -> set[str]:
    """Name all that is told, and what would be if there were some of it."""
    told = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    return told | set(re.findall(r"^# TYPE (\S+) (?:gauge|counter)$", text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a real coordinator told about a real run, just before it ended."""
    folder = tmp_path_factory.mktemp("metrics")
    names, port = ["person-01-left", "person-01-right"], free_port()
    with brokers.start("auto", folder=folder / "broker") as broker:
        flags = ["--parts", "2", "--labels-per-class", "3"]
        with fleet.agents(names, broker, ["--data", "watch", *flags], folder, warm=True):
            command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "start", "-p", str(broker.port), "--log"]
            command += [
                "json",
                "--rounds",
                "40",
                "--set",
                "run.devices=2",
                "--runs",
                str(folder),
                "--metrics",
                str(port),
            ]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
                assert process.stderr is not None
                text = ""
                try:
                    for line in process.stderr:
                        if json.loads(line).get("round") == 3:
                            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                                text = answer.read().decode()
                            break
                finally:
                    process.terminate()
                    process.stderr.read()
    return text


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_run_tells_how_it_goes(scraped: str) -> None:
    shown = {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(scraped) for s in f.samples}
    assert shown["edge_coordinator_rounds_total",] >= 3
    assert shown["edge_coordinator_devices_online",] == 2
    assert shown["edge_coordinator_updates_accepted_total",] >= 6
    assert 0 < shown["edge_coordinator_accuracy_ratio", "personal", "mean"] <= 1
    assert shown["edge_coordinator_received_bytes_total", "chunk"] > 1000
    assert (
        shown["edge_coordinator_socket_bytes_total", "down"] > shown["edge_coordinator_received_bytes_total", "chunk"]
    )
    assert shown["process_resident_memory_bytes",] > 1e6


def test_the_dashboard_asks_only_for_what_is_told(scraped: str) -> None:
    board = json.loads(resources.files("edge_runtime.coordinator").joinpath("grafana.json").read_text("utf-8"))
    known = exported(scraped)
    asked = {name for query in queries(board) for name in re.findall(r"\b(?:edge_coordinator|process)_\w+", query)}
    assert asked - known == set()
    own = {name for name in known if name.startswith("edge_coordinator_") and not name.endswith("_created")}
    assert own - asked == set(), "told, and shown nowhere"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian's package prometheus) is not installed")
def test_promtool_finds_no_fault(scraped: str) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=scraped, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
