"""PersA-FL: personalised models by asynchronous training; devices answer whenever they are done.

Toghani, Lee and Uribe, "PersA-FL: personalized asynchronous federated learning" (arXiv 2210.01176). With f_i the loss
of device i, the shared w minimises the mean over devices of one of

    A (plain)   f_i(w)                                          gradient  f_i'(w)
    B (MAML)    f_i(w - alpha f_i'(w))                          gradient  (I - alpha f_i''(w)) f_i'(w - alpha f_i'(w))
    C (Moreau)  min_theta f_i(theta) + lambda/2 |theta - w|^2   gradient  lambda (w - theta_i(w))

and the personal model of device i is w (A), w - alpha f_i'(w) (B), or the minimiser theta_i(w) (C). A device takes w_0
of version t, goes Q steps w_{q+1} = w_q - lr g_q along stochastic gradients g of its option, and sends D = w_0 - w_Q:

    A   g = f'(w; D)
    B   g = v - alpha f''(w; D'') v,   v = f'(w - alpha f'(w; D); D'),   of three independent batches
    C   g = lambda (w - theta),        theta by K steps of gradient descent from w, all on one batch

The server goes w <- w - beta D at once, whatever the version that D was made from. If several D came since the last
version (a synchronous round, a buffer), it takes their mean, so that a synchronous run of A is FedAvg.

The paper's full text was not at hand. Where a setting's note says [recalled], its default is a recollection, else it is
of the official code of pFedMe and Per-FedAvg, which the paper builds on. What to do about stale updates other than
taking them is no part of the paper.
"""

import dataclasses
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

import numpy as np

from edge_runtime import aggregate, fixed, sgd
from edge_runtime.algorithm import Batch, Batches, Curved, Fitted, Model, State
from edge_runtime.errors import ConfigError, DecodeError, DeviceError
from edge_runtime.tree import Change, Flat, Layout, Shared

_OLDEST = 100
"""Updates are counted by their staleness up to here; what is older counts as this old."""


@dataclass(frozen=True)
class Config(aggregate.Averaging):
    """Local training (Q is local-steps), what is minimised, and what becomes of stale updates."""

    lr: float = 0.01
    """η."""
    lr_decay: float = 1.0
    weight_decay: float = 0.0
    local_steps: int = 20
    """Q; 0: as many as local-epochs gives."""
    batch_size: int = 20
    """b, of each of the batches that a step takes: one in A and C, three in B (two with hessian `none`)."""
    option: str = "B"
    """What is minimised: `A` (the plain loss), `B` (the loss after one step: MAML), `C` (the Moreau envelope)."""
    personal_steps: int = 0
    """A: steps on local data that make the personal model of w; 0: it is w."""
    adaptation_lr: float = 0.03
    """B: α, at most 1/L for smoothness L."""
    hessian: str = "auto"
    """B: f'' by `difference` (of two gradients), `exact` (backends that can), `auto` (exact where possible), `none`.

    `none` is first-order MAML: cheaper, and drawn to another w. With ReLUs differences are rough: their gradient jumps.
    """
    hessian_step: float = 1e-3
    """B: δ, the distance that the two gradients lie from w."""
    attraction: float = 15.0
    """C: λ, above L if the loss is not convex."""
    inner_lr: float = 0.05
    """C: step towards θ, best at most 1/(L + λ)."""
    inner_steps: int = 5
    """C: K, the most steps towards θ. With one, C is A with the step lr · attraction · inner-lr."""
    tolerance: float = 0.0
    """C: ν, stop where the gradient of what θ minimises has at most this norm; 0: take all K steps."""
    server_lr: float = 1.0
    """β. [recalled]

    In an asynchronous run every update moves w by all of β D, and of n equally fast devices each is n - 1 versions
    late. So w swings further and further if β · lr · Q · L exceeds about π / (2n - 1): lower β where devices are many.
    """
    staleness: str = "apply"
    """What becomes of an update made s versions ago. [recalled: apply]

    `apply`: it counts as any other. `down-weight`: it counts (1 + s)^-a. `adapt`: beyond staleness-limit it counts
    limit / s (delay-adaptive steps: Koloskova et al., arXiv 2206.08307). `drop`: beyond staleness-limit it is left out.
    """
    staleness_limit: int = 0
    """Versions; for `adapt` and `drop`, which need one."""
    staleness_exponent: float = 0.5
    """a, for `down-weight`."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require_one_of("option", self.option, ("A", "B", "C"))
        sgd.require_one_of("hessian", self.hessian, ("auto", "exact", "difference", "none"))
        sgd.require_one_of("staleness", self.staleness, ("apply", "down-weight", "adapt", "drop"))
        sgd.require("personal-steps", self.personal_steps, low=0)
        sgd.require("adaptation-lr", self.adaptation_lr, low=0.0)
        sgd.require("hessian-step", self.hessian_step, low=0.0, open_low=True)
        sgd.require("attraction", self.attraction, low=0.0, open_low=True)
        sgd.require("inner-lr", self.inner_lr, low=0.0, high=2 / self.attraction, open_low=True, open_high=True)
        sgd.require("inner-steps", self.inner_steps, low=1)
        sgd.require("tolerance", self.tolerance, low=0.0)
        sgd.require("server-lr", self.server_lr, low=0.0, open_low=True)
        sgd.require("staleness-limit", self.staleness_limit, low=0)
        sgd.require("staleness-exponent", self.staleness_exponent, low=0.0)
        if self.staleness in ("adapt", "drop") and not self.staleness_limit:
            raise ConfigError(f"algorithm: staleness {self.staleness} needs a staleness-limit of at least 1")

    @property
    def personalises(self) -> bool:
        """Say whether a personal model is another than w."""
        return self.option != "A" or self.personal_steps > 0

    def weight(self, staleness: int) -> float:
        """Say how much an update counts that was made so many versions ago; 0: it is dropped."""
        match self.staleness:
            case "down-weight":
                return float((1 + staleness) ** -self.staleness_exponent)
            case "adapt":
                return self.staleness_limit / max(staleness, self.staleness_limit)
            case "drop":
                return float(staleness <= self.staleness_limit)
            case _:
                return 1.0


@dataclass(frozen=True)
class Down:
    """The shared model w [size], and its version: how often it has moved."""

    round: int
    values: Shared


@dataclass(frozen=True)
class Up:
    """The update D = w_0 - w_Q [size], the version of the w_0 that it was made from, and the samples behind it."""

    round: int
    samples: int
    values: Change


def slope(config: Config, model: Model, w: Flat, batch: Batch, batches: Batches) -> Flat:
    """Estimate the gradient of the option's objective at `w` [size]: on `batch`, and in B two more from `batches`."""
    if config.option == "B":
        return _maml(config, model, w, batch, batches)
    if config.option == "C":
        towards = _descent(config, w, lambda theta: sgd.gradient(model, theta, batch))
        return np.float32(-config.attraction) * towards
    return sgd.gradient(model, w, batch)


