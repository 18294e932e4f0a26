"""R23: everything that somebody may try who does not belong, over real brokers; each must come to nothing.

A check is a function of a `Ground`, a fleet with its broker, and fails by an assertion. A new one goes into `CHECKS`.
"""

import contextlib
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.x509.oid import ExtendedKeyUsageOID

from edge_runtime import identity
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import pki
from edge_runtime.errors import ConfigError, LinkError
from edge_runtime.identity import Identity
from edge_runtime.link import Link
from edge_runtime.message import all_topic, down_topic, up_topic
from edge_runtime.mqtt import Mqtt
from tests.chaos.scorecard import Figure, Row, Scale

FLEET, VICTIM, LIAR = "default", "victim", "liar"
_QUIET_S = 0.6
_LONG_S = 10.0


class End:
    """A client, and what happened to it."""

    def __init__(self, link: Link, *topics: str) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.ups: list[bool] = []
        self.mqtt = Mqtt(replace(link, retry_s=0.1, max_retry_s=0.3))
        self.mqtt.start(topics, lambda topic, payload: self.got.append((topic, payload)), self.ups.append)


class Ground:
    """A fleet of two devices in which one lies, its broker, and all who are connected."""

    def __init__(self, kind: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self.kind, self.folder, self.stack = kind, folder, stack
        self.fleet = pki.create(folder / "fleet", FLEET, ["127.0.0.1"])
        self.broker = stack.enter_context(brokers.start(kind, folder=folder / "broker", fleet=self.fleet))
        self.who = {name: self.enrolled(name) for name in (VICTIM, LIAR)}
        self.who[pki.COORDINATOR] = identity.load(self.fleet.coordinator)

    def enrolled(self, name: str, fleet: pki.Fleet | None = None, again: bool = False) -> Identity:
        bundle = self.folder / f"{name}.edge"
        bundle.write_bytes((fleet or self.fleet).enroll(name, again=again))
        return identity.install(bundle, self.folder / "identities" / (fleet.folder.name if fleet else "") / name)

    def link(self, who: Identity | str, client_id: str = "") -> Link:
        who = self.who[who] if isinstance(who, str) else who
        files = {"cafile": str(who.authority), "cert": str(who.certificate), "key": str(who.key)}
        return Link("127.0.0.1", self.broker.port, client_id or who.name, **files)

    def connect(self, who: Identity | str, *topics: str, client_id: str = "") -> End:
        end = End(self.link(who, client_id), *topics)
        self.stack.callback(end.mqtt.close)
        return end

    def coordinator(self) -> End:
        return self.connect(pki.COORDINATOR, up_topic(FLEET, "+"))

    def victim(self) -> End:
        return self.connect(VICTIM, down_topic(FLEET, VICTIM), all_topic(FLEET, "0" * 64))

    def refused(self, who: Identity | str) -> str:
        """Connect, which must fail, and give what is said of it."""
        try:
            self.connect(who)
        except LinkError as error:
            return str(error)
        raise AssertionError("it was let in")

    def log(self) -> str:
        return self.broker.log.read_text()

    def wait(self, true: Callable[[], object], what: str) -> None:
        """Wait for something to become true, while the broker is looked after as its command does."""
        deadline_s = time.monotonic() + _LONG_S
        while not true():
            self.broker.check()
            assert time.monotonic() < deadline_s, f"in {_LONG_S:.0f} s: no {what}"
            time.sleep(0.02)

    def noted(self, words: str) -> None:
        """See that our own broker has counted a refusal. Mosquitto does not say whom it refused what."""
        if self.kind == "amqtt":
            self.wait(lambda: words in self.log(), f"word of {words}")


@contextlib.contextmanager
def ground(kind: str, folder: Path) -> Iterator[Ground]:
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        yield Ground(kind, folder, stack)
    shutil.rmtree(folder)


def another_devices_topic(on: Ground) -> None:
    hub, liar = on.coordinator(), on.connect(LIAR)
    liar.mqtt.send(up_topic(FLEET, VICTIM), b"forged")
    liar.mqtt.send(down_topic(FLEET, VICTIM), b"forged")
    liar.mqtt.send(all_topic(FLEET, "0" * 64), b"forged")
    liar.mqtt.send(up_topic(FLEET, LIAR), b"own")
    on.wait(lambda: hub.got, "message of one's own")
    assert hub.got == [(up_topic(FLEET, LIAR), b"own")]
    on.noted(f"{LIAR!r} may not write {up_topic(FLEET, VICTIM)!r}")


def orders_of_the_coordinator(on: Ground) -> None:
    victim, liar = on.victim(), on.connect(LIAR)
    for topic in (down_topic(FLEET, VICTIM), all_topic(FLEET, "0" * 64)):
        liar.mqtt.send(topic, b"forged")
    time.sleep(_QUIET_S)
    assert (victim.got, victim.ups) == ([], [True])


def another_devices_id(on: Ground) -> None:
    hub, victim = on.coordinator(), on.victim()
    liar = on.connect(LIAR, client_id=VICTIM)
    liar.mqtt.send(up_topic(FLEET, VICTIM), b"forged")
    liar.mqtt.send(up_topic(FLEET, LIAR), b"own")
    on.wait(lambda: hub.got, "message of one's own")
    hub.mqtt.send(down_topic(FLEET, VICTIM), b"still here?")
    on.wait(lambda: victim.got, "answer to the victim")
    assert (victim.ups, hub.got) == ([True], [(up_topic(FLEET, LIAR), b"own")])
    on.noted(f"{LIAR!r} came as client {VICTIM!r}")


def _overhears(on: Ground, topic: str) -> None:
    hub, victim = on.coordinator(), on.victim()
    heard: list[tuple[str, bytes]] = []
    with contextlib.suppress(LinkError):  # Mosquitto lets anybody subscribe, and sends nothing
        heard = on.connect(LIAR, topic).got
    victim.mqtt.send(up_topic(FLEET, VICTIM), b"private")
    hub.mqtt.send(down_topic(FLEET, VICTIM), b"private")
    on.wait(lambda: hub.got and victim.got, "message")
    time.sleep(_QUIET_S)
    assert heard == []
    on.noted(f"{LIAR!r} may not read {topic!r}")


def everybodys_topics(on: Ground) -> None:
    _overhears(on, "#")


def everybodys_topics_with_a_plus(on: Ground) -> None:
    _overhears(on, f"edge/{FLEET}/+/{VICTIM}")


def another_devices_orders(on: Ground) -> None:
    _overhears(on, down_topic(FLEET, VICTIM))


def wire(on: Ground, name: str, will: tuple[str, bytes] | None = None) -> ssl.SSLSocket:
    """Connect without a library in between."""
    context = ssl.create_default_context(cafile=str(on.who[name].authority))
    context.load_cert_chain(on.who[name].certificate, on.who[name].key)
    return greeted(on, context, name, will=will)


def greeted(
    on: Ground,
    context: ssl.SSLContext,
    name: str,
    session: ssl.SSLSession | None = None,
    will: tuple[str, bytes] | None = None,
) -> ssl.SSLSocket:
    """Say CONNECT, and hear that one is let in."""
    fields = [name.encode(), *([will[0].encode(), will[1]] if will else [])]
    body = b"\x00\x04MQTT\x04" + (b"\x06" if will else b"\x02") + b"\x00\x3c"
    body += b"".join(struct.pack("!H", len(field)) + field for field in fields)
    raw = socket.create_connection(("127.0.0.1", on.broker.port), _LONG_S)
    sock = context.wrap_socket(raw, server_hostname="127.0.0.1", session=session)
    try:
        sock.sendall(b"\x10" + bytes([len(body)]) + body)
        assert sock.recv(4) == b"\x20\x02\x00\x00"
    except BaseException:
        sock.close()
        raise
    return sock


def a_will_on_another_devices_topic(on: Ground) -> None:
    hub = on.coordinator()
    for name in (VICTIM, LIAR):
        with wire(on, LIAR, (up_topic(FLEET, name), b"last words")):
            pass  # gone without a goodbye
    on.wait(lambda: hub.got, "will of one's own")
    assert hub.got == [(up_topic(FLEET, LIAR), b"last words")]


def a_revoked_certificate(on: Ground) -> None:
    on.connect(LIAR).mqtt.close()
    on.fleet.revoke(LIAR)
    assert on.fleet.key_of(LIAR) is None
    on.broker.check()
    time.sleep(_QUIET_S)
    assert "it may refuse the certificate" in on.refused(LIAR)
    on.noted(f"{LIAR!r}: its certificate is revoked")
    on.connect(VICTIM)


def a_revoked_device_that_is_connected(on: Ground) -> None:
    hub, liar, victim = on.coordinator(), on.connect(LIAR, down_topic(FLEET, LIAR)), on.victim()
    pki.Fleet(on.fleet.folder).revoke(LIAR)  # as another process does it
    on.broker.check()
    time.sleep(1.5)
    liar.mqtt.send(up_topic(FLEET, LIAR), b"after")
    hub.mqtt.send(down_topic(FLEET, LIAR), b"after")
    victim.mqtt.send(up_topic(FLEET, VICTIM), b"own")
    on.wait(lambda: hub.got, "message of the victim")
    time.sleep(_QUIET_S)
    assert (hub.got, liar.got, victim.ups) == ([(up_topic(FLEET, VICTIM), b"own")], [], [True])
    on.noted(f"{LIAR!r} was connected: its certificate is revoked")


def a_certificate_that_was_replaced(on: Ground) -> None:
    former = on.folder / "former"
    shutil.copytree(on.who[LIAR].key.parent, former)
    fresh = on.enrolled(LIAR, again=True)
    on.broker.check()
    time.sleep(_QUIET_S)
    on.connect(fresh)
    on.refused(identity.load(former))


def a_session_from_before_being_revoked(on: Ground) -> None:
    """A TLS session that is taken up again brings no certificate to be checked."""
    hub, who = on.coordinator(), on.who[LIAR]
    former = []
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        context = ssl.create_default_context(cafile=str(who.authority))
        context.load_cert_chain(who.certificate, who.key)
        context.maximum_version = version
        with greeted(on, context, LIAR) as sock:
            former.append((context, sock.session))
    on.fleet.enroll(LIAR, again=True)  # revokes, and leaves no rule against this name to hide behind
    on.broker.check()
    time.sleep(_QUIET_S)
    for context, session in former:
        with contextlib.suppress(OSError, AssertionError), greeted(on, context, LIAR, session) as sock:
            sock.sendall(_publish(up_topic(FLEET, LIAR), b"after"))
            time.sleep(_QUIET_S)
    assert hub.got == []


def _publish(topic: str, payload: bytes) -> bytes:
    return b"\x30" + bytes([2 + len(topic) + len(payload)]) + struct.pack("!H", len(topic)) + topic.encode() + payload


def _made(on: Ground, name: str, key: bytes, certificate: bytes) -> Identity:
    """Give somebody else's key and certificate to one who knows the right authority."""
    folder = on.folder / "made" / name
    shutil.copytree(on.who[VICTIM].key.parent, folder)
    (folder / identity.KEY).write_bytes(key)
    (folder / identity.CERTIFICATE).write_bytes(certificate)
    return identity.load(folder)


def an_expired_certificate(on: Ground) -> None:
    key, certificate = on.fleet.issue(VICTIM, 0, ExtendedKeyUsageOID.CLIENT_AUTH, ())
    time.sleep(1.1)
    on.refused(_made(on, "expired", key, pki.pem(certificate)))
    on.noted("certificate has expired")


def a_certificate_of_ones_own(on: Ground) -> None:
    other = pki.create(on.folder / "other", FLEET, ["127.0.0.1"])
    own = on.enrolled(VICTIM, other)
    on.refused(_made(on, "own", own.key.read_bytes(), own.certificate.read_bytes()))
    on.noted("a TLS handshake")


def a_broker_as_a_client(on: Ground) -> None:
    key, certificate = (on.fleet.broker / name for name in (identity.KEY, identity.CERTIFICATE))
    on.refused(_made(on, "broker", key.read_bytes(), certificate.read_bytes()))


def a_device_as_the_broker(on: Ground) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(on.who[LIAR].certificate, on.who[LIAR].key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = subprocess.Popen(
            [sys.executable, "-c", CONNECT, str(listener.getsockname()[1]), *files_of(on.who[VICTIM])],
            stdout=subprocess.PIPE,
            text=True,
        )
        with contextlib.suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as held:
            assert held.recv(1) == b"", "a device spoke to a broker that is none"
        said, _ = child.communicate(timeout=_LONG_S)
    assert "is not accepted" in said, said


CONNECT = """
import sys
from edge_runtime.errors import LinkError
from edge_runtime.mqtt import Link, Mqtt
port, cafile, cert, key = sys.argv[1:5]
issued = int(sys.argv[5]) if sys.argv[5:] else 0
mqtt = Mqtt(Link("127.0.0.1", int(port), "victim", cafile=cafile, cert=cert, key=key, issued_s=issued))
try:
    mqtt.start(["edge/default/down/victim"], lambda *_: None, lambda up: None)
    print("connected")
except LinkError as error:
    print(error)
mqtt.close()
"""


def files_of(who: Identity) -> list[str]:
    return [str(who.authority), str(who.certificate), str(who.key)]


def no_certificate(on: Ground) -> None:
    bare = Link("127.0.0.1", on.broker.port, VICTIM, cafile=str(on.who[VICTIM].authority))
    with contextlib.suppress(LinkError):
        End(bare)
        raise AssertionError("it was let in")


def no_tls(on: Ground) -> None:
    with contextlib.suppress(LinkError):
        End(Link("127.0.0.1", on.broker.port, VICTIM))
        raise AssertionError("it was let in")


def an_old_tls(on: Ground) -> None:
    """Say a ClientHello of TLS 1.1, which this machine's own library may refuse to say."""
    ciphers = struct.pack("!4H", 0xC00A, 0xC009, 0xC014, 0x002F)
    body = b"\x03\x02" + bytes(32) + b"\x00" + struct.pack("!H", len(ciphers)) + ciphers + b"\x01\x00"
    hello = b"\x01" + struct.pack("!I", len(body))[1:] + body
    with socket.create_connection(("127.0.0.1", on.broker.port), _LONG_S) as wire:
        wire.sendall(b"\x16\x03\x01" + struct.pack("!H", len(hello)) + hello)
        answer = wire.recv(64)
    assert answer == b"" or (answer[:1], answer[5:7]) == (b"\x15", b"\x02\x46"), answer  # hung up, or told so
    on.noted("a TLS handshake: UNSUPPORTED_PROTOCOL")


def an_oversized_packet(on: Ground) -> None:
    victim = on.victim()
    before_bytes = _rss_bytes(on.broker.process.pid)
    with wire(on, LIAR) as sock, contextlib.suppress(OSError):
        sock.sendall(b"\x30\xff\xff\xff\x7f\x00\x04abcd")  # a PUBLISH of 256 MB
        for _ in range(100):
            sock.sendall(bytes(1_000_000))
        assert sock.recv(1) == b"", "the broker took 100 MB of one packet"
    grown_bytes = _rss_bytes(on.broker.process.pid) - before_bytes
    assert grown_bytes < 16_000_000, f"the broker grew by {grown_bytes} bytes"
    assert victim.ups == [True]


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def enrolling_twice(on: Ground) -> None:
    key = on.fleet.key_of(LIAR)
    for _ in range(2):
        with contextlib.suppress(ConfigError):
            on.fleet.enroll(LIAR)
            raise AssertionError("a second certificate for one id")
    assert on.fleet.key_of(LIAR) == key
    on.fleet.enroll(LIAR, again=True)
    assert len(on.fleet.revoked()) == 1
    assert on.fleet.key_of(LIAR) not in (None, key)


def names_of_the_fleet_itself(on: Ground) -> None:
    for name in (pki.COORDINATOR, pki.BROKER, "../broker/key", "+", "#", "a/b", "", "x" * 65):
        with contextlib.suppress(ConfigError):
            on.fleet.enroll(name)
            raise AssertionError(f"{name!r} was enrolled")
        assert on.fleet.key_of(name) is None


def speaking_in_clear(on: Ground) -> None:
    """T13: on anything but loopback nothing starts in clear unless --insecure says so."""
    home = {**os.environ, "XDG_STATE_HOME": str(on.folder / "home")}
    far = ["-h", "192.0.2.1"]
    (on.folder / "elsewhere").mkdir()  # where there is no fleet
    programs = {
        "edge_runtime.cli": [["start", "--id", "a", *far]],
        "edge_runtime.coordinator.cli": [["start", "--rounds", "1", *far], ["broker", "-h", "0.0.0.0", "-p", "0"]],
    }
    for program, commands in programs.items():
        for command in commands:
            done = _run(program, command, home, on.folder / "elsewhere")
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert "--insecure" in done.stderr
    with contextlib.suppress(ConfigError):
        Mqtt(Link("192.0.2.1", 1883, "a"))
        raise AssertionError("a link in clear")


def _run(program: str, command: list[str], home: dict[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", program, *command],
        capture_output=True,
        text=True,
        env=home,
        cwd=folder,
        check=False,
        timeout=60,
    )


_AT_DEBUG = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s")
from edge_runtime import {module} as program
program.main(sys.argv[1:])
"""


def secrets_in_sight(on: Ground) -> None:
    """T20: no part of a private key in what the programs say at DEBUG, their arguments or their environment."""
    home = {**os.environ, "XDG_STATE_HOME": str(on.folder / "home")}
    fleet = ["--fleet-folder", str(on.fleet.folder)]
    bundle = on.folder / "late.edge"
    commands = [
        ("coordinator.cli", ["device", "enroll", "late", "--out", str(bundle), *fleet]),
        ("cli", ["enroll", str(bundle)]),
        ("coordinator.cli", ["device", "list", *fleet]),
    ]
    said = "".join(_output("edge_runtime", module, command, home, on.folder) for module, command in commands)
    agent = subprocess.Popen(
        [sys.executable, "-c", _AT_DEBUG.format(module="cli"), "start", "-h", "127.0.0.1", "-p", str(on.broker.port)],
        env=home,
        cwd=on.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    hub = on.coordinator()
    try:
        on.wait(lambda: hub.got, "greeting of the agent")
        seen = b"".join(Path(f"/proc/{agent.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    finally:
        agent.terminate()
        said += agent.communicate(timeout=_LONG_S)[0].decode(errors="replace")
    said += on.log() + seen.decode(errors="replace")
    keys = [path for path in on.folder.rglob("*") if path.name in ("key.pem", "ca.key")]
    assert len(keys) >= 6, keys
    for path in keys:
        assert path.stat().st_mode & 0o077 == 0, path
        lines = [line for line in path.read_text().splitlines() if not line.startswith("-")]
        assert not [line for line in lines if line in said], f"{path} is in sight"
    assert "PRIVATE" not in said
    assert bundle.stat().st_mode & 0o077 == 0


def _output(package: str, module: str, command: list[str], home: dict[str, str], folder: Path) -> str:
    program = _AT_DEBUG.format(module=module.rpartition(".")[2]).replace(
        "from edge_runtime import", f"from {'.'.join([package, *module.split('.')[:-1]])} import"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        capture_output=True,
        text=True,
        env=home,
        cwd=folder,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Check:
    """`threat`: its number in the threat model; `what` somebody tries."""

    threat: str
    what: str
    try_it: Callable[[Ground], None]


CHECKS = (
    Check("T1", "publishing on another device's topics", another_devices_topic),
    Check("T1", "giving orders in the coordinator's place", orders_of_the_coordinator),
    Check("T1", "a will on another device's topic", a_will_on_another_devices_topic),
    Check("T1", "a certificate of an authority of one's own", a_certificate_of_ones_own),
    Check("T1", "an expired certificate", an_expired_certificate),
    Check("T1", "a revoked certificate", a_revoked_certificate),
    Check("T1", "going on after being revoked", a_revoked_device_that_is_connected),
    Check("T1", "a certificate that was replaced", a_certificate_that_was_replaced),
    Check("T1", "a TLS session from before being revoked", a_session_from_before_being_revoked),
    Check("T1", "the broker's certificate as a client's", a_broker_as_a_client),
    Check("T1", "no certificate", no_certificate),
    Check("T2", "another device's client id", another_devices_id),
    Check("T6", "a packet of 256 MB", an_oversized_packet),
    Check("T11", "a second certificate for one id", enrolling_twice),
    Check("T11", "names that are the fleet's own, or none", names_of_the_fleet_itself),
    Check("T12", "a device as the broker", a_device_as_the_broker),
    Check("T13", "subscribing to #", everybodys_topics),
    Check("T13", "subscribing with +", everybodys_topics_with_a_plus),
    Check("T13", "subscribing to another device's orders", another_devices_orders),
    Check("T13", "no TLS", no_tls),
    Check("T13", "TLS 1.1", an_old_tls),
    Check("T13", "starting in clear on an address that others reach", speaking_in_clear),
    Check("T20", "looking for keys in logs, arguments and environment", secrets_in_sight),
)


def kinds() -> list[str]:
    return ["amqtt", "mosquitto"] if brokers.find_mosquitto() else ["amqtt"]


def measure(scale: Scale) -> Figure:
    """Try everything on every broker. A part of it tries every so many."""
    step = max(1, round(1 / scale.part))
    tried = [(kind, check) for kind in kinds() for check in CHECKS][scale.seed % step :: step]
    failed: dict[str, str] = {}
    for number, (kind, check) in enumerate(tried):
        try:
            with ground(kind, scale.folder / f"security-{os.getpid()}-{number}") as on:
                check.try_it(on)
        except Exception as error:  # noqa: BLE001  # whatever goes wrong, it was not refused as it should be
            failed[f"{check.threat} {check.what} ({kind})"] = f"{type(error).__name__}: {error}"
    threats = sorted({check.threat for _, check in tried}, key=lambda name: int(name[1:]))
    text = f"{len(tried) - len(failed)} of {len(tried)} attempts came to nothing ({', '.join(threats)})"
    return Figure(text, not failed, {"brokers": kinds(), "failed": failed})


ROWS = [Row("R23", "attempts of those who do not belong, on every broker", "all come to nothing", measure)]
