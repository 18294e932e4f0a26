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


def cross_entropy_bend(outputs: Outputs, change: Outputs, labels: NDArray[np.int64]) -> tuple[Outputs, Outputs]:
    """Differentiate the mean softmax cross-entropy of a batch once, and then along a change of its outputs.

    Args:
        outputs: unnormalised scores [batch, classes].
        change: what the scores change by [batch, classes].
        labels: class indices [batch].

    Returns:
        The gradient [batch, classes] and its derivative along `change`, (diag p - p p^T) change / batch in every row.
    """
    p = softmax(outputs)
    bent = p * (change - (p * change).sum(axis=1, keepdims=True)) / np.float32(len(labels))
    return cross_entropy(outputs, labels)[1], bent


def accuracy(outputs: Outputs, labels: NDArray[np.int64]) -> float:
    """Give the part of a batch whose largest output [batch, classes] is that of its label [batch]."""
    return float(np.mean(outputs.argmax(axis=1) == labels))


def softmax(outputs: Outputs, temperature: float = 1.0) -> Outputs:
    """Give the posteriors [batch, classes] of unnormalised scores, flattened by a temperature."""
    shifted = (outputs - outputs.max(axis=1, keepdims=True)) / np.float32(temperature)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def distillation(outputs: Outputs, teacher: Outputs, temperature: float = 1.0) -> tuple[float, Outputs]:
    """Compute T^2 KL(teacher || student), the mean over a batch (Hinton et al., 2015): the teacher is a constant.

    Args:
        outputs: the student's unnormalised scores [batch, classes], divided by T here.
        teacher: posteriors [batch, classes] at temperature T, each row summing to 1.
        temperature: T. Its square keeps the size of the gradient.

    Returns:
        The loss, and d loss / d outputs [batch, classes], which is T (student - teacher) / batch.
    """
    student = softmax(outputs, temperature)
    least = np.finfo(np.float32).tiny
    terms = teacher * (np.log(np.maximum(teacher, least)) - np.log(np.maximum(student, least)))
    value = temperature**2 * float(terms.sum(dtype=np.float64)) / len(outputs)
    return value, (student - teacher) * np.float32(temperature / len(outputs))


def distillation_teacher(outputs: Outputs, teacher: Outputs, temperature: float = 1.0) -> Outputs:
    """Give the gradient of the same loss with respect to the teacher's scores, for a teacher that learns too.

    Args:
        outputs: the student's unnormalised scores [batch, classes].
        teacher: the teacher's unnormalised scores [batch, classes].
        temperature: T.

    Returns:
        d loss / d teacher [batch, classes]: T p (log p - log q - KL of the row) / batch, with p and q the posteriors
        of teacher and student.
    """
    p, q = softmax(teacher, temperature), softmax(outputs, temperature)
    least = np.finfo(np.float32).tiny
    logs = np.log(np.maximum(p, least)) - np.log(np.maximum(q, least))
    centred = logs - (p * logs).sum(axis=1, keepdims=True)
    return np.asarray(p * centred * np.float32(temperature / len(outputs)))
