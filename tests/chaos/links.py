"""Bad links: a proxy that is slow, stalls and breaks, and namespaces that lose IP packets.

The kernel need not have netem: `nft` loses packets at random in a network namespace of a program's own (`losing`), and
`Wire` is a pair of TUN devices in between. Both take root; `Proxy` takes nothing.
"""

import asyncio
import contextlib
import fcntl
import functools
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Sequence

BROKER_PORT, DEVICE_PORT = 18_831, 18_832
"""Where `losing` redirects from DEVICE_PORT: connections to it lose packets, those to BROKER_PORT do not."""
_SEGMENT_BYTES = 1500
"""Largest packet, as on Ethernet: loopback's own 65,536 would make one packet of most messages."""


@functools.cache
def can_lose() -> bool:
    """Say whether `losing` works here."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(losing(["true"], 0.1), capture_output=True, check=False).returncode == 0


def losing(command: Sequence[str], loss: float) -> list[str]:
    """Make of a program one in a network namespace of its own, where this part of packets is lost.

    There is nothing in it but loopback, so all that talk to each other must be started by that program. Packets are
    lost when they come in (what is dropped on its way out is noticed by TCP at once), in both directions, of
    connections to DEVICE_PORT, which lead to BROKER_PORT. The namespace ends with its last process.
    """
    rules = f"""
        table ip chaos {{
          chain turn {{ type nat hook output priority -100; tcp dport {DEVICE_PORT} redirect to :{BROKER_PORT}; }}
          chain lose {{ type filter hook input priority 0; meta l4proto tcp ct original proto-dst {DEVICE_PORT}
                        numgen random mod 1000 < {round(1000 * loss)} drop; }}
        }}"""
    script = f"""set -e
        PATH=$PATH:/usr/sbin:/sbin
        ip link set lo up mtu {_SEGMENT_BYTES}
        printf '%s' "$0" | nft -f -
        exec "$@" """
    return ["unshare", "--net", "--", "sh", "-c", script, rules, *command]


class Proxy:
    """Stands between clients and a port: counts, delays, limits the rate, and breaks connections."""

    def __init__(
        self, port: int, *, delay_s: float = 0.0, rate: float = float("inf"), stalls: float = 0.0, host: str = ""
    ) -> None:
        """Begin to listen.

        `rate`: bytes per second in each direction. `stalls`: the part of packets of 1,460 bytes that is lost, each of
        which holds up what comes after it by a round trip, and by more if it is lost again.
        """
        self.up_bytes = self.down_bytes = self.connections = 0
        self.host = host or "127.0.0.1"
        self.rate = rate
        self._target, self._delay_s, self._stalls = port, delay_s, stalls
        self._random = random.Random(1)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, self.host, 0), self._loop).result()
        self._server = server
        self.port = server.sockets[0].getsockname()[1]

    def break_all(self) -> None:
        """Reset every connection."""
        self._loop.call_soon_threadsafe(self._break)

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            self._break()
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        self._writers |= {writer, other}
        try:
            await asyncio.gather(
                self._carry(reader, other, "up_bytes"), self._carry(other_reader, writer, "down_bytes")
            )
        except (OSError, asyncio.CancelledError):
            pass  # one end is gone, or the test is over
        finally:
            for end in (writer, other):
                end.transport.abort()
                self._writers.discard(end)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: str) -> None:
        """Carry one direction; what is on its way at once is bounded, as by a receive window."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(32)
        carrying = asyncio.ensure_future(self._deliver(queue, writer))
        free_s = 0.0
        try:
            while data := await reader.read(32_768):
                now_s = self._loop.time()
                free_s = max(free_s, now_s) + len(data) / self.rate + self._held_up_s(len(data))
                await queue.put((free_s + self._delay_s, data))
                setattr(self, count, getattr(self, count) + len(data))
            await queue.put((0.0, b""))
            await carrying
        finally:
            carrying.cancel()
        raise ConnectionResetError

    async def _deliver(self, queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            due_s, data = await queue.get()
            if not data:
                return
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            writer.write(data)
            await writer.drain()

    def _held_up_s(self, size: int) -> float:
        # With selective acknowledgements, all losses of a window (1 MiB here, 32 reads) are mended in the same round
        # trips; so each read of that window bears its part of them.
        rounds, packets = 0, -(-size // 1460)
        while self._stalls and packets:
            packets = sum(self._random.random() < self._stalls for _ in range(packets))
            rounds += packets > 0
        return rounds * 2 * self._delay_s / 32 * 2


class Wire:
    """A network namespace whose only way out loses IP packets and delays the others: TCP itself must bear it."""

    def __init__(self, loss: float, delay_s: float) -> None:
        self.name, number = f"wire{os.getpid()}", os.getpid() % 250
        self.here, self.there = f"10.231.{number}.1", f"10.231.{number}.2"
        self.lost = 0
        self._loss, self._delay_s = loss, delay_s
        self._random = random.Random(1)
        self._stop = threading.Event()
        self._ends = [self._tun("a"), self._tun("b")]
        run("ip", "netns", "add", self.name)
        run("ip", "link", "set", f"{self.name}b", "netns", self.name)
        run("ip", "addr", "add", f"{self.here}/30", "dev", f"{self.name}a")
        run("ip", "link", "set", f"{self.name}a", "up")
        inside = ("ip", "netns", "exec", self.name)
        run(*inside, "ip", "addr", "add", f"{self.there}/30", "dev", f"{self.name}b")
        run(*inside, "ip", "link", "set", f"{self.name}b", "up")
        run(*inside, "ip", "link", "set", "lo", "up")
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _tun(self, end: str) -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH", f"{self.name}{end}".encode(), 0x1001))  # TUNSETIFF
        return descriptor

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        count = 0
        while not self._stop.is_set():
            timeout_s = max(0.0, min(0.2, waiting[0][0] - time.monotonic())) if waiting else 0.2
            for descriptor in select.select(self._ends, [], [], timeout_s)[0]:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        packet = os.read(descriptor, 4096)
                        if self._random.random() < self._loss:
                            self.lost += 1
                            continue
                        count += 1
                        other = self._ends[1 - self._ends.index(descriptor)]
                        heapq.heappush(waiting, (time.monotonic() + self._delay_s, count, other, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, other, packet = heapq.heappop(waiting)
                with contextlib.suppress(OSError):  # the queue is full: lost
                    os.write(other, packet)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for descriptor in self._ends:
            os.close(descriptor)
        run("ip", "netns", "del", self.name)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
