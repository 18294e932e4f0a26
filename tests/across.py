"""Do two machines read the same from the same bytes?

    python -m tests.across write FILE    # on one: payloads of every decoder of `fuzz.py`, and digests of what is read
    python -m tests.across check FILE    # on the other: reads them; exit code 1 where something else is read

`make aarch64` does the second under an emulated aarch64. Whether the other machine would have written the same bytes is
said too, but is no fault: an encoder may choose among codings by floats.
"""

import base64
import dataclasses
import json
import platform
import sys
from pathlib import Path
from typing import Any

from edge_runtime import models
from edge_runtime.coordinator import content
from tests import fuzz


def read() -> list[dict[str, Any]]:
    """Give for every payload the bytes and the digest of what is read from them."""
    return [
        {"decoder": target.name, "payload": base64.b64encode(data).decode(), "read": _digest(target.decode(data))}
        for target in _targets()
        for data in target.samples
    ]


def differences(theirs: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Name the decoders that read something else here, and those whose encoders write something else here."""
    decoders = {target.name: target.decode for target in _targets()}
    wrong = [
        one["decoder"]
        for one in theirs
        if _digest(decoders[one["decoder"]](base64.b64decode(one["payload"]))) != one["read"]
    ]
    mine = read()
    written = [one["decoder"] for one, other in zip(theirs, mine, strict=True) if one["payload"] != other["payload"]]
    return wrong, written


def _targets() -> list[fuzz.Target]:
    """Give every decoder, and what both sides draw from a seed, which is the payload here."""
    spec = models.find("cnn")
    drawn = fuzz.Target("initial", lambda data: models.initial(spec, int.from_bytes(data)), (b"\x00", b"\x07"))
    return [*fuzz.targets(), drawn]


def _digest(value: Any) -> str:
    if hasattr(value, "identity"):
        return str(value.identity.hex())
    return content.digest(_plain(value)).hex()


def _plain(value: Any) -> Any:
    """Give what a value holds, without what it has worked out from that since."""
    if dataclasses.is_dataclass(value):
        return [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return value


def main() -> int:
    """Write, or check."""
    what, path = sys.argv[1], Path(sys.argv[2])
    if what == "write":
        path.write_text(json.dumps({"machine": platform.machine(), "read": read()}))
        return 0
    record = json.loads(path.read_text())
    wrong, written = differences(record["read"])
    sys.stdout.write(
        f"{len(record['read'])} payloads of {record['machine']} read on {platform.machine()}: "
        f"{len(wrong)} read otherwise {wrong}, {len(written)} would be written otherwise {written}\n"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
