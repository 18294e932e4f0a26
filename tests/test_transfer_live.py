"""Five megabytes over links that lose, delay and break: real brokers, agents and coordinators, each its own process.

Run as a program, this file is such an agent or coordinator, of a toy algorithm whose Down is noise that all devices get
alike, and whose Up is that noise, turned round, of a length to choose. The test stands between them and the broker: a
`Proxy` per process counts every byte, limits the rate, delays, and breaks connections; a `Wire` loses IP packets.
"""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, wire
from edge_runtime.agent import Agent
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig
from edge_runtime.coordinator.serve import Inbox, TopicPost, serve
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.link import Link
from edge_runtime.message import Hello
from edge_runtime.mqtt import Mqtt
from edge_runtime.setup import ModelCard, Setup
from edge_runtime.store import FileStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.tree import Layout
from tests.chaos.links import Proxy, Wire

KINDS = [
    "amqtt",
    pytest.param("mosquitto", marks=pytest.mark.skipif(brokers.find_mosquitto() is None, reason="no mosquitto here")),
]
SIZE = 5_000_000
VALUES = SIZE // 4
WINDOW_BYTES = 16 * 65_536
SLACK = 100_000
"""For control messages, and framing."""


@dataclasses.dataclass(frozen=True)
class Down:
    round: int
    values: np.ndarray[Any, np.dtype[np.float32]]


@dataclasses.dataclass(frozen=True)
class Up:
    round: int
    values: np.ndarray[Any, np.dtype[np.float32]]


def noise(round_: int) -> Any:
    """Give values that no codec makes smaller: sign, exponent and mantissa of each are random."""
    bits = np.random.default_rng(round_).integers(0, 1 << 32, VALUES, np.uint32)
    bits[(bits >> 23) & 0xFF == 0xFF] = 0  # not finite
    return bits.view(np.float32)


class Server:
    """Gives noise, and wants it back, reversed."""

    def __init__(self, config: Any, layout: Layout, initial: Any, devices: Any, seed: int) -> None:
        self.round = 0

    def down(self, device: str, first: bool) -> Down:
        return Down(self.round, noise(self.round))

    def absorb(self, device: str, up: Up) -> None:
        assert np.array_equal(up.values, noise(up.round)[::-1][: len(up.values)])

    def close(self) -> None:
        self.round += 1

    def shared(self) -> None:
        return None

    def state(self) -> dict[str, Any]:
        return {"round": self.round}

    def restore(self, state: Any) -> None:
        self.round = state["round"]


class Trainer:
    """Answers a Down at once."""

    def __init__(self, store: FileStore, part: float) -> None:
        self.store, self.part = store, part

    def attach(self, done: Callable[[Any, Outcome], None]) -> None:
        self.done = done

    def start(self, task: Any) -> None:
        down = wire.decode(self.store.read(task.down.digest), Down, Layout(("w",), ((VALUES,),)))
        up = Up(down.round, down.values[::-1][: int(self.part * VALUES)])
        threading.Thread(target=self.done, args=(task, Outcome(wire.encode(up), b"state"))).start()

    def stop(self) -> None:
        pass


def agent(host: str, port: int, name: str, folder: str, part: float) -> None:
    store = FileStore(Path(folder))
    trainer: Any = Trainer(store, part)
    link = Link(host, port, name, keepalive_s=10, retry_s=0.2, max_retry_s=0.5, insecure=True)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    Agent("f", name, store, trainer, Mqtt(link), Hello(name)).run(lambda: bool(stopped))


