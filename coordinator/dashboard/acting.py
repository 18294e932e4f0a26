"""What can be done from the pages: a run started, stopped, gone on with; by the programs of the command line.

A run that is started here is a process of its own, in a session of its own: it goes on when the dashboard ends.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime import config
from edge_runtime.coordinator import runs
from edge_runtime.errors import RunError

_PATIENCE_S = 15.0
_EARLY_S = 2.0
"""A coordinator that cannot begin says so within this time, mostly."""
_LOG = "coordinator.log"
_LAST_BYTES = 4096


@dataclass
class Acting:
    """Starts and stops coordinators."""

    root: Path
    """Where runs are."""
    files: Mapping[str, Path]
    """What may be started: settings of runs by the name that pages call them."""
    arguments: Sequence[str] = ()
    """Flags for `start` and `run resume`: how to reach the broker."""
    _begun: dict[Path, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def summary(self, name: str) -> str:
        """Say in a line what settings there are. Raises ConfigError: the file cannot be read any more."""
        table = config.read(self.files[name], ("run", "algorithm", "data", "variant"))["run"]
        shown = {key: table[key] for key in ("algorithm", "model", "rounds", "devices") if key in table}
        return ", ".join(f"{key} {value}" for key, value in shown.items()) or "all settings as usual"

    def stop(self, folder: Path) -> None:
        """End a run's coordinator. Raises ConfigError or RunError as `runs.stop`."""
        runs.stop(folder, _PATIENCE_S)

    def resume(self, folder: Path) -> None:
        """Go on with a run.

        Raises:
            RunError: its coordinator ended at once.
        """
        self._begin(["run", "resume", str(folder)], folder)

    def start(self, name: str) -> Path:
        """Start a run; give the folder that it will be in.

        Raises:
            RunError: its coordinator ended at once.
        """
        folder = self.root / time.strftime("%Y%m%d-%H%M%S")
        folder.mkdir(parents=True, exist_ok=True)
        self._begin(
            ["start", "--config", str(self.files[name]), "--folder", str(folder), "--runs", str(self.root)], folder
        )
        return folder

    def _begin(self, command: list[str], folder: Path) -> None:
        program = [sys.executable, "-m", "edge_runtime.coordinator.cli", *command]
        with (folder / _LOG).open("wb") as log:
            process = subprocess.Popen(
                [*program, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._begun[folder] = process
        try:
            process.wait(_EARLY_S)
        except subprocess.TimeoutExpired:
            return
        raise RunError(self.last_words(folder) or f"{folder}: the coordinator ended at once")

    def last_words(self, folder: Path) -> str:
        """Give the last line of a coordinator that was started here and has failed; empty: none has."""
        folder = folder if folder in self._begun else folder.parent
        process = self._begun.get(folder)
        if process is None or process.poll() in (None, 0):
            return ""
        try:
            lines = (folder / _LOG).read_bytes()[-_LAST_BYTES:].decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else f"the coordinator ended with exit status {process.returncode}"
