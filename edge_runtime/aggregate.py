"""How a coordinator makes one move of many devices' updates: their mean, or an aggregator that withstands liars.

The mean is an exact running sum (`fixed.Total`). The others need all updates at once: these are spooled to a file, and
worked on in float64, a tile of coordinates at a time, in the order of the devices' names. So neither takes memory for
every device, and in neither does the order of arrival change a bit. The mathematics is in `robust.py`.
"""

import logging
import math
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edge_runtime import fixed, robust, sgd
from edge_runtime.algorithm import State
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.fixed import Bits
from edge_runtime.tree import Flat

log = logging.getLogger(__name__)

AGGREGATORS = (
    "mean",
    "median",
    "trimmed-mean",
    "geometric-median",
    "krum",
    "multi-krum",
    "centred-clipping",
    "norm-bound",
)
NORM_LIMIT = 5.0
"""c of `robust`. Honest norms were at most 1.8 times the median in the cells of the study (docs/robustness.md)."""
_CELLS = 1 << 18
"""Values of all devices together that are worked on at a time: 2 MiB of float64."""
_BUCKETS = 0x6275636B
"""Sets the draws of buckets apart from what else is drawn from (seed, round)."""


@dataclass(frozen=True)
class Averaging(sgd.Sgd):
    """Local training, and how the devices' updates become one: the Config of an algorithm that averages begins so."""

    weights: str = "uniform"
    """Of devices in the mean: `uniform`, or `samples` (in proportion to their number of training samples)."""
    samples_cap: int = 10_000
    """With `samples`: the largest number that counts, so that no device can claim the whole sum."""
    aggregator: str = "mean"
    """`mean`, or one that withstands f liars; then all devices count the same.

    Coordinate by coordinate: `median`, `trimmed-mean`. The point nearest to all: `geometric-median`. The update (or the
    mean of some) whose neighbours are nearest: `krum`, `multi-krum`. Limits on how far one device can pull:
    `centred-clipping`, from where the last round led; `norm-bound`, from zero.
    """
    byzantine: int = 0
    """f, the most devices of a round that may send anything. Where a cohort is drawn, a bound on its tail."""
    bucket: int = 1
    """s: means of s updates drawn at random go to the aggregator, which evens out honest differences; 0, 1: off.

    The mean stays the mean of all.
    """
    nearest_mixing: bool = False
    """First replace every update (or bucket's mean) by the mean of the n - f nearest to it."""
    krum_picks: int = 0
    """m of `multi-krum`, the updates that it averages; 0: as many as it may, n - f - 2."""
    norm_limit: float = 0.0
    """c: an update is rejected whose norm is above c times the median of those accepted of late; 0: none is.

    Of the coordinator's admission, with any aggregator.
    """
    clip_radius: float = 10.0
    """Of `centred-clipping` and `norm-bound`: how far one device can pull; 10 is the bucketing code's."""
    clip_steps: int = 3
    """Of `centred-clipping`: steps in a round; 3 is the bucketing code's."""
    cohort: int = 0
    """The fewest updates with which a round closes; set from the run itself. 0: unknown, not checked."""

    def __post_init__(self) -> None:
        """Check every field, and that the aggregator can withstand so many liars."""
        super().__post_init__()
        fixed.cap_of(self.weights, self.samples_cap)
        sgd.require_one_of("aggregator", self.aggregator, AGGREGATORS)
        for key in ("byzantine", "bucket", "krum_picks", "cohort"):
            sgd.require(key.replace("_", "-"), getattr(self, key), low=0)
        sgd.require("norm-limit", self.norm_limit, low=1.0 if self.norm_limit else 0.0)
        sgd.require("clip-radius", self.clip_radius, low=0.0, open_low=True)
        sgd.require("clip-steps", self.clip_steps, low=1)
        if self.aggregator == "mean":
            self._refuse_what_the_mean_cannot()
        elif self.weights != "uniform":
            raise ConfigError(f"algorithm: weights must be uniform with aggregator {self.aggregator}, not samples")
        if self.cohort and (why := self.shortage(self.cohort)):
            raise ConfigError(
                f"algorithm: {why}; lower byzantine or bucket, or let more devices answer (cohort, quorum)"
            )

    def _refuse_what_the_mean_cannot(self) -> None:
        if self.byzantine:
            raise ConfigError(
                f"algorithm: byzantine {self.byzantine} with aggregator mean, which withstands none; "
                "choose another aggregator, geometric-median say, or leave byzantine at 0"
            )
        if self.nearest_mixing:
            raise ConfigError("algorithm: nearest-mixing needs an aggregator other than mean")

    def shortage(self, count: int) -> str:
        """Say why `count` updates are too few for the aggregator to withstand f liars; empty: they are enough.

        A liar spoils one bucket, so f stays, and n becomes ceil(n/s). No aggregator withstands half of them; Krum needs
        2f + 3 (Blanchard et al.), multi-Krum also m + f + 2.
        """
        if self.aggregator == "mean":
            return ""
        least = 2 * self.byzantine + 1
        if self.aggregator in {"krum", "multi-krum"}:
            least += 2
        if self.aggregator == "multi-krum":
            least = max(least, self.krum_picks + self.byzantine + 2)
        made = math.ceil(count / max(self.bucket, 1))
        if made >= least:
            return ""
        buckets = f" in buckets of {self.bucket} are {made}" if self.bucket > 1 else ""
        return f"{self.aggregator} with byzantine {self.byzantine} needs {least} inputs; {count} updates{buckets}"


