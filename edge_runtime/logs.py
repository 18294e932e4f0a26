"""What a program says on stderr: lines for a person, or JSON objects, one a line, for a machine.

A line of code that is made to say something again and again, by a hostile peer or a broken disk, is heard a hundred
times a minute; what it says beyond that is counted, and the count told with what it says next.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

FORMS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
FIELDS = ("device", "round", "reason", "count", "exit_code")
"""What a record may carry beside its message (`extra=` of logging), and its JSON object then has."""
_MOST = 100
_WINDOW_S = 60.0


class JsonLines(logging.Formatter):
    """Makes a record one JSON object: `time` (UTC), `level`, `program`, `from`, `message`, and what else it carries."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """Write the object, on one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "program": self._program,
            "from": record.name.removeprefix("edge_runtime."),
            "message": record.getMessage(),
        }
        said |= {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


class Fewer(logging.Filter):
    """Lets each line of code be heard so many times in so many seconds of `clock`."""

    def __init__(
        self, most: int = _MOST, window_s: float = _WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._most, self._window_s, self._clock = most, window_s, clock
        self._lock = threading.Lock()
        self._said: dict[tuple[str, int], tuple[float, int]] = {}
        """Since when, and how many times."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is heard; the first one after silence tells how many were not."""
        line, now = (record.pathname, record.lineno), self._clock()
        with self._lock:
            since, times = self._said.get(line, (now, 0))
            if now - since >= self._window_s:
                withheld, since, times = max(0, times - self._most), now, 0
                if withheld:
                    record.msg, record.args = f"{record.getMessage()} (and {withheld:,} more like it)", ()
            self._said[line] = since, times + 1
        return times < self._most


def start(program: str, form: str = "text", level: str = "") -> None:
    """Say what is logged on stderr from now on.

    Args:
        program: what the lines begin with.
        form: one of FORMS.
        level: one of LEVELS; empty: warning for a person, info for a machine.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(program) if form == "json" else logging.Formatter(f"{program}: %(message)s"))
    handler.addFilter(Fewer())
    level = level or ("info" if form == "json" else "warning")
    logging.basicConfig(level=level.upper(), handlers=[handler])


def as_json() -> bool:
    """Say whether what is logged is for a machine."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)
