"""`edge-coordinator doctor`: everything that must be so for a run to go on, tried one after the other."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import re
import socket
import sqlite3
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import checkup, identity, station
from edge_runtime.checkup import Check, Finding, bad, ending, good, hold, skipped, warn, worst
from edge_runtime.coordinator import broker, broker_config, database, runs
from edge_runtime.coordinator.run_files import holder
from edge_runtime.errors import ConfigError, EdgeError, LinkError, RunError
from edge_runtime.station import Station

if TYPE_CHECKING:
    from edge_runtime.coordinator.pki import Fleet, Member

_SMALL_BYTES, _TINY_BYTES = 512_000_000, 128_000_000
_SHOWN = 5
_SOON_DAYS = 30
_DISTRIBUTION = "edge-runtime"
_NEEDED = "coordinator"
"""The extra without which no run can be coordinated."""
CONFIG, RUN = ConfigError.exit_code, RunError.exit_code


@dataclass(frozen=True)
class Office:
    """What a coordinator would be started with."""

    station: Station
    trouble: str
    """Why there is no fleet to speak of though there should be; empty: all is well."""
    fleet: "Fleet | None"
    runs: Path
    state: Path
    """Where the broker of this machine keeps its files."""
    take_over: bool = False

    @property
    def now_s(self) -> float:
        """The time, Unix seconds."""
        return self.station.now_s


def who(office: Office) -> Finding:
    """See whether there is a fleet, and whether the coordinator's own identity holds together."""
    if office.trouble:
        raise ConfigError(office.trouble)
    if office.fleet is None:
        todo = "make a fleet (edge-coordinator fleet init --host HOST) where others can reach the broker"
        return warn("no fleet here: a run in clear, in which anybody can say that he is a device", todo)
    found = identity.load(office.fleet.coordinator)
    identity.verify(found, found.certificate)
    return good(f"fleet {office.fleet.name!r} in {office.fleet.folder}, its broker at {found.host}:{found.port}")


def authority(office: Office) -> Finding:
    """See whether the fleet's authority can sign, for how long, and who else can read its key."""
    if office.fleet is None:
        return _no_fleet()
    key = office.fleet.folder / "authority" / "ca.key"
    certificate = office.fleet.authority()
    found = [ending("the fleet's authority", certificate.not_valid_after_utc.timestamp(),
                    "make a new fleet and enrol all devices anew", office.now_s)]  # fmt: skip
    if not key.exists():
        found.append(good(f"its key is not here: keep {key.name} where devices are enrolled"))
        return worst(found)
    if not office.fleet.signs():
        found.append(bad(f"{key}: is not the key of ca.pem", "restore a backup of the folder authority"))
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        found.append(bad(f"{key}: others may read it (mode {mode:04o})", f"chmod 600 {key}"))
    return worst(found)


def broker_certificate(office: Office) -> Finding:
    """See until when the broker's certificate is good, and whether it is for where devices look for the broker."""
    if office.fleet is None:
        return _no_fleet()
    fleet = office.fleet
    renew = f"edge-coordinator fleet hosts {fleet.host}, and start the broker anew"
    hosts, ends_s = fleet.broker_hosts()
    found = [ending("the broker's certificate", ends_s, renew, office.now_s)]
    if fleet.host not in hosts:
        found.append(bad(f"it is for {', '.join(hosts)}, and devices look for {fleet.host}", renew))
    return worst(found)


def revocations(office: Office) -> Finding:
    """See whether the list of revoked certificates can be read, is the authority's, and holds."""
    if office.fleet is None:
        return _no_fleet()
    count, signed, until_s = office.fleet.revocation_list()
    if not signed:
        return bad(f"{office.fleet.revocations}: not signed by this fleet's authority", "restore a backup of the fleet")
    todo = "edge-coordinator device revoke writes it anew"
    return ending(f"the list of {count} revoked certificates", until_s, todo, office.now_s)


def rules(office: Office) -> Finding:
    """Read what a person allows beyond the usual."""
    if office.fleet is None:
        return _no_fleet()
    found = broker_config.rules(office.fleet)
    return good(f"{len(found)} rules say who may speak and listen where")


