"""FedH2L: devices with models of their own architecture teach each other through what they say of a common seed set.

Li, Zhou et al., "FedH2L: federated learning with model and statistical heterogeneity" (arXiv 2101.11296).
Device p has private data of a domain of its own, and a model theta_p of an architecture of its own; S is a small set of
labelled samples that all know. What p says of S are its posteriors pi_p = softmax(h_p(S; theta_p)), |S| x C of them.
The paper's round is, with eta and eta_m the learning rates and b batches,

    LOCAL     theta_p <- theta_p - eta grad CE(b_p; theta_p)                  some steps on private data
    EVAL      pi_p <- softmax(h_p(S; theta_p)), told to the others
    MUTUAL    g <- grad [CE(b_S) + kappa KL(pi || h_p(b_S))]                  pi: mean of the others' posteriors
              l <- grad CE(b_p)                                               private data, at the same theta_p
              theta_p <- theta_p - eta_m z,   z the nearest point to g with <z, l> >= 0

so that what is learned from others never, to first order, unlearns the device's own domain. One constraint has the
closed form z = g + max(0, -<g,l> / |l|^2) l; several are a quadratic program (as in GEM, Lopez-Paz and Ranzato, 2017).
The mean over peers of KL(pi_q || .) and KL(mean of pi_q || .) have the same gradient, so one mean says it all.

A round of ours is the paper's cut behind EVAL: MUTUAL with what the others said after their last LOCAL, then LOCAL,
then EVAL. That is the same sequence of steps with one message up and one down, and what is heard was said when this
device last spoke itself. `order = "local-first"` instead ends a round with MUTUAL (by posteriors made before this
LOCAL), so that the model that a round leaves has just learned from the others.

A device that nobody has told anything leaves MUTUAL out. Steps of MUTUAL are plain: what momentum or weight decay added
after the projection would bring the conflict back. Whether the paper's mutual loss has CE(S), what kappa is, and that
conflicts may be solved by quadratic program, are not known to us from the paper's text: they are settings.
There is no shared model: the server half passes on means of posteriors.
"""

import math
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses, seed_set, sgd
from edge_runtime.algorithm import Batches, Fitted, Model, OwnModel, State
from edge_runtime.compression import codec
from edge_runtime.errors import ConfigError, DecodeError, DeviceError
from edge_runtime.seed_set import SeedSet
from edge_runtime.topology import TOPOLOGIES, neighbours
from edge_runtime.tree import Flat, Layout, Posteriors

Vector = NDArray[np.floating[Any]]
Sum = NDArray[np.int64]

_FLOOR = 1e-8
"""Least posterior of a teacher, so that no logarithm is infinite."""
_SLACK = 0.01
"""By how much a row of posteriors may miss the sum 1: they may have travelled with half precision."""
_UNIT = 2.0**-40
"""Posteriors are summed as whole multiples of this: exact, so that order makes no difference."""
_SMALLEST = 1e-30
"""Squared length of a gradient below which it points nowhere."""


