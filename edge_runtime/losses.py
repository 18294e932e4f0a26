"""Losses on a model's outputs, in numpy: their value, and their gradient for the oracle's pullback."""

import numpy as np
from numpy.typing import NDArray

Outputs = NDArray[np.float32]


def cross_entropy(outputs: Outputs, labels: NDArray[np.int64]) -> tuple[float, Outputs]:
    """Compute the mean softmax cross-entropy of a batch.

    The largest output of each row is subtracted first, so that no exponential overflows.

    Args:
        outputs: unnormalised scores [batch, classes].
        labels: class indices [batch].

    Returns:
        The loss, and d loss / d outputs [batch, classes].
    """
    rows = np.arange(len(labels))
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    value = float(np.mean(np.log(sums[:, 0]) - shifted[rows, labels], dtype=np.float64))
    gradient = exponentials / sums
    gradient[rows, labels] -= 1
    gradient /= len(labels)
    return value, gradient


def accuracy(outputs: Outputs, labels: NDArray[np.int64]) -> float:
    """Give the part of a batch whose largest output [batch, classes] is that of its label [batch]."""
    return float(np.mean(outputs.argmax(axis=1) == labels))
