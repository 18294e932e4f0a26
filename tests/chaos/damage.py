"""What a device and a coordinator make of state files that were cut short, or in which a bit has changed.

A run is stopped in its last round, with everything in its folders that there can be: one device has said its result,
one is in the middle of saying it, one is in the middle of fetching the model. Then one file is damaged, and all start.
A damaged agent must mend itself and say so; a coordinator ends as if nothing had been, or refuses in one line.
"""

import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.errors import DeviceError, RunError
from tests.chaos.on_disk import Fleet, Plan, undisturbed
from tests.chaos.scorecard import Figure, Row, Scale

_PLAN = Plan(rounds=3)
_CUT_BYTES = 64
_FLIPS = 1000


@dataclass(frozen=True)
class Damage:
    """One file, cut to a size or with one bit flipped."""

    path: str
    cut: int | None
    bit: int = 0

    def do(self, folder: Path) -> None:
        """Damage the file."""
        data = bytearray((folder / self.path).read_bytes())
        if self.cut is not None:
            del data[self.cut :]
        else:
            data[self.bit // 8] ^= 1 << self.bit % 8
        (folder / self.path).write_bytes(bytes(data))


class _Said(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def snapshot(folder: Path) -> Path:
    """Leave a run's folders as they are in the middle of its last round, as a kill of everything would."""
    fleet = Fleet(folder / "live", _PLAN)
    moved = False
    while not _deep(fleet):
        fleet.bus.step()
        if not moved and fleet.coordinator and fleet.coordinator.core.progress.round == _PLAN.rounds - 1:
            moved = True  # so that both the database and its WAL hold something that the other does not
            assert fleet.journal is not None
            fleet.journal._database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(folder / "live", folder / "still", ignore=shutil.ignore_patterns("*-shm"))
    fleet.close()
    return folder / "still"


def _deep(fleet: Fleet) -> bool:
    core = fleet.coordinator.core if fleet.coordinator else None
    if core is None or core.progress.round < _PLAN.rounds - 1 or not core.progress.accepted:
        return False
    spooled = list((fleet.folder / "run" / "spool").iterdir())
    return any(device.core.memory.pending for device in fleet.devices.values()) and bool(spooled)


def damages(folder: Path, part: str, scale: Scale) -> Iterator[Damage]:
    """List what is done to the files of the coordinator (`run`) or of the agents."""
    rng = random.Random(scale.seed)
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "reserve", "probe")
    }
    files = {name: size for name, size in files.items() if size and name.startswith("run/") == (part == "run")}
    cuts = [Damage(name, cut) for name, size in files.items() for cut in range(0, size, _CUT_BYTES)]
    yield from cuts if scale.part >= 1 else rng.sample(cuts, scale.of(len(cuts), 10))
    names = list(files)
    for _ in range(scale.of(_FLIPS, 20)):
        name = rng.choice(names)
        yield Damage(name, None, rng.randrange(8 * files[name]))


def after(folder: Path, expected: str) -> str:
    """Start everything on damaged folders; say how it ended."""
    said, fleet = _Said(), None
    logging.getLogger("edge_runtime").addHandler(said)
    try:
        fleet = Fleet(folder, _PLAN)
        if not fleet.play(600.0):
            return "wedged"
        if fleet.outcome() == expected:
            return "as if nothing had been"
        told = any("damaged" in line or "lost" in line for line in said.lines)
        return "mended and said so" if told and not fleet.seen.disagreed else "another state, silently"
    except RunError as error:
        return "refused in one line" if "\n" not in str(error) else "refused in many lines"
    except DeviceError:
        return "refused in one line"
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        return f"died of {type(error).__name__}: {error}"
    finally:
        logging.getLogger("edge_runtime").removeHandler(said)
        if fleet is not None:
            fleet.close()


def damaged_files(scale: Scale) -> Figure:
    """Measure R14."""
    ends: dict[str, Counter[str]] = {"run": Counter(), "agents": Counter()}
    bad: list[str] = []
    with tempfile.TemporaryDirectory(dir=scale.folder) as text:
        folder = Path(text)
        expected, still = undisturbed(folder / "calm", _PLAN), snapshot(folder)
        for part, found in ends.items():
            for damage in damages(still, part, scale):
                place = folder / "damaged"
                shutil.copytree(still, place)
                damage.do(place)
                end = after(place, expected)
                found[end] += 1
                if end not in _GOOD[part]:
                    bad.append(f"{damage}: {end}")
                shutil.rmtree(place)
    names = {"run": "coordinator", "agents": "agents"}
    text = "; ".join(
        f"{names[part]}: {', '.join(f'{number} {end}' for end, number in found.most_common())}"
        for part, found in ends.items()
    )
    return Figure(text, not bad, {**{names[part]: dict(found) for part, found in ends.items()}, "bad": bad[:20]})


_GOOD = {
    "run": {"as if nothing had been", "refused in one line"},
    "agents": {"as if nothing had been", "mended and said so"},
}
ROWS = [
    Row(
        "R14",
        "state files cut at every 64 bytes, and 1,000 flipped bits on each side",
        "0 wedges, 0 silently accepted",
        damaged_files,
    )
]
