"""What a deployable file is, signed: `NAME.json` beside `NAME.onnx`.

    python -m edge_runtime.export.manifest FILE.onnx [--trust PUBLIC.pem] [--json]

checks both. The manifest is a JSON object; its `signature` (Ed25519, RFC 8032, hexadecimal) is over `_DOMAIN` and the
canonical JSON (ASCII, keys sorted, no spaces) of all the others, among which `public_key` is the signer's, and `sha256`
and `bytes` are the ONNX file's. Whoever makes files has a key, made at first use: `signing/key.pem` in the folder for
state (PKCS 8), with `public.pem` beside it, which is what others are given to `--trust`.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_runtime import config
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.export import program
from edge_runtime.files import write_atomic

VERSION = 1
_DOMAIN = b"edge-runtime deployable file\n"
_MOST_BYTES = 8 << 20
_KEYS = {
    "version", "format", "how", "run", "round", "device", "algorithm", "model", "class_names", "input", "outputs",
    "accuracy", "samples", "made_from", "bytes", "sha256", "public_key", "signature",
}  # fmt: skip

Record = dict[str, Any]


def key_folder() -> Path:
    """Say where this machine's signing key is."""
    return config.state_folder() / "signing"


def own_key(folder: Path) -> Ed25519PrivateKey:
    """Read the key in a folder, or make one.

    Raises:
        ConfigError: others may read it, or it is damaged.
        DeviceError: it cannot be written.
    """
    path = folder / "key.pem"
    if not path.exists():
        _make(folder, path)
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read this signing key; take a new one, or chmod 600 {path}")
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: is no signing key of ours ({error}); move it away, and another is made") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: is not an Ed25519 key; move it away, and another is made")
    public = folder / "public.pem"
    content = _public_pem(key.public_key())
    if not public.exists() or public.read_bytes() != content:  # it was another key's, which is gone
        write_atomic(public, content)
    return key


def _make(folder: Path, path: Path) -> None:
    """Make a key, unless another process has just done that."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=folder) as file:  # 0600, as all of them
            file.write(Ed25519PrivateKey.generate().private_bytes(*form))
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)  # unlike a rename, it does not replace another's
    except OSError as error:
        raise DeviceError(f"{path}: cannot be written: {error.strerror}; free some space or mend the disk") from error


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        ConfigError: it is none.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: is no public key ({error}); give a public.pem of who made the file") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: is not an Ed25519 key; give a public.pem of who made the file")
    return key


def sign(record: Record, onnx: bytes, key: Ed25519PrivateKey) -> bytes:
    """Write the manifest of an ONNX file; `verify` reads it."""
    ours = {"version": VERSION, "bytes": len(onnx), "sha256": hashlib.sha256(onnx).hexdigest()}
    full = {**record, **ours, "public_key": _hex(key.public_key())}
    signature = key.sign(_DOMAIN + _canonical(full)).hex()
    return json.dumps({**full, "signature": signature}, indent=1, sort_keys=True).encode() + b"\n"


def verify(path: Path, trusted: Ed25519PublicKey) -> Record:
    """Check an ONNX file and the manifest beside it; gives what the manifest says.

    Raises:
        ConfigError: a file is missing, has been changed, or is signed by another key.
    """
    beside = manifest_path(path)
    record = _parse(_read(beside, _MOST_BYTES), beside)
    if record["public_key"] != _hex(trusted):
        raise ConfigError(f"{beside}: signed by another key than the one you trust; --trust that of who made it")
    signed = {name: value for name, value in record.items() if name != "signature"}
    try:
        trusted.verify(bytes.fromhex(record["signature"]), _DOMAIN + _canonical(signed))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(f"{beside}: changed since it was signed; get both files again") from error
    data = _read(path, record["bytes"])
    if len(data) != record["bytes"] or hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise ConfigError(f"{path}: is not the file that {beside.name} was signed for; get both files again")
    return record


def manifest_path(path: Path) -> Path:
    """Say where the manifest of an ONNX file is. Raises ConfigError: that is no name of a file."""
    if not path.name:
        raise ConfigError(f"{path}: is not a file; name the ONNX file")
    return path.with_suffix(".json")


def _parse(data: bytes, path: Path) -> Record:
    try:
        record = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no manifest: {error}; get both files again") from error
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise ConfigError(f"{path}: is no manifest of version {VERSION}; get both files again, or update this program")
    if set(record) != _KEYS or type(record["bytes"]) is not int or not isinstance(record["signature"], str):
        raise ConfigError(f"{path}: its keys are not those of a manifest; get both files again")
    return record


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _read(path: Path, most: int) -> bytes:
    """Read a file, but of one that is too long only so much that it shows."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _canonical(record: Record) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _hex(key: Ed25519PublicKey) -> str:
    return key.public_bytes_raw().hex()


def main(arguments: list[str] | None = None) -> int:
    """Run the program; gives the exit code (see `errors.py`)."""
    parser = argparse.ArgumentParser(prog="python -m edge_runtime.export.manifest")
    parser.add_argument("file", type=Path, metavar="FILE.onnx")
    parser.add_argument("--trust", type=Path, metavar="PUBLIC.pem", help="default: this machine's own key")
    parser.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args(arguments)
    return program.exit_code(lambda: _show(options.file, options.trust or key_folder() / "public.pem", options.json))


def _show(file: Path, trust: Path, as_json: bool) -> None:
    record = verify(file, public_key(trust))
    if as_json:
        sys.stdout.write(json.dumps(record, indent=1, sort_keys=True) + "\n")
        return
    sys.stdout.write(
        f"{file}: as it was signed with {trust}\n"
        f"  {record['model']} as {record['format']}, of device {record['device']} after round {record['round']}"
        f" of run {record['run']}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
