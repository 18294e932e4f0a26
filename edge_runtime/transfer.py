"""A blob on its way in: which chunks have come, and what to ask for next.

Driven by the receiver: it asks for a window of chunks, and for the next window once that has come; asking again
repairs every loss. Pure state, no bytes: the caller keeps the data.
"""

from edge_runtime.message import WINDOW, Blob, Chunk, Need


class Incoming:
    """The bookkeeping of one blob being received."""

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self._have: set[int] = set()
        self._asked: set[int] = set()
        self._moving = True

    @property
    def complete(self) -> bool:
        """Say whether every chunk has come."""
        return len(self._have) == self.blob.chunks

    def take(self, chunk: Chunk) -> bool:
        """Count a chunk in; False for one that is not of this blob, has the wrong length, or has come before."""
        if chunk.digest != self.blob.digest or chunk.index >= self.blob.chunks or chunk.index in self._have:
            return False
        start, end = self.blob.span(chunk.index)
        if len(chunk.data) != end - start:
            return False
        self._have.add(chunk.index)
        self._moving = True
        return True

    def stalled(self) -> bool:
        """Say whether nothing has come, and nothing was asked for, since this was last asked.

        Asking again for what is still on its way would send it twice.
        """
        moving, self._moving = self._moving, False
        return not moving

    def ask(self) -> Need:
        """Ask for the first chunks that are missing, whether they were asked for before or not."""
        missing: list[int] = []
        for index in range(self.blob.chunks):
            if index not in self._have:
                missing.append(index)
                if len(missing) == WINDOW:
                    break
        self._asked = set(missing)
        self._moving = True
        return Need(self.blob.digest, tuple(missing))

    def ask_next(self) -> Need | None:
        """Ask for the next window once the last one has come; None while some of it is outstanding."""
        return None if self.complete or self._asked - self._have else self.ask()
