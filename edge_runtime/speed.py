"""How fast this machine is just now, by a small task of half a millisecond: the unit of step times.

A step of training that took eight of these tasks on one machine takes about eight of its own on another; and where a
machine's speed changes from one second to the next, the two change together. A step is both products of matrices,
which convolutions and dense layers are made of, and calls: a small model's is hardly more than these. What slows the
one down may leave the other alone: on a virtual machine beside others, calls took up to 1.8 times as long in phases in
which products took 1.1 times. So the task is three parts of the one and seven of the other, by what steps of models of
all sizes did there (`docs/decisions/010-budgets.md`). How near the ratio of two machines is to that of their steps
depends on the libraries that they have.

Time is CPU time: what it takes on a core that does nothing else, which is what can be said of a device beforehand.
"""

import statistics
import time

import numpy as np

_SIZE = 192
_CALLS = 120
_WARM_UP, _TIMES = 3, 30


class Reference:
    """The task, with its matrices at hand."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._one = rng.random((_SIZE, _SIZE), np.float32)
        self._other, self._product = self._one.T.copy(), np.empty_like(self._one)
        self._few, self._weights = rng.random((8, 64), np.float32), rng.random((64, 10), np.float32)
        for _ in range(_WARM_UP):
            self.time_ms()

    def time_ms(self) -> float:
        """Do it once, and say how many milliseconds of CPU time that took."""
        started_s = time.process_time()
        np.matmul(self._one, self._other, out=self._product)
        for _ in range(_CALLS):
            np.maximum(self._few @ self._weights, 0).sum(axis=1)
        return 1000 * (time.process_time() - started_s)


def reference_ms() -> float:
    """Say what the task takes on this machine just now: the median of some."""
    reference = Reference()
    return statistics.median(reference.time_ms() for _ in range(_TIMES))