@dataclass(frozen=True)
class Config(sgd.Sgd):
    """Local training, and how the others are heard."""

    seed_set: str = ""
    """Identity of S in hexadecimal digits: the coordinator puts it here."""
    mutual_lr: float = 0.0
    """η_m, falling like lr; 0: the same as lr."""
    mutual_epochs: int = 1
    """Passes over S in a round."""
    mutual_steps: int = 0
    """Steps of MUTUAL in a round, each on a batch drawn afresh; 0: as many as mutual-epochs gives."""
    mutual_batch_size: int = 32
    distillation: float = 1.0
    """κ: weight of the divergence from the others."""
    seed_loss: bool = True
    """Whether CE(S) is part of the mutual loss."""
    conflict: str = "project"
    """What is done about a mutual gradient that harms the own domain: `project`, `qp` (on several batches' gradients
    at once) or `none`."""
    constraints: int = 3
    """Private batches whose gradients constrain a step, with `qp`."""
    margin: float = 0.0
    """Least multiplier of every constraint, with `qp`, once one is violated; GEM's code has 0.5."""
    order: str = "mutual-first"
    """`mutual-first` or `local-first`."""
    topology: str = "full"
    """Whom a device hears: `full` (all others), `ring` (two) or `random` (as many as `peers`, drawn in every round)."""
    peers: int = 2
    """How many others `random` draws."""
    max_age: int = 1
    """Rounds for which what a device said counts, when it says nothing new."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require("mutual-lr", self.mutual_lr, low=0.0)
        sgd.require("distillation", self.distillation, low=0.0)
        sgd.require("margin", self.margin, low=0.0)
        for key in ("mutual-epochs", "mutual-batch-size", "constraints", "peers", "max-age"):
            sgd.require(key, getattr(self, key.replace("-", "_")), low=1)
        sgd.require("mutual-steps", self.mutual_steps, low=0)
        sgd.require_one_of("conflict", self.conflict, ("project", "qp", "none"))
        sgd.require_one_of("order", self.order, ("mutual-first", "local-first"))
        sgd.require_one_of("topology", self.topology, TOPOLOGIES)
        if self.seed_set:
            self.sizes  # noqa: B018  # raises

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Count samples and classes of S.

        Raises:
            ConfigError: there is no seed set, or that is no identity of one.
        """
        if not self.seed_set:
            raise ConfigError("algorithm: fedh2l needs a seed set; say run.seed-samples or run.seed-file")
        try:
            return seed_set.sizes(self.identity)
        except (ValueError, DecodeError) as error:
            raise ConfigError(f"algorithm: seed-set: {error}; leave it to the coordinator") from error

    @property
    def identity(self) -> bytes:
        """Give the identity of S."""
        return bytes.fromhex(self.seed_set)

    @property
    def wire_values(self) -> int:
        """Count the posteriors of a device, which may be more than its model has parameters."""
        return math.prod(self.sizes)

    @property
    def wire_columns(self) -> int:
        """Count the classes."""
        return self.sizes[1]

    def mutual_rate(self, round_: int) -> float:
        """Give the learning rate of MUTUAL in a round."""
        return (self.mutual_lr or self.lr) * self.lr_decay**round_


@dataclass(frozen=True)
class Down:
    """What a device's neighbours said last."""

    round: int
    identity: bytes
    """Of the seed set."""
    peers: int
    """How many neighbours have spoken."""
    posteriors: Posteriors
    """Mean of theirs [samples * classes], row by row; all 0 if nobody has spoken."""


@dataclass(frozen=True)
class Up:
    """What a device says of the seed set."""

    round: int
    identity: bytes
    """Of the seed set that it was said of."""
    posteriors: Posteriors
    """[samples * classes], row by row."""


def project(g: Vector, l: Vector, ridge: float = 0.0) -> Vector:  # noqa: E741  # the paper's names
    """Give the nearest vector to `g` [size] that does not point against `l` [size]: `g` itself where it does not.

    Args:
        g: a gradient.
        l: the gradient that is to be kept from harm; if it is next to 0 there is nothing to keep.
        ridge: added to |l|^2 (GEM's code has 1e-3); then some of the conflict stays.
    """
    conflict, length = _dot(g, l), _dot(l, l)
    if conflict >= 0 or length <= _SMALLEST:
        return g
    return np.asarray(g + g.dtype.type(-conflict / (length + ridge)) * l)