def devices(office: Office) -> Finding:
    """Count who belongs to the fleet, and name whose certificate ends."""
    if office.fleet is None:
        return _no_fleet()
    members = office.fleet.members()
    counts = {
        state: [one.name for one in members if one.state == state] for state in ("enrolled", "revoked", "expired")
    }
    seen = ", ".join(f"{len(names)} {state}" for state, names in counts.items())
    soon = [one.name for one in members if one.state == "enrolled" and _days(one, office.now_s) < _SOON_DAYS]
    if not members:
        return warn("no device was enrolled", "edge-coordinator device enroll ID")
    if counts["expired"] or soon:
        said = f"{seen}; ended: {_few(counts['expired'])}; soon: {_few(soon)}"
        return warn(said, "edge-coordinator device enroll ID --again, for those that are still in use")
    return good(seen, **{state: len(names) for state, names in counts.items()})


def _days(member: "Member", now_s: float) -> float:
    return (member.expires_s - now_s) / 86_400


def never_seen(office: Office) -> Finding:
    """Name devices that were enrolled, and of which no run here has ever heard."""
    if office.fleet is None:
        return _no_fleet()
    enrolled = {one.name for one in office.fleet.members() if one.state == "enrolled"}
    heard = set().union(*(_known(folder) for folder in runs.folders(office.runs)), set())
    missing = sorted(enrolled - heard)
    if missing and heard:
        todo = "on the device: edge-agent doctor, then edge-agent start"
        return warn(f"{len(missing)} of {len(enrolled)} were never heard of: {_few(missing)}", todo, never=len(missing))
    if missing:
        return good(f"no run in {office.runs} has heard of a device yet", never=len(missing))
    return good(f"all {len(enrolled)} have been heard of", never=0)


def _known(folder: Path) -> set[str]:
    """List the devices that a run has heard of; a journal that cannot be read is the journals' own check's."""
    path = f"file:{folder / 'journal.sqlite'}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(path, uri=True)) as connection:
            return {str(row[0]) for row in connection.execute("SELECT id FROM device")}
    except sqlite3.Error:
        return set()


def running(office: Office) -> Finding:
    """See whether a coordinator is at work: a second connection by its name would end its own."""
    held = [(folder, found) for folder in runs.folders(office.runs) if (found := holder(folder)) is not None]
    if not held:
        return good("no coordinator is at work here now")
    seen = ", ".join(f"process {pid} on {host} has {folder}" for folder, (pid, host) in held)
    if not office.station.secured:
        return good(f"{seen}; what is tried at the broker goes by another name")
    if office.take_over:
        return warn(f"{seen}; its connection ends now, and it will come back by itself", "")
    return hold(seen, "say --take-over, for what needs a connection by its name")


def port(office: Office) -> Finding:
    """See whether a broker listens on this machine, or could."""
    number = office.fleet.port if office.fleet else office.station.link.port if office.station.link else 0
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", number), 1.0).close()
        return good(f"something listens on port {number} of this machine")
    kind = "mosquitto" if broker.find_mosquitto() else "amqtt" if importlib.util.find_spec("amqtt") else ""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("0.0.0.0", number))  # noqa: S104  # and let go at once
    except OSError as error:
        return warn(f"port {number} of this machine is not to be had ({error.strerror})", "choose another (fleet.toml)")
    if not kind:
        return warn(f"port {number} is free here, and there is no broker to listen on it",
                    "apt install mosquitto, or pip install 'edge-runtime[broker]'")  # fmt: skip
    return good(f"port {number} is free here: `edge-coordinator broker` would start {kind} on it")


def disk(office: Office) -> Finding:
    """See whether runs, the fleet and the broker's files can be written."""
    fleet = {"fleet": office.fleet.folder} if office.fleet else {}
    return checkup.disk({"runs": office.runs, **fleet, "broker": office.state})


def memory(office: Office) -> Finding:  # noqa: ARG001  # a check is a function of its context
    """See how much memory there is."""
    return checkup.memory(_SMALL_BYTES, _TINY_BYTES)


