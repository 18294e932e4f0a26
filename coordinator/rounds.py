"""The coordinator's side of the protocol, without clock, socket or disk: state and event in, actions out.

`server.py` feeds it and carries its actions out, in order; a simulation does the same. What makes it safe:

* A round's cohort is durable before the first task of it is sent (`Open` stands before `Assign`).
* An update is durable before it is acknowledged: `Accept` journals it, and only then `accepted` speaks of its fate.
* Which updates count is decided by the journal's primary key (run, round, device), not by memory; `Look` answers for
  rounds that are over.
* What comes before the first round (`score`) and after the last (`evaluate`) is a round like any other, of that phase.
* After a crash the same round goes on with the same cohort and what the journal holds of it.

A synchronous run closes a round when its cohort has answered, or at the deadline with a quorum. So does the only round
of a decentralised run, in which the devices do all the run's rounds among themselves.
"""

import math
from collections.abc import Set

from edge_runtime.coordinator.actions import (
    Action,
    Assign,
    Close,
    Finish,
    Look,
    Plan,
    Progress,
    Register,
    Sample,
    SendChunks,
    Tell,
    fate_of,
)
from edge_runtime.coordinator.uploads import Uploads
from edge_runtime.message import Chunk, Fate, Hello, Message, Need, Noted, Offer, Profile, Refuse, Status, Task, Welcome