def resolve(g: Vector, rows: Sequence[Vector], margin: float = 0.0, ridge: float = 0.0) -> Vector:
    """Give the nearest vector z to `g` [size] that points against none of `rows` [size each]: a quadratic program.

    Solved in its dual, min over v >= margin of v'(G G' + ridge)v / 2 + (G g)'v, with z = g + G'v and rows G. With a
    margin z turns further away than it must, but only once some row is in conflict.
    """
    rows = [row for row in rows if _dot(row, row) > _SMALLEST]
    slopes = np.array([_dot(row, g) for row in rows])
    if not (slopes < 0).any():
        return g
    gram = np.array([[_dot(one, other) for other in rows] for one in rows]) + ridge * np.eye(len(rows))
    scale = 1 / np.sqrt(np.diag(gram))  # rows of length 1: what is small is then small for every row
    least = margin / scale
    gram = gram * np.outer(scale, scale)
    v = (least + _least_quadratic(gram, slopes * scale + gram @ least)) * scale
    z = g.copy()
    for weight, row in zip(v, rows, strict=True):
        z += g.dtype.type(weight) * row
    return z


def _least_quadratic(q: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find u >= 0 with the least u'qu / 2 + b'u, by the active-set method of Lawson and Hanson (1974), chapter 23."""
    u, free = np.zeros(len(b)), np.zeros(len(b), np.bool_)
    enough = 1e-13 * float(np.abs(b).max())
    for _ in range(10 * len(b)):
        descent = np.where(free, -np.inf, -(q @ u + b))
        if descent.max() <= enough:
            break
        free[descent.argmax()] = True
        while True:
            wanted = np.zeros(len(b))
            wanted[free] = np.linalg.lstsq(q[np.ix_(free, free)], -b[free], rcond=None)[0]
            crossing = free & (wanted <= 0)
            if not crossing.any():
                u = wanted
                break
            way = (u[crossing] / np.maximum(u[crossing] - wanted[crossing], np.finfo(np.float64).tiny)).min()
            u = u + way * (wanted - u)
            free &= ~(crossing & (u <= enough))
    return u


def _dot(a: Vector, b: Vector) -> float:
    return float(np.einsum("i,i->", a, b, dtype=np.float64))


def as_teacher(posteriors: Flat, classes: int) -> Flat:
    """Make rows [samples, classes] of received posteriors fit to learn from: none below 1e-8, and each of sum 1."""
    rows = np.maximum(posteriors.reshape(-1, classes), np.float32(_FLOOR))
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def mutual_gradient(model: Model, theta: Flat, seeds: SeedSet, teacher: Flat, config: Config) -> Flat:
    """Compute the gradient [size] of the mutual loss on seeds, with the others' posteriors of them [seeds, classes]."""
    outputs, pullback = model.oracle.vjp(model.layout.views(theta), seeds.x)
    slope = np.float32(config.distillation) * losses.distillation(outputs, teacher)[1]
    if config.seed_loss:
        slope += losses.cross_entropy(outputs, seeds.y)[1]
    return model.layout.join(pullback(slope))


def _checked(posteriors: Flat, sizes: tuple[int, int], what: str) -> Flat:
    """Raise DecodeError unless these are posteriors of that many samples and classes."""
    if len(posteriors) != math.prod(sizes):
        raise DecodeError(f"{what}: {len(posteriors)} posteriors where {sizes[0]} x {sizes[1]} are expected")
    rows = posteriors.reshape(sizes)
    if not (rows >= 0).all() or not (np.abs(rows.sum(axis=1) - 1) <= _SLACK).all():  # so written, NaN is refused
        raise DecodeError(f"{what}: a row of its posteriors is not at least 0 and of sum 1")
    return posteriors


class Client:
    """The device's half: its own model theta_p is its state."""

    own_model = True

    def __init__(self, config: Config, model: OwnModel, state: State | None) -> None:
        self._config, self._model = config, model
        self._theta: Flat = model.initial if state is None else np.asarray(state["own"], np.float32)

    def shared(self, down: Down) -> None:  # noqa: ARG002
        """Give nothing: no model is shared."""
        return

    def personal(self, down: Down | None) -> Fitted:  # noqa: ARG002
        """Give theta_p, before or after training."""
        return Fitted(self._model, self._theta)

    def round(self, down: Down, batches: Batches) -> Up:
        """Learn from the others, train on the device's own data, and say what came of it.

        Raises:
            DecodeError: `down` is of another seed set than this device's, or does not fit it.
            DeviceError: this device's data has other classes than the seed set, or training diverged.
        """
        seeds = self._seeds(down, batches)
        theta = self._theta
        if self._config.order == "mutual-first":
            theta = self._learn(theta, down, seeds, batches)
        theta = sgd.descend(self._model, theta, batches, self._config, down.round)
        if self._config.order == "local-first":
            theta = self._learn(theta, down, seeds, batches)
        said = self._posteriors(theta, seeds)
        self._theta = theta
        return Up(down.round, seeds.identity, said)

    def state(self) -> State:
        """Give theta_p."""
        return {"own": self._theta}

    def _seeds(self, down: Down, batches: Batches) -> SeedSet:
        """Give the seed set, after comparing it with what the run and this device's data are about."""
        seeds = batches.seed_set
        if seeds is None:
            raise DeviceError("this run has no seed set, which fedh2l needs")
        for what, identity in (("the run's", self._config.identity), ("Down:", down.identity)):
            if found := seed_set.difference(seeds.identity, identity):
                raise DecodeError(f"{what} seed set differs from this device's: {found}")
        if found := seed_set.class_difference(seeds.class_names, batches.class_names or seeds.class_names):
            raise DeviceError(f"the seed set does not fit this device: {found}")
        sizes = self._config.sizes
        if down.round < 0 or down.peers < 0 or len(down.posteriors) != math.prod(sizes):
            raise DecodeError(f"Down: {len(down.posteriors)} posteriors of {down.peers} peers in round {down.round}")
        if down.peers:
            _checked(down.posteriors, sizes, "Down")
        return seeds

    def _learn(self, theta: Flat, down: Down, seeds: SeedSet, batches: Batches) -> Flat:
        """Do the steps of MUTUAL from `theta`, which is left as it is."""
        config = self._config
        if not down.peers or not (config.distillation or config.seed_loss):
            return theta
        teacher = as_teacher(down.posteriors, config.sizes[1])
        rate = np.float32(config.mutual_rate(down.round))
        theta = theta.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # what diverges is told below, in one line
            for chosen in _draws(config, len(seeds.y), batches.rng):
                part = SeedSet(seeds.x[chosen], seeds.y[chosen], seeds.class_names)
                g = mutual_gradient(self._model, theta, part, teacher[chosen], config)
                sgd.clip(g, config.clip_norm)  # before the projection, which a shorter step does not disturb
                theta -= rate * self._harmless(g, theta, batches)
        if not np.isfinite(theta).all():
            raise DeviceError(f"mutual training diverged in round {down.round}: lower mutual-lr, or set clip-norm")
        return theta

    def _harmless(self, g: Flat, theta: Flat, batches: Batches) -> Flat:
        """Turn the mutual gradient away from harm to the device's own domain."""
        config = self._config
        if config.conflict == "none":
            return g
        count = config.constraints if config.conflict == "qp" else 1
        rows = [sgd.gradient(self._model, theta, batches.sample(config.batch_size)) for _ in range(count)]
        return cast(Flat, project(g, rows[0]) if config.conflict == "project" else resolve(g, rows, config.margin))

    def _posteriors(self, theta: Flat, seeds: SeedSet) -> Flat:
        """Evaluate the model on the seed set [samples * classes]."""
        params, size, classes = self._model.layout.views(theta), self._config.mutual_batch_size, self._config.sizes[1]
        parts = []
        for start in range(0, len(seeds.y), size):
            outputs, _ = self._model.oracle.vjp(params, seeds.x[start : start + size])
            if outputs.shape[1] != classes:
                raise DeviceError(f"number of classes: {classes} in the seed set, {outputs.shape[1]} of the model")
            parts.append(losses.softmax(outputs).ravel())
        return np.concatenate(parts)


def _draws(config: Config, samples: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Deal indices of seeds: passes over all in random order, or batches drawn afresh."""
    size = config.mutual_batch_size
    for _ in range(config.mutual_steps):
        yield rng.choice(samples, min(size, samples), replace=False)
    for _ in range(0 if config.mutual_steps else config.mutual_epochs):
        order = rng.permutation(samples)
        for start in range(0, samples, size):
            yield order[start : start + size]


class Server:
    """The coordinator's half: on disk, what every device said last; it passes on the mean over each one's neighbours.

    An entry in `devices` is (round, said, round before, said before): what was said in a round counts from the next one
    on, so that `down` gives the same before and after `absorb`.
    """

    habits = ("decentralised", "synchronous")

    def __init__(
        self,
        config: Config,
        layout: Layout,  # noqa: ARG002  # the contract's
        initial: Flat,  # noqa: ARG002
        devices: MutableMapping[str, bytes],
        seed: int,
    ) -> None:
        self.round = 0
        self._config, self._devices, self._seed, self._sizes = config, devices, seed, config.sizes
        self._told: tuple[int, frozenset[str], Sum, int] | None = None

    def down(self, device: str, first: bool) -> Down:  # noqa: ARG002
        """Give the mean of what the device's neighbours said; who said nothing is left out of it."""
        config = self._config
        members, total, count = self._speakers()
        if config.topology == "full":
            own = self._fresh(device)
            total, count = (total, count) if own is None else (total - own, count - 1)
        else:
            heard = neighbours(members, device, config.topology, config.peers, self._seed, self.round)
            said = [found for found in map(self._fresh, heard) if found is not None]
            total, count = sum(said, np.zeros_like(total)), len(said)
        return Down(self.round, config.identity, count, (total * (_UNIT / max(count, 1))).astype(np.float32))

    def absorb(self, device: str, up: Up) -> None:
        """Write down what a device said.

        Raises:
            DecodeError: it is of another round or another seed set (what differs is named), or is no posteriors;
                nothing has changed.
        """
        if up.round != self.round:
            raise DecodeError(f"Up: it is of round {up.round}, not {self.round}")
        if found := seed_set.difference(self._config.identity, up.identity):
            raise DecodeError(f"Up: the seed set of {device} differs: {found}")
        said = _checked(up.posteriors, self._sizes, "Up")
        before = self._last(device)
        self._devices[device] = codec.encode([self.round, said, *(before or (-1, np.empty(0, np.float32)))])

    def close(self) -> None:
        """End the round: what was said in it now counts."""
        self.round += 1

    def shared(self) -> None:
        """Give nothing: no model is shared."""
        return

    def state(self) -> State:
        """Give the round; what was said lies in `devices`."""
        return {"round": self.round}

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self.round = int(cast(int, state["round"]))

    def _last(self, device: str) -> tuple[int, Flat] | None:
        """Give what a device said last before this round, and in which."""
        entry = self._devices.get(device)
        if entry is None:
            return None
        now, said, before, said_before = codec.decode(entry, max_values=math.prod(self._sizes), max_sections=4)
        pair = (now, said) if cast(int, now) < self.round else (before, said_before)
        return cast(tuple[int, Flat], pair) if cast(int, pair[0]) >= 0 else None

    def _fresh(self, device: str) -> Sum | None:
        """Give what a device said, as whole numbers, unless that is too long ago."""
        last = self._last(device)
        if last is None or self.round - last[0] > self._config.max_age:
            return None
        return np.rint(last[1].astype(np.float64) / _UNIT).astype(np.int64)

    def _speakers(self) -> tuple[frozenset[str], Sum, int]:
        """Give all who ever spoke before this round, and the sum over those who did lately; the same all round long."""
        if self._told is None or self._told[0] != self.round:
            members, total, count = set(), np.zeros(math.prod(self._sizes), np.int64), 0
            for device in sorted(self._devices):
                if self._last(device) is not None:
                    members.add(device)
                if (said := self._fresh(device)) is not None:
                    total, count = total + said, count + 1
            self._told = self.round, frozenset(members), total, count
        return self._told[1:]
