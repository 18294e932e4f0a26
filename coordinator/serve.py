"""Feeds a coordinator from a transport and a clock until its run is finished."""

import functools
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import TypeVar

from edge_runtime.coordinator.gate import Gate, Open
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.tally import Tally
from edge_runtime.errors import EdgeError
from edge_runtime.fit import Fit
from edge_runtime.message import Chunk, Message, all_topic, down_topic, encode, up_topic
from edge_runtime.transport import Transport

log = logging.getLogger(__name__)

_Given = TypeVar("_Given")
_TICK_S = 2.0
_MAX_QUEUE = 1024
_MAX_DEVICE_QUEUE = 128
_MAX_DEVICE_BYTES = 2_097_152
"""Of one device's messages that wait: twice what a device is asked for at a time."""
_MAX_BYTES = 33_554_432
_WAIT_S = 0.2
_PUMP_S = 0.01
_MAX_UNSENT_BYTES = 4_194_304
"""Of messages that wait for the socket: above that, chunks that devices asked for stay where they are."""


class TopicPost:
    """The way out by topics of a transport; implements `gate.Post`."""

    def __init__(self, fleet: str, transport: Transport, gate: Gate | None = None, tally: Tally | None = None) -> None:
        self._fleet, self._transport, self._gate = fleet, transport, gate or Open()
        self._tally = tally or Tally()

    def send(self, device: str, message: Message) -> bool:
        """Send a message to a device."""
        return self._say(down_topic(self._fleet, device), message, self._gate.seal(device, message))

    def greet(self, device: str, stranger: bytes, message: Message) -> bool:
        """Answer a device that spoke out of turn."""
        return self._say(down_topic(self._fleet, device), message, self._gate.greet(device, stranger, message))

    def share(self, chunk: Chunk) -> bool:
        """Send a chunk to all devices that listen to its blob."""
        return self._say(all_topic(self._fleet, chunk.digest), chunk, encode(chunk))

    def _say(self, topic: str, message: Message, data: bytes) -> bool:
        sent = self._transport.send(topic, data)
        if sent:
            self._tally.said(message, len(data))
        return sent

    def room(self) -> bool:
        """Say whether little waits for the socket."""
        return self._transport.unsent_bytes() < _MAX_UNSENT_BYTES


class Inbox:
    """A bounded queue between the transport's thread and the coordinator's; what does not fit is lost, and repaired.

    Devices take turns, and each has a share of its own: one that floods the coordinator keeps no other waiting.
    """

    def __init__(self, transport: Transport, fleet: str) -> None:
        self.lost = 0
        self._transport, self._fleet = transport, fleet
        self._link: deque[bool] = deque()
        self._waiting: OrderedDict[str, deque[bytes]] = OrderedDict()
        """Messages by topic; whose turn it is comes first."""
        self._bytes: Counter[str] = Counter()
        self._count = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        """Connect and listen to every device of the fleet."""
        self._transport.start([up_topic(self._fleet, "+")], self._receive, self._connected)

    def take(self, timeout_s: float) -> tuple[str, bytes] | bool | None:
        """Give a message with its topic, or whether the link is up where that has changed; None: nothing came."""
        with self._changed:
            if not self._link and not self._waiting and not self._changed.wait(timeout_s):
                return None
            if self._link:
                return self._link.popleft()
            topic, messages = self._waiting.popitem(last=False)
            payload = messages.popleft()
            if messages:
                self._waiting[topic] = messages
            self._count -= 1
            self._bytes[topic] -= len(payload)
            self._bytes[""] -= len(payload)
            if not self._bytes[topic]:
                del self._bytes[topic]
            return topic, payload

    def _receive(self, topic: str, payload: bytes) -> None:
        with self._changed:
            mine = self._waiting.get(topic, ())
            if (
                self._count >= _MAX_QUEUE
                or len(mine) >= _MAX_DEVICE_QUEUE
                or self._bytes[""] + len(payload) > _MAX_BYTES
                or self._bytes[topic] + len(payload) > _MAX_DEVICE_BYTES
            ):
                self.lost += 1
                return
            self._waiting.setdefault(topic, deque()).append(payload)
            self._count += 1
            self._bytes[topic] += len(payload)
            self._bytes[""] += len(payload)
            self._changed.notify()

    def _connected(self, up: bool) -> None:
        log.info("connected to the broker" if up else "connection to the broker lost")
        with self._changed:
            self._link.append(up)
            self._changed.notify()


def serve(
    coordinator: Coordinator,
    inbox: Inbox,
    transport: Transport,
    deadline_s: float,
    watch: Callable[[Coordinator], None],
) -> None:
    """Serve until the run is finished; `watch` is called a few times a second.

    Raises:
        RunError: the run cannot go on.
        LinkError: the broker refuses us for good.
    """
    _safely(coordinator, coordinator.start)
    tick = deadline = time.monotonic()
    tick += _TICK_S
    deadline += deadline_s
    where = _where(coordinator)
    wait_s, fit, linked = _WAIT_S, Fit(), False
    while not coordinator.core.progress.finished:
        event = inbox.take(wait_s)
        now = time.monotonic()
        if isinstance(event, tuple):
            _safely(coordinator, functools.partial(coordinator.receive, *event))
        elif event is not None and fit.changed(event, now):
            _safely(coordinator, coordinator.halve_chunks)
            log.warning("the broker hangs up on chunks: they now have %d bytes", coordinator.handout.chunk_bytes)
        elif event:
            if linked:
                _safely(coordinator, coordinator.start)
            linked = True
        due = _safely(coordinator, functools.partial(coordinator.pump, now))
        fit.watch(coordinator.handout.sent, now)
        wait_s = _WAIT_S if due is None else min(_WAIT_S, max(_PUMP_S, due - now))
        if _where(coordinator) != where:
            where, deadline = _where(coordinator), now + deadline_s
        if now >= tick:
            _safely(coordinator, coordinator.tick)
            tick = now + _TICK_S
        if now >= deadline:
            _safely(coordinator, coordinator.deadline)
            deadline = now + deadline_s
        coordinator.check()
        error: EdgeError | None = getattr(transport, "error", None)
        if error is not None:
            raise error
        watch(coordinator)


def _safely(coordinator: Coordinator, event: Callable[[], _Given]) -> _Given | None:
    """Let something happen. A fault of ours is reported, and costs what is not in the journal; it does not end the run.

    Raises:
        EdgeError: what was raised on purpose.
    """
    try:
        return event()
    except EdgeError:
        raise
    except Exception as fault:
        log.exception("a fault of this program: the run goes on from its journal; please report this")
        coordinator.forget(fault)
        return None


def _where(coordinator: Coordinator) -> tuple[int, str, bool]:
    progress = coordinator.core.progress
    return progress.round, progress.phase, coordinator.core.open
