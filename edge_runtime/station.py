"""Checks of a link to the broker, which devices and coordinators have in common: `checkup.py` runs them.

Who may say and hear what is really tried. What a client says on `edge/FLEET/ask/ITSELF/ITSELF` it may hear again, and
nobody else listens there: that is where round trips, throughput and the largest packet are measured. What must not get
through goes to devices that do not exist, under names that nobody has:

* to `ask/NOBODY/ITSELF`, where it may speak and must not listen: is it heard, everybody can read what others are told;
* to `peer/NOBODY` (a coordinator: `up/NOBODY`), where it may listen and must not speak: is it heard, everybody can
  speak for others; and a device to `all/DIGEST`, which is the coordinator's alone.

After each of these comes a message that may be heard. Brokers keep the order of a connection, so that what is not there
by then does not come.
"""

import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.checkup import C, Check, Finding, bad, ending, good, skipped, warn
from edge_runtime.errors import ConfigError, LinkError
from edge_runtime.identity import Identity
from edge_runtime.link import Link, clock, clock_is_wrong, is_loopback
from edge_runtime.message import (
    CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    MIN_CHUNK_BYTES,
    all_topic,
    ask_topic,
    peer_topic,
    up_topic,
)
from edge_runtime.probe import Probe, presented, reach, shake_hands

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

LINK = LinkError.exit_code
_HEAD_BYTES = MAX_MESSAGE_BYTES - MAX_CHUNK_BYTES
_ROUNDS, _PIECES, _PIECE_BYTES = 5, 16, 16_384
_ECHO_S, _SLOW_S, _MOMENT_S = 5.0, 30.0, 0.3
_SLOW_ROUND_S, _SLOW_BYTES_PER_S = 2.0, 20_000
_CONFIG = "make the broker's rules with `edge-coordinator broker-config`"


@dataclass(frozen=True)
class Station:
    """Who speaks to the broker."""

    fleet: str
    name: str
    """The device's id, or `coordinator`."""
    link: Link | None
    """None: nothing can be said without who it is, and that cannot be read."""
    who: Identity | None
    """None: without an identity."""
    hears: tuple[str, ...]
    """Topics that it must be let read."""
    coordinates: bool = False
    now_s: float = 0.0

    @property
    def echo(self) -> str:
        """Name the topic on which it hears itself, and nobody else does."""
        return ask_topic(self.fleet, self.name, self.name)

    @property
    def secured(self) -> bool:
        """Say whether a broker can know who this is by a certificate."""
        return self.link is not None and self.link.cert is not None


def link_of(station: Station) -> Link:
    """Give the link.

    Raises:
        ConfigError: there is none.
    """
    if station.link is None:
        raise ConfigError("without an identity that can be read nobody knows where the broker is")
    return station.link


def own_certificate(station: Station) -> Finding:
    """See until when this side's certificate is good, and that it fits its key and authority."""
    if station.link is None or station.link.cert is None:
        return skipped("there is no certificate: this is a link without an identity")
    found = _read(Path(station.link.cert))
    enroll = f"edge-coordinator device enroll {station.name} --again, and edge-agent enroll {station.name}.edge"
    todo = "see docs/security.md: the coordinator's certificate" if station.coordinates else enroll
    begins_s = found.not_valid_before_utc.timestamp()
    if begins_s > station.now_s:
        return warn(f"the certificate of {station.name} is of the future for this clock", "set the clock")
    what = f"the certificate of {station.name} in fleet {station.fleet}"
    return ending(what, found.not_valid_after_utc.timestamp(), todo, station.now_s)


def _read(path: Path) -> "Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a certificate that can be read: {error}") from error


def right_clock(station: Station) -> Finding:
    """Compare the clock with what must be past: when this identity was made, and when its certificates begin."""
    says = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(station.now_s))
    if station.link is None or not station.link.issued_s:
        return good(f"it says {says}; there is nothing to compare that with (no identity)")
    since = time.strftime("%Y-%m-%d", time.gmtime(station.link.issued_s))
    if clock_is_wrong(station.link):
        seen = f"{clock(station.link)}: the clock is wrong, and dates of certificates are not checked"
        return warn(seen, "set the clock (timedatectl set-ntp true, or a clock with a battery)")
    return good(f"it says {says}, and this identity was made on {since}")


def reachable(station: Station) -> Finding:
    """See whether anybody is at the broker's port."""
    took_s = reach(link_of(station))
    return good(f"{link_of(station).address} answers in {1000 * took_s:.1f} ms", connect_ms=round(1000 * took_s, 1))


