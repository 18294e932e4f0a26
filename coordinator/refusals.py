"""What was refused to whom, counted and logged, however often somebody tries."""

import logging
from collections import Counter

log = logging.getLogger(__name__)

MAX_KINDS = 1_024


class Refusals:
    """Says who was refused what: the first time, and then each time that it has happened twice as often."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.counted: Counter[str] = Counter()

    def add(self, what: str) -> None:
        """Count one. What differs without end is counted together, so that nobody can fill the memory with it."""
        if what not in self.counted and len(self.counted) >= MAX_KINDS:
            what = "other refusals"
        self.counted[what] += 1
        times = self.counted[what]
        if times & (times - 1) == 0:
            log.warning("refused (%d): %s", times, what)
