"""A blob on its way in: which chunks have come, and what to ask for next.

Driven by the receiver: it asks for a window of chunks, and for the next one once that has come. Only the first few may
come unasked, behind what announces them. Pure state, no bytes: the caller keeps the data, and says at the start which
chunks are here already.

Messages of one link overtake each other only when the link is made anew. So when the last chunk of a window has come
and others of it have not, these are lost, and are asked for at once. Where nothing comes at all for some ticks, only
the last chunk of the window is asked for again: if the others were merely slow, that is all that comes twice, and if
they are lost, it shows. The silence that is taken for a loss doubles each time, and halves with every window that came.
"""

from collections.abc import Iterable

from edge_runtime.message import WINDOW, Blob, Chunk, Need

_MAX_PATIENCE = 16


class Incoming:
    """The bookkeeping of one blob being received."""

    def __init__(self, blob: Blob, have: Iterable[int] = ()) -> None:
        self.blob = blob
        self._have = set(have)
        self._asked: set[int] = set()
        self._silent, self._patience = 0, 1

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
        self._silent = 0
        return True

    def expect(self, count: int) -> bool:
        """Wait for the first so many chunks, which come without being asked for; False if they are all here."""
        self._asked = set(range(min(count, WINDOW, self.blob.chunks)))
        return not self._asked <= self._have

    def ask(self, window: int = WINDOW) -> Need:
        """Ask for the first chunks that are missing, whether they were asked for before or not."""
        missing: list[int] = []
        for index in range(self.blob.chunks):
            if index not in self._have:
                missing.append(index)
                if len(missing) == window:
                    break
        self._asked = set(missing)
        self._silent = 0
        return Need(self.blob.digest, tuple(missing))

    def ask_next(self, window: int = WINDOW) -> Need | None:
        """Ask for the next window once the last chunk of this one has come; None while it is on its way."""
        if self.complete:
            return None
        if self._asked <= self._have:
            self._patience = max(1, self._patience // 2)
            return self.ask(window)
        return self.ask(window) if max(self._asked) in self._have else None

    def lose(self) -> None:
        """Take what is on its way as lost, because the link was made anew: `ask_next` will ask for it again."""
        self._asked.clear()

    def tick(self, window: int = WINDOW) -> Need | None:
        """Count a tick of silence; after too many of them, ask for the last chunk of the window again."""
        self._silent += 1
        if self.complete or self._silent <= self._patience:
            return None
        self._silent, self._patience = 0, min(2 * self._patience, _MAX_PATIENCE)
        missing = self._asked - self._have
        return Need(self.blob.digest, (max(missing),)) if missing else self.ask(window)
