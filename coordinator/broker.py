"""An MQTT broker of our own as a child process: Mosquitto where it is installed, else amqtt behind a guard.

For one machine: on loopback anybody may connect, or who has a password. For a fleet (`pki.py`): only who has one of its
certificates, over TLS, and each on topics of its own (`broker_config.py`); revocations and rules hold from the next
`Broker.check` on. Nothing is kept on disk or for later, because the protocol repeats what matters.
"""

import dataclasses
import functools
import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edge_runtime.config import nearest
from edge_runtime.coordinator import passwords
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.files import write_atomic
from edge_runtime.link import is_loopback
from edge_runtime.processes import die_with_parent

if TYPE_CHECKING:
    from edge_runtime.coordinator.pki import Fleet

log = logging.getLogger(__name__)

KINDS = ("auto", "mosquitto", "amqtt")
MAX_PACKET_BYTES = 262_144
MAX_CONNECTIONS = 1_024
_WAIT_S = 15.0
_GRACE_S = 3.0

# Queue bounds are per client: twenty devices answer the coordinator with a window of 1 MiB each.
LIMITS = f"""\
persistence false
retain_available false
sys_interval 0
log_dest stderr
log_type error
log_type warning
connection_messages false
set_tcp_nodelay true
max_packet_size {MAX_PACKET_BYTES}
max_inflight_messages 20
max_queued_messages 1000
max_queued_bytes 67108864
memory_limit 536870912
max_connections {MAX_CONNECTIONS}
max_keepalive 600
"""


@dataclass(frozen=True)
class Broker:
    """A running broker; leaving it as a context stops it."""

    kind: str
    host: str
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    watch: Callable[[], None] = field(default=lambda: None, repr=False)

    def check(self) -> None:
        """Raise RunError with the broker's last words if it has died; pass on what changed in its fleet."""
        if self.process.poll() is not None:
            raise RunError(f"the broker ({self.kind}) died: {_last_words(self.process, self.log)}")
        self.watch()

    def close(self) -> None:
        """Stop the broker and wait until it is gone."""
        self.process.terminate()
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> "Broker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start(
    kind: str = "auto",
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    folder: Path,
    users: Mapping[str, str] | None = None,
    fleet: "Fleet | None" = None,
    insecure: bool = False,
) -> Broker:
    """Start a broker and return once it takes connections. It dies with the thread that started it.

    Args:
        kind: which program; "auto" takes Mosquitto if it is there.
        host: address to listen on.
        port: 0 takes a free one.
        folder: where its configuration and log go.
        users: passwords by user name; None lets anybody in (unless there is a fleet).
        fleet: TLS, and only clients with a certificate of this fleet, each on its own topics.
        insecure: listen in clear on an address that others can reach.

    Raises:
        ConfigError: the port is taken, the address or the kind cannot be, or it would be in clear for others.
        RunError: it did not come up.
    """
    if kind not in KINDS:
        raise ConfigError(f"--broker: unknown kind {kind!r}{nearest(kind, KINDS)}")
    if fleet is None and not is_loopback(host):
        if not insecure:
            raise ConfigError(
                f"a broker on {host} would speak in clear: make a fleet with `edge-coordinator fleet init`, "
                "or say --insecure"
            )
        log.warning("INSECURE: what this broker on %s is told can be read and changed by anybody on the way", host)
    program = find_mosquitto()
    if kind == "mosquitto" and program is None:
        raise ConfigError("mosquitto is not installed: `apt install mosquitto`, or take --broker amqtt")
    kind = ("mosquitto" if program else "amqtt") if kind == "auto" else kind
    port = _bindable(host, port)
    folder.mkdir(parents=True, exist_ok=True)
    secret = _write_users(folder, users)
    if kind == "mosquitto":
        command = _mosquitto(program, folder, host, port, secret, fleet)
    else:
        command = _amqtt(host, port, secret, fleet)
    broker = _spawn(kind, host, port, command, folder / "broker.log")
    if kind == "mosquitto" and fleet is not None:
        broker = dataclasses.replace(broker, watch=_reloading(broker, fleet, folder))
    try:
        _wait(broker)
    except BaseException:
        broker.close()
        raise
    return broker


def find_mosquitto() -> str | None:
    """Find the program; Debian keeps it where only root's PATH looks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def _bindable(host: str, port: int) -> int:
    if not 0 <= port < 65_536:  # getaddrinfo would take it modulo 65,536
        raise ConfigError(f"no broker can listen on {host}:{port}: ports end at 65535, choose another with -p")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"no broker can listen on {host}:{port} ({error.strerror}): choose another port with -p"
        ) from error


def _write_users(folder: Path, users: Mapping[str, str] | None) -> Path | None:
    if users is None:
        return None
    path = folder / "passwords"
    text = passwords.encode(users)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def _mosquitto(
    program: str | None, folder: Path, host: str, port: int, secret: Path | None, fleet: "Fleet | None"
) -> list[str]:
    lines = [f"listener {port} {host}"]
    if fleet is not None:
        from edge_runtime.coordinator import broker_config

        _write_acl(fleet, folder)
        certificates = fleet.broker.resolve()
        lines.append(broker_config.secured(certificates, certificates / "crl.pem", (folder / "acl").resolve()))
    else:
        lines.append(f"allow_anonymous {'false' if secret else 'true'}")
        lines += [f"password_file {secret.resolve()}"] if secret else []
    if os.geteuid() == 0:
        # Started by root, it would become user "mosquitto", which need not exist, nor may read our folder; and a
        # program that changes its user outlives its parent.
        lines.append(f"user {pwd.getpwuid(0).pw_name}")
    path = folder / "mosquitto.conf"
    path.write_text("\n".join(lines) + "\n" + LIMITS)
    return [str(program), "-c", str(path.resolve())]


def _write_acl(fleet: "Fleet", folder: Path) -> None:
    from edge_runtime.coordinator import broker_config

    text = broker_config.acl(broker_config.rules(fleet), fleet.revoked_names())
    write_atomic(folder / "acl", text.encode(), durable=False)


def _reloading(broker: Broker, fleet: "Fleet", folder: Path) -> Callable[[], None]:
    """Give what looks after a fleet's changes: on SIGHUP Mosquitto reads its ACL file and revocations anew."""
    from edge_runtime.coordinator.broker_config import Watch

    def changed() -> None:
        try:
            _write_acl(fleet, folder)
        except ConfigError as error:
            log.error("the broker goes on with the former rules: %s", error)
            return
        broker.process.send_signal(signal.SIGHUP)

    return Watch(fleet, changed).look


def _amqtt(host: str, port: int, secret: Path | None, fleet: "Fleet | None") -> list[str]:
    command = [sys.executable, "-m", "edge_runtime.coordinator.embedded", "--host", host, "--port", str(port)]
    command += ["--passwords", str(secret.resolve())] if secret else []
    command += ["--fleet-folder", str(fleet.folder.resolve())] if fleet else []
    return command if is_loopback(host) or fleet else [*command, "--insecure"]


def _spawn(kind: str, host: str, port: int, command: list[str], log: Path) -> Broker:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the coordinator, which then ends the broker last
            preexec_fn=functools.partial(die_with_parent, signal.SIGKILL),  # noqa: PLW1509  # one call to the kernel
        )
    return Broker(kind, host, port, process, log)


def _wait(broker: Broker) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline_s:
        broker.check()
        try:
            socket.create_connection((broker.host, broker.port), 1.0).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RunError(f"the broker ({broker.kind}) does not answer: {_last_words(broker.process, broker.log)}")


def _last_words(process: "subprocess.Popen[bytes]", log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {process.poll()}, and nothing in {log}"
