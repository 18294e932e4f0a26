"""How fast this machine is just now, by a small task of about a millisecond: the unit that step times are told in.

A step of training that took eight of these tasks on one machine takes about eight of its own on another; and where a
machine's speed changes from one second to the next, the two change together. The task is a product of matrices of
320 x 320, which is what convolutions and dense layers are made of; how near the ratio of two machines is to that of
their steps depends on the libraries that they have.

Time is CPU time: what it takes on a core that does nothing else, which is what can be said of a device beforehand.
"""

import statistics
import time

import numpy as np

_SIZE = 320
_WARM_UP, _TIMES = 3, 30


class Reference:
    """The task, with its matrices at hand."""

    def __init__(self) -> None:
        self._one = np.random.default_rng(0).random((_SIZE, _SIZE), np.float32)
        self._other, self._product = self._one.T.copy(), np.empty_like(self._one)
        for _ in range(_WARM_UP):
            self.time_ms()

    def time_ms(self) -> float:
        """Do it once, and say how many milliseconds of CPU time that took."""
        started_s = time.process_time()
        np.matmul(self._one, self._other, out=self._product)
        return 1000 * (time.process_time() - started_s)


def reference_ms() -> float:
    """Say what the task takes on this machine just now: the median of some."""
    reference = Reference()
    return statistics.median(reference.time_ms() for _ in range(_TIMES))