def coordinator(port: int, folder: str, devices: int, rounds: int) -> None:
    toy = algorithm.Algorithm("toy", dict, Down, Up, object, Server)  # type: ignore[arg-type]
    layout = Layout(("w",), ((VALUES,),))
    config = RunConfig(rounds=rounds, devices=devices, evaluate=False, deadline_s=600.0)
    run = Run(config, toy, None, Setup("toy", {}, ModelCard("own:toy", layout), 1), np.zeros(VALUES, np.float32))
    encodes, encode = [], wire.encode_down

    def counted(down: Any, *how: Any) -> bytes:
        encodes.append(type(down).__name__)
        return encode(down, *how)

    wire.encode_down = counted
    journal = Journal(Path(folder))
    transport = Mqtt(Link("127.0.0.1", port, "_coordinator", keepalive_s=10, retry_s=0.2, max_retry_s=0.5))
    one = Coordinator(run.plan("run", journal.next_epoch()), run, journal, TopicPost("f", transport))
    inbox = Inbox(transport, "f")
    inbox.start()
    start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    waiting: list[int] = []
    serve(one, inbox, transport, 600.0, lambda _: waiting.append(transport.unsent_bytes()))
    time.sleep(0.3)  # let the last word out
    transport.close()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib)
    counts = {"encodes": len(encodes), "most_waiting": max(waiting), "grown": grown, "lost": inbox.lost}
    sys.stdout.write(json.dumps(counts) + "\n")