class RoundsCore:
    """State of one run. Every method takes an event and gives the actions that follow, to be done in order."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.progress = progress
        self.online: set[str] = set(progress.known)
        """Devices that were heard of, and have not missed a deadline since the start. After a restart these are all:
        who has nothing to say would else be waited for until it says hello again."""
        self.refused: dict[str, str] = {}
        """Reason of every device of the cohort that cannot take part in this round."""
        self.doing: dict[str, str] = {}
        self._fresh: set[str] = set()
        self._uploads = Uploads(lambda: len(self.progress.cohort))
        self._closing = False
        self._enough = plan.devices

    @property
    def open(self) -> bool:
        """Say whether a round is open."""
        return bool(self.progress.cohort) and not self.progress.finished

    @property
    def standing(self) -> tuple[int, int, int]:
        """Say which round is open (the number of rounds: the evaluation), how many answered it, and how many should."""
        now = self.progress
        number = self.plan.rounds if now.phase == "evaluate" else now.round
        return number, len(now.accepted), len(now.cohort)

    @property
    def quorum(self) -> int:
        """Count the answers without which the open round cannot close; who gives no scores has a part all the same."""
        return 0 if self.progress.phase == "score" else max(1, math.ceil(self.plan.quorum * len(self.progress.cohort)))

    @property
    def stuck(self) -> str:
        """Say why the open round can never close: too many devices refused. Empty: it can."""
        if not self.open or self.missing() or len(self.progress.accepted) >= self.quorum:
            return ""
        device, reason = next(iter(self.refused.items()))
        return f"{len(self.refused)} of {len(self.progress.cohort)} devices refused ({device}: {reason})"

    def start(self) -> list[Action]:
        """Go on with the open round, or wait for enough devices to open the first."""
        if self.open:
            return [*self._assign_all(), *self._maybe_close()]
        return self._maybe_open()

    def missing(self) -> list[str]:
        """List the devices of the cohort whose answer is still open."""
        answered = self.progress.accepted.keys() | self.refused.keys()
        return [device for device in self.progress.cohort if device not in answered]

    def tick(self) -> list[Action]:
        """Repeat what is outstanding, less and less often."""
        actions: list[Action] = []
        for device in self.missing():
            if self._uploads.holds(device):
                actions += self._uploads.ask(device)
            elif self._uploads.due(device):
                actions.append(Assign(device, device in self._fresh))
        return actions

    def deadline(self, absent: int = 0) -> list[Action]:
        """Stop waiting: close the round with the quorum that answered, or open one with the devices that are here.

        Below the quorum nothing happens; the caller sets the next deadline either way. `absent`: devices that were
        heard of, and can take no part.
        """
        if not self.open:
            self._enough = max(1, math.ceil(self.plan.quorum * self.plan.devices) - absent)
            return self._maybe_open()
        if len(self.progress.accepted) < self.quorum:
            return []
        for device in self.missing():
            self.online.discard(device)
        self._enough = max(1, len(self.online))
        return self._close()

    def handle(self, device: str, message: Message) -> list[Action]:
        """Take a message from a device; what is not for a coordinator, or not now, gives no action."""
        if device in self.progress.known:
            self.online.add(device)  # whatever it says, it is back
        match message:
            case Hello():
                return self._on_hello(device)
            case Offer():
                return self._on_offer(device, message)
            case Chunk():
                return self._uploads.take(device, message)
            case Need():
                return [SendChunks(device, message)] if device in self.progress.cohort else []
            case Status():
                if (message.run, message.round) == (self.plan.run, self.progress.round):
                    self.doing[device] = message.doing
                return []
            case Refuse():
                return self._on_refuse(device, message)
            case Welcome() | Task() | Fate() | Profile() | Noted():
                return []

    def accepted(self, device: str, offer: Offer, reason: str = "") -> list[Action]:
        """Go on after `Accept`: the update counts (no reason), or it was thrown out for that reason."""
        self._uploads.drop(device)
        if reason:
            self.refused[device] = reason
            return [Tell(device, fate_of(offer, "rejected", reason)), *self._maybe_close()]
        self.progress.accepted[device] = offer.blob.digest
        self.doing[device] = "done"
        return [Tell(device, fate_of(offer, "applied")), *self._maybe_close()]

    def damaged(self, device: str) -> list[Action]:
        """Go on after `Accept` found that the bytes do not have the digest: ask again for those that are not good."""
        return self._uploads.damaged(device)

    def recalled(self, device: str, offer: Offer, have: Set[int]) -> list[Action]:
        """Go on after `Recall`."""
        return self._uploads.recalled(device, offer, have)

    def opened(self, cohort: tuple[str, ...]) -> list[Action]:
        """Go on after `Sample`; a round that nobody need take part in is over."""
        self.progress.cohort = cohort
        return self._assign_all() if cohort else self._close()

    def closed(self) -> list[Action]:
        """Go on after `Close`: with the next round, the evaluation, or the end."""
        self._closing = False
        self._fresh.clear()
        self.refused.clear()
        self.doing.clear()
        self._uploads.clear()
        self.progress = self.following()
        return [Finish()] if self.progress.finished else self._maybe_open()

    def following(self) -> Progress:
        """Say where the run stands once the open round has closed."""
        now = self.progress
        if now.phase == "score":
            return Progress(now.round, "train", known=now.known)
        if now.phase != "train":
            return Progress(now.round, now.phase, known=now.known, finished=True)
        if now.round + 1 < self.plan.rounds:
            return Progress(now.round + 1, "train", known=now.known)
        return Progress(now.round + 1, "evaluate", known=now.known, finished=not self.plan.evaluate)

    def _on_hello(self, device: str) -> list[Action]:
        actions: list[Action] = []
        self._uploads.anew(device)
        self._uploads.lose(device)
        self.online.add(device)
        if device not in self.progress.known:
            self.progress.known.add(device)
            actions.append(Register(device))
        if device in self.missing():
            return [*actions, Assign(device, device in self._fresh)]
        return [*actions, Tell(device, Welcome(self.plan.run)), *self._maybe_open()]

    def _on_offer(self, device: str, offer: Offer) -> list[Action]:
        progress = self.progress
        if offer.run != self.plan.run:
            return [Tell(device, fate_of(offer, "gone"))]
        if offer.round > progress.round:  # after a start from a backup
            return [Tell(device, fate_of(offer, "rejected", "no such task was given"))]
        if (offer.round, offer.phase) != (progress.round, progress.phase) or device in progress.accepted:
            return [Look(device, offer)]
        if device not in progress.cohort or device in self.refused:
            reason = self.refused.get(device, "not assigned in this round")
            return [Tell(device, fate_of(offer, "rejected", reason))]
        if offer.blob.size > self.plan.max_blob:
            self.refused[device] = reason = f"too large: {offer.blob.size} bytes, at most {self.plan.max_blob}"
            return [Tell(device, fate_of(offer, "rejected", reason)), *self._maybe_close()]
        if not self._uploads.holds(device):
            self.doing[device] = "sending"
        return self._uploads.begin(device, offer)

    def _on_refuse(self, device: str, refuse: Refuse) -> list[Action]:
        open_ = self.plan.run, self.progress.round, self.progress.phase
        if (refuse.run, refuse.round, refuse.phase) != open_ or device not in self.missing():
            return []
        if refuse.lost:
            self._fresh.add(device)
            self._uploads.anew(device)
            return [Assign(device, True)]
        self.refused[device] = refuse.reason
        return self._maybe_close()

    def _assign_all(self) -> list[Action]:
        return [Assign(device, device in self._fresh) for device in self.missing()]

    def _maybe_open(self) -> list[Action]:
        progress = self.progress
        if progress.cohort or progress.finished or len(self.online) < self._enough:
            return []
        return [Sample(tuple(sorted(self.online)))]

    def _maybe_close(self) -> list[Action]:
        return self._close() if self.open and not self.missing() and not self.stuck else []

    def _close(self) -> list[Action]:
        if self._closing:
            return []
        self._closing = True
        return [Close()]
