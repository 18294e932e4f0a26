"""Which fault comes when: drawn from a seed, so that a run can be repeated."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

KINDS: Mapping[str, float] = MappingProxyType(
    {"broker": 2.0, "coordinator": 2.0, "agents": 3.0, "pause agents": 1.0, "pause coordinator": 1.0, "cut": 1.0}
)
"""How often each kind comes, in proportion: the first three are SIGKILLs; a pause is SIGSTOP, and SIGCONT later."""
KILLS = ("broker", "coordinator", "agents")
_MOST_AGENTS = 0.1
_LONGEST_S = 2.0


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    wait_s: float
    """After the one before."""
    kind: str
    agents: tuple[str, ...]
    lasts_s: float
    """Until what was killed is started again, or what was stopped goes on."""


def faults(
    seed: int, every_s: float, names: tuple[str, ...], kinds: tuple[str, ...] = tuple(KINDS), away_s: float = 0.0
) -> Iterator[Fault]:
    """Draw faults for ever, one in about `every_s` seconds; agents that are killed stay away for about `away_s`."""
    rng = random.Random(seed)
    while True:
        kind = rng.choices(kinds, [KINDS[one] for one in kinds])[0]
        count = rng.randint(1, max(1, round(_MOST_AGENTS * len(names))))
        lasts_s = rng.uniform(0.1, 0.5 if kind in KILLS else _LONGEST_S)
        if kind == "agents" and away_s:
            count, lasts_s = max(1, count // 2), away_s * rng.uniform(0.5, 1.5)
        yield Fault(every_s * rng.uniform(0.67, 1.33), kind, tuple(rng.sample(names, count)), lasts_s)
