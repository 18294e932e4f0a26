"""The coordinator's side of an asynchronous run: nobody waits for anybody. State and event in, actions out.

Every device has a task of its own, made from the version of the shared model that stood when it was free. Its update is
absorbed when it comes, and after every `Plan.buffer` updates there is a new version. Tasks are numbered by the updates
that had been judged when they were made, which only ever grows for a device, so that the device's side of the protocol
(`edge_runtime/protocol.py`) knows nothing of all this. What makes it safe, beside what `rounds.py` says:

* A task is durable before it is sent, and is repeated unchanged until its update was judged; so a coordinator that
  was killed goes on with the same open tasks, and a device never trains the same one twice.
* The journal keeps updates in the order in which they were judged; from the last checkpoint on they are absorbed again
  in that order, to the same versions.
* Whatever was trained is let in once, however late: how much it counts is the algorithm's policy, not the protocol's.

The run ends after `Plan.updates` accepted updates; the evaluation after it is a round of `rounds.py`.
"""

import math
import random
from collections.abc import Set

from edge_runtime.coordinator.actions import (
    Action,
    Assign,
    Close,
    Look,
    Plan,
    Progress,
    Register,
    Repeat,
    SendChunks,
    Tell,
    fate_of,
)
from edge_runtime.coordinator.uploads import Uploads
from edge_runtime.message import Chunk, Fate, Hello, Message, Need, Noted, Offer, Profile, Refuse, Status, Task, Welcome


