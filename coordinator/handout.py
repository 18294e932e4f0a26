"""What devices fetch for their open tasks: which blobs a task names, their bytes, and their chunks, sent in turn."""

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from edge_runtime.coordinator.downloads import Downloads
from edge_runtime.coordinator.gate import Post
from edge_runtime.message import MIN_CHUNK_BYTES, Blob, Chunk, Need, Task

_CACHED_BLOBS = 4


@dataclass(frozen=True)
class Named:
    """What the open task of a device names, so that it need not be encoded again to be repeated."""

    set_up: Blob
    down: Blob
    first: bool
    """Whether the device holds nothing."""
    followed: bool = False
    """Whether the Down was sent along, unasked."""


@dataclass(frozen=True)
class Makers:
    """Where the bytes come from; called again for what is no longer at hand."""

    set_up: Callable[[str], bytes]
    """The run as a device sees it."""
    down: Callable[[str, bool], bytes]
    """What a device is told for the open round, or for its first task."""
    kept: Callable[[str], bytes | None]
    """What was kept by its digest, because it could not be made again; None: nothing was."""


class Handout:
    """The blobs of all open tasks. A few are at hand; any other is made again, so that memory does not grow."""

    def __init__(self, makers: Makers, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.sent = 0
        """Chunks so far."""
        self._makers = makers
        self._blobs: OrderedDict[str, bytes] = OrderedDict()
        self._named: dict[str, Named] = {}
        self._downloads = Downloads()

    def name(self, device: str, first: bool, anew: bool) -> Named:
        """Name what a device's task needs; `anew`: not what was named before, even if that was of the same kind."""
        named = self._named.get(device)
        if named is None or named.first is not first or anew:
            set_up = self._remember(self._makers.set_up(device))
            named = Named(set_up, self._remember(self._makers.down(device, first)), first)
        return self._cut(device, named)

    def repeat(self, device: str, task: Task) -> Named:
        """Name what a task named before."""
        return self._cut(device, Named(task.setup, task.down, not task.base))

    def follow(self, device: str) -> int:
        """Send a small Down behind the task that was named just now; once. Says how many chunks that are.

        Not to a device that holds nothing, which must have the set-up first.
        """
        named = self._named[device]
        if named.first or named.followed or named.down.shared:
            return 0
        self._named[device] = dataclasses.replace(named, followed=True)
        self._downloads.want(device, named.down, range(named.down.chunks), expected=1)
        return named.down.chunks

    def data(self, blob: Blob) -> bytes:
        """Give the bytes of a blob that was named just now."""
        return self._blobs[blob.digest]

    def want(self, device: str, need: Need) -> None:
        """Note chunks that a device asks for; what its task does not name is not for it."""
        named = self._named.get(device)
        for blob in () if named is None else (named.set_up, named.down):
            if blob.digest == need.digest:
                expected = sum(blob in (other.set_up, other.down) for other in self._named.values())
                self._downloads.want(device, blob, need.want, expected)

    def pump(self, post: Post, now_s: float) -> None:
        """Send chunks that were asked for, while the network has room."""
        while post.room() and (load := self._downloads.next(now_s)):
            data = self._find(load.devices[0], load.digest)
            if data is None:
                continue  # of a task that is no longer open; the device will learn of the new one
            start, end = Blob(load.digest, len(data), self.chunk_bytes).span(load.index)
            chunk = Chunk(load.digest, load.index, data[start:end])
            self.sent += 1
            if not (post.share(chunk) if load.to_all else post.send(load.devices[0], chunk)):
                self._downloads.clear()  # the link is down: it will all be asked for again

    def due_s(self) -> float | None:
        """Say when there is something to send again; None: nothing waits."""
        return self._downloads.due_s()

    def leave(self, device: str) -> None:
        """Forget what a device asked for: it was started anew."""
        self._downloads.leave(device)

    def halve_chunks(self) -> None:
        """Cut everything in smaller chunks from now on."""
        self.chunk_bytes = max(min(MIN_CHUNK_BYTES, self.chunk_bytes), self.chunk_bytes // 2)
        self._downloads.clear()

    def close(self) -> None:
        """Forget all tasks: their round is over."""
        self._named.clear()

    def forget(self) -> None:
        """Forget everything but how large chunks are."""
        self._blobs.clear()
        self._named.clear()
        self._downloads = Downloads()

    def _cut(self, device: str, named: Named) -> Named:
        set_up, down = (dataclasses.replace(blob, chunk=self.chunk_bytes) for blob in (named.set_up, named.down))
        self._named[device] = dataclasses.replace(named, set_up=set_up, down=down)
        return self._named[device]

    def _remember(self, data: bytes) -> Blob:
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data), self.chunk_bytes)
        self._blobs[blob.digest] = data
        self._blobs.move_to_end(blob.digest)
        while len(self._blobs) > _CACHED_BLOBS:
            self._blobs.popitem(last=False)
        return blob

    def _find(self, device: str, digest: str) -> bytes | None:
        """Find a blob of a device's task, or make it again."""
        if digest not in self._blobs and (kept := self._makers.kept(digest)) is not None:
            self._remember(kept)
        named = self._named.get(device)
        if digest not in self._blobs and named is not None and digest == named.down.digest:
            self._remember(self._makers.down(device, named.first))
        if digest not in self._blobs:
            self._remember(self._makers.set_up(device))
        return self._blobs.get(digest)
