"""What a service tells systemd: that it is ready, that it is alive, that it stops (sd_notify(3))."""

import logging
import socket
import time
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger(__name__)


class Notifier:
    """Speaks to the service manager that started this process; without one it says nothing.

    The loop of a program calls `beat` on every turn, and leaving the context says that the program stops.
    """

    def __init__(self, address: str, watchdog_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare to speak.

        Args:
            address: of the manager's socket, `@` in front of an abstract one; empty: there is no manager.
            watchdog_s: how long it waits for a sign of life before it ends the process; 0: for ever.
            clock: never goes back.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._pause_s, self._clock = watchdog_s / 3, clock
        self._due_s = 0.0
        self._ready = False

    def beat(self, alive: bool) -> None:
        """Say that the loop has turned; only if `alive`, so that who hangs in part is started anew as a whole."""
        if not alive or not self._address:
            return
        if not self._ready:
            self._ready = True
            self._say("READY=1")
        if self._pause_s and self._clock() >= self._due_s:
            self._due_s = self._clock() + self._pause_s
            self._say("WATCHDOG=1")

    def __enter__(self) -> "Notifier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._address:
            self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("the service manager does not hear %s: %s", text, error.strerror)
