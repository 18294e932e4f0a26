"""How fast simulated devices are: what each of their tasks takes, in the virtual time of a simulation."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.errors import ConfigError

_KINDS = ("constant", "exponential", "log-normal")


@dataclass(frozen=True)
class Pace:
    """A distribution of the time of a task, and how many devices are slower than that."""

    kind: str = "constant"
    """constant, exponential, or log-normal."""
    mean_s: float = 1.0
    """Mean time of a task on a device that is not slow. Of the default, messages of a second's delay overtake."""
    sigma: float = 0.5
    """Of a log-normal time: the standard deviation of its logarithm."""
    slow_part: float = 0.0
    """Part of the devices that are slow, rounded to whole devices."""
    slow_factor: float = 10.0
    """How many times longer a slow device takes for each of its tasks."""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.kind not in _KINDS:
            raise ConfigError(f"pace: kind must be one of {', '.join(_KINDS)}, not {self.kind!r}")
        for name in ("mean_s", "slow_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"pace: {name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.sigma <= 5:
            raise ConfigError(f"pace: sigma must be from 0 to 5, not {self.sigma}")
        if not 0 <= self.slow_part <= 1:
            raise ConfigError(f"pace: slow-part must be from 0 to 1, not {self.slow_part}")

    def slow(self, seed: int, devices: Sequence[str]) -> frozenset[str]:
        """Say which of the devices are slow."""
        return chosen(seed, "slow", devices, self.slow_part)

    def task_s(self, seed: int, device: str, task: int, slow: bool = False) -> float:
        """Draw the time of a device's `task`-th task, in seconds: the same whenever it is asked."""
        rng = np.random.default_rng(_words(seed, device, task))
        factor = self.mean_s * (self.slow_factor if slow else 1.0)
        match self.kind:
            case "exponential":
                return factor * float(rng.exponential())
            case "log-normal":
                return factor * math.exp(self.sigma * float(rng.standard_normal()) - self.sigma**2 / 2)
            case _:
                return factor


def chosen(seed: int, why: str, devices: Sequence[str], part: float) -> frozenset[str]:
    """Draw a part of the devices, rounded to whole ones; `why` makes draws for different purposes independent."""
    rng = np.random.default_rng(_words(seed, why))
    return frozenset(rng.permutation(sorted(devices))[: round(part * len(devices))].tolist())


def _words(*what: object) -> list[int]:
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
