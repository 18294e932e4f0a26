"""The coordinator: carries out what the core of a run decides, on a journal, an algorithm's server half and a network.

Synchronous, without a thread or a clock of its own: `serve.py` feeds it from a transport, `simulate.py` from a loop.
"""

import dataclasses
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_runtime import algorithm, setup
from edge_runtime.algorithm import Algorithm, Server
from edge_runtime.compression import codec
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.rounds import (
    Accept,
    Action,
    Assign,
    Close,
    Finish,
    Keep,
    Look,
    Plan,
    Register,
    RoundsCore,
    Sample,
    SendChunks,
    Tell,
)
from edge_runtime.errors import ConfigError, DecodeError, RunError
from edge_runtime.message import Blob, Chunk, Fate, Message, Offer, Task, check_name, decode
from edge_runtime.tree import Flat, Layout

log = logging.getLogger(__name__)

_CACHED_BLOBS = 4


class Coordinator:
    """One run. Every method is called from one thread."""

    def __init__(
        self,
        plan: Plan,
        parts: Algorithm,
        settings: Any,
        description: setup.Setup,
        initial: Flat,
        journal: Journal,
        send: Callable[[str, Message], bool],
    ) -> None:
        """Take up where the journal says the run was.

        Args:
            plan: the run as the protocol sees it.
            parts: the algorithm.
            settings: its Config.
            description: the run as its devices see it.
            initial: the model's initial values [size].
            journal: the durable side.
            send: hands a message for a device to the network; may lose it.
        """
        self.core = RoundsCore(plan, journal.progress())
        self.journal = journal
        self.garbage: dict[str, int] = {}
        self.latest: dict[str, dict[str, float]] = {}
        """Figures that came with the last accepted update of every device."""
        self._parts, self._send = parts, send
        self._layout = Layout(description.names, description.shapes)
        self._seed = description.seed
        self._setup = setup.encode(description)
        self._blobs: OrderedDict[str, bytes] = OrderedDict()
        self._tasks: dict[str, tuple[str, bool]] = {}
        self.server: Server = parts.Server(settings, self._layout, initial, journal.memories, description.seed)
        self._recover()

    def _recover(self) -> None:
        """Go back to the last checkpoint, and absorb again what the journal holds of the open round."""
        checkpoint = self.journal.checkpoint()
        if checkpoint is not None:
            self.server.restore(codec.decode_state(checkpoint, 4 * self._layout.size))
        progress = self.core.progress
        self.core.refused = self.journal.rejections(progress.round, progress.phase)
        if progress.phase == "train":
            for device, payload in self.journal.payloads(progress.round):
                self.server.absorb(device, algorithm.decode(payload, self._parts.Up, self._layout))

    def start(self) -> None:
        """Go on with the run."""
        self._do(self.core.start())

    def tick(self) -> None:
        """Repeat what is outstanding."""
        self._do(self.core.tick())

    def deadline(self) -> None:
        """Stop waiting for those who have not answered."""
        self._do(self.core.deadline())

    def receive(self, topic: str, data: bytes) -> None:
        """Take hostile bytes from the network: what is not a message of a device is counted and dropped."""
        device = topic.rsplit("/", 1)[-1]
        try:
            check_name(device, "device id")
            message = decode(data)
        except (ConfigError, DecodeError) as error:
            self.garbage[device] = self.garbage.get(device, 0) + 1
            log.warning("dropped a message of %d bytes from %r: %s", len(data), device[:64], error)
            return
        self.handle(device, message)

    def handle(self, device: str, message: Message) -> None:
        """Take a message from a device."""
        self._do(self.core.handle(device, message))

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Tell():
                    self._send(action.device, action.message)
                case Assign():
                    self._assign(action.device, action.fresh)
                case SendChunks():
                    self._send_chunks(action)
                case Keep():
                    self.journal.keep(action.device, action.offer, action.chunk)
                case Accept():
                    self._accept(action.device, action.offer)
                case Look():
                    self._look(action.device, action.offer)
                case Register():
                    self.journal.register(action.device)
                case Sample():
                    self._sample(action.devices)
                case Close():
                    self._close()
                case Finish():
                    log.info("the run is finished")

    def _assign(self, device: str, fresh: bool) -> None:
        plan, progress = self.core.plan, self.core.progress
        base = "" if fresh else self.journal.base(device)
        down = self._down(device, not base)
        self._tasks[device] = (down.digest, not base)
        task = Task(plan.run, plan.epoch, progress.round, progress.phase, base, self._remember_blob(self._setup), down)
        self._send(device, task)

    def _down(self, device: str, first: bool) -> Blob:
        down = algorithm.encode(self.server.down(device, first))
        if self.core.progress.phase == "evaluate":
            down = algorithm.encode_evaluation(down, self.server.shared())
        return self._remember_blob(down)

    def _remember_blob(self, data: bytes) -> Blob:
        """Keep a few blobs at hand; any other can be made again, so that memory does not grow with the fleet."""
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        self._blobs[blob.digest] = data
        self._blobs.move_to_end(blob.digest)
        while len(self._blobs) > _CACHED_BLOBS:
            self._blobs.popitem(last=False)
        return blob

    def _send_chunks(self, action: SendChunks) -> None:
        digest, first = self._tasks.get(action.device, ("", True))
        if action.need.digest not in self._blobs and action.need.digest == digest:
            self._down(action.device, first)
        if action.need.digest not in self._blobs:
            self._remember_blob(self._setup)
        data = self._blobs.get(action.need.digest)
        if data is None:
            return  # of a task that is no longer open; the device will learn of the new one
        blob = Blob(action.need.digest, len(data))
        for index in action.need.want:
            start, end = blob.span(index)
            if start < end:
                self._send(action.device, Chunk(blob.digest, index, data[start:end]))

    def _accept(self, device: str, offer: Offer) -> None:
        payload = self.journal.take(device, offer.blob)
        if payload is None:
            self._do(self.core.damaged(device))
            return
        reason = ""
        try:
            if offer.phase == "train":
                self.server.absorb(device, algorithm.decode(payload, self._parts.Up, self._layout))
            elif payload:
                raise DecodeError("an evaluation has no payload")
        except DecodeError as error:
            reason = str(error)
            self.journal.reject(device, offer, reason)
            log.warning("device %s: its update of round %d was rejected: %s", device, offer.round, reason)
        else:
            self.journal.accept(device, offer, payload)
            self.latest[device] = offer.metrics
        self._do(self.core.accepted(device, offer, reason))

    def _look(self, device: str, offer: Offer) -> None:
        fate, reason = self.journal.fate(device, offer)
        self._send(device, Fate(offer.run, offer.round, offer.phase, offer.blob.digest, fate, reason))

    def _sample(self, devices: tuple[str, ...]) -> None:
        plan, progress = self.core.plan, self.core.progress
        cohort = devices
        if 0 < plan.cohort < len(devices) and progress.phase == "train":
            rng = np.random.default_rng([self._seed & 0xFFFFFFFF, progress.round])
            cohort = tuple(sorted(rng.choice(devices, plan.cohort, replace=False).tolist()))
        self.journal.open_round(progress.round, progress.phase, cohort)
        self._do(self.core.opened(cohort))

    def _close(self) -> None:
        progress = self.core.progress
        closing = dataclasses.replace(progress)
        if progress.phase == "train":
            self.server.close()
        following = self.core.following()
        self.journal.close_round(closing, codec.encode_state(self.server.state()), following)
        self._tasks.clear()
        self._do(self.core.closed())

    def check(self) -> None:
        """Raise RunError if the open round can never close."""
        if self.core.stuck:
            raise RunError(f"round {self.core.progress.round} cannot close: {self.core.stuck}")
