"""Proximal maps that draw weights to their centres, and centres to their weights.

prox_{t R}(y) is the argmin over z of |z - y|^2 / 2 + t R(z). For a layer with weights x and sorted centres c, Q_c(x)
the nearest ones (`quantize.py`), these are exact for

    l1    R(x, c) = |x - Q_c(x)|_1 / 2      t = eta lambda gives a threshold theta = t / 2 on the absolute value
    l2    R(x, c) = |x - Q_c(x)|^2          t = eta lambda is the strength

of the weights as they stand: leaving the nearest centre for another never pays. Those of the centres keep every
weight's code as it is, and leave a centre without members where it is. From QuPeD (arXiv 2107.13892), appendix
[recalled], except the exact l1 map of the centres, whose closed form is the median of Li and Osher (2009).
"""

import numpy as np

from edge_runtime.compression.quantize import Codes, Values, members_sum


def weights_l1(moved: Values, near: Values, threshold: float) -> Values:
    """Draw weights [n] by `threshold` towards their nearest centres [n], and onto those that are no further."""
    distance = moved - near
    drawn = moved - np.copysign(moved.dtype.type(threshold), distance)
    return np.where(np.abs(distance) <= threshold, near, drawn)


def weights_l2(moved: Values, near: Values, strength: float) -> Values:
    """Draw weights [n] towards their nearest centres [n]: (y + 2t q) / (1 + 2t)."""
    share = moved.dtype.type(2 * strength / (1 + 2 * strength))
    return moved + share * (near - moved)


def centres_l1(moved: Values, values: Values, codes: Codes, threshold: float) -> Values:
    """Draw centres [m] towards the medians of their members among `values` [n] with `codes` [n].

    The argmin of (c - mu)^2 / 2 + theta sum_j |x_j - c| over n members is the median of the 2n + 1 numbers x_j and
    mu + theta (n - 2k), k = 0..n: the places where the slope can change its sign.
    """
    ends = np.cumsum(np.bincount(codes, minlength=len(moved)))[:-1]
    clusters = np.split(values[np.argsort(codes, kind="stable")], ends)
    drawn = moved.copy()
    for r, members in enumerate(clusters):
        count = len(members)
        jumps = float(moved[r]) + threshold * (count - 2.0 * np.arange(count + 1))
        drawn[r] = np.partition(np.concatenate([members, jumps]), count)[count]
    return drawn


def centres_first_order(moved: Values, values: Values, codes: Codes, threshold: float) -> Values:
    """Move centres [m] by theta (members above - members below): one step down the slope, which can go too far.

    The authors' code has the opposite sign, which would drive centres away from their members.
    """
    sides = np.sign(values - moved[codes])
    return moved + moved.dtype.type(threshold) * members_sum(codes, sides, len(moved))


def centres_l2(moved: Values, values: Values, codes: Codes, strength: float) -> Values:
    """Draw centres [m] towards the means of their members: (mu + 2t sum_j x_j) / (1 + 2t n)."""
    counts = np.bincount(codes, minlength=len(moved))
    sums = members_sum(codes, values.astype(np.float64), len(moved))
    drawn: Values = (moved + 2 * strength * sums) / (1 + 2 * strength * counts)
    return drawn.astype(moved.dtype)
