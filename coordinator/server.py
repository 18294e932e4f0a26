"""The coordinator: carries out what the core of a run decides, on a journal, an algorithm's server half and a network.

Synchronous, without a thread or a clock of its own: `serve.py` feeds it from a transport, `simulate.py` from a loop.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable

import numpy as np

from edge_runtime import coding, peers, personal, wire
from edge_runtime.algorithm import CutServer, NarrowingServer, Server
from edge_runtime.coding import WIRE_VERSION
from edge_runtime.compression import codec
from edge_runtime.coordinator import cores, privacy
from edge_runtime.coordinator.actions import (
    Accept,
    Action,
    Assign,
    Close,
    Finish,
    Keep,
    Look,
    Plan,
    Progress,
    Recall,
    Register,
    Repeat,
    Sample,
    SendChunks,
    Tell,
)
from edge_runtime.coordinator.choices import Choices
from edge_runtime.coordinator.cores import Core
from edge_runtime.coordinator.downlink import Downlink
from edge_runtime.coordinator.gate import EQUIVOCATION, MALFORMED, MISNAMED, OTHER_WIRE, Dropped, Gate, Open, Post
from edge_runtime.coordinator.handout import Handout, Makers
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.rounds import RoundsCore
from edge_runtime.coordinator.run import Run
from edge_runtime.coordinator.tally import Tally
from edge_runtime.coordinator.versions import VersionsCore
from edge_runtime.errors import ConfigError, DecodeError, DeviceError, RunError
from edge_runtime.message import (
    Chunk,
    Fate,
    Hello,
    Message,
    Noted,
    Offer,
    Profile,
    Refuse,
    Task,
    Welcome,
    check_name,
    encode,
)
from edge_runtime.seal import STALE, SealError

log = logging.getLogger(__name__)

_RESERVED = 16
"""Bytes kept free for each value of the model: two checkpoints, and as much again for the journal."""


class Coordinator:
    """One run. Every method is called from one thread."""

    def __init__(
        self, plan: Plan, run: Run, journal: Journal, post: Post, gate: Gate | None = None, tally: Tally | None = None
    ) -> None:
        """Take up where the journal says the run was.

        Args:
            plan: the run as the protocol sees it.
            run: the run.
            journal: the durable side.
            post: the network; may lose what it is given.
            gate: opens what devices say, and is the one by which `post` seals; None: messages are bare.
            tally: where what happens is counted; None: for nobody.
        """
        if journal.get("phase") is None and (plan.decentralised or plan.score):
            journal.set("phase", "peers" if plan.decentralised else "score")
        self.core: Core = cores.begin(plan, journal.progress(plan.asynchronous))
        self.journal = journal
        self.dropped, self.tally = Dropped(), tally or Tally()
        self.latest: dict[str, dict[str, float]] = {}
        """Figures that came with the last accepted update of every device."""
        self.heard: set[str] = set()
        """Who has spoken since `presence.py` emptied it."""
        self.broken: Exception | None = None
        """Why nothing is acknowledged: the disk is full or broken, or a fault. It is tried again with every tick."""
        self.handout = Handout(Makers(self._set_up, self._down, self._kept_down), run.config.chunk_bytes)
        self._run, self._post, self._send = run, post, post.send
        self._gate: Gate = gate or Open()
        self._layout = run.description.model.layout
        self._seed = run.config.seed
        self._now_s = 0.0
        """What the clock of `pump` said last."""
        journal.keep_updates = run.config.keep_updates
        journal.files.reserve(_RESERVED * self._layout.size)
        self._take_up()

    def _take_up(self) -> None:
        """Make all that the journal, and nobody else, remembers."""
        run, journal = self._run, self.journal
        self.unfit: dict[str, str] = journal.devices.unfit()
        """Devices that get no task, and why."""
        self.core.online -= self.unfit.keys()
        self.handout.forget()
        self._kept = 0
        """Updates of an asynchronous run that the last checkpoint holds."""
        memories = journal.memories
        self.server: Server = run.parts.Server(run.settings, self._layout, run.initial, memories, self._seed)
        self._secret = privacy.guard(run.config, journal, self.server)
        self.choices = Choices(run, journal)
        if isinstance(self.server, CutServer):
            self.server.cut_of = self.choices.cut_of
        if isinstance(self.server, NarrowingServer):
            self.server.cuts = run.cuts
        self._downlink = Downlink(run, self.server, journal, self.choices)
        self._recover()

    def forget(self, fault: Exception) -> None:
        """Take nothing more until the next tick, which goes on from what is in the journal, as after a crash."""
        self.broken = fault

    def _revive(self) -> None:
        self.journal.rollback()
        plan, online = self.core.plan, self.core.online
        self.core = cores.begin(plan, self.journal.progress(plan.asynchronous))
        self.core.online = online
        self._take_up()
        self._do(self.core.start())

    def _guard(self, event: Callable[[], None]) -> None:
        """Let something happen, unless the disk takes nothing; if that shows now, forget what it did not take."""
        if self.broken is not None:
            return
        try:
            event()
        except DeviceError as error:
            self.broken = error
            log.error("%s; until then nothing is acknowledged", error)
            if self.journal.files.release():
                with contextlib.suppress(DeviceError):
                    self._revive()  # what was begun may end in the room that was kept for it

    def _mend(self) -> None:
        """Go on once the disk takes something again."""
        try:
            self.journal.files.refill()
            self._revive()
            self.broken = None
        except DeviceError as error:
            self.broken = error
        else:
            log.warning("%s: the run goes on", self.journal.folder)

    def _recover(self) -> None:
        """Go back to the last checkpoint, and absorb again what the journal holds of the open round."""
        checkpoint = self.journal.checkpoint()
        if checkpoint is not None:
            self._downlink.restore(codec.decode_state(checkpoint, 4 * self._layout.size))
        progress = self.core.progress
        if isinstance(self.core, VersionsCore):
            self._recover_versions(progress)
            return
        answered = progress.accepted.keys()
        unfit = {one: why for one, why in self.unfit.items() if one in progress.cohort and one not in answered}
        self.core.refused = {**unfit, **self.journal.rejections(progress.round, progress.phase)}
        if progress.phase == "train":
            for device, payload in self.journal.payloads(progress.round):
                self._downlink.take(device, payload)

    def _recover_versions(self, progress: Progress) -> None:
        plan, payloads = self.core.plan, list(self.journal.payloads_since())
        done = self._kept = progress.applied - len(payloads)
        for device, payload in payloads:
            self._downlink.take(device, payload)
            done += 1
            if done % plan.buffer == 0 and done < plan.updates:  # the last version is made by the core's `Close`
                self._downlink.close()

    def start(self) -> None:
        """Go on with the run: after a start, or on a new connection, where what was said last may be lost."""
        self._guard(lambda: self._do(self.core.start()))

    def tick(self) -> None:
        """Repeat what is outstanding."""
        self._gate.tick()
        if self.broken is not None:
            self._mend()
        self._guard(lambda: self._do(self.core.tick()))

    def deadline(self) -> None:
        """Stop waiting for those who have not answered."""
        if self.broken is None:
            self.check_anybody()
        self._guard(lambda: self._do(self.core.deadline(len(self.unfit))))

    def receive(self, topic: str, data: bytes) -> None:
        """Take hostile bytes from the network: what is not a message of a device is counted and dropped."""
        device = topic.rsplit("/", 1)[-1]
        try:
            check_name(device, "device id")
        except ConfigError as error:
            self._drop(device, MISNAMED, str(error))
            return
        try:
            message = self._gate.open(device, data)
        except SealError as error:
            self._drop(device, error.reason, str(error))
            if error.reason == STALE and self._gate.greets(device, error.stranger):
                self._post.greet(device, error.stranger, Welcome(self.core.plan.run))
        except DecodeError as error:
            self._drop(device, MALFORMED, str(error))
        else:
            self.tally.heard(message, len(data))
            self.handle(device, message)

    def _drop(self, device: str, reason: str, why: str) -> None:
        self.dropped.add(device, reason, why, self._gate.vouches)

    def pump(self, now_s: float) -> float | None:
        """Send chunks that were asked for, while the network has room; say when to come again (None: nothing waits).

        To be called after every event. `now_s`: of a clock that never goes back.
        """
        self._now_s = now_s
        self._guard(lambda: self.handout.pump(self._post, now_s))
        return self.handout.due_s() if self.broken is None else None

    def halve_chunks(self) -> None:
        """Cut everything in smaller chunks from now on, and repeat the open tasks: the broker does not carry these."""
        self.handout.halve_chunks()
        self.start()

    def handle(self, device: str, message: Message) -> None:
        """Take a message from a device."""
        self._guard(lambda: self._handle(device, message))

    def _handle(self, device: str, message: Message) -> None:
        if isinstance(message, Profile):
            self._note(device, message)
            return
        if isinstance(message, Offer | Chunk):
            self.journal.files.check_room()
        if isinstance(message, Hello):
            if not self._understands(device, message):
                return
            self.handout.leave(device)
            if not self._admits(device, message):
                return
        actions = self.core.handle(device, message)
        if device in self.unfit:
            self.core.online.discard(device)
        self._do(actions)
        self.heard |= {device} & self.core.progress.known

    def _note(self, device: str, profile: Profile) -> None:
        """Keep what a device says it is; of a device that the run has heard of."""
        if device in self.core.progress.known:
            self.journal.files.keep_profile(device, encode(profile))
            self._send(device, Noted(self.core.plan.run, profile.digest))

    def _understands(self, device: str, hello: Hello) -> bool:
        """Note which coding a device asks for; one that speaks another version of the wire is not heard."""
        try:
            if hello.wire != WIRE_VERSION:
                raise ConfigError(f"it speaks version {hello.wire} of the wire, and this coordinator {WIRE_VERSION}")
            asked = hello.down and coding.parse(hello.down, "down")
        except ConfigError as error:
            self._drop(device, OTHER_WIRE, f"{error}: it is not heard")
            return False
        if asked and not coding.suits(asked, wire.tells(self._run.parts.Down)):
            log.warning("device %s asks for %s, which this run has not: it is told as the others", device, hello.down)
            asked = ""
        self.journal.devices.ask(device, hello.down if asked else "")
        return True

    def _admits(self, device: str, hello: Hello) -> bool:
        """See what a device is given, and whether it gets tasks; an open one that does not fit is taken back."""
        heard = self.choices.hear(device, hello)
        if heard.chosen:
            log.warning("device %s is given %s", device, heard.chosen, extra={"device": device})
        self.journal.devices.admit(device, heard.lacking)
        if not heard.lacking:
            self.unfit.pop(device, None)
            return True
        if self.unfit.get(device) != heard.lacking:
            more = {"device": device, "reason": heard.lacking}
            log.warning("device %s gets no task: %s", device, heard.lacking, extra=more)
        self.unfit[device] = heard.lacking
        actions: list[Action] = [Tell(device, Welcome(self.core.plan.run))]
        if device in self.core.missing():
            number = self.core.progress.issued.get(device, self.core.progress.round)
            refuse = Refuse(self.core.plan.run, number, False, heard.lacking[:500], self.core.progress.phase)
            actions += self.core.handle(device, refuse)
        self.core.online.discard(device)
        self._do(actions)
        return False

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Tell():
                    self._send(action.device, action.message)
                case Assign() | Repeat() if action.device in self.unfit:
                    pass  # until it says that it has what that takes
                case Assign():
                    self._assign(action.device, action.fresh)
                case Repeat():
                    self._repeat(action.device)
                case SendChunks():
                    self.handout.want(action.device, action.need)
                case _:
                    self._do_durably(action)

    def _do_durably(self, action: Recall | Keep | Accept | Look | Register | Sample | Close | Finish) -> None:
        match action:
            case Recall():
                have = self.journal.partial(action.device, action.offer.blob)
                self._do(self.core.recalled(action.device, action.offer, have))
            case Keep():
                self.journal.keep(action.device, action.offer, action.chunk)
            case Accept():
                self._accept(action.device, action.offer)
            case Look():
                self._look(action.device, action.offer)
            case Register():
                self.journal.devices.register(action.device)
            case Sample():
                self._sample(action.devices)
            case Close():
                self._close()
            case Finish():
                privacy.forget(self.journal)
                log.info("the run is finished")

    def _assign(self, device: str, fresh: bool) -> None:
        plan, progress = self.core.plan, self.core.progress
        base = "" if fresh else self.journal.devices.base(device)
        if isinstance(self.core, VersionsCore):
            self.journal.devices.settle(device)
        named = self.handout.name(device, not base, isinstance(self.core, VersionsCore))
        task = Task(plan.run, plan.epoch, progress.round, progress.phase, base, named.set_up, named.down)
        if isinstance(self.core, VersionsCore):
            self.journal.assign(device, task, self.handout.data(named.down))
            self.core.issued(device, task.round)
        sent = self.handout.follow(device)
        self._send(device, dataclasses.replace(task, sent=sent))
        if sent:
            self.handout.pump(self._post, self._now_s)  # while the bytes are at hand: later they would be made again

    def _repeat(self, device: str) -> None:
        task = self.journal.assigned(device)
        if task is None:
            self._assign(device, False)
        else:
            named, epoch = self.handout.repeat(device, task), self.core.plan.epoch
            self._send(device, dataclasses.replace(task, epoch=epoch, setup=named.set_up, down=named.down))

    def _down(self, device: str, first: bool) -> bytes:
        if self.core.progress.phase == "score":
            return self.choices.task(device, self._run.initial)
        if self.core.progress.phase == "peers":
            cohort = self.core.progress.cohort
            start = dataclasses.replace(self._run.start(cohort), keys=self._gate.points(cohort))
            return peers.encode_start(start)
        return self._downlink.encode(device, first, self.core.progress.phase == "evaluate")

    def _set_up(self, device: str) -> bytes:
        """Give the run as a device sees it; to say which channels matter to it, it must see the whole model."""
        scores = self.core.progress.phase == "score"
        return (self._run.others if scores else self.choices.variant_of(device)).encoded

    def _kept_down(self, digest: str) -> bytes | None:
        """Read the Down of a version that may have passed since."""
        return self.journal.down(digest) if isinstance(self.core, VersionsCore) else None

    def _accept(self, device: str, offer: Offer) -> None:
        payload = self.journal.take(device, offer.blob)
        if payload is None:
            self._do(self.core.damaged(device))
            return
        reason, held, number = "", "", self.core.progress.round
        try:
            if offer.phase == "train":
                up = self._downlink.take(device, payload)
                held, offer = self._downlink.held_after(device, up), self._dated(offer)
            elif offer.phase == "score":
                self.choices.score(device, payload)
            elif payload:
                self._collect(device, payload)
                payload = b""
        except DecodeError as error:
            reason = str(error)
            self.journal.reject(device, offer, reason, number)
            more = {"device": device, "round": offer.round, "reason": reason}
            log.warning("device %s: its update of round %d was rejected: %s", device, offer.round, reason, extra=more)
        else:
            self.journal.accept(device, offer, payload, number, held)
            self.latest[device] = offer.metrics
        self.tally.judged(reason)
        self._do(self.core.accepted(device, offer, reason))

    def _collect(self, device: str, data: bytes) -> None:
        """Keep the personal model that a device hands over."""
        setup = self.choices.variant_of(device).setup
        if not setup.collect:
            raise DecodeError("an evaluation has no payload")
        card = setup.own or setup.model
        made = personal.decode(data, card.layout.size)
        if (made.origin.run, made.origin.device) != (self.core.plan.run, device) or not personal.same_model(
            made.card, card
        ):
            raise DecodeError("the personal model is not of this device in this run")
        self.journal.files.keep_personal(device, data)

    def _dated(self, offer: Offer) -> Offer:
        """Note with an update of an asynchronous run how many others were judged since its task was made."""
        if not isinstance(self.core, VersionsCore):
            return offer
        staleness = float(self.core.progress.round - offer.round)
        return dataclasses.replace(offer, metrics={**offer.metrics, "staleness": staleness})

    def _look(self, device: str, offer: Offer) -> None:
        fate, reason = self.journal.fate(device, offer)
        if fate == "rejected" and self.journal.contradicts(device, offer):
            self._drop(device, EQUIVOCATION, f"another update of round {offer.round}: {offer.blob.digest}")
        self._send(device, Fate(offer.run, offer.round, offer.phase, offer.blob.digest, fate, reason))

    def _sample(self, devices: tuple[str, ...]) -> None:
        plan, progress = self.core.plan, self.core.progress
        cohort = devices
        if progress.phase == "score":
            parts = (device for device in devices if self.choices.cut_of(device))
            cohort = tuple(device for device in parts if self.choices.may_score(device))
        if 0 < plan.cohort < len(devices) and progress.phase == "train":
            rng = np.random.default_rng([self._seed & 0xFFFFFFFF, progress.round])
            if self._secret:
                rng = privacy.draws(self._secret, progress.round, self.journal, len(devices))
            cohort = tuple(sorted(rng.choice(devices, plan.cohort, replace=False).tolist()))
        for device in cohort:
            self.journal.devices.settle(device)
        self.journal.open_round(progress.round, progress.phase, cohort)
        self._do(self.core.opened(cohort))

    def _close(self) -> None:
        if isinstance(self.core, VersionsCore):
            self._close_version(self.core)
            return
        progress = self.core.progress
        closing = dataclasses.replace(progress)
        if progress.phase == "train":
            self._downlink.close()
        following = self.core.following()
        self.journal.close_round(closing, codec.encode_state(self._downlink.state()), following)
        self.handout.close()
        actions = self.core.closed()
        if cores.kind(self.core.plan, following) is RoundsCore:
            self._do(actions)
        else:
            self._change_core(following)

    def _close_version(self, core: VersionsCore) -> None:
        """Make a version; write a checkpoint once for as many updates as there are devices."""
        self._downlink.close()
        following = core.following()
        if core.progress.applied - self._kept >= core.plan.devices or following.phase != "train":
            self.journal.close_versions(codec.encode_state(self._downlink.state()), following)
            self._kept = core.progress.applied
        actions = core.closed()
        if following.phase == "train":
            self._do(actions)
            return
        self.handout.close()
        self._change_core(following)

    def _change_core(self, following: Progress) -> None:
        """Go on with what an asynchronous run does before or after its rounds, or with these."""
        online, self.core = self.core.online, cores.begin(self.core.plan, following)
        self.core.online = online
        self._do([Finish()] if following.finished else self.core.start())

    def check(self) -> None:
        """Raise RunError if the open round can never close."""
        if self.core.stuck and self.broken is None:
            raise RunError(f"round {self.core.progress.round} cannot close: {self.core.stuck}")

    def check_anybody(self) -> None:
        """Raise RunError if as many devices as are waited for have been heard of, and none of them gets a task."""
        if not self.core.open and not self.core.online and len(self.unfit) >= self.core.plan.devices:
            device, reason = next(iter(self.unfit.items()))
            raise RunError(f"none of {len(self.unfit)} devices gets a task ({device}: {reason})")