def encrypted(station: Station) -> Finding:
    """Shake hands: is the broker who it should be, until when, and does it take this side's certificate?"""
    link = link_of(station)
    if link.cafile is None:
        if is_loopback(link.host):
            return good(f"in clear, with a broker on this machine ({link.address})")
        return warn(f"in clear: what is said to {link.address} can be read and changed on the way",
                    "enrol this machine (`edge-coordinator device enroll`), or give --cafile")  # fmt: skip
    try:
        found = shake_hands(link)
    except LinkError as error:
        return bad(f"{error}{_what_it_shows(link)}", _why_refused(str(error), station))
    renew = "edge-coordinator fleet hosts HOST, and start the broker anew"
    judged = ending(f"the certificate of {found.subject!r}, by {found.issuer!r},", found.ends_s, renew, station.now_s)
    return replace(judged, seen=f"{found.version}, {found.cipher}; {judged.seen}")


def _what_it_shows(link: Link) -> str:
    shown = presented(link)
    if shown is None:
        return ""
    issuer, wanted = shown.issuer.rfc4514_string(), _read(Path(str(link.cafile))).subject.rfc4514_string()
    ends = shown.not_valid_after_utc.strftime("%Y-%m-%d")
    return f" [it shows {shown.subject.rfc4514_string()}, by {issuer}, until {ends}; trusted is {wanted}]"


def _why_refused(said: str, station: Station) -> str:
    said = said.upper()
    again = f"edge-coordinator device enroll {station.name} --again"
    if "REVOKED" in said:
        return f"{station.name} was taken out of the fleet: {again}, if it shall come back"
    if "ALERT_CERTIFICATE_EXPIRED" in said:
        return f"this side's certificate has ended: {again}"
    if "UNKNOWN_CA" in said or "ALERT_BAD_CERTIFICATE" in said:
        return f"this side's certificate is of another fleet than the broker's: {again}"
    return "start the broker with this fleet's certificates (`edge-coordinator broker-config`), or mend what is named"


def accepted(station: Station) -> Finding:
    """See whether the broker lets this client in."""
    started_s = time.monotonic()
    with Probe(link_of(station)):
        took_s = time.monotonic() - started_s
    return good(f"lets {link_of(station).client_id!r} in, after {1000 * took_s:.0f} ms")


def may(station: Station) -> Finding:
    """Try what this client must be able to do: listen where it is spoken to, speak, and hear itself."""
    with Probe(link_of(station)) as probe:
        topics = [*station.hears, station.echo]
        refused = [topic for topic, granted in zip(topics, probe.subscribe(topics), strict=True) if not granted]
        if refused:
            return bad(f"the broker does not let {station.name!r} read {', '.join(refused)}", _CONFIG)
        said = _nonce()
        probe.publish(station.echo, said)
        if not probe.hears(station.echo, said, _ECHO_S):
            why = "the broker hung up: is another client connected by this name?" if probe.lost else "it is not heard"
            return bad(f"what {station.name!r} says on {station.echo} does not come back: {why}", _CONFIG)
    return good(f"listens to {', '.join(station.hears)}; speaks on its own topic, and hears that")


def may_not(station: Station) -> Finding:
    """Try what this client must not be able to do: hear what others are told, and speak for others."""
    leaks = [
        why
        for why, listens, speaks in _forbidden(station, f"nobody-{secrets.token_hex(4)}")
        if _gets_through(station, listens, speaks)
    ]
    if not leaks:
        return good("can neither hear what others are told nor speak for them")
    seen = f"the broker lets {station.name!r} {' and '.join(leaks)}"
    if station.secured:
        return bad(seen, _CONFIG)
    return warn(f"{seen}: it knows nobody by a certificate", "make a fleet, if others can reach this broker")


def _forbidden(station: Station, nobody: str) -> Iterator[tuple[str, list[str], str]]:
    """Give what must not be possible: in words, where to listen, and where to speak."""
    asked = ask_topic(station.fleet, nobody, station.name)
    yield "hear what others are told", [ask_topic(station.fleet, nobody, "+"), f"edge/{station.fleet}/#"], asked
    if station.coordinates:
        yield "speak for a device", [up_topic(station.fleet, "+")], up_topic(station.fleet, nobody)
        return
    yield "speak for another device", [peer_topic(station.fleet, "+")], peer_topic(station.fleet, nobody)
    digest = secrets.token_hex(32)
    yield "speak for the coordinator", [all_topic(station.fleet, "+")], all_topic(station.fleet, digest)


def _gets_through(station: Station, listens: Sequence[str], speaks: str) -> bool:
    """Say whether what is said on a topic is heard; a broker that hangs up on the attempt lets nothing through."""
    said = _nonce()
    with Probe(link_of(station)) as probe:
        probe.subscribe([station.echo])
        probe.subscribe(listens, _ECHO_S)
        probe.publish(speaks, said)
        probe.publish(station.echo, said)
        probe.hears(station.echo, said, _ECHO_S)
        return (speaks, said) in probe.heard


