"""Bytes that cross TCP sockets, counted by the kernel.

Linux keeps the counts of each connection (`TCP_INFO`, tcp(7); `struct tcp_info` in linux/tcp.h): they hold all framing
and TLS, need no wrapper around a socket that somebody else reads and writes, and survive a reset until the socket is
closed. Where there is no such kernel, whole messages are counted as their reader and writer report them: MQTT framing
is in, TLS and the few bytes of connecting are not.
"""

import socket
import struct
import threading
from typing import Any

from edge_runtime.transport import Traffic

_RECEIVED_AT = 128  # offset of tcpi_bytes_received (Linux 4.1); payload bytes that arrived in order
_SENT_AT = 200  # offset of tcpi_bytes_sent and, next to it, tcpi_bytes_retrans (Linux 4.19)
_ENOUGH_BYTES = _SENT_AT + 16


class SocketBytes:
    """Adds up the traffic of one socket after the other. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: Any = None
        self._up_bytes = self._down_bytes = 0

    def opened(self, sock: Any) -> None:
        """Count this socket from its first byte."""
        with self._lock:
            self._socket = sock if _kernel_counts(sock) is not None else None

    def closing(self, sock: Any) -> None:
        """Keep what a socket counted: it is about to be closed."""
        with self._lock:
            if sock is self._socket:
                self._up_bytes, self._down_bytes = self._now()
                self._socket = None

    def sent(self, size_bytes: int) -> None:
        """Report a message that was written; ignored where the kernel counts."""
        with self._lock:
            self._up_bytes += size_bytes if self._socket is None else 0

    def received(self, size_bytes: int) -> None:
        """Report a message that was read; ignored where the kernel counts."""
        with self._lock:
            self._down_bytes += size_bytes if self._socket is None else 0

    def read(self) -> Traffic:
        """Count up to now."""
        with self._lock:
            return Traffic(*self._now())

    def _now(self) -> tuple[int, int]:
        up, down = (_kernel_counts(self._socket) if self._socket is not None else None) or (0, 0)
        return self._up_bytes + up, self._down_bytes + down


def _kernel_counts(sock: Any) -> tuple[int, int] | None:
    """Ask for the bytes sent (each once) and received on a TCP socket; None where the kernel does not tell."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except (AttributeError, OSError):
        return None
    if len(info) < _ENOUGH_BYTES:
        return None
    sent, repeated = struct.unpack_from("=QQ", info, _SENT_AT)
    (received,) = struct.unpack_from("=Q", info, _RECEIVED_AT)
    return sent - repeated, received
