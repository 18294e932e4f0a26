"""The fleet's own authority: who belongs to it, and who no longer does. A folder of plain files.

    fleet.toml           name of the fleet; host and port of its broker
    authority/           ca.pem and ca.key: signs all others; whoever has this key is the fleet's owner
    coordinator/         the coordinator's identity (`edge_runtime/identity.py`)
    broker/              the broker's certificate.pem and key.pem, the authority's certificate, and crl.pem
    devices/ID.pem       the certificate of each device that was enrolled, the newest of an id

Every party has one EC P-256 key. A device's certificate is good for being a client only, the broker's for being a
server only, so that no device can play the broker. `crl.pem` alone says which certificates are revoked: it is what the
broker reads. Its dates cover the authority's whole life, since a broker lets nobody in whose list has run out.
"""

import contextlib
import fcntl
import ipaddress
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_runtime import config, identity
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomic
from edge_runtime.message import check_name

PORT = 8883
DEVICE_DAYS = 730
COORDINATOR, BROKER = "coordinator", "broker"
_AUTHORITY_DAYS = 7_300
_SKEW = timedelta(days=1)
"""Certificates begin that long before they are made: clocks differ."""


@dataclass(frozen=True)
class Member:
    """A device that was enrolled. `state`: enrolled, revoked or expired; `expires`: date and time, UTC, ISO 8601."""

    name: str
    state: str
    expires: str
    serial: str

    @property
    def expires_s(self) -> float:
        """Tell the same as Unix seconds."""
        return datetime.fromisoformat(self.expires).timestamp()