@dataclass(frozen=True)
class OwnedAveraging(Averaging):
    """The Config of an algorithm whose devices may have a part of the model each."""

    aggregate: str = "cohort"
    """Divide a sum of updates by the `cohort` size, or at each coordinate by the number of its `owners`.

    With sub-models ([variant.NAME] width) `owners` is the default. Aggregators other than the mean take an update for a
    row that is zero where the device owns nothing.
    """

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require_one_of("aggregate", self.aggregate, ("cohort", "owners"))
        if self.aggregate == "owners" and self.aggregator != "mean":
            raise ConfigError(f"algorithm: aggregate must be cohort with aggregator {self.aggregator}, not owners")


def withstanding(table: Mapping[str, Any], asked: int, least: int) -> dict[str, Any]:
    """Say what the key `robust` of [algorithm] stands for, with what the table has of its own.

    Nearest-neighbour mixing, then a trimmed mean, of updates that passed the norm's gate; f is a fifth of the cohort.

    Args:
        table: the other keys.
        asked: updates that a round asks for.
        least: those with which it may close.

    Raises:
        ConfigError: too few for that.
    """
    liars = table.get("byzantine", asked // 5)
    if not isinstance(liars, int) or liars < 1 or least < 2 * liars + 3:
        needed = f"{2 * liars + 3} for byzantine {liars}" if isinstance(liars, int) and liars > 0 else "5, of 6 asked"
        raise ConfigError(
            f"algorithm: robust needs rounds of at least {needed}, and these may close with {least} of {asked} "
            "updates; let more devices take part (devices, cohort, buffer), or leave robust out"
        )
    keys = {"aggregator": "trimmed-mean", "nearest-mixing": True, "byzantine": liars, "norm-limit": NORM_LIMIT}
    return {**keys, **table}


class Aggregate(Protocol):
    """Takes the updates of a round, and moves a model by what they come to."""

    size: int
    """Values of an update."""

    @property
    def count(self) -> int:
        """Count the updates of this round."""
        ...

    def add(self, device: str, values: Flat, weight: int = 1, where: Bits | None = None) -> None:
        """Take a device's update.

        Args:
            device: who sent it.
            values: the update [size]; with `where`, the values at the coordinates [size] that are on there.
            weight: how much it counts, in a weighted mean.
            where: the coordinates that the device owns; None: all. Elsewhere the update counts as zero.

        Raises:
            DecodeError: not that many values, or one that is not finite or not below 2^9. Nothing has changed then.
        """
        ...

    def step(self, model: Flat, rate: float = 1.0) -> None:
        """Move `model` [size] by minus rate times the aggregate, in place.

        It stays as it is if there are too few updates for the aggregator to withstand f liars: a round that cannot be
        robust is lost.
        """
        ...

    def clear(self) -> None:
        """Begin a new round."""
        ...

    def state(self) -> State:
        """Give what must survive between rounds, for the server's state."""
        ...

    def restore(self, state: State) -> None:
        """Take back what `state` gave, from among the entries of the server's; the round begins anew."""
        ...


@runtime_checkable
class Averages(Protocol):
    """A server half that moves its shared model by one aggregate of what its devices changed."""

    total: Aggregate


def of(config: Averaging, size: int, seed: int, owners: bool = False) -> Aggregate:
    """Give the aggregator that a run has chosen, for updates of `size` values.

    Args:
        config: the choice.
        size: length of an update.
        seed: the run's, for the draws of buckets.
        owners: divide the mean at every coordinate by the weight of those devices that own it.
    """
    if config.aggregator == "mean":
        return _Mean(fixed.Total(size, fixed.cap_of(config.weights, config.samples_cap), owners))
    if owners:
        raise ValueError("only a mean can be divided by the owners")
    return _Robust(config, size, seed)


class _Mean:
    """A streamed mean. A device that is added twice in a round counts twice."""

    def __init__(self, total: fixed.Total) -> None:
        self.size = total.size
        self._total = total

    @property
    def count(self) -> int:
        return self._total.count

    def add(self, device: str, values: Flat, weight: int = 1, where: Bits | None = None) -> None:  # noqa: ARG002
        self._total.add(values, where, weight)

    def step(self, model: Flat, rate: float = 1.0) -> None:
        self._total.step(model, rate)

    def clear(self) -> None:
        self._total.clear()

    def state(self) -> State:
        return {}

    def restore(self, state: State) -> None:  # noqa: ARG002
        self._total.clear()


class _Robust:
    """Spooled updates. One that a device sends again replaces its first.

    Its state is the number of rounds, from which buckets are drawn, and the centre v of centred clipping, as float32.
    """

    def __init__(self, config: Averaging, size: int, seed: int) -> None:
        self._config, self._seed, self.size = config, seed, size
        self._rows = _Spool(size)
        self._rounds = 0
        self._centre: Flat | None = np.zeros(size, np.float32) if config.aggregator == "centred-clipping" else None

    @property
    def count(self) -> int:
        return len(self._rows.places)

    def add(self, device: str, values: Flat, weight: int = 1, where: Bits | None = None) -> None:  # noqa: ARG002
        fixed.check(values, where, self.size)
        self._rows.put(device, values, where)

    def step(self, model: Flat, rate: float = 1.0) -> None:
        rng = np.random.default_rng([self._seed, self._rounds, _BUCKETS])
        self._rounds += 1
        if why := self._config.shortage(self.count):
            log.warning("the model does not move: %s", why)
            return
        for tile, move in self._moves(self._mix(rng)):
            model[tile] = model[tile] - rate * move
            if self._centre is not None:
                self._centre[tile] = move

    def clear(self) -> None:
        self._rows.clear()

    def state(self) -> State:
        centre = {} if self._centre is None else {"aggregate-centre": self._centre.copy()}
        return {"aggregate-rounds": self._rounds, **centre}

    def restore(self, state: State) -> None:
        self._rows.clear()
        self._rounds = int(state["aggregate-rounds"])
        if self._centre is not None:
            self._centre[:] = np.asarray(state["aggregate-centre"])

    def _mix(self, rng: np.random.Generator) -> robust.Rows | None:
        """Give the pre-aggregation, as a matrix [inputs, updates]; None: the updates are the inputs."""
        config, mix = self._config, None
        if config.bucket > 1:
            mix = robust.bucketing(rng.permutation(self.count), config.bucket)
        if config.nearest_mixing:
            nearest = robust.nearest_mixing(robust.squared_distances(self._inputs(mix)), config.byzantine)
            mix = nearest if mix is None else nearest @ mix
        return mix

    def _moves(self, mix: robust.Rows | None) -> Iterator[tuple[slice, robust.Rows]]:
        """Give the aggregate tile by tile."""
        config = self._config
        if config.aggregator == "median":
            yield from zip(self._tiles(), map(robust.median, self._inputs(mix)), strict=True)
            return
        if config.aggregator == "trimmed-mean":
            for tile, rows in zip(self._tiles(), self._inputs(mix), strict=True):
                yield tile, robust.trimmed_mean(rows, config.byzantine)
            return
        weights = self._weights(mix)
        count = self.count if mix is None else len(mix)
        each = weights[:count] if mix is None else weights[:count] @ mix
        for tile in self._tiles():
            move = each @ self._rows.read(tile)
            yield tile, move if self._centre is None else move + weights[count] * self._centre[tile]

    def _weights(self, mix: robust.Rows | None) -> robust.Rows:
        """Weigh the inputs; where clipping has a centre, it comes last."""
        config = self._config
        if config.aggregator in {"centred-clipping", "norm-bound"}:
            zero = np.zeros(self.size, np.float32)
            centre = zero if self._centre is None else self._centre
            tiles = zip(self._tiles(), self._inputs(mix), strict=True)
            points = robust.coordinates(np.vstack([rows, centre[tile]]) for tile, rows in tiles)
            return robust.clipping(points, config.clip_radius, 1 if self._centre is None else config.clip_steps)
        if config.aggregator == "geometric-median":
            return robust.geometric_median(robust.coordinates(self._inputs(mix)))
        squared = robust.squared_distances(self._inputs(mix))
        picks = config.krum_picks or len(squared) - config.byzantine - 2
        return robust.krum(squared, config.byzantine, 1 if config.aggregator == "krum" else picks)

    def _inputs(self, mix: robust.Rows | None) -> Iterator[robust.Rows]:
        for tile in self._tiles():
            rows = self._rows.read(tile)
            yield rows if mix is None else mix @ rows

    def _tiles(self) -> list[slice]:
        width = max(1, _CELLS // self.count)
        return [slice(start, min(start + width, self.size)) for start in range(0, self.size, width)]


class _Spool:
    """Rows of float32 [size], one for each device, in a file without a name (in the folder that TMPDIR says)."""

    def __init__(self, size: int) -> None:
        self.places: dict[str, int] = {}
        self._size = size
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as this object
        weakref.finalize(self, self._file.close)

    def put(self, device: str, values: Flat, where: Bits | None) -> None:
        """Write a device's row, or write over it."""
        row = values
        if where is not None:
            row = np.zeros(self._size, np.float32)
            row[where] = values
        place = self.places.get(device, len(self.places))
        self._file.seek(4 * self._size * place)
        self._file.write(np.ascontiguousarray(row, np.float32).data)
        self._file.flush()
        self.places[device] = place

    def read(self, tile: slice) -> robust.Rows:
        """Read a tile of all rows [devices, tile], in the order of the devices' names."""
        rows = np.empty((len(self.places), tile.stop - tile.start), np.float32)
        for row, device in zip(rows, sorted(self.places), strict=True):
            start = 4 * (self._size * self.places[device] + tile.start)
            if os.preadv(self._file.fileno(), [row.data], start) != row.nbytes:
                raise RunError("updates that were spooled are gone from the folder for temporary files")
        return rows.astype(np.float64)

    def clear(self) -> None:
        """Forget all rows."""
        self.places.clear()
        self._file.seek(0)
        self._file.truncate()
