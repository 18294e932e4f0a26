"""Who a device is in its fleet: a key, a certificate for it, and whom to trust. A folder of plain files.

    identity.toml    fleet, name, host and port of the broker, and when this was issued (Unix seconds)
    key.pem          EC P-256; only its owner may read it
    certificate.pem  of that key, CN = name
    authority.pem    the fleet's authority, which signed that certificate, the broker's and the coordinator's
    coordinator.pem  the coordinator's certificate (on devices)

A bundle is these files as one uncompressed tar, to be carried to the device; without the key, where the device has made
that itself (`request.py`). `pack` and `install` are each other's
inverse; what `install` takes comes from outside. Nothing here needs more than the standard library.
"""

import io
import re
import shutil
import ssl
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime import config
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.files import sync_folder, write_atomic
from edge_runtime.link import NO_CHECK_TIME
from edge_runtime.message import check_name

SETTINGS, KEY, CERTIFICATE = "identity.toml", "key.pem", "certificate.pem"
AUTHORITY, COORDINATOR = "authority.pem", "coordinator.pem"
FILES = (SETTINGS, KEY, CERTIFICATE, AUTHORITY, COORDINATOR)
MAX_FILE_BYTES = 16_384
MAX_BUNDLE_BYTES = 131_072
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:%-]{0,254}|::[A-Za-z0-9.:%]{0,60}")


@dataclass(frozen=True)
class Identity:
    """Who this is, and whom it trusts.

    Attributes:
        name: CN of the certificate: the device's id, or "coordinator".
        key: PEM, EC P-256.
        certificate: PEM.
        authority: PEM of what the broker's certificate and all others of the fleet are signed by.
        coordinator: PEM of the coordinator's certificate; None on the coordinator itself.
        host: of the broker.
        port: of the broker.
        issued_s: when this was made, Unix seconds: a clock that says less is wrong.
    """

    fleet: str
    name: str
    key: Path
    certificate: Path
    authority: Path
    coordinator: Path | None
    host: str = ""
    port: int = 0
    issued_s: int = 0


def load(folder: Path) -> Identity:
    """Read the identity that lies in a folder.

    Raises:
        ConfigError: there is none, a part of it is missing or cannot be read, or others may read the key.
    """
    settings = _settings(_read(folder / SETTINGS), folder / SETTINGS)
    for name in (KEY, CERTIFICATE, AUTHORITY):
        _read(folder / name)
    mode = stat.S_IMODE((folder / KEY).stat().st_mode)
    if mode & 0o077:
        raise ConfigError(f"{folder / KEY}: others may read this key (mode {mode:04o}): chmod 600 {folder / KEY}")
    coordinator = folder / COORDINATOR
    pinned = coordinator if settings["name"] != "coordinator" else None
    if pinned is not None:
        _read(pinned)
    return Identity(
        settings["fleet"],
        settings["name"],
        folder / KEY,
        folder / CERTIFICATE,
        folder / AUTHORITY,
        pinned,
        settings["host"],
        settings["port"],
        settings["issued"],
    )


def settings_text(fleet: str, name: str, host: str, port: int, issued_s: int) -> str:
    """Write `identity.toml`.

    Raises:
        ConfigError: a name or host that cannot be.
    """
    check_name(fleet, "fleet")
    check_name(name, "device")
    if host and not _HOST.fullmatch(host):
        raise ConfigError(f"host {host!r}: not a name or an address")
    return f'fleet = "{fleet}"\nname = "{name}"\nhost = "{host}"\nport = {port}\nissued = {issued_s}\n'


