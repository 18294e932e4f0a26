"""What a run has left that may be downloaded: only files of these names, from these places."""

from dataclasses import dataclass
from pathlib import Path

_PATTERNS = (
    ("report.html", "report, to look at"),
    ("report.json", "report, all figures"),
    ("*.csv", "figures as a table"),
    ("*.onnx", "exported model"),
)
_OWN = (("model.bin", "shared model, float32 values"), ("*.csv", "figures as a table"), ("*.onnx", "exported model"))


@dataclass(frozen=True)
class Left:
    """A file that a run has left."""

    name: str
    """What it is called in addresses."""
    what: str
    size_bytes: int
    path: Path


def files(folder: Path) -> list[Left]:
    """List what a run has left: beside its folder, and in it."""
    found: dict[str, Left] = {}
    for place, patterns in ((folder.parent, _PATTERNS), (folder, _OWN)):
        for pattern, what in patterns:
            for path in sorted(place.glob(pattern)):
                if path.is_file():
                    found.setdefault(path.name, Left(path.name, what, path.stat().st_size, path))
    return list(found.values())


def of_device(folder: Path, device: str) -> list[Left]:
    """List what a run has left of a device: the personal model that it handed over."""
    return [one for one in _personal(folder) if one.path.stem == device]


def find(folder: Path, name: str) -> Path | None:
    """Find a file by what it is called in addresses; None: it is not among those that may be downloaded."""
    listed = [*files(folder), *_personal(folder)]
    return next((one.path for one in listed if one.name == name), None)


def _personal(folder: Path) -> list[Left]:
    paths = [path for path in sorted((folder / "personal").glob("*.bin")) if path.is_file()]
    return [Left(f"personal/{path.name}", "its personal model", path.stat().st_size, path) for path in paths]
