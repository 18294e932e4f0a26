"""The agent: feeds a device from the network, a timer and the trainer process.

Nothing here needs numpy, so that an idle agent stays small.
"""

import contextlib
import logging
import queue
import random
import time
from collections.abc import Callable, Mapping, Sequence

from edge_runtime.device import Device
from edge_runtime.devices import meter
from edge_runtime.errors import DeviceError, EdgeError
from edge_runtime.fit import Fit
from edge_runtime.message import (
    Blob,
    Hello,
    Message,
    Task,
    all_topic,
    ask_topic,
    decode,
    down_topic,
    encode,
    peer_topic,
    up_topic,
)
from edge_runtime.seal import Envelope, PeerSeal, Plain, Seals
from edge_runtime.store import Store
from edge_runtime.trainer_process import Outcome, ProcessTrainer
from edge_runtime.transport import Traffic, Transport

log = logging.getLogger(__name__)

_TICK_S = 2.0
_HEARTBEAT_S = 20.0
_MAX_QUEUE = 256
_PUMP_S = 0.02
_MAX_UNSENT_BYTES = 1_048_576
"""Of messages that wait for the socket: above that, chunks wait on the disk."""


class TopicCircle:
    """Reaches peers by topics of a transport; implements `among.Circle`."""

    def __init__(
        self, fleet: str, name: str, transport: Transport, clock: Callable[[], float], seal: PeerSeal | None = None
    ) -> None:
        self.name = name
        self._fleet, self._transport, self._clock, self._seal = fleet, transport, clock, seal

    def join(self, names: Sequence[str], keys: Mapping[str, bytes]) -> None:
        """Subscribe to the topics on which these speak; see `among.Circle`."""
        if self._seal is not None:
            self._seal.know(keys)
        self._transport.listen([peer_topic(self._fleet, name) for name in names])

    def open(self, peer: str, data: bytes, to_all: bool) -> Message:
        """Decode what a peer said; see `among.Circle`."""
        return decode(data) if self._seal is None else self._seal.open(peer, data, to_all)

    def say(self, message: Message) -> None:
        """Publish on the topic on which this device speaks."""
        data = encode(message) if self._seal is None else self._seal.seal_for_all(message)
        self._transport.send(peer_topic(self._fleet, self.name), data)

    def ask(self, peer: str, message: Message) -> None:
        """Publish on the topic on which that peer is asked."""
        data = encode(message) if self._seal is None else self._seal.seal_for(peer, message)
        self._transport.send(ask_topic(self._fleet, peer, self.name), data)

    def now_s(self) -> float:
        """Read the clock."""
        return self._clock()


class TopicTuner:
    """Listens to one shared blob at a time, by its topic of a transport; implements `Tuner`."""

    def __init__(self, fleet: str, transport: Transport) -> None:
        self._fleet, self._transport = fleet, transport
        self._topics: list[str] = []

    def tune(self, blob: Blob | None) -> None:
        """Listen to that blob, and no longer to another."""
        before, self._topics = self._topics, [all_topic(self._fleet, blob.digest)] if blob else []
        self._transport.unlisten([topic for topic in before if topic not in self._topics])
        self._transport.listen(self._topics)

    def room(self) -> bool:
        """Say whether little waits for the socket."""
        return self._transport.unsent_bytes() < _MAX_UNSENT_BYTES


def hear(device: Device, topic: str, payload: bytes) -> None:
    """Give a device what came on any topic but its own: to all who fetch a blob, from a peer, or asked by one."""
    _, _, kind, *_, peer = topic.split("/")
    if kind == "all":
        device.receive(payload, to_all=True)
    else:
        device.receive_from(peer, payload, to_all=kind == "peer")


