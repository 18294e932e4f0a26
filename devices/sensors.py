"""What a device says of its power, heat and throttling, as its kernel and firmware tell it; None where they do not.

Power, from the first of these that answers:

* RAPL counts what each processor package has taken, microjoules from 0 to `max_energy_range_uj` and round again
  (Documentation/ABI/testing/sysfs-class-powercap). Memory (`dram`) is counted beside the package, `core` and `uncore`
  within it. Since Linux 5.10 only root may read it.
* INA3221, on Jetson boards: millivolts and milliamperes of up to three rails (Documentation/hwmon/ina3221.rst), of
  which one may be the board's input; in older L4T kernels milliwatts under `iio:device`.
* The PMIC of a Raspberry Pi 5: volts and amperes of its rails (`vcgencmd pmic_read_adc`), without what hangs on USB.
* A battery that is discharging: microwatts, or microvolts and microamperes
  (Documentation/ABI/testing/sysfs-class-power).

Temperature is the highest of the processor's thermal zones (Documentation/driver-api/thermal/sysfs-api.rst, thousandths
of a degree), or of its hwmon sensor. Throttled is what slows the processor down now: `vcgencmd get_throttled` (its low
four bits), a cooling device that holds cpufreq back, or a count of x86's (`thermal_throttle`) that has risen.

Files are looked for under a root, programs in its `usr/bin`. Standard library only: the idle agent imports this.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_PROGRAM_S = 2.0
_HOTTEST_C = 200.0
"""What sensors say that are broken or not wired up lies outside of 0 to this."""
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_PROCESSOR = re.compile(r"cpu|soc|pkg|core|tj", re.IGNORECASE)
_INPUT = re.compile(r"(^|_)(V?IN|VDD_IN|5V_IN)$", re.IGNORECASE)
"""The rail through which a Jetson board gets everything: `VDD_IN`, `POM_5V_IN`, `VIN`."""
_THROTTLED_NOW = 0xF
_COUNTS = "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"


class Power(Protocol):
    """What tells a device's power."""

    @property
    def name(self) -> str:
        """Say of which parts: `rapl: package-0, dram`."""
        ...

    def look(self) -> tuple[float | None, float | None]:
        """Give joules since the look before (a counter's; the first gives 0), and watts now; None: not told."""
        ...


@dataclass
class _Zone:
    folder: Path
    range_uj: int
    last_uj: int


class Rapl:
    """Counters of the processor's packages and their memory."""

    def __init__(self, zones: list[_Zone], names: list[str]) -> None:
        self.name = f"rapl: {', '.join(names)}"
        self._zones = zones

    def look(self) -> tuple[float | None, float | None]:
        """See `Power.look`: joules."""
        total_uj = 0
        for zone in self._zones:
            now_uj = _number(zone.folder / "energy_uj")
            if now_uj is None:
                return None, None
            total_uj += now_uj - zone.last_uj + (zone.range_uj if now_uj < zone.last_uj else 0)
            zone.last_uj = now_uj
        return total_uj / 1e6, None


def _rapl(root: Path) -> Rapl | None:
    zones, names = [], []
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = text_of(folder / "name") or ""
        if not re.fullmatch(r"package-\d+(-die-\d+)?|dram", name):
            continue
        now_uj, range_uj = _number(folder / "energy_uj"), _number(folder / "max_energy_range_uj")
        if now_uj is not None and range_uj is not None:
            zones.append(_Zone(folder, range_uj, now_uj))
            names.append(name)
    return Rapl(zones, names) if zones else None


@dataclass(frozen=True)
class Ina3221:
    """Rails of a Jetson board: the input alone if there is a sensor on it, else all."""

    name: str
    rails: tuple[tuple[Path, ...], ...]
    """Of each rail the file in milliwatts, or those in millivolts and milliamperes."""

    def look(self) -> tuple[float | None, float | None]:
        """See `Power.look`: watts."""
        total_w = 0.0
        for files in self.rails:
            values = [_number(file) for file in files]
            if None in values:
                return None, None
            first, *rest = (value for value in values if value is not None)
            total_w += first * rest[0] / 1e6 if rest else first / 1e3
        return None, total_w


def _ina3221(root: Path) -> Ina3221 | None:
    rails: dict[str, tuple[Path, ...]] = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if text_of(chip / "name") == "ina3221":
            for number in (1, 2, 3):
                label = text_of(chip / f"in{number}_label") or f"{chip.name} {number}"
                rails[label] = (chip / f"in{number}_input", chip / f"curr{number}_input")
    for chip in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*")):
        for number in (0, 1, 2):
            label = text_of(chip / f"rail_name_{number}") or f"{chip.name} {number}"
            rails[label] = (chip / f"in_power{number}_input",)
    answering = {label: files for label, files in rails.items() if None not in map(_number, files) and label != "NC"}
    inputs = {label: files for label, files in answering.items() if _INPUT.search(label)}
    chosen = inputs or answering
    return Ina3221(f"ina3221: {', '.join(chosen)}", tuple(chosen.values())) if chosen else None


