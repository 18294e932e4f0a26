import base64
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime import identity, request
from edge_runtime.errors import ConfigError

pki = pytest.importorskip("edge_runtime.coordinator.pki")


@pytest.fixture
def fleet(tmp_path: Path) -> "pki.Fleet":
    return pki.create(tmp_path / "fleet", "homes", ["broker.lan", "10.0.0.1"], 8884)


@pytest.fixture
def bundle(fleet: "pki.Fleet", tmp_path: Path) -> Path:
    path = tmp_path / "left.edge"
    path.write_bytes(fleet.enroll("left"))
    return path


def files_of(bundle: Path) -> dict[str, bytes]:
    with tarfile.open(bundle) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def test_what_was_enrolled_is_installed_with_its_key_for_its_owner_only(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "identities" / "left"
    made = identity.install(bundle, folder)
    assert (made.name, made.fleet, made.host, made.port) == ("left", "homes", "broker.lan", 8884)
    assert made == identity.load(folder)
    assert abs(made.issued_s - time.time()) < 60
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert made.coordinator is not None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files_of(bundle)


def test_pack_is_undone_by_install_and_bundles_are_the_same_for_the_same_files(bundle: Path) -> None:
    assert identity.pack(files_of(bundle)) == bundle.read_bytes()


def test_a_newer_bundle_replaces_the_older_one_and_another_fleets_does_not(
    fleet: "pki.Fleet", bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "left"
    first = identity.install(bundle, folder).certificate.read_bytes()
    bundle.write_bytes(fleet.enroll("left", again=True))
    assert identity.install(bundle, folder).certificate.read_bytes() != first
    bundle.write_bytes(pki.create(tmp_path / "other", "homes", []).enroll("left"))
    with pytest.raises(ConfigError, match="an identity in another fleet"):
        identity.install(bundle, folder)
    assert identity.load(folder).host == "broker.lan"


def member(name: str, data: bytes = b"x", **fields: object) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in fields.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(data))

    return add


@pytest.mark.parametrize(
    "add",
    [
        member("../../etc/passwd"),
        member("/etc/passwd"),
        member("notes.txt"),
        member("key.pem", b"", type=tarfile.SYMTYPE, linkname="/etc/shadow"),
        member("key.pem", b"", type=tarfile.LNKTYPE, linkname="authority.pem"),
        member("key.pem", b"", type=tarfile.DIRTYPE),
        member("key.pem", b"", type=tarfile.FIFOTYPE),
        member("key.pem", bytes(20_000)),
        member("key.pem"),
    ],
    ids=["up", "root", "more", "symlink", "link", "folder", "fifo", "large", "twice"],
)
def test_a_bundle_that_plays_tricks_leaves_nothing_behind(
    add: Callable[[tarfile.TarFile], None], bundle: Path, tmp_path: Path
) -> None:
    good = files_of(bundle)
    with tarfile.open(bundle, "w") as tar:
        add(tar)
        for name, data in good.items():
            member(name, data)(tar)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError):
        identity.install(bundle, tmp_path / "deep" / "left")
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] in ([], [tmp_path / "deep"])


@pytest.mark.parametrize("size", [0, 100, 5_000, 10_000, 200_000])
def test_a_bundle_that_was_cut_or_is_none_is_one_line(size: int, bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    bundle.write_bytes(data[:size] if size < len(data) - 2_000 else os.urandom(size))
    with pytest.raises(ConfigError) as caught:
        identity.install(bundle, tmp_path / "left")
    assert "\n" not in str(caught.value)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "authority.pem"])
