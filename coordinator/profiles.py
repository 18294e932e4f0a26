"""What devices said of themselves to runs: files `RUN/profiles/DEVICE.json`, each the message as it came."""

from pathlib import Path
from typing import Any

from edge_runtime.coordinator import runs
from edge_runtime.errors import DecodeError
from edge_runtime.message import MAX_CONTROL_BYTES, Profile, decode

Record = dict[str, Any]
"""The fields of `message.Profile` but its digest; what is not known (empty, or 0) is None."""


def read(run: Path) -> dict[str, Record]:
    """Read what devices said to the run in a folder; a file that is damaged counts for nothing."""
    found = {path.stem: _read(path) for path in sorted((run / "profiles").glob("*.json"))}
    return {device: record for device, record in found.items() if record is not None}


def newest(place: Path) -> dict[str, Record]:
    """Read what each device said last, to any of the runs in a folder."""
    files = [path for run in runs.folders(place) for path in (run / "profiles").glob("*.json")]
    found: dict[str, Record] = {}
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        if (record := _read(path)) is not None:
            found[path.stem] = record
    return found


def _read(path: Path) -> Record | None:
    try:
        with path.open("rb") as file:
            said = decode(file.read(MAX_CONTROL_BYTES + 1))
    except (OSError, DecodeError):
        return None
    if not isinstance(said, Profile):
        return None
    return {name: value or None for name, value in vars(said).items() if name != "digest"}


def line(record: Record) -> str:
    """Write a profile in one line; an empty one is a dash."""
    if not record:
        return "–"
    cores = f"{record['cores']} cores" if record["cores"] else ""
    ram = f"{record['ram_bytes'] / 1e9:.1f} GB" if record["ram_bytes"] else ""
    step = (
        f"{record['model']} on {record['backend']}: {record['step_us'] / 1000:.1f} ms a step"
        if record["step_us"]
        else ""
    )
    return ", ".join(filter(None, (record["board"] or record["cpu"], cores, ram, step)))