def _maml(config: Config, model: Model, w: Flat, batch: Batch, batches: Batches) -> Flat:
    # One batch for all would bias the product of the three estimates.
    rate = np.float32(config.adaptation_lr)
    adapted = w - rate * sgd.gradient(model, w, batch)
    v = sgd.gradient(model, adapted, batches.sample(config.batch_size))
    if config.hessian == "none":
        return v
    return v - rate * _hessian_product(config, model, w, batches.sample(config.batch_size), v)


def _hessian_product(config: Config, model: Model, w: Flat, batch: Batch, v: Flat) -> Flat:
    """Multiply the Hessian of a batch's loss at `w` by `v`; both [size]."""
    able = isinstance(model.oracle, Curved)
    if config.hessian == "exact" or (config.hessian == "auto" and able):
        return sgd.curvature(model, w, batch, v)
    length = float(np.linalg.norm(v))
    if not length:
        return np.zeros_like(w)
    step = np.float32(config.hessian_step / length) * v
    # One batch for both ends: noise of two would be divided by the step.
    change = sgd.gradient(model, w + step, batch) - sgd.gradient(model, w - step, batch)
    return change * np.float32(length / (2 * config.hessian_step))


def _descent(config: Config, w: Flat, gradient: Callable[[Flat], Flat]) -> Flat:
    """Descend f(theta) + lambda/2 |theta - w|^2 from `w` [size]; gives theta - w, of which little is rounded off."""
    away = np.zeros_like(w)
    for _ in range(config.inner_steps):
        residual = gradient(w + away) + np.float32(config.attraction) * away
        if float(np.linalg.norm(residual)) <= config.tolerance:
            break
        away -= np.float32(config.inner_lr) * residual
    return away


def personalise(config: Config, model: Model, w: Flat, batches: Batches) -> Flat:
    """Make the personal model [size] of `w` [size], by the gradient of all local data (A: of batches).

    Raises:
        DeviceError: it diverged.
    """
    if config.option == "A":
        steps = dataclasses.replace(config, local_steps=config.personal_steps)
        return sgd.descend(model, w, batches, steps, 0) if config.personalises else w

    def gradient(x: Flat) -> Flat:
        total = np.zeros_like(x)
        for batch in batches.epoch(config.batch_size):
            total += np.float32(len(batch.y) / len(batches)) * sgd.gradient(model, x, batch)
        return total

    with np.errstate(over="ignore", invalid="ignore"):  # what diverges is told below, in one line
        if config.option == "B":
            own = w - np.float32(config.adaptation_lr) * gradient(w)
        else:
            own = w + _descent(config, w, gradient)
    if not np.isfinite(own).all():
        raise DeviceError("the personal model diverged: lower adaptation-lr or inner-lr")
    return own


