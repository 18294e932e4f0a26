"""What a run knows of each device: rows of the tables `device`, `choice`, `unfit` and `part`."""

from collections.abc import Iterator, MutableMapping

from edge_runtime.coordinator.database import Database


class DeviceTable:
    """The devices of one run."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.memories: MutableMapping[str, bytes] = Memories(database)

    def known(self) -> set[str]:
        """Give the devices that exist."""
        return {row[0] for row in self._database.rows("SELECT id FROM device")}

    def count(self) -> int:
        """Count the devices that exist."""
        return int(self._database.row("SELECT COUNT(*) FROM device")[0])

    def register(self, device: str) -> None:
        """Make it durable that a device exists."""
        with self._database.transaction():
            self._database.write("INSERT OR IGNORE INTO device (id) VALUES (?)", (device,))

    def choose(self, device: str, name: str, why: str) -> None:
        """Make durable what a device is given, and why; an empty name: nothing, for now."""
        if (name, why) != self._database.row("SELECT name, why FROM choice WHERE device = ?", (device,)):
            with self._database.transaction():
                self._database.write("INSERT OR REPLACE INTO choice VALUES (?, ?, ?)", (device, name, why))

    def chosen(self, device: str) -> str:
        """Name what a device is given by choice; empty: nothing."""
        row = self._database.row("SELECT name FROM choice WHERE device = ?", (device,))
        return str(row[0]) if row else ""

    def choices(self) -> dict[str, str]:
        """Say of every device for which something was chosen what, and why."""
        return dict(self._database.rows("SELECT device, why FROM choice"))

    def admit(self, device: str, lacking: str) -> None:
        """Make durable why a device gets no task; empty: it gets tasks."""
        if self.unfit().get(device, "") != lacking:
            with self._database.transaction():
                self._database.write("DELETE FROM unfit WHERE device = ?", (device,))
                if lacking:
                    self._database.write("INSERT INTO unfit VALUES (?, ?)", (device, lacking))

    def unfit(self) -> dict[str, str]:
        """Say of every device that gets no task why."""
        return dict(self._database.rows("SELECT device, why FROM unfit"))

    def keep_part(self, device: str, cut: bytes) -> None:
        """Make durable which channels a device has that has chosen them."""
        with self._database.transaction():
            self._database.write("INSERT OR REPLACE INTO part VALUES (?, ?)", (device, cut))

    def part(self, device: str) -> bytes:
        """Read which channels a device has that has chosen them; empty: it has not."""
        row = self._database.row("SELECT cut FROM part WHERE device = ?", (device,))
        return bytes(row[0]) if row else b""

    def base(self, device: str) -> str:
        """Name the last update of a device that was applied; empty: none."""
        return self._of(device, "base")

    def ask(self, device: str, wish: str) -> None:
        """Make durable which coding a device asks for from its next task on; empty: the run's."""
        if wish != self._of(device, "wish"):
            with self._database.transaction():
                self._database.write("INSERT OR IGNORE INTO device (id) VALUES (?)", (device,))
                self._database.write("UPDATE device SET wish = ? WHERE id = ?", (wish, device))

    def settle(self, device: str) -> None:
        """Let what a device asks for hold from now on; what it holds of its last task was told as before."""
        if self._of(device, "wish") != self.asked(device):
            with self._database.transaction():
                self._database.write("UPDATE device SET asked = wish WHERE id = ?", (device,))

    def asked(self, device: str) -> str:
        """Say which coding a device is told its task in, where it asked for one."""
        return self._of(device, "asked")

    def held(self, device: str) -> str:
        """Name the grid that a device holds, in the state that the coordinator knows of; empty: none."""
        return self._of(device, "held")

    def _of(self, device: str, column: str) -> str:
        row = self._database.row(f"SELECT {column} FROM device WHERE id = ?", (device,))  # noqa: S608
        return "" if row is None else str(row[0])


class Memories(MutableMapping[str, bytes]):
    """What the server half remembers of each device: none of it kept in memory.

    A write becomes durable with the update that caused it (`Journal.accept`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def __getitem__(self, device: str) -> bytes:
        row = self._database.row("SELECT memory FROM device WHERE id = ?", (device,))
        if row is None or row[0] is None:
            raise KeyError(device)
        return bytes(row[0])

    def __setitem__(self, device: str, value: bytes) -> None:
        self._database.write("INSERT OR IGNORE INTO device (id) VALUES (?)", (device,))
        self._database.write("UPDATE device SET memory = ? WHERE id = ?", (value, device))

    def __delitem__(self, device: str) -> None:
        self._database.write("UPDATE device SET memory = NULL WHERE id = ?", (device,))

    def __iter__(self) -> Iterator[str]:
        return iter([row[0] for row in self._database.rows("SELECT id FROM device WHERE memory IS NOT NULL")])

    def __len__(self) -> int:
        return int(self._database.row("SELECT COUNT(*) FROM device WHERE memory IS NOT NULL")[0])
