"""User names and passwords of a broker, hashed as Mosquitto's password files have them.

One line per user, `NAME:$7$ITERATIONS$SALT$HASH`: PBKDF2 with HMAC-SHA-512, salt and hash in base 64
(mosquitto_passwd(1)). Both of our brokers read this form.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping

from edge_runtime.errors import ConfigError

_ITERATIONS = 1_000  # about a millisecond of the broker per connection; Mosquitto's own default is 101
_HASH_BYTES = 64


def encode(users: Mapping[str, str]) -> str:
    """Hash the passwords of users into the text of a password file.

    Raises:
        ConfigError: a name that such a file cannot hold.
    """
    return "".join(f"{_check(name)}:{_hash(password)}\n" for name, password in users.items())


def decode(text: str) -> dict[str, str]:
    """Read the text of a password file into hashes by user."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def matches(hashed: str, password: str) -> bool:
    """Say whether this is the password; a hash of another form matches nothing."""
    match hashed.split("$"):
        case ["", "7", iterations, salt, digest] if iterations.isdecimal():
            found = _pbkdf2(password, base64.b64decode(salt), int(iterations))
            return hmac.compare_digest(found, base64.b64decode(digest))
        case _:
            return False


def _check(name: str) -> str:
    if not name or not name.isprintable() or ":" in name:
        raise ConfigError(f"user name {name!r}: must be printable, not empty and without a colon")
    return name


def _hash(password: str) -> str:
    salt = secrets.token_bytes(12)
    digest = _pbkdf2(password, salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _pbkdf2(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations, _HASH_BYTES)