class Client:
    """The device's half. Its state is the personal model of the w that it last trained, in use until the next."""

    own_model = False

    def __init__(self, config: Config, model: Model, state: State | None) -> None:
        self._config, self._model = config, model
        self._own: Flat | None = np.asarray(state["personal"], np.float32) if state else None

    def shared(self, down: Down) -> Flat:
        """Give w."""
        if down.round < 0 or len(down.values) != self._model.layout.size:
            raise DecodeError(f"Down: {len(down.values)} values where {self._model.layout.size} are expected")
        return down.values

    def personal(self, down: Down | None) -> Fitted:
        """Give the personal model: after `round` of the w received, before it of the last, as the device then has it.

        A device that has none yet has w itself: a personal model takes data, and before `round` there are none.
        """
        if self._own is not None:
            return Fitted(self._model, self._own)
        if down is None:
            raise ValueError("personal(None) is asked before round")
        return Fitted(self._model, self.shared(down))

    def round(self, down: Down, batches: Batches) -> Up:
        """Train w_0 to w_Q, and make the personal model of w_0, which is what this round's w is worth here."""
        config, model, start = self._config, self._model, self.shared(down)
        trained = sgd.descend(
            model, start, batches, config, down.round, slope=lambda w, batch: slope(config, model, w, batch, batches)
        )
        self._own = personalise(config, model, start, batches)
        return Up(down.round, len(batches), start - trained)

    def state(self) -> State:
        """Give the personal model, unless w is that."""
        if self._own is None:
            raise ValueError("state is asked before round")
        return {"personal": self._own} if self._config.personalises else {}


class Server:
    """The coordinator's half: w and its version, the running sum of updates, and how stale they were.

    A round in which nothing was taken leaves w and its version: else devices that all come late would make each other
    later still, and under `drop` nobody would ever be in time.
    """

    habits = ("asynchronous", "synchronous")

    def __init__(
        self,
        config: Config,
        layout: Layout,
        initial: Flat,
        devices: MutableMapping[str, bytes],  # noqa: ARG002  # nothing is remembered of a device
        seed: int,
    ) -> None:
        self.round = 0
        self._config = config
        self._version = 0
        self._model = initial.astype(np.float32)
        self.total: aggregate.Aggregate = aggregate.of(config, layout.size, seed)
        self._arrived, self._dropped = np.zeros(_OLDEST + 1, np.int64), 0

    def down(self, device: str, first: bool) -> Down:  # noqa: ARG002
        """Give everyone w."""
        return Down(self._version, self._model.copy())

    def absorb(self, device: str, up: Up) -> None:
        """Fold in an update of this version of w or of an earlier one; count one that is too old, and leave it out.

        Raises:
            DecodeError: it is of a version that there is not, or unfit; nothing has changed.
        """
        age = self._version - up.round
        if up.round < 0 or age < 0:
            raise DecodeError(f"Up: it is of version {up.round}, and there are those up to {self._version}")
        fixed.check(up.values, None, len(self._model))
        weight = self._config.weight(age)
        if weight:
            self.total.add(device, up.values if weight == 1 else np.float32(weight) * up.values, up.samples)
        else:
            self._dropped += 1
        self._arrived[min(age, _OLDEST)] += 1

    def close(self) -> None:
        """Move w by the mean of what was taken, if anything was."""
        self._version += self.total.count > 0
        self.total.step(self._model, self._config.server_lr)
        self.total.clear()
        self.round += 1

    def shared(self) -> Flat:
        """Give w [size]."""
        return self._model.copy()

    def state(self) -> State:
        """Give round, version, w, how many updates came by their staleness (int64), and how many were dropped."""
        return {
            "round": self.round,
            "version": self._version,
            "model": self._model.copy(),
            "arrived": self._arrived.astype("<i8").tobytes(),
            "dropped": self._dropped,
            **self.total.state(),
        }

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self.round, self._version = int(state["round"]), int(state["version"])
        self._model[:] = np.asarray(state["model"])
        self._arrived[:] = np.frombuffer(bytes(state["arrived"]), "<i8")  # type: ignore[arg-type]
        self._dropped = int(state["dropped"])
        self.total.restore(state)
