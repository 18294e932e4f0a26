"""Local training: stochastic gradient descent on a flat vector, of a dense model or of the active values of one.

One step at x with learning rate lr_t = lr * lr-decay^t in round t (PyTorch's order of things):

    g <- gradient of the loss, clipped to norm clip-norm
    v <- momentum * v + g + weight-decay * x + pull(x)
    x <- x - lr_t * v

Under a mask only active values have a gradient, so what is not there cannot shrink the step. The velocity v starts at
zero in every round.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime import losses
from edge_runtime.algorithm import Batch, Batches, Curved, Model
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.mask import Mask, Places
from edge_runtime.packed import PackedModel
from edge_runtime.tree import Flat

_PIECE = 1 << 16


@dataclass(frozen=True)
class Sgd:
    """How a device trains: the keys that every algorithm's Config begins with.

    The defaults of lr, lr-decay, weight-decay, clip-norm, local-epochs and batch-size are those of DisPFL's scripts.
    """

    lr: float = 0.1
    """η, in round 0."""
    lr_decay: float = 0.998
    """Factor per round."""
    momentum: float = 0.0
    weight_decay: float = 5e-4
    clip_norm: float = 10.0
    """Largest Euclidean norm of a gradient; 0: no limit."""
    local_epochs: int = 5
    """Passes over the device's samples in a round."""
    local_steps: int = 0
    """N, steps in a round, each on a batch drawn afresh; 0: as many as local-epochs gives."""
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Check every field."""
        require("lr", self.lr, low=0.0, open_low=True)
        require("lr-decay", self.lr_decay, low=0.0, high=1.0, open_low=True)
        require("momentum", self.momentum, low=0.0, high=1.0, open_high=True)
        require("weight-decay", self.weight_decay, low=0.0)
        require("clip-norm", self.clip_norm, low=0.0)
        require("local-epochs", self.local_epochs, low=1)
        require("local-steps", self.local_steps, low=0)
        require("batch-size", self.batch_size, low=1)

    def rate(self, round_: int) -> float:
        """Give the learning rate of a round."""
        return self.lr * self.lr_decay**round_


def require(
    key: str, value: float, *, low: float, high: float = math.inf, open_low: bool = False, open_high: bool = False
) -> None:
    """Raise ConfigError unless `value` is finite and lies between `low` and `high` (which an open end leaves out)."""
    below = value <= low if open_low else value < low
    above = value >= high if open_high else value > high
    if math.isfinite(value) and not below and not above:
        return
    bounds = f"{'above' if open_low else 'at least'} {low:g}"
    if high < math.inf:
        bounds += f" and {'below' if open_high else 'at most'} {high:g}"
    raise ConfigError(f"algorithm: {key} must be {bounds}, not {value}")


def require_one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `known`."""
    if value not in known:
        raise ConfigError(f"algorithm: {key} must be one of {', '.join(known)}, not {value!r}")


def gradient(model: Model, x: Flat, batch: Batch) -> Flat:
    """Compute the gradient [size] of a batch's mean cross-entropy at the parameters `x` [size]."""
    outputs, pullback = model.oracle.vjp(model.layout.views(x), batch.x)
    _, slope = losses.cross_entropy(outputs, batch.y)
    return model.layout.join(pullback(slope))


def curvature(model: Model, x: Flat, batch: Batch, direction: Flat) -> Flat:
    """Multiply the Hessian of a batch's mean cross-entropy at `x` [size] by `direction` [size].

    Raises:
        DeviceError: the backend does not differentiate twice.
    """
    if not isinstance(model.oracle, Curved):
        raise DeviceError("this device's backend gives no second derivatives: take torch, or hessian = 'difference'")
    views = model.layout.views
    product = model.oracle.hvp(
        views(x), batch.x, views(direction), lambda y, change: losses.cross_entropy_bend(y, change, batch.y)
    )
    return model.layout.join(product)


