"""Where a broker is, who we are there, and how to say what is wrong with either."""

import contextlib
import ipaddress
import logging
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime import config
from edge_runtime.errors import ConfigError
from edge_runtime.quota import ANY, Quota

log = logging.getLogger(__name__)

CONNECT_S = 5.0
_MOMENT_S = 0.3
_LOOK_S = 0.5
_DAY_S = 86_400
NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which `ssl` has no name."""
_OF_TIME = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


@dataclass(frozen=True)
class Link:
    """Where the broker is and who we are there.

    Attributes:
        client_id: unique at the broker: a second client of the same id throws the first one out.
        cafile: certificates that the broker's must be signed by; given, the connection is TLS.
        insecure: speak in clear with another machine.
        issued_s: a time, Unix seconds, that lies in the past: a clock that says less is wrong. 0: not known.
        max_packet_bytes: of one MQTT packet, framing included; AWS IoT takes 128 KiB.
        max_queued_bytes: of messages that wait for the socket.
        quota: what may be published in a second; the rest waits, and then counts as `max_queued_bytes`.
        retry_s: longest pause before the first reconnection, doubled for each that fails, up to `max_retry_s`.
    """

    host: str
    port: int
    client_id: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    cafile: str | None = None
    cert: str | None = None
    key: str | None = None
    insecure: bool = False
    issued_s: int = 0
    keepalive_s: int = 30
    max_packet_bytes: int = 131_072
    max_queued_bytes: int = 33_554_432
    quota: Quota = ANY
    retry_s: float = 1.0
    max_retry_s: float = 30.0

    @property
    def address(self) -> str:
        """The broker as a person would write it."""
        return f"{self.host}:{self.port}"


class Witness:
    """A second, silent TCP connection to the broker: it tells why the first one was closed.

    MQTT 3.1.1 has no word for "somebody else has come with your id". But a broker that dies takes all connections
    along, and one that prefers somebody else closes only one.
    """

    def __init__(self, link: Link) -> None:
        self._address = link.host, link.port
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect; if that fails there is no witness."""
        self.close()
        with contextlib.suppress(OSError):
            self._socket = socket.create_connection(self._address, CONNECT_S)

    def stands(self) -> bool:
        """Say whether the connection is still there, a moment after the other one went."""
        if self._socket is None:
            return False
        closed, _, _ = select.select([self._socket], [], [], _MOMENT_S)
        return not closed  # a broker never speaks first, so that only the end of the connection can be read

    def close(self) -> None:
        """Send the witness away."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def wait_for(link: Link, stop: Callable[[], bool]) -> bool:
    """Wait until something listens where the broker is to be; False: `stop` said so before."""
    said = ""
    while not stop():
        try:
            socket.create_connection((link.host, link.port), CONNECT_S).close()
            return True
        except OSError as error:
            trouble = why_unreachable(link, error)
        if trouble != said:
            log.warning("waiting: %s", trouble)
        said = trouble
        time.sleep(_LOOK_S)
    return False


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def tls_context(link: Link) -> ssl.SSLContext | None:
    """Read certificates and key; None where the link is to be in clear.

    Raises:
        ConfigError: one of them cannot be read, they do not belong together, or others could read the link.
    """
    if link.cafile is None:
        _check_clear(link)
        return None
    try:
        context = ssl.create_default_context(cafile=link.cafile)
        if link.cert is not None:
            context.load_cert_chain(link.cert, link.key, password=_no_password)
    except OSError as error:
        files = [name for name in (link.cafile, link.cert, link.key) if name]
        for path in map(Path, files):
            if not path.exists():
                near = config.nearest_path(path)
                raise ConfigError(f"TLS cannot be set up from {path}: {error.strerror}{near}") from error
        raise ConfigError(f"TLS cannot be set up from {', '.join(files)}: {error.strerror or error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _no_password() -> str:
    raise ConfigError("the private key has a password, which nobody could type when this starts by itself: remove it")


def _check_clear(link: Link) -> None:
    if is_loopback(link.host):
        return
    if not link.insecure:
        raise ConfigError(
            f"the link to {link.address} would be in clear: enrol this machine (`edge-coordinator device enroll`, "
            "`edge-agent enroll`), give --cafile, or say --insecure"
        )
    log.warning("INSECURE: what is said to %s can be read and changed by anybody on the way", link.address)


def mind_clock(context: ssl.SSLContext, link: Link) -> None:
    """Let a device connect whose clock is so wrong that every certificate seems to be of the future.

    A small device starts in 1970 where it has no battery, and often gets the time over the network later. Signatures,
    names and purposes are checked all the same; `outlived` sees to the end of the broker's certificate.
    """
    wrong = clock_is_wrong(link)
    if wrong and not context.verify_flags & NO_CHECK_TIME:
        log.warning("%s: the dates of certificates are not checked until it is set", clock(link))
    flags = context.verify_flags | NO_CHECK_TIME if wrong else context.verify_flags & ~NO_CHECK_TIME
    context.verify_flags = ssl.VerifyFlags(flags)


def clock_is_wrong(link: Link) -> bool:
    """Say whether this machine's clock lies before what is known to be past."""
    return time.time() < link.issued_s - _DAY_S


def clock(link: Link) -> str:
    """Say what this machine's clock says, and since when it should know better."""
    says, issued = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(at_s)) for at_s in (time.time(), link.issued_s))
    return f"this machine's clock says {says} UTC" + (f", and was enrolled {issued}" if link.issued_s else "")


def outlived(sock: Any, link: Link) -> bool:
    """Say whether the broker's certificate had ended before this device got its own: what a wrong clock cannot see."""
    found: Any = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
    ends = (found or {}).get("notAfter")
    return isinstance(ends, str) and ssl.cert_time_to_seconds(ends) < link.issued_s


def why_unreachable(link: Link, error: OSError) -> str:
    """Say in one line why no connection came about, and what to do."""
    match error:
        case ssl.SSLCertVerificationError():
            reason = f"the certificate of {link.address} is not accepted ({error.verify_message})"
            if error.verify_code in _OF_TIME:
                return f"{reason}; {clock(link)}: set the clock, or renew that certificate"
            return f"{reason}: check -h and --cafile"
        case ssl.SSLError():
            return f"no TLS with {link.address} ({error.reason or error}): check -p, --cafile, --cert and --key"
        case socket.gaierror():
            return f"no broker answers at {link.address} (unknown host): check -h"
        case ConnectionRefusedError():
            reason = "connection refused"
        case TimeoutError():
            reason = f"no answer in {CONNECT_S:.0f} s"
        case _:
            reason = error.strerror or str(error)
    return f"no broker answers at {link.address} ({reason}): start one with `edge-coordinator broker` or give -h and -p"


def why_closed(link: Link) -> str:
    """Say in one line why a broker may have hung up before it said anything."""
    if link.cert is None:
        return f"{link.address} closed the connection: is it an MQTT broker, and without TLS?"
    return (
        f"{link.address} closed the connection: it may refuse the certificate {link.cert} (revoked, expired or of "
        "another fleet): see `edge-coordinator device list`"
    )
