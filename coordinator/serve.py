"""Feeds a coordinator from a transport and a clock until its run is finished."""

import logging
import queue
import time
from collections.abc import Callable

from edge_runtime.coordinator.server import Coordinator
from edge_runtime.errors import EdgeError
from edge_runtime.message import Message, down_topic, encode, up_topic
from edge_runtime.transport import Transport

log = logging.getLogger(__name__)

_TICK_S = 2.0
_MAX_QUEUE = 1024


class Inbox:
    """A bounded queue between the transport's thread and the coordinator's; what does not fit is lost, and repaired."""

    def __init__(self, transport: Transport, fleet: str) -> None:
        self.events: queue.Queue[tuple[str, bytes] | None] = queue.Queue(_MAX_QUEUE)
        self.lost = 0
        self._transport, self._fleet = transport, fleet

    def start(self) -> None:
        """Connect and listen to every device of the fleet."""
        self._transport.start([up_topic(self._fleet, "+")], self._receive, self._connected)

    def send(self, device: str, message: Message) -> bool:
        """Send a message to a device."""
        return self._transport.send(down_topic(self._fleet, device), encode(message))

    def _receive(self, topic: str, payload: bytes) -> None:
        self._put((topic, payload))

    def _connected(self, up: bool) -> None:
        log.info("connected to the broker" if up else "connection to the broker lost")

    def _put(self, event: tuple[str, bytes]) -> None:
        try:
            self.events.put_nowait(event)
        except queue.Full:
            self.lost += 1


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
    coordinator.start()
    tick = deadline = time.monotonic()
    tick += _TICK_S
    deadline += deadline_s
    where = _where(coordinator)
    while not coordinator.core.progress.finished:
        try:
            event = inbox.events.get(timeout=0.2)
        except queue.Empty:
            event = None
        if event is not None:
            coordinator.receive(*event)
        now = time.monotonic()
        if _where(coordinator) != where:
            where, deadline = _where(coordinator), now + deadline_s
        if now >= tick:
            coordinator.tick()
            tick = now + _TICK_S
        if now >= deadline:
            coordinator.deadline()
            deadline = now + deadline_s
        coordinator.check()
        error: EdgeError | None = getattr(transport, "error", None)
        if error is not None:
            raise error
        watch(coordinator)


def _where(coordinator: Coordinator) -> tuple[int, str, bool]:
    progress = coordinator.core.progress
    return progress.round, progress.phase, coordinator.core.open