def test_parts_that_do_not_belong_together_are_refused(
    name: str, fleet: "pki.Fleet", bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.edge"
    other.write_bytes(pki.create(tmp_path / "other", "homes", []).enroll("left"))
    bundle.write_bytes(identity.pack({**files_of(bundle), name: files_of(other)[name]}))
    with pytest.raises(ConfigError, match="do not belong together"):
        identity.install(bundle, tmp_path / "left")


def test_a_bundle_under_another_name_than_its_certificates_is_refused(
    fleet: "pki.Fleet", bundle: Path, tmp_path: Path
) -> None:
    files = files_of(bundle)
    files["identity.toml"] = files["identity.toml"].replace(b'"left"', b'"right"')
    bundle.write_bytes(identity.pack(files))
    with pytest.raises(ConfigError, match="the certificate is that of 'left', not of 'right'"):
        identity.install(bundle, tmp_path / "left")


@pytest.mark.parametrize(
    "settings",
    [
        b"",
        b"\xff",
        b"name = 1",
        b'fleet = "f"\nname = "../x"\nhost = "h"\nport = 1\nissued = 1',
        b'fleet = "f"\nname = "a"\nhost = "h o"\nport = 1\nissued = 1',
        b'fleet = "f"\nname = "a"\nhost = "h"\nport = 70000\nissued = 1',
        b'fleet = "f"\nname = "a"\nhost = "h"\nport = 1\nissued = -1',
        b'fleet = "f"\nname = "a"\nhost = "h"\nport = 1\nissued = 1\nmore = 1',
    ],
)
def test_settings_that_cannot_be_are_refused(settings: bytes, bundle: Path, tmp_path: Path) -> None:
    bundle.write_bytes(identity.pack({**files_of(bundle), "identity.toml": settings}))
    with pytest.raises(ConfigError):
        identity.install(bundle, tmp_path / "left")


def test_a_key_that_others_may_read_is_refused_with_what_to_do(bundle: Path, tmp_path: Path) -> None:
    made = identity.install(bundle, tmp_path / "left")
    made.key.chmod(0o640)
    with pytest.raises(ConfigError, match=r"others may read this key \(mode 0640\): chmod 600"):
        identity.load(tmp_path / "left")


@pytest.mark.parametrize("name", identity.FILES)
def test_a_part_that_is_missing_is_named(name: str, bundle: Path, tmp_path: Path) -> None:
    identity.install(bundle, tmp_path / "left")
    (tmp_path / "left" / name).unlink()
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        identity.load(tmp_path / "left")


def test_a_device_that_was_revoked_by_another_process_has_no_key_any_more(fleet: "pki.Fleet") -> None:
    for name in ("left", "right"):
        fleet.enroll(name)
    known = fleet.key_of("left")
    assert known is not None
    assert fleet.key_of("nobody") is None
    program = "from pathlib import Path; from edge_runtime.coordinator.pki import Fleet"
    subprocess.run([sys.executable, "-c", f"{program}; Fleet(Path({str(fleet.folder)!r})).revoke('left')"], check=True)
    assert fleet.key_of("left") is None
    assert fleet.key_of("right") is not None
    assert [member.state for member in fleet.members()] == ["revoked", "enrolled"]
    fleet.enroll("left", again=True)
    assert fleet.key_of("left") not in (None, known)


def test_a_device_whose_certificate_has_expired_has_no_key(fleet: "pki.Fleet") -> None:
    from cryptography.x509.oid import ExtendedKeyUsageOID

    _, certificate = fleet.issue("left", 0, ExtendedKeyUsageOID.CLIENT_AUTH, ())
    (fleet.folder / "devices" / "left.pem").write_bytes(pki.pem(certificate))
    time.sleep(1.1)
    assert fleet.key_of("left") is None
    assert fleet.members()[0].state == "expired"


def test_a_list_of_revocations_that_cannot_be_read_lets_nobody_pass(fleet: "pki.Fleet") -> None:
    fleet.enroll("left")
    fleet.revocations.write_bytes(b"not one")
    with pytest.raises(ConfigError, match="revoked certificates cannot be read"):
        fleet.key_of("left")


def test_a_fleet_is_made_once_and_half_a_fleet_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pki.Fleet, "certify_broker", stop)
        with pytest.raises(KeyboardInterrupt):
            pki.create(tmp_path / "fleet", "homes", [])
    with pytest.raises(ConfigError, match="no fleet there"):
        pki.Fleet(tmp_path / "fleet")
    pki.create(tmp_path / "fleet", "homes", [])
    with pytest.raises(ConfigError, match="there is a fleet already"):
        pki.create(tmp_path / "fleet", "homes", [])
    shutil.rmtree(tmp_path / "fleet")


def test_a_device_that_makes_its_own_key_gets_a_bundle_without_one(fleet: "pki.Fleet", tmp_path: Path) -> None:
    key, asks = request.make("left")
    bundle = tmp_path / "left.edge"
    bundle.write_bytes(fleet.enroll("left", request=asks))
    assert "key.pem" not in files_of(bundle)
    with pytest.raises(ConfigError, match="not made here"):
        identity.install(bundle, tmp_path / "left")
    with pytest.raises(ConfigError, match="do not belong together"):
        identity.install(bundle, tmp_path / "left", request.make("left")[0])
    made = identity.install(bundle, tmp_path / "left", key)
    assert made.key.read_bytes() == key
    assert fleet.key_of("left") is not None


@pytest.mark.parametrize("kind", ["another's", "damaged", "nonsense", "large key"])
def test_a_request_that_cannot_be_granted_is_refused(kind: str, fleet: "pki.Fleet") -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    _, asks = request.make("right" if kind == "another's" else "left")
    if kind == "nonsense":
        asks = b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
    elif kind == "damaged":
        der = bytearray(x509.load_pem_x509_csr(asks).public_bytes(Encoding.DER))
        der[-1] ^= 1  # of the signature
        body = base64.encodebytes(bytes(der))
        asks = b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"
    elif kind == "large key":
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "left")])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        asks = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()).public_bytes(Encoding.PEM)
    with pytest.raises(ConfigError, match="--request"):
        fleet.enroll("left", request=asks)
    assert fleet.key_of("left") is None


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees_with_all_certificates(fleet: "pki.Fleet", bundle: Path, tmp_path: Path) -> None:
    made = identity.install(bundle, tmp_path / "left")
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", str(made.authority)]
    purposes = {made.certificate: "sslclient", fleet.broker / "certificate.pem": "sslserver"}
    for path, purpose in purposes.items():
        crl = ["-crl_check", "-CRLfile", str(fleet.revocations)]
        subprocess.run([*verify, *crl, "-purpose", purpose, str(path)], check=True, capture_output=True)
    fleet.revoke("left")
    done = subprocess.run(
        [*verify, "-crl_check", "-CRLfile", str(fleet.revocations), str(made.certificate)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "certificate revoked" in done.stderr
