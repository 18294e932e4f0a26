"""Central differential privacy: what the shared model can tell of any one device, bounded and accounted for.

Every update is clipped to the norm C where it is summed, below the algorithm, and Gaussian noise of z C is added to the
sum before it moves the model (z C / n to the mean of n). The coordinator sees every update as it is, and is trusted;
who sees the models that come of them is not. (McMahan et al., "Learning differentially private recurrent language
models", ICLR 2018.)

The noise of a round is drawn from a stream that SHAKE-256 makes of a secret key, the round and the exact sum: a round
that is closed again after a crash, with the same updates, draws the same noise, and with others another. The key is
drawn from the system, lies in the journal, and is gone when the run is over. Sum and noise are whole numbers
(`fixed.py`), so that no rounding of floats tells of the sum what the noise hides.
"""

import functools
import hashlib
import importlib.metadata
import math
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime import fixed
from edge_runtime.aggregate import Averages
from edge_runtime.algorithm import Server, State
from edge_runtime.coordinator.admission import norm
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.fixed import Bits
from edge_runtime.tree import Flat

_KEY, _FROM = "privacy-key", "privacy-from"


class Settings(Protocol):
    """What a run says of privacy ([run])."""

    @property
    def privacy_clip(self) -> float:
        """C; 0: nothing is clipped, and nothing is private."""
        ...

    @property
    def privacy_noise(self) -> float:
        """The noise's deviation over C: z."""
        ...

    @property
    def privacy_delta(self) -> float:
        """δ, for which ε is told."""
        ...

    @property
    def cohort(self) -> int:
        """Devices that are drawn for a round; 0: all take part."""
        ...


class Facts(Protocol):
    """The journal, as far as it is needed."""

    def get(self, key: str) -> str | None:
        """Read one fact about the run."""
        ...

    def set(self, key: str, value: str) -> None:
        """Make one fact about the run durable."""
        ...


class Private:
    """The mean of clipped updates, and noise: an `aggregate.Aggregate`. Its state is the number of rounds."""

    def __init__(self, size: int, clip: float, noise: float, key: bytes) -> None:
        """Clip updates of `size` values to the norm `clip`, and add noise of `noise` times that to their sum."""
        self.size = size
        self._clip, self._noise, self._key = clip, noise, key
        # What is summed is rounded to whole multiples of a unit, each coordinate by half of one at most.
        self._limit = clip - math.sqrt(size) * fixed.UNIT
        self._total = fixed.Total(size)
        self._rounds = 0

    @property
    def count(self) -> int:
        """Count the updates of this round."""
        return self._total.count

    def add(self, device: str, values: Flat, weight: int = 1, where: Bits | None = None) -> None:  # noqa: ARG002
        """Take a device's update, clipped; all count the same."""
        fixed.check(values, where, self.size)
        if (length := norm(values)) > self._limit:
            values = values.astype(np.float64) * (self._limit / length)  # type: ignore[assignment]  # only summed
        self._total.add(values, where)

    def step(self, model: Flat, rate: float = 1.0) -> None:
        """Add the noise, and move `model` [size] by minus rate times the mean, in place; without updates it stays."""
        if self.count and self._noise:
            seed = self._key + self._rounds.to_bytes(8, "little") + self._total.digest()
            scale = self._noise * self._clip / fixed.UNIT
            self._total.shift(np.rint(gaussians(seed, self.size) * scale).astype(np.int64))
        self._rounds += 1
        self._total.step(model, rate)

    def clear(self) -> None:
        """Begin a new round."""
        self._total.clear()

    def state(self) -> State:
        """Give the number of rounds."""
        return {"private-rounds": self._rounds}

    def restore(self, state: State) -> None:
        """Take back what `state` gave; the round begins anew."""
        self._rounds = int(state["private-rounds"])
        self.clear()


def gaussians(seed: bytes, size: int) -> NDArray[np.float64]:
    """Draw independent standard normal numbers [size] from a secret seed, by Box and Muller's rule."""
    pairs = -(-size // 2)
    words = np.frombuffer(hashlib.shake_256(b"edge-runtime/noise" + seed).digest(16 * pairs), "<u8")
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-64
    radius, angle = np.sqrt(-2 * np.log(uniform[:pairs])), 2 * np.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]


