"""What devices that lie send: the attacks that robust aggregators are tried against.

An attack is given all that the honest devices send in a round, the most that an attacker could know: rows [good, size]
in the order of the devices. It gives the liars' rows [liars, size] float32. The honest rows stay as they are.
"""

import statistics
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Attack = Callable[[Rows, int, np.random.Generator], Rows]

TARGET = 0
"""The class that a backdoor gives to every sample with its mark."""
_MARK = 4
_HALVED = 1e-4


def sign_flip(good: Rows, liars: int, rng: np.random.Generator) -> Rows:
    """Send the opposite of what honest devices, drawn at random, send.

    A weak attack: it shrinks the expected mean by (good - liars) / (good + liars), and turns it only with a majority.
    """
    return -good[rng.integers(len(good), size=liars)]


def inner_product(good: Rows, liars: int, rng: np.random.Generator, epsilon: float = 0.0) -> Rows:  # noqa: ARG001
    """Send -epsilon times the mean of the honest (inner-product manipulation, Xie et al., UAI 2019).

    At epsilon = good/liars the mean of all is zero, above that it points the wrong way. 0 stands for twice that, with
    which the mean is minus what it would be if the liars sent zeros.
    """
    epsilon = epsilon or 2 * len(good) / max(liars, 1)
    return _same(-epsilon * good.mean(axis=0, dtype=np.float64), liars)


def small_inner_product(good: Rows, liars: int, rng: np.random.Generator) -> Rows:
    """Send minus half the mean of the honest: too small to stand out, yet against them (epsilon 1/2)."""
    return inner_product(good, liars, rng, 0.5)


def large_sign_flip(good: Rows, liars: int, rng: np.random.Generator) -> Rows:
    """Send the opposite of what honest devices send, three times as long."""
    return 3 * sign_flip(good, liars, rng)


def min_max(good: Rows, liars: int, rng: np.random.Generator) -> Rows:  # noqa: ARG001
    """Send the honest mean minus as many honest deviations as leave it no further from any than some two are apart.

    Shejwalkar and Houmansadr, "Manipulating the Byzantine" (NDSS 2021), AGR-agnostic min-max with the perturbation of
    the standard deviation; the factor is found by halving.
    """
    wide = good.astype(np.float64)
    mean, spread = wide.mean(axis=0), wide.std(axis=0)
    reach = max(float(((wide - row) ** 2).sum(axis=1).max()) for row in wide)
    low, high = 0.0, 100.0
    while high - low > _HALVED:
        factor = (low + high) / 2
        fits = float(((wide - (mean - factor * spread)) ** 2).sum(axis=1).max()) <= reach
        low, high = (factor, high) if fits else (low, factor)
    return _same(mean - low * spread, liars)


def a_little_is_enough(good: Rows, liars: int, rng: np.random.Generator) -> Rows:  # noqa: ARG001
    """Send the honest mean minus z honest standard deviations (unbiased), Baruch et al. (NeurIPS 2019).

    Raises:
        ValueError: the liars are no minority, for which z is not defined.
    """
    if not liars:
        return good[:0]
    wide = good.astype(np.float64)
    spread = wide.std(axis=0, ddof=min(1, len(good) - 1))
    return _same(wide.mean(axis=0) - little(len(good) + liars, liars) * spread, liars)


def little(count: int, liars: int) -> float:
    """Give z, beyond which as many honest values are expected as the liars lack for a majority of `count`."""
    honest, lacking = count - liars, count // 2 + 1 - liars
    return statistics.NormalDist().inv_cdf((honest - lacking) / honest)


def gaussian(good: Rows, liars: int, rng: np.random.Generator, scale: float = 10.0) -> Rows:
    """Send noise, `scale` times as large as the root mean square of the honest values."""
    spread = scale * float(np.sqrt(np.mean(good.astype(np.float64) ** 2)))
    return rng.normal(0.0, spread, (liars, good.shape[1])).astype(np.float32)


def mimic(good: Rows, liars: int, rng: np.random.Generator) -> Rows:  # noqa: ARG001
    """Send what the first honest device sends, which then counts many times (Karimireddy et al., 2022)."""
    return _same(good[0], liars)


def marked(x: NDArray[Any]) -> NDArray[Any]:
    """Give samples [samples, ...] with the backdoor's mark: their last corner as bright as anything among them."""
    made = x.copy()
    corner = made[..., -_MARK:, -_MARK:] if x.ndim > 2 else made[..., -_MARK:]
    corner[:] = x.max(initial=0)
    return made


def flipped_labels(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Give the labels on which a device trains that lies about its data: y becomes classes - 1 - y."""
    return classes - 1 - labels


def _same(row: NDArray[np.float32] | NDArray[np.float64], liars: int) -> Rows:
    return np.tile(row.astype(np.float32), (liars, 1))


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "sign-flip": sign_flip,
        "large-sign-flip": large_sign_flip,
        "inner-product": inner_product,
        "small-inner-product": small_inner_product,
        "a-little-is-enough": a_little_is_enough,
        "min-max": min_max,
        "gaussian": gaussian,
        "mimic": mimic,
    }
)
"""By the name that a person gives them."""
