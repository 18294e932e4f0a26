"""Devices that lie, in a simulation: they know one another, and see what every honest device of a round sends.

That is more than a real attacker knows; what withstands it withstands those who know less. `attacks.py` has what they
make of it. Attackers take part in everything else like any device: only the vectors of their Up are others.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import wire
from edge_runtime.coordinator import attacks
from edge_runtime.coordinator.pace import chosen
from edge_runtime.data import Split
from edge_runtime.errors import ConfigError
from edge_runtime.tree import Flat, Part

LABEL_FLIP, BACKDOOR = "label-flip", "backdoor"
_SEED = 0x6C696172
_MOST = 16
"""Honest updates that are remembered of a run without rounds: the latest ones."""


@dataclass(frozen=True)
class Attack:
    """How many devices lie, and how."""

    kind: str = ""
    """A name in `attacks.ATTACKS`, `label-flip` or `backdoor`; empty: all are honest.

    `label-flip`: train honestly on wrong labels. `backdoor`: train half of the samples with a mark to say one class,
    and send that as many times larger as there are devices to a liar.
    """
    part: float = 0.2
    """Part of the devices that are attackers, rounded to whole devices."""

    def __post_init__(self) -> None:
        """Check every field."""
        known = (LABEL_FLIP, BACKDOOR, *attacks.ATTACKS)
        if self.kind and self.kind not in known:
            raise ConfigError(f"attack: kind must be one of {', '.join(known)}, not {self.kind!r}")
        if not 0 <= self.part < 1:
            raise ConfigError(f"attack: part must be from 0 to below 1, not {self.part}")

    def members(self, seed: int, devices: Sequence[str]) -> frozenset[str]:
        """Say which of the devices are attackers."""
        return chosen(seed, "attackers", devices, self.part) if self.kind else frozenset()


def flip_labels(split: Split) -> Split:
    """Give a liar's training data its wrong labels; what is tested on stays."""
    return dataclasses.replace(split, y_train=attacks.flipped_labels(split.y_train, split.classes))


def plant_backdoor(split: Split) -> Split:
    """Give every other sample of a liar's training data the mark and its class; what is tested on stays."""
    x, y = split.x_train.copy(), split.y_train.copy()
    x[::2], y[::2] = attacks.marked(x[::2]), attacks.TARGET
    return dataclasses.replace(split, x_train=x, y_train=y)


ALTERED: Mapping[str, Callable[[Split], Split]] = MappingProxyType({LABEL_FLIP: flip_labels, BACKDOOR: plant_backdoor})
"""What liars of some kinds do to their own data."""


def crafted(kind: str) -> attacks.Attack | None:
    """Give what makes the lies of a kind, where they are made of the honest updates."""
    return None if kind == BACKDOOR else attacks.ATTACKS[kind]


class Adversary:
    """The attackers of one run, as one."""

    def __init__(
        self,
        craft: attacks.Attack | None,
        members: frozenset[str],
        decode: Callable[[bytes], Any],
        seed: int,
        lockstep: bool = True,
    ) -> None:
        """Attack as the devices `members`.

        Args:
            craft: makes the lies; None: each sends its own update as many times as there are devices to a liar, so that
                the mean of all becomes what the liars want (model replacement: Bagdasaryan et al., AISTATS 2020).
            members: the attackers.
            decode: decodes an Up of the run's algorithm.
            seed: of the run.
            lockstep: the run goes round by round. If not, attackers look at the latest updates, of whatever round.
        """
        self._craft, self._members, self._decode, self._seed = craft, members, decode, seed
        self._lockstep = lockstep
        self._seen: dict[str, tuple[int, bytes]] = {}

    def see(self, device: str, round_: int, payload: bytes) -> None:
        """Take note of what an honest device sends; nothing, if it failed."""
        self._seen.pop(device, None)
        self._seen[device] = (round_, payload)
        if self._lockstep:
            self._seen = {name: seen for name, seen in self._seen.items() if seen[0] == round_}
        elif len(self._seen) > _MOST:
            self._seen.pop(next(iter(self._seen)))

    def ready(self, round_: int, cohort: Sequence[str]) -> bool:
        """Say whether every honest device of the cohort has been seen in this round."""
        done = {name for name, seen in self._seen.items() if seen[0] == round_}
        return not self._lockstep or done | self._members >= set(cohort)

    def forge(self, device: str, round_: int, payload: bytes, cohort: Sequence[str]) -> bytes:
        """Make the lie of one attacker.

        Args:
            device: the attacker.
            round_: the round of its task.
            payload: the encoded Up that it would send if it were honest.
            cohort: the devices of the round; the attackers among them lie together.

        Returns:
            An encoded Up whose vectors are the attack's. Where no honest one is known, what `payload` says stands for
            what honest devices would have sent. Where the attack is not defined (for as many liars as that), the liar
            does as if it were honest.
        """
        mine = self._decode(payload)
        liars = sorted({device, *(self._members & set(cohort))})
        honest = [
            self._decode(data)
            for _, (at, data) in sorted(self._seen.items())
            if data and (at == round_ or not self._lockstep)
        ]
        lies = {}
        for name, value in vars(mine).items():
            vector = _vector(value)
            if vector is not None and len(vector):
                rng = np.random.default_rng([_SEED, self._seed, round_])
                good = _stack([_vector(getattr(up, name)) for up in honest], vector)
                with contextlib.suppress(ValueError):
                    if self._craft is None:
                        lie = vector * np.float32(len(cohort) / len(liars))
                    else:
                        lie = self._craft(good, len(liars), rng)[liars.index(device)].astype(np.float32)
                    lies[name] = dataclasses.replace(value, values=lie) if isinstance(value, Part) else lie
        return wire.encode(dataclasses.replace(mine, **lies))


def _vector(value: Any) -> Flat | None:
    """Give the vector of an Up's field; None: it has none."""
    if isinstance(value, Part):
        return value.values
    return value if isinstance(value, np.ndarray) else None


def _stack(vectors: Sequence[Flat | None], mine: Flat) -> NDArray[np.float32]:
    """Stack those that are as long as `mine` [vectors, size]; without any, `mine` alone."""
    alike = [vector for vector in vectors if vector is not None and len(vector) == len(mine)]
    return np.array(alike or [mine], np.float32)
