"""Numbers as people read them. None, for what is not known, is a dash."""


def size(size_bytes: float | None) -> str:
    """Write bytes in decimal units with three digits: `33.5 kB`."""
    if size_bytes is None:
        return "–"
    value, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while abs(value) >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    digits = 0 if units[0] == "B" or abs(value) >= 99.95 else 1
    return f"{value:.{digits}f} {units[0]}"


def counted(count: int, what: str) -> str:
    """Write a count: `1 device`, `20 devices`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def percent(part: float | None) -> str:
    """Write a part of 1: `83.4 %`."""
    return "–" if part is None else f"{100 * part:.1f} %"


def points(value: float | None) -> str:
    """Write a difference of two percentages: `+3.4 points`."""
    return "–" if value is None else f"{value:+.1f} points"


def times_less(ratio: float | None) -> str:
    """Write a ratio to a baseline as what it saves: `1.9 x less` for 0.53, `1.2 x more` for 1.2."""
    if ratio is None or ratio <= 0:
        return "–"
    if 0.995 < ratio < 1.005:
        return "the same"
    return f"{1 / ratio:.2f} x less" if ratio < 1 else f"{ratio:.2f} x more"


def energy(joules: float | None) -> str:
    """Write joules with three digits: `12.3 J`, `4.56 kJ`."""
    if joules is None:
        return "–"
    return f"{joules:.3g} J" if joules < 999.5 else f"{joules / 1000:.3g} kJ"


def temperature(celsius: float | None) -> str:
    """Write degrees: `61 °C`."""
    return "–" if celsius is None else f"{celsius:.0f} °C"


def duration(seconds: float | None) -> str:
    """Write seconds: `7.3 s`, `4:07`, `2:04:07`."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


HARDWARE = (
    ("energy per round", "energy_j", energy),
    ("hottest", "temperature_c", temperature),
    ("throttled", "throttled", percent),
    ("battery", "battery", percent),
)
"""What sensors tell, shown only of devices that have such: in words, by its key, and how it is written."""