def largest_packet(station: Station) -> Finding:
    """Find the largest message that comes through; a chunk and what is around it must."""
    sizes = [MAX_MESSAGE_BYTES]
    chunk = CHUNK_BYTES
    while chunk >= MIN_CHUNK_BYTES:
        sizes.append(chunk + _HEAD_BYTES)
        chunk //= 2
    silent = True
    for size in sizes:
        came, hung_up = _comes(station, size)
        silent = silent and not hung_up
        if came:
            return _fitting(size, silent)
    return bad(f"not even {sizes[-1]:,} bytes come through", "raise what the broker takes (Mosquitto: "
               "max_packet_size, message_size_limit)")  # fmt: skip


def _comes(station: Station, size: int) -> tuple[bool, bool]:
    """Say whether a message of a size comes back, and whether the broker hung up on it."""
    said, after = _nonce().ljust(size, b"."), _nonce()
    with Probe(link_of(station)) as probe:
        probe.subscribe([station.echo])
        probe.publish(station.echo, said)
        probe.publish(station.echo, after)  # once this is back, the other one will not come any more
        probe.hears(station.echo, after, _SLOW_S)
        return probe.hears(station.echo, said, _MOMENT_S), probe.lost


def _fitting(size: int, silent: bool) -> Finding:
    chunk = size - _HEAD_BYTES
    if chunk >= CHUNK_BYTES:
        return good(f"{size:,} bytes come through", largest_bytes=size)
    todo = f"raise the broker's limit, or set [run] chunk-bytes = {chunk}"
    if silent:
        return bad(f"{size:,} bytes come through, and what is larger vanishes without a word", todo, largest_bytes=size)
    return warn(f"{size:,} bytes come through, and the broker hangs up on more: chunks are made smaller by themselves, "
                "after some failures", todo, largest_bytes=size)  # fmt: skip


def speed(station: Station) -> Finding:
    """Measure a round trip, and how much goes through in both directions at once."""
    with Probe(link_of(station)) as probe:
        probe.subscribe([station.echo])
        trips_s = [_trip_s(probe, station.echo, 64) for _ in range(_ROUNDS)]
        started_s = time.monotonic()
        last = b""
        for _ in range(_PIECES):
            last = _nonce().ljust(_PIECE_BYTES, b".")
            probe.publish(station.echo, last)
        came = probe.hears(station.echo, last, _SLOW_S)
        took_s = time.monotonic() - started_s
    trip_s = statistics.median(trips_s)
    rate = _PIECES * _PIECE_BYTES / took_s
    seen = f"{1000 * trip_s:.1f} ms to the broker and back; {rate / 1000:,.0f} kB/s up, and down at the same time"
    figures = {"round_trip_ms": round(1000 * trip_s, 2), "bytes_per_s": round(rate)}
    if not came or rate < _SLOW_BYTES_PER_S or trip_s > _SLOW_ROUND_S:
        seen = seen if came else f"{_PIECES * _PIECE_BYTES // 1000} kB did not come back within {_SLOW_S:.0f} s"
        todo = "a slow link: cheaper codings ([run] up, down), --round-kb, and a longer [run] deadline-s"
        return warn(seen, todo, **figures)
    return good(seen, **figures)


def _trip_s(probe: Probe, topic: str, size: int) -> float:
    said = _nonce().ljust(size, b".")
    started_s = time.monotonic()
    probe.publish(topic, said)
    probe.hears(topic, said, _ECHO_S)
    return time.monotonic() - started_s


def _nonce() -> bytes:
    """Make a message that is no other, and that nobody takes for one of the protocol's."""
    return b"edge-runtime doctor " + secrets.token_hex(8).encode()


CHECKS: tuple[Check[Station], ...] = (
    Check("certificate", own_certificate, ConfigError.exit_code, ("identity",)),
    Check("clock", right_clock),
    Check("broker", reachable, LINK, ("identity",)),
    Check("tls", encrypted, LINK, ("broker",)),
    Check("login", accepted, LINK, ("tls", "running")),
    Check("may", may, LINK, ("login",)),
    Check("may-not", may_not, LINK, ("may",)),
    Check("packet", largest_packet, LINK, ("may",)),
    Check("speed", speed, LINK, ("packet",)),
)
"""In this order; the context's own checks `identity` and `running` come before."""


def checks(of: Callable[[C], Station]) -> list[Check[C]]:
    """Give them for a context that has a station."""

    def made(check: Check[Station]) -> Check[C]:
        return Check(check.name, lambda context: check.look(of(context)), check.exit_code, check.needs)

    return [made(check) for check in CHECKS]
