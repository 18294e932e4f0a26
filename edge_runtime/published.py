"""What a device tells each run of itself: `edge-agent measure --publish` leaves it in the store, its agent says it.

So nobody connects in the agent's name, and whoever begins a run later is told too. The file is the message
(`message.Profile`) as it is said.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import DecodeError, DeviceError
from edge_runtime.files import write_atomic
from edge_runtime.message import MAX_CONTROL_BYTES, Profile, decode, encode

if TYPE_CHECKING:
    from edge_runtime.devices.profile import DeviceProfile
    from edge_runtime.measure_process import Measurement

_TEXT = 128


def path_in(store: Path) -> Path:
    """Say where in a store it lies."""
    return store / "profile"


def made_of(device: "DeviceProfile", measurements: "Sequence[Measurement]", idle_bytes: int, version: str) -> Profile:
    """Put together what a device is and the measurement with the shortest step."""
    best = min(measurements, key=lambda one: one.step_ms_median)
    found = Profile(
        digest="",
        board=_text(device.board),
        cpu=_text(device.cpu),
        arch=_text(device.arch),
        cores=device.cores,
        ram_bytes=device.ram_bytes or 0,
        accelerators=_text(",".join(device.accelerators)),
        os=_text(device.os),
        kernel=_text(device.kernel),
        python=_text(device.python),
        version=_text(version),
        model=_text(Path(best.model).name),
        backend=best.backend,
        batch=best.batch,
        parameters=best.parameters,
        active=best.active,
        step_us=round(1000 * best.step_ms_median),
        reference_us=round(1000 * best.reference_ms),
        over_bytes=max(0, best.over_baseline_bytes),
        peak_bytes=best.peak_rss_bytes,
        idle_bytes=idle_bytes,
        step_uj=round(1e6 * (best.step_energy_j or 0)),
        power=_text(best.power),
    )
    content = json.dumps(dataclasses.asdict(found), sort_keys=True)
    return dataclasses.replace(found, digest=hashlib.sha256(content.encode()).hexdigest())


def _text(value: str | None) -> str:
    return "".join(letter for letter in value or "" if letter.isprintable())[:_TEXT]


def write(store: Path, profile: Profile) -> None:
    """Leave a profile in a store, which is made if it is not there.

    Raises:
        DeviceError: it cannot be written.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"{store}: the store cannot be made: {error.strerror}; choose another --store") from error
    write_atomic(path_in(store), encode(profile))


def read(store: Path) -> Profile | None:
    """Read the profile in a store; None: there is none, or it is damaged."""
    try:
        with path_in(store).open("rb") as file:
            found = decode(file.read(MAX_CONTROL_BYTES + 1))
    except (OSError, DecodeError):
        return None
    return found if isinstance(found, Profile) else None
