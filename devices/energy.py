"""What a piece of work took of a device's energy, and how hot and slow the device got over it.

A `Recorder` looks at the sensors when it begins, then every second, and when it ends. Of a counter (RAPL) the energy is
the sum of its steps; of a sensor of power it is the area under straight lines between looks. All of it is the whole
device's, or of the parts that the sensor sees: what else runs there is in it, and so is what an idle device takes.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType

from edge_runtime.devices.sensors import Sensors

EVERY_S = 1.0
"""A RAPL counter goes round in some minutes at the earliest; a rail's power changes within a step."""


class Recorder:
    """Records from entering to leaving it; where a device has no sensors it does nothing."""

    def __init__(self, sensors: Sensors, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._sensors, self._every_s, self._clock = sensors, every_s, clock
        self._joules: float | None = 0.0 if sensors.power is not None else None
        self._last: tuple[float, float] | None = None
        self._hottest_c: float | None = None
        self._throttled: bool | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sensors")

    def __enter__(self) -> "Recorder":
        """Take the first look, and begin to look from time to time."""
        if self._sensors.any:
            self._look(first=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the last look."""
        self._done.set()
        if self._sensors.any:
            self._thread.join()
            self._look()

    @property
    def energy_j(self) -> float | None:
        """Joules so far; None: the device does not tell, or did not all the time."""
        return self._joules

    def figures(self) -> dict[str, float]:
        """Give what is known, as figures of a task."""
        throttled = None if self._throttled is None else float(self._throttled)
        found = {"energy-j": self._joules, "temperature-c": self._hottest_c, "throttled": throttled}
        found["battery"] = self._sensors.battery()
        return {name: round(value, 3) for name, value in found.items() if value is not None}

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            self._look()

    def _look(self, first: bool = False) -> None:
        self._add(first)
        heat_c, slow = self._sensors.temperature_c(), self._sensors.throttled()
        if heat_c is not None:
            self._hottest_c = heat_c if self._hottest_c is None else max(heat_c, self._hottest_c)
        if slow is not None and not first:  # the first look counts from whenever it was asked before
            self._throttled = slow or bool(self._throttled)

    def _add(self, first: bool) -> None:
        if self._sensors.power is None:
            return
        joules, watts = self._sensors.power.look()
        now_s = self._clock()
        if joules is None and watts is None:
            self._joules = None
        if self._joules is None:
            return
        if joules is not None and not first:
            self._joules += joules
        if watts is not None:
            if self._last is not None:
                before_s, before_w = self._last
                self._joules += (now_s - before_s) * (before_w + watts) / 2
            self._last = now_s, watts