class Stage:
    """Processes and proxies, all ended with the test."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack = folder, stack

    def broker(self, kind: str, port: int = 0) -> brokers.Broker:
        return self.stack.enter_context(brokers.start(kind, port=port, folder=self.folder / "broker"))

    def proxy(self, port: int, **settings: Any) -> Proxy:
        proxy = Proxy(port, **settings)
        self.stack.callback(proxy.close)
        return proxy

    def start(self, *arguments: object, within: str = "") -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, *map(str, arguments)]
        command = ["ip", "netns", "exec", within, *command] if within else command
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

        def end() -> None:
            process.kill()
            process.communicate()

        self.stack.callback(end)
        return process

    def agent(self, proxy: Proxy, name: str, part: float = 0.0, within: str = "") -> "subprocess.Popen[str]":
        return self.start("agent", proxy.host, proxy.port, name, self.folder / name, part, within=within)

    def coordinator(self, proxy: Proxy, devices: int = 1, rounds: int = 1) -> "subprocess.Popen[str]":
        return self.start("coordinator", proxy.port, self.folder / "run", devices, rounds)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(tmp_path, stack)


def until(true: Callable[[], object], within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s, "it takes too long"
        time.sleep(0.01)


def result(process: "subprocess.Popen[str]", within_s: float = 90.0) -> SimpleNamespace:
    said, _ = process.communicate(timeout=within_s)
    assert process.returncode == 0
    return SimpleNamespace(**json.loads(said.splitlines()[-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_five_megabytes_arrive_both_ways_over_a_slow_link_that_stalls_and_breaks(kind: str, stage: Stage) -> None:
    broker = stage.broker(kind)
    near, far = stage.proxy(broker.port), stage.proxy(broker.port, delay_s=0.2, stalls=0.1)
    stage.agent(far, "a", part=1.0)
    process = stage.coordinator(near)
    for size in (SIZE // 2, SIZE + SIZE // 2):
        until(lambda size=size: far.up_bytes + far.down_bytes > size)  # type: ignore[misc]
        far.break_all()
    result(process)
    assert far.connections >= 3
    for carried in (far.down_bytes, far.up_bytes):
        assert SIZE < carried < SIZE + 2 * WINDOW_BYTES + SLACK


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/net/tun").exists(), reason="needs root and TUN devices")
def test_five_megabytes_arrive_where_a_tenth_of_all_packets_is_lost(stage: Stage) -> None:
    wire = Wire(loss=0.1, delay_s=0.2)
    stage.stack.callback(wire.close)
    broker = stage.broker("auto")
    far = stage.proxy(broker.port, host=wire.here)
    stage.agent(far, "a", within=wire.name)
    result(stage.coordinator(stage.proxy(broker.port)), 240.0)
    assert wire.lost > 300
    assert far.connections == 1
    assert SIZE < far.down_bytes < SIZE + 8 * 65_536 + SLACK


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_broker_was_killed_the_rest_is_sent(kind: str, stage: Stage) -> None:
    broker = stage.broker(kind)
    near, far = stage.proxy(broker.port), stage.proxy(broker.port, rate=4e6)
    stage.agent(far, "a")
    process = stage.coordinator(near)
    until(lambda: far.down_bytes > 0.6 * SIZE)
    broker.process.kill()
    broker.process.wait()
    stage.broker(kind, broker.port)
    result(process)
    assert SIZE < far.down_bytes < SIZE + WINDOW_BYTES + SLACK
    assert SIZE < near.up_bytes < SIZE + 2 * WINDOW_BYTES + SLACK


def test_an_agent_that_was_killed_in_the_middle_of_a_download_fetches_the_rest(stage: Stage) -> None:
    broker = stage.broker("auto")
    near, far = stage.proxy(broker.port), stage.proxy(broker.port, rate=4e6)
    first = stage.agent(far, "a")
    process = stage.coordinator(near)
    until(lambda: far.down_bytes > 0.6 * SIZE)
    first.kill()
    first.wait()
    stage.agent(far, "a")
    result(process)
    assert SIZE < far.down_bytes < SIZE + WINDOW_BYTES + SLACK


def test_a_coordinator_that_was_killed_in_the_middle_of_an_upload_is_sent_the_rest(stage: Stage) -> None:
    broker = stage.broker("auto")
    near, far = stage.proxy(broker.port), stage.proxy(broker.port, rate=4e6)
    stage.agent(far, "a", part=1.0)
    first = stage.coordinator(near)
    until(lambda: far.up_bytes > 0.6 * SIZE)
    first.kill()
    first.wait()
    result(stage.coordinator(near))
    assert SIZE < far.up_bytes < SIZE + WINDOW_BYTES + SLACK


@pytest.mark.skipif(brokers.find_mosquitto() is None, reason="no mosquitto here")
def test_where_the_broker_hangs_up_on_large_packets_chunks_become_smaller(stage: Stage) -> None:
    before = stage.broker("mosquitto")
    conf = stage.folder / "broker" / "mosquitto.conf"
    before.close()
    conf.write_text(conf.read_text().replace("max_packet_size 262144", "max_packet_size 20000"))
    program = str(brokers.find_mosquitto())
    process = subprocess.Popen([program, "-c", str(conf)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stage.stack.callback(process.wait)
    stage.stack.callback(process.kill)
    near, far = stage.proxy(before.port), stage.proxy(before.port)
    coordinating = stage.coordinator(near)
    until(lambda: near.up_bytes)
    stage.agent(far, "a", part=0.1)
    result(coordinating)
    assert SIZE < far.down_bytes < SIZE + WINDOW_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_fleet_fetches_is_encoded_and_published_once(kind: str, stage: Stage) -> None:
    broker, devices = stage.broker(kind), 6
    near, far = stage.proxy(broker.port), [stage.proxy(broker.port) for _ in range(devices)]
    process = stage.coordinator(near, devices)
    until(lambda: near.up_bytes)  # it listens, or is about to: nobody says hello in vain
    for number, proxy in enumerate(far):
        stage.agent(proxy, f"d{number}")
    said = result(process)
    assert said.encodes == 1
    assert said.lost == 0
    assert said.most_waiting < 5_000_000
    assert SIZE < near.up_bytes < 1.1 * SIZE
    for proxy in far:
        assert SIZE < proxy.down_bytes < SIZE + SLACK


def test_a_slow_device_holds_up_nobody_and_is_sent_nothing_twice(stage: Stage) -> None:
    broker = stage.broker("auto")
    near, slow = stage.proxy(broker.port), stage.proxy(broker.port, rate=500e3)
    fast = [stage.proxy(broker.port) for _ in range(3)]
    process = stage.coordinator(near, 4)
    until(lambda: near.up_bytes)
    for number, proxy in enumerate([slow, *fast]):
        stage.agent(proxy, f"d{number}")
    until(lambda: all(proxy.down_bytes > SIZE for proxy in fast))
    assert slow.down_bytes < 0.5 * SIZE
    result(process)
    assert near.up_bytes < 1.1 * SIZE
    for proxy in (slow, *fast):
        assert SIZE < proxy.down_bytes < SIZE + 2 * 65_536 + SLACK


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "agent":
        agent(rest[0], int(rest[1]), rest[2], rest[3], float(rest[4]))
    else:
        coordinator(int(rest[0]), rest[1], int(rest[2]), int(rest[3]))
