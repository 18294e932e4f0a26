"""Signed manifests: what is verified is what was signed, by whom one trusts."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.export import manifest

ONNX = b"onnx" * 100
RECORD: dict[str, Any] = {
    "format": "codes",
    "how": "2-bit codes",
    "run": "a" * 32,
    "round": 7,
    "device": "gateway-7",
    "algorithm": "quped",
    "model": "réseau",
    "class_names": ["walk", "run"],
    "input": {"shape": [6, 100], "type": "float32"},
    "outputs": 7,
    "accuracy": 0.1 + 0.2,
    "samples": 64,
    "made_from": {"personal_sha256": "0" * 64, "program": "edge-runtime", "options": {}},
}


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def file(tmp_path: Path, key: Ed25519PrivateKey) -> Path:
    path = tmp_path / "it.onnx"
    path.write_bytes(ONNX)
    manifest.manifest_path(path).write_bytes(manifest.sign(RECORD, ONNX, key))
    return path


def rewrite(file: Path, **changes: object) -> None:
    path = manifest.manifest_path(file)
    record = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(record))


def test_what_was_signed_is_what_is_read(file: Path, key: Ed25519PrivateKey) -> None:
    record = manifest.verify(file, key.public_key())
    assert {name: record[name] for name in RECORD} == RECORD
    assert record["bytes"] == len(ONNX)


def test_spaces_and_order_are_not_signed(file: Path, key: Ed25519PrivateKey) -> None:
    rewrite(file)
    manifest.verify(file, key.public_key())


@pytest.mark.parametrize("name", [*RECORD, "bytes", "sha256", "signature"])
def test_every_changed_value_is_told(file: Path, key: Ed25519PrivateKey, name: str) -> None:
    record = json.loads(manifest.manifest_path(file).read_bytes())
    value = record[name]
    other = value + 1 if isinstance(value, int | float) else f"0{value[1:]}x" if isinstance(value, str) else [value]
    rewrite(file, **{name: other})
    with pytest.raises(ConfigError, match="changed since it was signed"):
        manifest.verify(file, key.public_key())


@pytest.mark.parametrize("content", [b"", ONNX[:-1], ONNX + b"x", b"x" + ONNX[1:]])
def test_another_onnx_file_is_told(file: Path, key: Ed25519PrivateKey, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"is not the file that it\.json was signed for"):
        manifest.verify(file, key.public_key())


def test_who_signs_with_a_key_of_their_own_is_not_trusted(file: Path, key: Ed25519PrivateKey) -> None:
    manifest.manifest_path(file).write_bytes(manifest.sign(RECORD, ONNX, Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigError, match="another key than the one you trust"):
        manifest.verify(file, key.public_key())


def test_a_foreign_signature_under_the_trusted_name_is_told(file: Path, key: Ed25519PrivateKey) -> None:
    forged = manifest.sign({**RECORD, "accuracy": 1.0}, ONNX, Ed25519PrivateKey.generate())
    manifest.manifest_path(file).write_bytes(forged)
    rewrite(file, public_key=key.public_key().public_bytes_raw().hex())
    with pytest.raises(ConfigError, match="changed since it was signed"):
        manifest.verify(file, key.public_key())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"7",
        b"\xff",
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": 2}',
        b'{"version": NaN}',
    ],
)
def test_what_is_no_manifest_is_told(file: Path, key: Ed25519PrivateKey, content: bytes) -> None:
    manifest.manifest_path(file).write_bytes(content)
    with pytest.raises(ConfigError, match=r"it\.json: (is no manifest|its keys)"):
        manifest.verify(file, key.public_key())


@pytest.mark.parametrize("value", [1e999, "\ud800", -1, None, {}])
def test_odd_values_are_told(file: Path, key: Ed25519PrivateKey, value: object) -> None:
    for name in ("accuracy", "bytes", "signature", "public_key"):
        manifest.manifest_path(file).write_bytes(manifest.sign(RECORD, ONNX, key))
        rewrite(file, **{name: value})
        with pytest.raises(ConfigError, match=r"it\.json"):
            manifest.verify(file, key.public_key())


def test_a_missing_file_is_told(file: Path, key: Ed25519PrivateKey) -> None:
    for path in (file, manifest.manifest_path(file)):
        path.unlink()
        with pytest.raises(ConfigError, match=f"{path.name}: cannot be read"):
            manifest.verify(file, key.public_key())


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "signing"
    first, second = manifest.own_key(folder), manifest.own_key(folder)
    assert first.private_bytes_raw() == second.private_bytes_raw()
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert manifest.public_key(folder / "public.pem").public_bytes_raw() == first.public_key().public_bytes_raw()
    assert sorted(path.name for path in folder.iterdir()) == ["key.pem", "public.pem"]


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    manifest.own_key(tmp_path)
    (tmp_path / "key.pem").chmod(0o640)
    with pytest.raises(ConfigError, match="others may read this signing key"):
        manifest.own_key(tmp_path)


def test_a_damaged_key_is_not_replaced(tmp_path: Path) -> None:
    manifest.own_key(tmp_path)
    (tmp_path / "key.pem").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is no signing key of ours"):
        manifest.own_key(tmp_path)
    with pytest.raises(ConfigError, match="is no public key"):
        manifest.public_key(tmp_path / "key.pem")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="cannot be written"):
        manifest.own_key(tmp_path / "file" / "signing")


def test_the_program_trusts_this_machine_or_whom_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = tmp_path / "it.onnx"
    path.write_bytes(ONNX)
    assert manifest.main([str(path)]) == ConfigError.exit_code  # no key yet
    theirs = manifest.own_key(tmp_path / "theirs")
    manifest.manifest_path(path).write_bytes(manifest.sign(RECORD, ONNX, theirs))
    manifest.own_key(manifest.key_folder())
    assert manifest.main([str(path)]) == ConfigError.exit_code
    assert "another key" in capsys.readouterr().err
    assert manifest.main([str(path), "--trust", str(tmp_path / "theirs" / "public.pem"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "gateway-7"
