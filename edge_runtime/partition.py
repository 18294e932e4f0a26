"""Splitting one pooled data set over many devices, unevenly in its labels and evenly in size.

`dirichlet` is the partition of DisPFL (arXiv 2206.00187) and others: each device has a label prior p ~ Dir(alpha), and
samples are dealt one at a time, by inverse distribution function on p. When a label runs out, every prior goes on with
the labels that are left, so that dealing always ends. `by_classes` is the "pathological" partition of McMahan et al.
(arXiv 1602.05629, section 3): each device knows a few classes only.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError

Indices = NDArray[np.int64]
Deal = Callable[[Indices, int, np.random.Generator], list[Indices]]
"""Labels, number of devices and a source of chance to the sample indices of every device."""


def dirichlet(labels: Indices, parts: int, rng: np.random.Generator, *, alpha: float) -> list[Indices]:
    """Deal samples to `parts` devices, `len(labels) // parts` to each and none twice.

    Args:
        labels: class indices [samples].
        parts: how many devices.
        rng: the only source of chance.
        alpha: small for devices with few labels, large for devices that are all alike.

    Returns:
        The sample indices of every device.
    """
    pools = _pools(labels, rng)
    left = np.array([len(pool) for pool in pools])
    size = _size(len(labels), parts)
    priors = rng.dirichlet(np.full(len(pools), alpha), parts)
    steps = _steps(priors, left)
    dealt: list[list[int]] = [[] for _ in range(parts)]
    chances = rng.random(parts * size)
    for device, chance in zip(rng.permutation(np.repeat(np.arange(parts), size)), chances, strict=True):
        label = int(np.searchsorted(steps[device], chance, side="right"))
        dealt[device].append(pools[label][left[label] - 1])
        left[label] -= 1
        if left[label] == 0:
            steps = _steps(priors, left)
    return [np.array(sorted(indices), np.int64) for indices in dealt]


def by_classes(labels: Indices, parts: int, rng: np.random.Generator, *, classes: int) -> list[Indices]:
    """Deal samples of exactly `classes` labels to each device, equally many of each and none twice.

    Every class goes to as equally many devices as can be; what does not divide evenly stays unused.

    Raises:
        ConfigError: there are not so many classes.
    """
    pools = _pools(labels, rng)
    if not 1 <= classes <= len(pools):
        raise ConfigError(f"data: classes-per-device must be from 1 to {len(pools)}, not {classes}")
    owners = np.zeros(len(pools), np.int64)
    chosen = []
    for _ in range(parts):
        order = np.lexsort((rng.random(len(pools)), owners))  # the least owned first, ties by chance
        chosen.append(order[:classes])
        owners[order[:classes]] += 1
    each = min(len(pool) // int(count) for pool, count in zip(pools, owners, strict=True) if count)
    each = min(each, _size(len(labels), parts * classes))
    used = [0] * len(pools)
    dealt = []
    for mine in chosen:
        dealt.append(np.sort(np.concatenate([pools[label][used[label] : used[label] + each] for label in mine])))
        for label in mine:
            used[label] += each
    return dealt


def like(labels: Indices, mix: NDArray[np.float64], size: int, rng: np.random.Generator) -> Indices:
    """Draw samples in the proportions of `mix` [classes]: ceil(mix * size) of each label, none twice.

    Devices draw independently, so test sets may overlap (as in DisPFL).
    """
    wanted = np.ceil(np.round(mix * size, 9)).astype(np.int64)  # a share of 1e-17 is none
    pools = _pools(labels, rng, len(mix))
    return np.sort(np.concatenate([pool[:count] for pool, count in zip(pools, wanted, strict=True)]))


def few(labels: Indices, per_class: int) -> Indices:
    """Keep the first `per_class` samples of every label: what a device at its cold start has seen so far."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]))


def mixed(labels: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Draw `count` samples (or all there are), none twice and as equally many of each label as can be."""
    order = rng.permutation(len(labels))
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        where = order[labels[order] == label]
        rank[where] = np.arange(len(where))
    return np.sort(order[np.argsort(rank[order], kind="stable")[:count]])


def _pools(labels: Indices, rng: np.random.Generator, classes: int | None = None) -> list[Indices]:
    count = int(labels.max()) + 1 if classes is None else classes
    return [rng.permutation(np.flatnonzero(labels == label)) for label in range(count)]


def _size(samples: int, parts: int) -> int:
    if samples < parts:
        raise ConfigError(f"data: too few samples for so many devices ({samples} for {parts} shares); lower parts")
    return samples // parts


def _steps(priors: NDArray[np.float64], left: Indices) -> NDArray[np.float64]:
    """Give every device's distribution function [parts, classes] over the labels that are left.

    A device whose prior knows none of them takes what there is.
    """
    weights = priors * (left > 0)
    lost = weights.sum(1) <= 0
    weights[lost] = left
    total = np.maximum(weights.sum(1, keepdims=True), np.finfo(np.float64).tiny)  # nothing is left at the very end
    steps = np.cumsum(weights / total, axis=1)
    for label in np.flatnonzero(left > 0)[-1:]:
        steps[:, label:] = 2.0  # rounding must not step past the last label that is left
    return steps
