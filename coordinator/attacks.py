"""What devices that lie send: the attacks that robust aggregators are tried against.

An attack is given all that the honest devices send in a round, the most that an attacker could know: rows [good, size]
in the order of the devices. It gives the liars' rows [liars, size] float32. The honest rows stay as they are.
"""

import statistics
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Attack = Callable[[Rows, int, np.random.Generator], Rows]


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


def flipped_labels(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Give the labels on which a device trains that lies about its data: y becomes classes - 1 - y."""
    return classes - 1 - labels


def _same(row: NDArray[np.float32] | NDArray[np.float64], liars: int) -> Rows:
    return np.tile(row.astype(np.float32), (liars, 1))


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "sign-flip": sign_flip,
        "inner-product": inner_product,
        "a-little-is-enough": a_little_is_enough,
        "gaussian": gaussian,
        "mimic": mimic,
    }
)
"""By the name that a person gives them."""
