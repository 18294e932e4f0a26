"""What a broker lets one connection publish in a second, kept to by never sending more."""

from collections import deque
from dataclasses import dataclass

_SECOND_S = 1.25
"""Who counts sees messages a little closer together than they were sent."""


@dataclass(frozen=True)
class Quota:
    """Most messages, and most bytes with topics and framing, in any second; 0: as many as there are."""

    messages: int = 0
    size_bytes: int = 0


ANY = Quota()
AWS = Quota(100, 512_000)
"""AWS IoT Core, message broker limits of each connection: 100 publish requests, 512 KB."""


class Pace:
    """Remembers what was sent in the last second."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._sent: deque[tuple[float, int]] = deque()
        self._sum = 0

    def take(self, size_bytes: int, now_s: float) -> bool:
        """Say whether a message may go now, and count it if so. One that is larger than the quota goes alone."""
        while self._sent and self._sent[0][0] <= now_s - _SECOND_S:
            self._sum -= self._sent.popleft()[1]
        quota = self._quota
        many = 0 < quota.messages <= len(self._sent)
        much = self._sent and 0 < quota.size_bytes < self._sum + size_bytes
        if many or much:
            return False
        self._sent.append((now_s, size_bytes))
        self._sum += size_bytes
        return True