def journals(office: Office) -> Finding:
    """Read every run's journal as its coordinator would, and its newest checkpoint; nothing is changed."""
    folders = runs.folders(office.runs)
    broken, states = [], []
    for folder in folders:
        try:
            states.append(_examined(folder))
        except EdgeError as error:
            broken.append(str(error))
    if broken:
        more = f" (and {len(broken) - 1} more of {len(folders)})" if len(broken) > 1 else ""
        return bad(f"{broken[0]}{more}", "", broken=len(broken))
    if not folders:
        return good(f"no runs in {office.runs}")
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return good(f"{len(folders)} in {office.runs}, all sound: {counts}", runs=len(folders))


def _examined(folder: Path) -> str:
    database.examine(folder / "journal.sqlite")
    _check_checkpoint(folder)
    return runs.standing(folder).state


def _check_checkpoint(folder: Path) -> None:
    """Compare the newest checkpoint with its digest; one of its two copies is enough."""
    query = "SELECT round, checkpoint FROM round WHERE closed AND phase = 'train' ORDER BY round DESC LIMIT 1"
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'journal.sqlite'}?mode=ro", uri=True)) as connection:
        row = connection.execute(query).fetchone()
    if row is None:
        return
    path = folder / f"checkpoint-{row[0] + 1:06d}"
    copies = [place.read_bytes() for place in (path, path.with_suffix(".copy")) if place.exists()]
    if row[1] not in [hashlib.sha256(data).hexdigest() for data in copies]:
        raise RunError(f"{path}: this checkpoint and its copy are lost or damaged; restore a backup of the folder")


def extras(office: Office) -> Finding:  # noqa: ARG001
    """See which extras of this program are installed whole."""
    try:
        wanted = _extras()
    except importlib.metadata.PackageNotFoundError:
        return skipped("this program was not installed by pip, and does not know its extras")
    missing = {extra: [name for name in names if not _there(name)] for extra, names in wanted.items()}
    there = [extra for extra, names in missing.items() if not names and extra != "dev"]
    seen = f"installed: {', '.join(there) or 'none'}; not: {_few([one for one in missing if missing[one]], 20)}"
    todo = f"pip install 'edge-runtime[{_NEEDED},broker]'"
    if missing.get(_NEEDED):
        return bad(f"{seen}; without {', '.join(missing[_NEEDED])} no run can be coordinated", todo)
    if missing.get("broker") and broker.find_mosquitto() is None:
        return warn(f"{seen}; and no broker is on this machine", todo)
    return good(seen)


def _extras() -> dict[str, list[str]]:
    """List the distributions that each extra takes, those of extras that it names included."""
    direct: dict[str, list[str]] = {}
    for line in importlib.metadata.requires(_DISTRIBUTION) or []:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if extra:
            direct.setdefault(extra[1], []).append(line)
    return {extra: sorted(_names(extra, direct)) for extra in direct}


def _names(extra: str, direct: dict[str, list[str]]) -> set[str]:
    found: set[str] = set()
    for line in direct.get(extra, ()):
        name = re.match(r"[\w.-]+", line)
        inner = re.match(rf"{_DISTRIBUTION}\[([\w,-]+)\]", line)
        if inner:
            found = found.union(*(_names(one, direct) for one in inner[1].split(",")))
        elif name:
            found.add(name[0])
    return found


def _there(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _few(names: Sequence[str], most: int = _SHOWN) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _no_fleet() -> Finding:
    return skipped("there is no fleet")


CHECKS: tuple[Check[Office], ...] = (
    Check("extras", extras),
    Check("identity", who, CONFIG),
    Check("authority", authority, CONFIG, ("identity",)),
    Check("broker-cert", broker_certificate, CONFIG, ("identity",)),
    Check("revocations", revocations, CONFIG, ("identity",)),
    Check("rules", rules, CONFIG, ("identity",)),
    Check("devices", devices, CONFIG, ("identity",)),
    Check("running", running),
    Check("port", port, LinkError.exit_code, ("identity",)),
    *station.checks(lambda office: office.station),
    Check("memory", memory),
    Check("disk", disk),
    Check("journals", journals, RUN),
    Check("never-seen", never_seen, CONFIG, ("identity",)),
)