class Fleet:
    """A fleet's folder. Several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        """Open a fleet.

        Raises:
            ConfigError: there is none, or its settings cannot be read.
        """
        self.folder = folder
        try:
            settings = tomllib.loads((folder / "fleet.toml").read_text())
            self.name, self.host, self.port = str(settings["name"]), str(settings["host"]), int(settings["port"])
        except FileNotFoundError as error:
            near = config.nearest_path(folder) or ": make one with `edge-coordinator fleet init`"
            raise ConfigError(f"{folder}: no fleet there{near}") from error
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{folder / 'fleet.toml'}: cannot be read: {error}") from error
        check_name(self.name, f"{folder / 'fleet.toml'}: name")
        self._revoked: tuple[tuple[int, int, int], frozenset[int]] | None = None
        self._keys: dict[str, tuple[tuple[int, int, int], x509.Certificate]] = {}

    @property
    def coordinator(self) -> Path:
        """The folder with the coordinator's identity."""
        return self.folder / COORDINATOR

    @property
    def broker(self) -> Path:
        """The folder with the broker's certificate and key, the authority's certificate and the revocations."""
        return self.folder / BROKER

    @property
    def revocations(self) -> Path:
        """The list of revoked certificates, PEM."""
        return self.broker / "crl.pem"

    def enroll(self, name: str, days: int = DEVICE_DAYS, again: bool = False, request: bytes = b"") -> bytes:
        """Make a device's key and certificate, and give them as a bundle. The key is kept nowhere else.

        Args:
            name: the device's id.
            days: how long the certificate is good for.
            again: revoke the certificate that the device has.
            request: of a device that made its key itself (PEM); the bundle then has none.

        Raises:
            ConfigError: the id cannot be, or is enrolled already (unless `again`), or the request is not that device's.
        """
        check_name(name, "device")
        if name in (COORDINATOR, BROKER):
            raise ConfigError(f"device: {name!r} is taken by the fleet itself: choose another id")
        if not 0 < days <= _AUTHORITY_DAYS:
            raise ConfigError(f"--days {days}: a certificate is good for 1 to {_AUTHORITY_DAYS} days")
        public = _requested(request, name) if request else None
        with self._lock():
            path = self._path(name)
            if path.exists() and not again:
                raise ConfigError(f"{name!r} is enrolled already: --again revokes its certificate and makes another")
            if path.exists():
                self._revoke(_certificate(path))
            if public is None:
                key, certificate = self.issue(name, days, ExtendedKeyUsageOID.CLIENT_AUTH, ())
            else:
                key, certificate = b"", self._certify(public, name, days, ExtendedKeyUsageOID.CLIENT_AUTH, ())
            write_atomic(path, pem(certificate))
        files = {file: data for file, data in self.identity_of(name, key, certificate).items() if data}
        return identity.pack({**files, identity.COORDINATOR: (self.coordinator / identity.CERTIFICATE).read_bytes()})

    def revoke(self, name: str) -> None:
        """Take a device out of the fleet, for good: its certificate is worth nothing any more.

        Raises:
            ConfigError: no such device.
        """
        with self._lock():
            if name not in self.names():
                raise ConfigError(f"no device {name!r} is enrolled{config.nearest(name, self.names())}")
            self._revoke(_certificate(self._path(name)))

    def names(self) -> list[str]:
        """List all devices that were ever enrolled."""
        return sorted(path.stem for path in (self.folder / "devices").glob("*.pem") if not path.name.startswith("."))

    def members(self) -> list[Member]:
        """List all devices that were ever enrolled, and how each stands."""
        found = []
        for name in self.names():
            certificate = _certificate(self._path(name))
            expires = certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
            found.append(Member(name, self._state(certificate), expires, f"{certificate.serial_number:x}"))
        return found

    def key_of(self, device: str) -> bytes | None:
        """Give the public key (DER, SubjectPublicKeyInfo) of a device; None if it is unknown, revoked or expired."""
        try:
            path = self._path(check_name(device, "device"))
            stamp = _stamp(path)
        except (ConfigError, OSError):
            return None
        held = self._keys.get(device)
        if held is None or held[0] != stamp:
            held = self._keys[device] = stamp, _certificate(path)
        if self._state(held[1]) != "enrolled":
            return None
        return held[1].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def revoked(self) -> frozenset[int]:
        """Give the serial numbers of all certificates that are revoked by now."""
        try:
            stamp = _stamp(self.revocations)
            if self._revoked is None or self._revoked[0] != stamp:
                crl = x509.load_pem_x509_crl(self.revocations.read_bytes())
                self._revoked = stamp, frozenset(entry.serial_number for entry in crl)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.revocations}: the list of revoked certificates cannot be read: {error}"
            ) from error
        return self._revoked[1]

    def revoked_names(self) -> list[str]:
        """List the devices whose newest certificate is revoked."""
        return [member.name for member in self.members() if member.state == "revoked"]

    def authority(self) -> x509.Certificate:
        """Read the certificate of the fleet's authority.

        Raises:
            ConfigError: it cannot be read.
        """
        return _certificate(self._authority())

    def signs(self) -> bool:
        """Say whether the authority's key is the one of its certificate.

        Raises:
            ConfigError: one of them cannot be read.
        """
        return self._signer().public_key() == self.authority().public_key()

    def broker_hosts(self) -> tuple[list[str], float]:
        """Give the names and addresses that the broker's certificate is for, and when it ends, Unix seconds.

        Raises:
            ConfigError: it cannot be read.
        """
        certificate = _certificate(self.broker / identity.CERTIFICATE)
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return [], certificate.not_valid_after_utc.timestamp()
        hosts = [str(one) for kind in (x509.DNSName, x509.IPAddress) for one in names.get_values_for_type(kind)]
        return hosts, certificate.not_valid_after_utc.timestamp()

    def revocation_list(self) -> tuple[int, bool, float]:
        """Count the revoked certificates, and say whether the authority signed that list, and until when it holds.

        Raises:
            ConfigError: it cannot be read.
        """
        count, key = len(self.revoked()), self.authority().public_key()
        crl = x509.load_pem_x509_crl(self.revocations.read_bytes())
        until_s = crl.next_update_utc.timestamp() if crl.next_update_utc else 0.0
        return count, isinstance(key, ec.EllipticCurvePublicKey) and crl.is_signature_valid(key), until_s

    def certify_broker(self, hosts: Sequence[str]) -> None:
        """Make the broker a certificate for these names and addresses, beside those of this machine itself."""
        hosts = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"]))
        key, certificate = self.issue(BROKER, _AUTHORITY_DAYS // 2, ExtendedKeyUsageOID.SERVER_AUTH, hosts)
        write_atomic(self.broker / identity.KEY, key, mode=0o600)
        write_atomic(self.broker / identity.CERTIFICATE, pem(certificate))
        write_atomic(self.broker / identity.AUTHORITY, self._authority().read_bytes())

    def _state(self, certificate: x509.Certificate) -> str:
        if certificate.serial_number in self.revoked():
            return "revoked"
        return "expired" if certificate.not_valid_after_utc <= datetime.now(UTC) else "enrolled"

    def _path(self, name: str) -> Path:
        return self.folder / "devices" / f"{name}.pem"

    def _authority(self) -> Path:
        return self.folder / "authority" / "ca.pem"

    def identity_of(self, name: str, key: bytes, certificate: x509.Certificate) -> dict[str, bytes]:
        """Put together the files of an identity, by their names."""
        issued_s = int((certificate.not_valid_before_utc + _SKEW).timestamp())
        return {
            identity.SETTINGS: identity.settings_text(self.name, name, self.host, self.port, issued_s).encode(),
            identity.KEY: key,
            identity.CERTIFICATE: pem(certificate),
            identity.AUTHORITY: self._authority().read_bytes(),
        }

    def issue(
        self, name: str, days: int, purpose: x509.ObjectIdentifier, hosts: Sequence[str]
    ) -> tuple[bytes, x509.Certificate]:
        """Make a key (PEM), and a certificate for it that is good for one `purpose`, at `hosts` if it is a server's."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _private(key), self._certify(key.public_key(), name, days, purpose, hosts)

    def _certify(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        days: int,
        purpose: x509.ObjectIdentifier,
        hosts: Sequence[str],
    ) -> x509.Certificate:
        signer, authority = self._signer(), _certificate(self._authority())
        builder = _builder(name, days, key, signer.public_key()).issuer_name(authority.subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_general, hosts))), critical=False)
        return builder.add_extension(_usage(authority=False), critical=True).sign(signer, hashes.SHA256())

    def _signer(self) -> ec.EllipticCurvePrivateKey:
        path = self.folder / "authority" / "ca.key"
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path}: the authority's key cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{path}: not an EC key")
        return key

    def _revoke(self, certificate: x509.Certificate) -> None:
        self.write_revocations(self.revoked() | {certificate.serial_number})

    def write_revocations(self, serials: frozenset[int]) -> None:
        """Say that these serial numbers are revoked, and no others."""
        authority, now = _certificate(self._authority()), datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject)
        builder = builder.last_update(authority.not_valid_before_utc).next_update(authority.not_valid_after_utc)
        for serial in sorted(serials):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        number = x509.CRLNumber(int(now.timestamp() * 1_000_000))
        crl = builder.add_extension(number, critical=False).sign(self._signer(), hashes.SHA256())
        write_atomic(self.revocations, crl.public_bytes(Encoding.PEM))

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def create(folder: Path, name: str, hosts: Sequence[str], port: int = PORT) -> Fleet:
    """Make a fleet: authority, coordinator and broker. Devices find the broker at the first of `hosts`.

    Raises:
        ConfigError: there is one already, or a name or host cannot be.
    """
    host = hosts[0] if hosts else "127.0.0.1"
    identity.settings_text(name, COORDINATOR, host, port, 0)  # refuses what cannot be before anything is written
    if not 0 < port < 65_536:
        raise ConfigError(f"--port {port}: ports go from 1 to 65535")
    for one in hosts:
        _general(one)
    if (folder / "fleet.toml").exists():
        raise ConfigError(f"{folder}: there is a fleet already")
    for part in (folder, *(folder / part for part in ("authority", COORDINATOR, BROKER, "devices"))):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(f"edge fleet {name}", _AUTHORITY_DAYS, key.public_key(), key.public_key())
    builder = builder.issuer_name(_called(f"edge fleet {name}"))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.add_extension(_usage(authority=True), critical=True).sign(key, hashes.SHA256())
    write_atomic(folder / "authority" / "ca.key", _private(key), mode=0o600)
    write_atomic(folder / "authority" / "ca.pem", pem(certificate))
    return _complete(folder, f'name = "{name}"\nhost = "{host}"\nport = {port}\n', hosts)


def _complete(folder: Path, settings: str, hosts: Sequence[str]) -> Fleet:
    """Make what the authority signs; the settings come under their name last, so that half a fleet is none."""
    path = folder / "fleet.toml"
    write_atomic(path, settings.encode())
    try:
        fleet = Fleet(folder)
        fleet.write_revocations(frozenset())
        fleet.certify_broker(hosts)
        key, signed = fleet.issue(COORDINATOR, _AUTHORITY_DAYS // 2, ExtendedKeyUsageOID.CLIENT_AUTH, ())
        for name, data in fleet.identity_of(COORDINATOR, key, signed).items():
            write_atomic(fleet.coordinator / name, data, mode=0o600)
    except BaseException:
        path.unlink()
        raise
    return fleet


def _builder(
    name: str, days: int, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC).replace(microsecond=0)
    builder = x509.CertificateBuilder().subject_name(_called(name)).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _SKEW).not_valid_after(now + timedelta(days=days))
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"host {host!r}: not a name or an address") from error


def _requested(request: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """Give the key for which a device asks for a certificate; of what else the request says, nothing is taken over."""
    try:
        asked = x509.load_pem_x509_csr(request)
        key, proven = asked.public_key(), asked.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"--request: not a request that can be read: {error}") from error
    if not proven or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("--request: not signed with the EC P-256 key that it is for")
    if asked.subject != _called(name):
        raise ConfigError(f"--request: it is that of {asked.subject.rfc4514_string()[:80]!r}, not of {name!r}")
    return key


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem(certificate: x509.Certificate) -> bytes:
    """Write a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a certificate that can be read: {error}") from error


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size
