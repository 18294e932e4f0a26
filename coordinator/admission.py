"""Which updates are let in at all: below every algorithm, before it sees them.

Three things are asked of the vector that an Up says is a change of the shared model (`tree.Change`):

    finite    by `wire.decode_up` already, of every number of every message
    shape     as many values as the device has of the model: what the model says, never what the message says
    norm      at most c times the running median of the norms that were accepted, where the run has a `norm-limit` c

The median is that of the medians of the last 8 closed rounds (or versions). So within a round the limit stands still,
and who comes first makes no difference; it is part of the checkpoint, and a run that is resumed or replayed decides
alike. In the first round there is none. An Up without such a vector (of `local`, `fedh2l`) is its algorithm's to judge.
"""

import math
import statistics
from typing import Any

import numpy as np

from edge_runtime import wire
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Flat

_ROUNDS = 8
_STATE = "admission.norms"


def norm(values: Flat) -> float:
    """Give the Euclidean norm, in float64: that of float32 values overflows where they do not."""
    return math.sqrt(float(np.einsum("i,i->", values, values, dtype=np.float64)))


class Admission:
    """Judges updates of one run, and remembers how large those were that counted."""

    def __init__(self, limit: float) -> None:
        """Let norms be at most `limit` times the running median; 0: any."""
        self._limit = limit
        self._medians: list[float] = []
        self._taken: dict[str, float] = {}

    @property
    def most(self) -> float:
        """Give the largest norm that is let in now."""
        usual = statistics.median(self._medians) if self._medians else 0.0
        return self._limit * usual if self._limit and usual else math.inf

    def check(self, up: Any, expected: int) -> None:
        """Let an update in.

        Args:
            up: what the device sent.
            expected: how many values of the model it tells of.

        Raises:
            DecodeError: it is not fit, and why.
        """
        values = wire.change(up)
        if values is None:
            return
        if len(values) != expected:
            raise DecodeError(f"update: {len(values)} values where {expected} are expected")
        if (found := norm(values)) > self.most:
            usual = self.most / self._limit
            raise DecodeError(
                f"update: its norm {found:.3g} is above {self._limit:g} times {usual:.3g}, "
                "the median of those accepted (norm-limit)"
            )

    def note(self, device: str, up: Any) -> None:
        """Remember an update that counts."""
        values = wire.change(up)
        if self._limit and values is not None:
            self._taken[device] = norm(values)

    def close(self) -> None:
        """End the round: what counted in it moves the limit of the next."""
        if self._taken:
            self._medians = [*self._medians, statistics.median(self._taken.values())][-_ROUNDS:]
        self._taken.clear()

    def state(self) -> dict[str, bytes]:
        """Give what must survive between rounds; nothing where no norm is limited."""
        return {_STATE: np.array(self._medians, "<f8").tobytes()} if self._limit else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take out of a checkpoint what `state` gave; the round begins anew."""
        self._taken.clear()
        if self._limit:
            self._medians = np.frombuffer(state.pop(_STATE), "<f8").tolist()
