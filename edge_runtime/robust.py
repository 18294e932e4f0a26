"""Aggregators that withstand devices that lie, in numpy: of n rows, f at most may be anything.

Two kinds. Those of a coordinate take rows [n, tile] and give [tile]; a tile is any part of the coordinates. Those of
the geometry look at nothing but distances, and give the weights [n] with which the rows are to be summed. Who only
compares distances takes them, `squared_distances` [n, n]; who needs directions takes `points` [n, k], the rows
themselves or their `coordinates`, at most n numbers each however long the rows are. Pre-aggregations give a matrix
[t, n] that mixes n rows into t. Rows are float64, and all count the same.

    bucketing             Karimireddy et al., "Byzantine-robust learning on heterogeneous datasets via bucketing" (2022)
    nearest_mixing        Allouah et al., "Fixing by mixing" (AISTATS 2023)
    median, trimmed_mean  Yin et al. (ICML 2018)
    geometric_median      Pillutla et al., "Robust aggregation for federated learning" (2022); Vardi, Zhang (PNAS 2000)
    krum                  Blanchard et al. (NeurIPS 2017)
    clipping              Karimireddy et al., "Learning from history for Byzantine robust optimization" (ICML 2021)
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]

_TOLERANCE = 1e-12


def squared_distances(tiles: Iterable[Rows]) -> Rows:
    """Give the squared distances [n, n] between the rows whose tiles [n, tile] these are.

    From the Gram matrix, in the time of one product. Each is right to float64's precision of the larger of its own two
    norms, whatever the other rows are: enough to compare by, since rows that it cannot tell apart differ by less than
    float32 can say of them (1e-8 of their norm). `coordinates` keeps the digits of such a difference.
    """
    gram: Rows | None = None
    for tile in tiles:
        gram = tile @ tile.T if gram is None else gram + tile @ tile.T
    if gram is None:
        raise ValueError("no tiles")
    lengths = np.diag(gram)
    return np.asarray(np.maximum(lengths[:, None] + lengths - 2 * gram, 0.0))


def coordinates(tiles: Iterable[Rows]) -> Rows:
    """Give points [n, k <= n] that lie to each other as the rows do whose tiles [n, tile] these are.

    The triangular factor of the rows, taken as columns. Each is right to float64's precision of its own norm, where a
    Gram matrix would give half the digits: devices that agree stay as close as they are, however far away others are.
    """
    held: Rows | None = None
    for tile in tiles:
        below: Rows = tile.T if held is None else np.vstack([held, tile.T])
        held = np.asarray(np.linalg.qr(below, mode="r"))  # numpy's stubs take it for the pair of the other modes
    if held is None:
        raise ValueError("no tiles")
    return held.T


def bucketing(order: NDArray[np.int64], bucket: int) -> Rows:
    """Mix n rows into the means [ceil(n / bucket)] of buckets, taken in the `order` [n]; the last is what is left."""
    starts = range(0, len(order), bucket)
    mix = np.zeros((len(starts), len(order)))
    for row, start in zip(mix, starts, strict=True):
        held = order[start : start + bucket]
        row[held] = 1 / len(held)
    return mix


def nearest_mixing(squared: Rows, byzantine: int) -> Rows:
    """Mix every row into the mean of the n - f nearest ones, itself included; of equals, those that come first."""
    nearest = np.argsort(squared, axis=1, kind="stable")[:, : len(squared) - byzantine]
    mix = np.zeros(squared.shape)
    np.put_along_axis(mix, nearest, 1 / nearest.shape[1], axis=1)
    return mix


def median(rows: Rows) -> Rows:
    """Give the median of every coordinate; of an even number of rows, the middle of the two in the middle."""
    return np.asarray(np.median(rows, axis=0))


def trimmed_mean(rows: Rows, byzantine: int) -> Rows:
    """Give the mean of every coordinate without its f smallest and f largest values, f < n/2."""
    kept = np.sort(rows, axis=0)[byzantine : len(rows) - byzantine]
    return np.asarray(kept.mean(axis=0))


def krum(squared: Rows, byzantine: int, picks: int = 1) -> Rows:
    """Weigh alike the `picks` rows of the lowest scores (one: Krum, more: multi-Krum), all others 0.

    A row's score is the sum of its squared distances to the n - f - 2 nearest others; of equals, the first is picked.
    """
    # A row's distance to itself, 0, is the smallest, so it is in the sum without a trace.
    nearest = np.sort(squared, axis=1)[:, : len(squared) - byzantine - 1]
    best = np.argsort(nearest.sum(axis=1), kind="stable")[:picks]
    weights = np.zeros(len(squared))
    weights[best] = 1 / picks
    return weights


def geometric_median(points: Rows, most: int = 2000) -> Rows:
    """Give the weights of the point with the least sum of distances to all (where there are many, of one of them).

    Weiszfeld's iteration, from the best of the points themselves: if that is the median, it is given exactly; if not,
    Vardi and Zhang's step leads away from it, and since every step lowers the sum, to no other point ever. It ends when
    the mean of the unit vectors towards all points, which is zero at the median, is below 1e-12: a criterion without a
    scale. No smoothing: the constant of the reference code (0.1) makes the outcome depend on the scale.

    Args:
        points: [n, k].
        most: steps after which the weights are given as they are.
    """
    start = int(np.sqrt(_exactly_apart(points)).sum(axis=1).argmin())
    points = points - points[start]
    weights = np.zeros(len(points))
    weights[start] = 1.0
    for _ in range(most):
        apart = points - weights @ points
        lengths = np.sqrt((apart**2).sum(axis=1))
        here = lengths == 0
        inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=~here)
        pull = float(np.sqrt(((inverse @ apart) ** 2).sum()))
        if pull <= max(np.count_nonzero(here) * (1 + _TOLERANCE), len(points) * _TOLERANCE):
            break
        stay = np.count_nonzero(here) / pull
        weights = (1 - stay) * inverse / inverse.sum() + here / pull
    return weights


def clipping(points: Rows, radius: float, steps: int = 1) -> Rows:
    """Give the weights [n + 1] of v after v <- v + mean_i clip(x_i - v), `steps` times; the last of the points is v.

    What is clipped keeps its direction and has at most the norm `radius`. With v = 0 and one step this is the mean of
    updates of bounded norm.
    """
    count = len(points) - 1
    weights = np.append(np.zeros(count), 1.0)
    for _ in range(steps):
        lengths = np.sqrt(((points[:-1] - weights @ points) ** 2).sum(axis=1))
        parts = np.divide(radius, lengths, out=np.ones(count), where=lengths > radius) / count
        weights *= 1 - parts.sum()
        weights[:-1] += parts
    return weights


def _exactly_apart(points: Rows) -> Rows:
    """Give the squared distances [n, n] of points to all their digits."""
    return np.stack([((points - point) ** 2).sum(axis=1) for point in points])