def full_gradient(model: Model, x: Flat, batches: Batches, sgd: Sgd) -> Flat:
    """Compute the gradient [size] of the loss of all samples at `x` [size], as a step of `descend` would take it.

    That is the mean over the samples, batch by batch, clipped and with weight decay.

    Raises:
        DeviceError: it is not finite.
    """
    total = np.zeros_like(x)
    with np.errstate(over="ignore", invalid="ignore"):
        for batch in batches.epoch(sgd.batch_size):
            _add_scaled(total, np.float32(len(batch.y) / len(batches)), gradient(model, x, batch))
        clip(total, sgd.clip_norm)
        _add_scaled(total, np.float32(sgd.weight_decay), x)
    if not np.isfinite(total).all():
        raise DeviceError(f"the gradient is not finite: lower lr ({sgd.lr:g}), or set clip-norm")
    return total


def steepest(model: PackedModel, x: Flat, batch: Batch, barred: Mask, numbers: Sequence[int]) -> list[Places]:
    """Find the `numbers[l]` places of each tensor, none barred, where a batch's dense gradient is largest at `x`."""
    views = model.layout.views(x)
    return model.oracle.largest(views, batch.x, lambda y: losses.cross_entropy(y, batch.y)[1], barred, numbers)


def descend(  # noqa: PLR0913  # each is a way in which some algorithm's steps differ
    model: Model,
    start: Flat,
    batches: Batches,
    sgd: Sgd,
    round_: int,
    *,
    slope: Callable[[Flat, Batch], Flat] | None = None,
    pull: Callable[[Flat], Flat] | None = None,
    tolerance: float = 0.0,
) -> Flat:
    """Train for one round from `start` [size], which is left as it is.

    Beside `start` this holds the parameters, one gradient and, with momentum, the velocity.

    Args:
        model: what to train; under a mask the model of the active values (`packed.of`).
        start: where to begin.
        batches: the device's samples.
        sgd: the settings.
        round_: which round it is.
        slope: the gradient at x on a batch, the function's to lose, of what is descended; None: of the loss.
        pull: a further gradient at x, of a penalty say; it is not clipped.
        tolerance: stop early where the norm of a batch's gradient is at most this.

    Returns:
        The trained parameters [size].

    Raises:
        DeviceError: the training diverged.
    """
    x = start.copy()
    velocity = np.zeros_like(x) if sgd.momentum else None
    rate = sgd.rate(round_)
    with np.errstate(over="ignore", invalid="ignore"):  # what diverges is told below, in one line
        for batch in deal(batches, sgd):
            step = gradient(model, x, batch) if slope is None else slope(x, batch)
            if tolerance and np.linalg.norm(step) <= tolerance:
                break
            move(x, step, velocity, sgd, rate, pull)
    check(x, sgd, round_)
    return x


def move(
    x: Flat, step: Flat, velocity: Flat | None, sgd: Sgd, rate: float, pull: Callable[[Flat], Flat] | None = None
) -> None:
    """Take one step: changes `x` and `velocity` (None: no momentum) in place, and spends `step`, the gradient."""
    clip(step, sgd.clip_norm)
    _add_scaled(step, np.float32(sgd.weight_decay), x)
    if pull is not None:
        step += pull(x)
    if velocity is not None:
        velocity *= np.float32(sgd.momentum)
        velocity += step
        step[:] = velocity
    step *= np.float32(rate)
    x -= step


def check(x: Flat, sgd: Sgd, round_: int) -> None:
    """Raise DeviceError unless trained values are finite."""
    if not np.isfinite(x).all():
        raise DeviceError(f"training diverged in round {round_}: lower lr ({sgd.lr:g}), or set clip-norm")


def deal(batches: Batches, sgd: Sgd) -> Iterator[Batch]:
    """Deal out the batches of one round."""
    if sgd.local_steps:
        for _ in range(sgd.local_steps):
            yield batches.sample(sgd.batch_size)
    else:
        for _ in range(sgd.local_epochs):
            yield from batches.epoch(sgd.batch_size)


def _add_scaled(total: Flat, factor: np.float32, values: Flat) -> None:
    """Add factor * values to `total`, piece by piece: the product of all would be one more vector of that size."""
    for start in range(0, len(total) if factor else 0, _PIECE):
        part = slice(start, start + _PIECE)
        total[part] += factor * values[part]


def clip(step: Flat, norm: float) -> None:
    """Scale `step` down to at most `norm`, in place; 0: no limit."""
    length = math.sqrt(float(np.dot(step, step))) if norm else 0.0
    if length > norm:
        step *= np.float32(norm / length)