def pack(files: Mapping[str, bytes]) -> bytes:
    """Put the files of an identity, by their names in its folder, into a bundle."""
    import tarfile  # a device that only starts has no use for it

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def install(bundle: Path, folder: Path, own_key: bytes = b"") -> Identity:
    """Check a bundle and put what it holds into `folder`, where an older identity of the same fleet is replaced.

    Args:
        bundle: as `pack` made it.
        folder: of this device alone.
        own_key: PEM, for a bundle without a key: the device made it itself.

    Raises:
        ConfigError: not a bundle, its parts do not belong together, or `folder` has an identity of another fleet.
        DeviceError: the disk is full or cannot be written.
    """
    files = _unpack(bundle)
    if KEY not in files:
        if not own_key:
            raise ConfigError(f"{bundle}: answers a request that was not made here: it has no key")
        files[KEY] = own_key
    held = folder / AUTHORITY
    if held.exists() and held.read_bytes() != files[AUTHORITY]:
        raise ConfigError(f"{folder} is an identity in another fleet: remove that folder to leave that fleet")
    fresh = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.mkdir(mode=0o700)
        for name, data in files.items():
            write_atomic(fresh / name, data, mode=0o600)
        verify(load(fresh), bundle)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise DeviceError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return load(folder)


def holds(folder: Path, bundle: Path) -> bool:
    """Say whether an identity's folder has the content of a bundle."""
    return all((folder / name).exists() and _read(folder / name) == data for name, data in _unpack(bundle).items())


def name_in(bundle: Path) -> str:
    """Say whose a bundle is.

    Raises:
        ConfigError: it is not a bundle.
    """
    return str(_settings(_unpack(bundle)[SETTINGS], bundle)["name"])


def verify(identity: Identity, what: Path) -> None:
    """See that the certificate belongs to the key, names whose it is, and is signed by the authority.

    Raises:
        ConfigError: it does not; `what` is named.
    """
    try:
        ours, asks = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ours.check_hostname, ours.verify_mode = False, ssl.CERT_NONE
        asks.verify_mode, asks.verify_flags = ssl.CERT_REQUIRED, ssl.VerifyFlags(asks.verify_flags | NO_CHECK_TIME)
        for context in (ours, asks):
            context.load_cert_chain(identity.certificate, identity.key, password="")
        asks.load_verify_locations(identity.authority)
        subject = _handshake(ours, asks)
    except (OSError, ValueError) as error:
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error
        raise ConfigError(f"{what}: key, certificate and authority do not belong together ({reason})") from error
    if subject != identity.name:
        raise ConfigError(f"{what}: the certificate is that of {subject!r}, not of {identity.name!r}")


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """Let a client prove itself to a server, both in memory; return the common name of its certificate."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate: Any = ends[1].getpeercert() or {}
    return str(dict(part[0] for part in certificate.get("subject", ())).get("commonName", ""))


def _unpack(bundle: Path) -> dict[str, bytes]:
    import tarfile

    data = _read(bundle, MAX_BUNDLE_BYTES)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.name not in FILES or member.name in found:
                    raise ConfigError(f"{bundle}: not the bundle of a device: it holds {member.name[:64]!r}")
                if member.size > MAX_FILE_BYTES:
                    raise ConfigError(f"{bundle}: {member.name} has {member.size} bytes")
                file = tar.extractfile(member)
                found[member.name] = file.read(MAX_FILE_BYTES) if file else b""
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ConfigError(f"{bundle}: not the bundle of a device: {error}") from error
    if missing := [name for name in FILES if name not in found and name != KEY]:
        raise ConfigError(f"{bundle}: not the bundle of a device: {missing[0]} is missing")
    _settings(found[SETTINGS], bundle)
    return found


def _read(path: Path, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError as error:
        near = config.nearest_path(path) or ": `edge-coordinator device enroll ID` makes it"
        raise ConfigError(f"{path}: is not there{near}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not 0 < len(data) <= limit_bytes:
        raise ConfigError(f"{path}: {'empty' if not data else f'larger than {limit_bytes} bytes'}")
    return data


def _settings(data: bytes, where: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error
    kinds = {"fleet": str, "name": str, "host": str, "port": int, "issued": int}
    if {name: type(value) for name, value in found.items()} != kinds:
        raise ConfigError(f"{where}: must say {', '.join(kinds)}, and nothing else")
    check_name(found["fleet"], f"{where}: fleet")
    check_name(found["name"], f"{where}: name")
    if found["host"] and not _HOST.fullmatch(found["host"]):
        raise ConfigError(f"{where}: host {found['host'][:64]!r} is not a name or an address")
    if not 0 <= found["port"] < 65_536 or not 0 <= found["issued"] < 2**40:
        raise ConfigError(f"{where}: port or issued is out of range")
    return found