@dataclass(frozen=True)
class Pmic:
    """Rails of a Raspberry Pi 5."""

    program: Path
    name: str = "pmic: all rails"

    def look(self) -> tuple[float | None, float | None]:
        """See `Power.look`: watts."""
        said = _ask(self.program, "pmic_read_adc") or ""
        found = re.findall(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=([0-9.]+)[AV]\s*$", said, re.MULTILINE)
        amperes = {rail: float(value) for rail, unit, value in found if unit == "A"}
        volts = {rail: float(value) for rail, unit, value in found if unit == "V"}
        both = amperes.keys() & volts.keys()
        return None, sum(amperes[rail] * volts[rail] for rail in both) if both else None


def _pmic(root: Path) -> Pmic | None:
    found = Pmic(root / "usr/bin/vcgencmd")
    return found if found.program.is_file() and found.look()[1] is not None else None


@dataclass(frozen=True)
class Battery:
    """A battery that feeds the device; while it is charged, what goes into it is not what the device takes."""

    folder: Path
    name: str = "battery"

    def look(self) -> tuple[float | None, float | None]:
        """See `Power.look`: watts."""
        if text_of(self.folder / "status") != "Discharging":
            return None, None
        power_uw = _number(self.folder / "power_now")
        if power_uw is not None:
            return None, abs(power_uw) / 1e6
        volts_uv, amperes_ua = _number(self.folder / "voltage_now"), _number(self.folder / "current_now")
        return None, None if volts_uv is None or amperes_ua is None else abs(volts_uv * amperes_ua) / 1e12


def _battery_folder(root: Path) -> Path | None:
    """Find the battery that feeds this device, not one of a mouse."""
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        if text_of(folder / "type") == "Battery" and text_of(folder / "scope") != "Device":
            return folder
    return None


class Sensors:
    """All that a device says of itself, found once and read often."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Look what there is."""
        battery = _battery_folder(root)
        supply = Battery(battery, f"battery: {battery.name}") if battery else None
        self.power: Power | None = _rapl(root) or _ina3221(root) or _pmic(root) or supply
        self._battery = battery
        self._heat = _heat(root)
        vcgencmd = root / "usr/bin/vcgencmd"
        self._vcgencmd = vcgencmd if throttled_bits(vcgencmd) is not None else None
        self._cooling = _cooling(root)
        self._counts = sorted(root.glob(_COUNTS))
        self._counted = self._count()

    @property
    def any(self) -> bool:
        """Say whether there is anything that is worth looking at while a task runs."""
        return self.power is not None or bool(self._heat) or self.tells_throttling

    @property
    def tells_throttling(self) -> bool:
        """Say whether this device tells when it is slowed down."""
        return self._vcgencmd is not None or bool(self._cooling or self._counts)

    def temperature_c(self) -> float | None:
        """Read the processor's temperature, the highest of its sensors."""
        found = [value / 1000 for path in self._heat if (value := _number(path)) is not None]
        return max((value for value in found if 0 < value < _HOTTEST_C), default=None)

    def throttled(self) -> bool | None:
        """Say whether the processor is slowed down now, by heat or for want of power; or was since the last call."""
        if not self.tells_throttling:
            return None
        before, self._counted = self._counted, self._count()
        held = any((_number(path) or 0) > 0 for path in self._cooling)
        return held or self._counted > before or bool(self.throttle_bits())

    def throttle_bits(self) -> int:
        """Read a Raspberry Pi's bits of now: 1 under-voltage, 2 frequency capped, 4 throttled, 8 soft limit of heat."""
        return (throttled_bits(self._vcgencmd) or 0) & _THROTTLED_NOW if self._vcgencmd else 0

    def battery(self) -> float | None:
        """Read how full the battery is, a part of 1."""
        percent = _number(self._battery / "capacity") if self._battery else None
        return percent / 100 if percent is not None and 0 <= percent <= 100 else None

    def _count(self) -> int:
        return sum(_number(path) or 0 for path in self._counts)


def _heat(root: Path) -> list[Path]:
    zones = {
        zone / "temp": text_of(zone / "type") or ""
        for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    }
    chips = [chip for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")) if text_of(chip / "name") in _CHIPS]
    processor = [path for path, kind in zones.items() if _PROCESSOR.search(kind)]
    return processor or [path for chip in chips for path in sorted(chip.glob("temp*_input"))] or list(zones)


def _cooling(root: Path) -> list[Path]:
    """Find what holds the processor's frequency back: `cpufreq-cpu0`, or `thermal-cpufreq-0` of older kernels."""
    found = sorted((root / "sys/class/thermal").glob("cooling_device*"))
    return [device / "cur_state" for device in found if "cpufreq" in (text_of(device / "type") or "")]


def throttled_bits(program: Path) -> int | None:
    """Ask a Raspberry Pi's firmware: `throttled=0x50005`; None: there is none."""
    found = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", (_ask(program, "get_throttled") or "").strip())
    return int(found[1], 16) if found else None


def _ask(program: Path, word: str) -> str | None:
    if not program.is_file():
        return None
    try:
        done = subprocess.run([program, word], capture_output=True, text=True, timeout=_PROGRAM_S, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def text_of(path: Path) -> str | None:
    """Read a small file of the kernel's; None if there is none, it is not for us, or its sensor does not answer."""
    try:
        return path.read_text("utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    found = text_of(path)
    return int(found) if found is not None and re.fullmatch(r"-?\d{1,18}", found) else None