class VersionsCore:
    """State of one asynchronous run while it trains. Every method takes an event and gives the actions that follow."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.progress = progress
        self.online: set[str] = set()
        """Devices that were heard of since the start, or since the last deadline."""
        self.refused: dict[str, str] = {}
        """Reason of every device that gets no task for a while, because its last one failed."""
        self.doing: dict[str, str] = {}
        self._back: dict[str, int] = {}
        """When (in judged updates) a refused device gets a task again."""
        self._heard: set[str] = set()
        self._uploads = Uploads(lambda: len(self.progress.issued))
        self._enough = plan.devices
        self._started = bool(progress.issued)

    @property
    def open(self) -> bool:
        """Say whether devices are at work."""
        return self._started and not self.progress.finished

    @property
    def standing(self) -> tuple[int, int, int]:
        """Say how many rounds' worth of updates there were, how many since, and how many make one."""
        return self.progress.applied // self.plan.devices, self.progress.applied % self.plan.devices, self.plan.devices

    @property
    def stuck(self) -> str:
        """Say why nothing will ever come: every device refused. Empty: something may."""
        if not self.open or not self.online or self.missing() or self.online - self.refused.keys():
            return ""
        device, reason = next(iter(self.refused.items()))
        return f"all {len(self.refused)} devices refused ({device}: {reason})"

    def start(self) -> list[Action]:
        """Repeat the open tasks, or wait for enough devices; end the training if the last update had just come."""
        if self.progress.applied >= self.plan.updates:
            return [Close()]
        return [Repeat(device) for device in self.missing()] if self._started else self._fill()

    def missing(self) -> list[str]:
        """List the devices that have an open task."""
        judged = self.progress.judged
        return sorted(device for device, number in self.progress.issued.items() if number > judged.get(device, -1))

    def tick(self) -> list[Action]:
        """Repeat what is outstanding, less and less often."""
        actions: list[Action] = []
        for device in self.missing():
            if self._uploads.holds(device):
                actions += self._uploads.ask(device)
            elif self._uploads.due(device):
                actions.append(Repeat(device))
        return actions

    def deadline(self, absent: int = 0) -> list[Action]:
        """Give up waiting: begin with the devices that are here, or give the places of silent devices to others.

        `absent`: devices that were heard of, and can take no part.
        """
        if not self._started:
            self._enough = max(1, math.ceil(self.plan.quorum * self.plan.devices) - absent)
        self.online, self._heard = self.online & self._heard, set()
        return self._fill()

    def handle(self, device: str, message: Message) -> list[Action]:
        """Take a message from a device; what is not for a coordinator, or not now, gives no action."""
        self._heard.add(device)
        if device in self.progress.known:
            self.online.add(device)
        match message:
            case Hello():
                return self._on_hello(device)
            case Offer():
                return self._on_offer(device, message)
            case Chunk():
                return self._uploads.take(device, message)
            case Need():
                return [SendChunks(device, message)] if device in self.progress.issued else []
            case Status():
                if (message.run, message.round) == (self.plan.run, self.progress.issued.get(device)):
                    self.doing[device] = message.doing
                return []
            case Refuse():
                return self._on_refuse(device, message)
            case Welcome() | Task() | Fate() | Profile() | Noted():
                return []

    def issued(self, device: str, number: int) -> None:
        """Go on after a new task was made durable."""
        self._uploads.anew(device)
        self.progress.issued[device] = number
        self.doing.pop(device, None)

    def accepted(self, device: str, offer: Offer, reason: str = "") -> list[Action]:
        """Go on after `Accept`: the update counts (no reason), or it was thrown out for that reason."""
        progress = self.progress
        self._uploads.drop(device)
        progress.judged[device] = offer.round
        progress.round += 1
        if reason:
            self._refuse(device, reason)
            return [Tell(device, fate_of(offer, "rejected", reason)), *self._fill()]
        progress.applied += 1
        self.doing[device] = "done"
        actions: list[Action] = [Tell(device, fate_of(offer, "applied"))]
        if progress.applied % self.plan.buffer == 0 or progress.applied == self.plan.updates:
            return [*actions, Close()]
        return [*actions, *self._fill()]

    def damaged(self, device: str) -> list[Action]:
        """Go on after `Accept` found that the bytes do not have the digest: ask again for those that are not good."""
        return self._uploads.damaged(device)

    def recalled(self, device: str, offer: Offer, have: Set[int]) -> list[Action]:
        """Go on after `Recall`."""
        return self._uploads.recalled(device, offer, have)

    def opened(self, cohort: tuple[str, ...]) -> list[Action]:
        """Never called: there is no cohort to sample."""
        raise AssertionError(f"a cohort of {len(cohort)} in an asynchronous run")

    def closed(self) -> list[Action]:
        """Go on after `Close`: with tasks from the new version."""
        self.progress = self.following()
        return self._fill()

    def following(self) -> Progress:
        """Say where the run stands after the version that is being made."""
        now = self.progress
        if now.applied < self.plan.updates:
            return now
        return Progress(now.round, "evaluate", known=now.known, finished=not self.plan.evaluate)

    def _fill(self) -> list[Action]:
        """Give tasks to devices that are free, as many as there are places."""
        progress = self.progress
        if progress.finished or progress.phase != "train" or (not self._started and len(self.online) < self._enough):
            return []
        self._started = True
        for device in [device for device, when in self._back.items() if when <= progress.round]:
            del self._back[device], self.refused[device]
        busy = set(self.missing())
        free = sorted(self.online - busy - self.refused.keys())
        places = (self.plan.cohort or len(free) + len(busy)) - len(busy & self.online)
        if places < len(free):
            draw = random.Random(f"{self.plan.seed}/{progress.round}/{len(busy)}")  # noqa: S311  # repeatable on purpose
            free = sorted(draw.sample(free, max(0, places)))
        return [Assign(device, False) for device in free]

    def _refuse(self, device: str, reason: str) -> None:
        self.refused[device] = reason
        self._back[device] = self.progress.round + self.plan.devices

    def _on_hello(self, device: str) -> list[Action]:
        actions: list[Action] = []
        self._uploads.anew(device)
        self._uploads.lose(device)
        self.online.add(device)
        if device not in self.progress.known:
            self.progress.known.add(device)
            actions.append(Register(device))
        if device in self.missing():
            return [*actions, Repeat(device)]
        filled = self._fill()
        given = any(isinstance(action, Assign) and action.device == device for action in filled)
        return [*actions, *([] if given else [Tell(device, Welcome(self.plan.run))]), *filled]

    def _on_offer(self, device: str, offer: Offer) -> list[Action]:
        progress = self.progress
        if offer.run != self.plan.run:
            return [Tell(device, fate_of(offer, "gone"))]
        if offer.phase != "train" or offer.round <= progress.judged.get(device, -1):
            return [Look(device, offer)]
        if offer.round > progress.issued.get(device, -1) or offer.blob.size > self.plan.max_blob:
            return [Tell(device, fate_of(offer, "rejected", "no such task was given, or too large"))]
        if not self._uploads.holds(device):
            self.doing[device] = "sending"
        return self._uploads.begin(device, offer)

    def _on_refuse(self, device: str, refuse: Refuse) -> list[Action]:
        number = self.progress.issued.get(device)
        asked = self.plan.run, number, "train"
        if (refuse.run, refuse.round, refuse.phase) != asked or device not in self.missing():
            return []
        if refuse.lost:
            return [Assign(device, True)]
        self.progress.judged[device] = refuse.round
        self._refuse(device, refuse.reason)
        return self._fill()
