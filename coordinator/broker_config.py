"""Who may say and hear what at a fleet's broker: the rules, as our broker applies them and as Mosquitto reads them.

A client is who its certificate names: CN is user and client id at once, so that nobody can take another's place. A
device speaks and listens on topics that carry its own id (`edge_runtime/message.py`); all that is not allowed is
denied. The file `rules` in the fleet's folder, if there is one, allows more: `NAME read|write TOPIC` on each line.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.coordinator.broker import LIMITS
from edge_runtime.coordinator.pki import COORDINATOR, Fleet
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomic
from edge_runtime.identity import AUTHORITY, CERTIFICATE, KEY
from edge_runtime.message import check_name

WORDS = ("read", "write")
_EVERYBODY = "%u"
_TOPIC = re.compile(r"[A-Za-z0-9_.+#-]+(/[A-Za-z0-9_.+#-]+)*")
# Debian's unit starts Mosquitto as root and confines nothing; what is here it can do without.
_UNIT = """\
[Service]
User=mosquitto
ExecStartPre=
ExecStart=
ExecStart=/usr/sbin/mosquitto -c {at}/mosquitto.conf
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
UMask=0077
MemoryMax=1G
TasksMax=64
Restart=always
"""


@dataclass(frozen=True)
class Rule:
    """`who` ("%u": everybody, each in place of it) may `read` or `write` the topics that `topic` matches."""

    who: str
    word: str
    topic: str


def rules(fleet: Fleet) -> list[Rule]:
    """Give all rules of a fleet, those of its own file included.

    Raises:
        ConfigError: a line of that file that is none.
    """
    usual = {
        COORDINATOR: ("read up/+", "write down/+", "write all/+", "write infer/+/in", "read infer/+/out"),
        _EVERYBODY: (
            *("write up/%u", "read down/%u", "read all/+"),
            *("write peer/%u", "read peer/+", "write ask/+/%u", "read ask/%u/+"),
            *("read infer/%u/in", "write infer/%u/out"),
        ),
    }
    found = []
    for who, lines in usual.items():
        for word, topic in map(str.split, lines):
            found.append(Rule(who, word, f"edge/{fleet.name}/{topic}"))
    path = rules_file(fleet)
    return found + (list(_read(path)) if path.exists() else [])


def rules_file(fleet: Fleet) -> Path:
    """Name the file of what a person allows beyond the usual."""
    return fleet.folder / "rules"


def _read(path: Path) -> Iterable[Rule]:
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match line.split():
            case [who, word, topic] if word in WORDS and _TOPIC.fullmatch(topic):
                yield Rule(check_name(who, f"{path}:{number}"), word, topic)
            case _:
                raise ConfigError(f"{path}:{number}: write NAME read|write TOPIC")


def allows(rules: Iterable[Rule], who: str, word: str, asked: str) -> bool:
    """Say whether a client may write to a topic, or read all that a filter matches."""
    wanted = asked.split("/")
    for rule in rules:
        if rule.word == word and rule.who in (who, _EVERYBODY):
            levels = [who if level == _EVERYBODY else level for level in rule.topic.split("/")]
            if covers(levels, wanted):
                return True
    return False


def covers(allowed: list[str], asked: list[str]) -> bool:
    """Say whether a filter matches everything that another one, or a topic, does; both as their levels.

    MQTT 3.1.1, section 4.7: `+` is any one level, `#` all levels from there on, the one above it included.
    """
    for index, level in enumerate(allowed):
        if level == "#":
            return True
        if index >= len(asked) or asked[index] == "#" or level not in ("+", asked[index]):
            return False
    return len(allowed) == len(asked)


def acl(rules: Iterable[Rule], denied: Iterable[str]) -> str:
    """Write the rules as Mosquitto's ACL file; `denied` are devices that were revoked, and may do nothing at all.

    A device that is connected stays so: Mosquitto asks for certificates at the start of a connection only.
    """
    lines = []
    named: dict[str, list[str]] = {name: ["topic deny #"] for name in denied}
    for rule in rules:
        if rule.who == _EVERYBODY:
            lines.append(f"pattern {rule.word} {rule.topic}")
        else:
            named.setdefault(rule.who, []).append(f"topic {rule.word} {rule.topic}")
    for name, words in named.items():
        lines += ["", f"user {name}", *words]
    return "\n".join(lines) + "\n"


def secured(certificates: Path, revocations: Path, acl_file: Path) -> str:
    """Write the part of a mosquitto.conf that lets in only those who belong to the fleet."""
    return f"""\
allow_anonymous false
cafile {certificates / AUTHORITY}
certfile {certificates / CERTIFICATE}
keyfile {certificates / KEY}
crlfile {revocations}
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
acl_file {acl_file}
"""


def export(fleet: Fleet, out: Path, at: Path) -> list[Path]:
    """Write all that a Mosquitto needs to be the fleet's broker, to be installed in the folder `at` of its machine.

    Raises:
        DeviceError: the disk is full or cannot be written.
    """
    header = f"# The broker of fleet {fleet.name}: `edge-coordinator broker-config`. Lies in {at}.\n"
    conf = (
        f"{header}per_listener_settings false\nlistener {fleet.port}\n{secured(at, at / 'crl.pem', at / 'acl')}{LIMITS}"
    )
    files = {
        "mosquitto.conf": conf.replace("log_type warning\n", "log_type warning\nlog_type notice\n").encode(),
        "acl": acl(rules(fleet), fleet.revoked_names()).encode(),
        **{name: (fleet.broker / name).read_bytes() for name in (AUTHORITY, CERTIFICATE, KEY, "crl.pem")},
        "unit.conf": _UNIT.format(at=at).encode(),
    }
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomic(out / name, data, mode=0o600 if name == KEY else 0o644)
    return [out / name for name in files]


class Watch:
    """Sees when a fleet's revocations or rules have changed."""

    def __init__(self, fleet: Fleet, changed: Callable[[], None]) -> None:
        """Look at the files; `changed` is called by `look` when they are others."""
        self._files = (fleet.revocations, rules_file(fleet))
        self._changed = changed
        self._stamps = self._now()

    def look(self) -> None:
        """Call back if something has changed since."""
        stamps = self._now()
        if stamps != self._stamps:
            self._stamps = stamps
            self._changed()

    def _now(self) -> list[tuple[int, int, int]]:
        found = [path.stat() for path in self._files if path.exists()]
        return [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in found]