class Agent:
    """A device on a transport: the loop that feeds it."""

    def __init__(
        self,
        fleet: str,
        device: str,
        store: Store,
        trainer: ProcessTrainer,
        transport: Transport,
        hello: Hello,
        seals: Seals | None = None,
    ) -> None:
        """Make it; with `seals` nothing is said or taken without."""
        self._topics = up_topic(fleet, device), down_topic(fleet, device), ask_topic(fleet, device, "+")
        self._events: queue.Queue[Callable[[], None]] = queue.Queue(_MAX_QUEUE)
        self._transport, self._trainer = transport, trainer
        trainer.attach(self._finished)
        self._idle_rss_bytes = 0
        self._unsent = False
        self._complaint = ""
        self._since: dict[str, Traffic] = {}
        self._fit = Fit()
        self._envelope: Envelope = Plain() if seals is None else seals.coordinator
        circle = TopicCircle(fleet, device, transport, time.monotonic, None if seals is None else seals.peers)
        tuner = TopicTuner(fleet, transport)
        self.device = Device(store, trainer, self._send, hello, self._figures, circle, tuner, self._envelope)

    def run(self, stop: Callable[[], bool]) -> None:
        """Serve until `stop()`; a store that cannot be written pauses the device, and is tried again."""
        self._transport.start(self._topics[1:], self._receive, self._connected)
        self._idle_rss_bytes = meter.rss_bytes()
        due = time.monotonic()
        wait_s = _TICK_S
        try:
            while not stop():
                self._guard(lambda: self._more(self.device.pump()))
                longest_s = _PUMP_S if self._unsent else 0.5
                self._fit.watch(self.device.chunks_sent, time.monotonic())
                if self._step(max(0.0, min(due - time.monotonic(), longest_s))) or self.device.core.fetching:
                    wait_s = _TICK_S  # a blob on its way in has a patience of its own
                if time.monotonic() >= due:
                    self._guard(self.device.tick)
                    wait_s = min(2 * wait_s, _HEARTBEAT_S) if self.device.waiting else _HEARTBEAT_S
                    due = time.monotonic() + wait_s * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, no secret
                elif self.device.waiting:
                    due = min(due, time.monotonic() + wait_s)
                self._check_link()
        finally:
            self._trainer.stop()
            self._transport.close()

    def _step(self, timeout_s: float) -> bool:
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return False
        self._guard(event)
        return True

    def _more(self, unsent: bool) -> None:
        self._unsent = unsent

    def _guard(self, event: Callable[[], None]) -> None:
        """Let something happen. A fault of ours is reported, and costs what is not in the store; nothing more."""
        try:
            event()
        except DeviceError as error:
            self._complain(error)
        except EdgeError:
            raise
        except Exception:
            log.exception("a fault of this program: it goes on from its store; please report this")
            self.device.forget()

    def _complain(self, error: DeviceError) -> None:
        if str(error) != self._complaint:
            log.error("%s", error)
        self._complaint = str(error)

    def _check_link(self) -> None:
        error: EdgeError | None = getattr(self._transport, "error", None)
        if error is not None:
            raise error

    def _post(self, event: Callable[[], None]) -> None:
        with contextlib.suppress(queue.Full):  # a message dropped here is one lost on the way: it is asked for again
            self._events.put_nowait(event)

    def _finished(self, task: Task, outcome: Outcome) -> None:
        self._events.put(lambda: self.device.finished(task, outcome))

    def _receive(self, topic: str, payload: bytes) -> None:
        if topic == self._topics[1]:
            self._post(lambda: self._on_message(payload))
        else:
            self._post(lambda: hear(self.device, topic, payload))

    def _on_message(self, payload: bytes) -> None:
        before = self.device.core.task
        self.device.receive(payload)
        task = self.device.core.task
        if task is not None and task is not before and task.run not in self._since:
            self._since = {task.run: self._transport.traffic()}

    def _connected(self, up: bool) -> None:
        log.info("connected" if up else "connection lost")
        self._post(lambda: self._link_changed(up))

    def _link_changed(self, up: bool) -> None:
        if self._fit.changed(up, time.monotonic()):
            log.warning("the broker hangs up on chunks: what is pending is cut in smaller ones")
            self.device.halve_chunks()
        if up:
            self.device.start()

    def _send(self, message: Message) -> bool:
        return self._transport.send(self._topics[0], self._envelope.seal(message))

    def _figures(self, run: str) -> dict[str, float]:
        """Meter the agent; bytes on the socket count from the first task of `run` that this process saw."""
        traffic, since = self._transport.traffic(), self._since.get(run, Traffic(0, 0))
        return {
            "socket-bytes-up": float(traffic.up_bytes - since.up_bytes),
            "socket-bytes-down": float(traffic.down_bytes - since.down_bytes),
            "agent-idle-rss-bytes": float(self._idle_rss_bytes),
            "agent-peak-rss-bytes": float(meter.peak_rss_bytes()),
        }