def check(run: Any, name: str, settings: Any, server: Server) -> None:
    """Refuse privacy where what is promised would not hold.

    Args:
        run: the table [run].
        name: of the algorithm.
        settings: its Config.
        server: its server half.

    Raises:
        ConfigError: which setting stands in the way.
    """
    if not run.privacy_clip:
        if run.privacy_noise:
            raise ConfigError("run: privacy-noise needs a privacy-clip, the norm to which updates are clipped")
        return
    if not isinstance(server, Averages):
        raise ConfigError(f"run: privacy-clip: {name} has no mean of changes to clip and to add noise to; leave it out")
    if run.habit != "synchronous":
        raise ConfigError(f"run: privacy-clip: noise is added to rounds; set habit to synchronous, not {run.habit}")
    wanted = {"aggregator": "mean", "aggregate": "cohort", "weights": "uniform", "norm_limit": 0.0}
    for key, value in wanted.items():
        if (found := getattr(settings, key, value)) != value:
            kebab = key.replace("_", "-")
            raise ConfigError(f"run: privacy-clip: what one device changes is bounded for {kebab} {value}, not {found}")


def guard(run: Settings, journal: Facts, server: Server) -> bytes:
    """Let a server half move its model by clipped and noisy means, if the run wants it; gives the secret key."""
    if not run.privacy_clip or not isinstance(server, Averages):
        return b""
    if not journal.get(_KEY):
        journal.set(_KEY, secrets.token_hex(32))
    key = bytes.fromhex(journal.get(_KEY) or "")
    server.total = Private(server.total.size, run.privacy_clip, run.privacy_noise, key)
    return key


def draws(key: bytes, round_: int, journal: Facts, devices: int) -> np.random.Generator:
    """Give what the cohort of a round is drawn with that nobody can foresee, and note from how many it is drawn."""
    held = journal.get(_FROM)
    if held is None or int(held) > devices:
        journal.set(_FROM, str(devices))
    seed = hashlib.sha256(b"edge-runtime/cohort" + key + round_.to_bytes(8, "little")).digest()
    return np.random.default_rng(np.frombuffer(seed, "<u4"))


def forget(journal: Facts) -> None:
    """Drop the key of a finished run: with it, noise could be taken off the models again."""
    if journal.get(_KEY):
        journal.set(_KEY, "")


def statement(run: Settings, journal: Facts, trained: Sequence[tuple[int, str]]) -> str:
    """Say in one line what has been promised to every device, with all that it rests on; empty: nothing was asked.

    Args:
        run: the table [run].
        journal: the run's.
        trained: round and device of every update that counted.
    """
    if not run.privacy_clip:
        return ""
    clipped = f"every update was clipped to {run.privacy_clip:g}"
    if not run.privacy_noise:
        return f"privacy: no epsilon: {clipped}, and no noise was added (privacy-noise)"
    counts = Counter(round_ for round_, _ in trained)
    population = int(journal.get(_FROM) or 0)
    drawn = 0 < run.cohort < population and all(count == run.cohort for count in counts.values())
    how = (
        f"each of {run.cohort} of at least {population} devices, drawn in secret without replacement, one device "
        "exchanged for another"
        if drawn
        else "in which any device may have taken part every time, one device's updates replaced by zeros"
    )
    try:
        promised, by = epsilon(run, len(counts), population if drawn else 0)
    except RunError as error:
        return f"privacy: no epsilon: {error}; {clipped}, noise {run.privacy_noise:g} times that on each sum"
    return (
        f"privacy: epsilon {promised:.3g} at delta {run.privacy_delta:g} ({by}) of what the shared models tell of a "
        f"device to others than the coordinator, over {len(counts)} rounds, {how}; {clipped}, and "
        f"Gaussian noise {run.privacy_noise:g} times that was added to each sum; accuracies and personal models are "
        "not covered"
    )


def epsilon(run: Settings, rounds: int, population: int) -> tuple[float, str]:
    """Account for a run: ε, and by what it was computed.

    Args:
        run: clip, noise, delta and cohort.
        rounds: sums that were made.
        population: from how many devices each cohort was drawn, in secret, without replacement, and answered in full;
            one device is then exchanged for another, which changes a sum by 2 C. 0: any device may have been in all
            rounds, and its updates are replaced by zeros, which changes a sum by C.

    Raises:
        RunError: the accountant is not installed.
    """
    try:
        accounting = _accounting()
    except ImportError as error:
        raise RunError("the accountant is not installed: pip install 'edge-runtime[privacy]'") from error
    relation, one = accounting.NeighboringRelation.REPLACE_SPECIAL, accounting.GaussianDpEvent(run.privacy_noise)
    if population:
        relation = accounting.NeighboringRelation.REPLACE_ONE
        one = accounting.GaussianDpEvent(run.privacy_noise / 2)
        one = accounting.SampledWithoutReplacementDpEvent(population, run.cohort, one)
    accountant = accounting.rdp.RdpAccountant(neighboring_relation=relation)
    accountant.compose(accounting.SelfComposedDpEvent(one, rounds))
    return float(accountant.get_epsilon(run.privacy_delta)), f"dp-accounting {_version()}, RDP"


def _accounting() -> Any:
    import dp_accounting

    return dp_accounting


@functools.cache
def _version() -> str:
    return importlib.metadata.version("dp-accounting")
