"""Whether chunks fit a broker: MQTT 3.1.1 has no word for its largest packet, a broker hangs up on what is larger."""

_SOON_S = 3.0
_STRIKES = 2


class Fit:
    """Notices that a broker hangs up soon after the first chunk on a connection, twice in a row."""

    def __init__(self) -> None:
        self._before = self._strikes = 0
        self._first_s: float | None = None

    def watch(self, chunks_sent: int, now_s: float) -> None:
        """Look how many chunks were sent so far."""
        if self._first_s is None and chunks_sent > self._before:
            self._first_s = now_s
        self._before = chunks_sent

    def changed(self, up: bool, now_s: float) -> bool:
        """Take it that the link is up, or lost; say whether the chunks are too large."""
        if up or self._first_s is None:
            self._first_s = None
            return False
        self._strikes = self._strikes + 1 if now_s - self._first_s < _SOON_S else 0
        self._first_s = None
        if self._strikes < _STRIKES:
            return False
        self._strikes = 0
        return True
