"""Measurements from the asking side: what is to be measured, a child process for each, and what came of it.

The child is `python -m edge_runtime.measure`; this process imports nothing of what it imports, so that devices and
coordinators may ask.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_runtime import compute
from edge_runtime.compute import Compute
from edge_runtime.config import build
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.processes import die_with_parent

_MANIFEST = "manifest.json"  # of a bundle (`bundle.py`, which loads numpy)
_IDLE = "import edge_runtime.cli; from edge_runtime.devices import meter; print(meter.rss_bytes())"


@dataclass(frozen=True)
class Plan:
    """One measurement to make."""

    model: str
    """A built-in name, or the folder of a bundle."""
    compute: Compute
    batch: int = 32
    steps: int = 0
    """How many are timed; 0: at least 20, and for a second."""
    density: float = 1.0
    """Part of the parameters that are active; below 1 they are trained packed."""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.batch < 1:
            raise ConfigError(f"batch must be 1 or more, not {self.batch}")
        if self.steps < 0:
            raise ConfigError(f"steps must be 1 or more, not {self.steps}")
        if not 0 < self.density <= 1:
            raise ConfigError(f"density must be above 0 and at most 1, not {self.density:g}")


@dataclass(frozen=True)
class Measurement:
    """What training took: what was asked for, memory, times."""

    model: str
    backend: str
    """Never `auto`: the one that it chose."""
    device: str
    threads: int
    arena: bool
    batch: int
    steps: int
    density: float
    parameters: int
    """Of the dense model."""
    active: int
    """How many of them are trained."""
    floor_bytes: int
    """What training cannot do without: 3 x 4 bytes per active parameter, and a bit for each if not all are."""
    baseline_rss_bytes: int
    """Memory of the process with the backend imported, before there is a model."""
    loaded_rss_bytes: int
    """... with the model and its parameters."""
    training_peak_rss_bytes: int
    """The highest while training; of the whole process where `peak_was_reset` is False."""
    peak_rss_bytes: int
    """The highest of the whole process, importing and loading included."""
    over_baseline_bytes: int
    """`training_peak_rss_bytes` over `baseline_rss_bytes`."""
    peak_was_reset: bool
    """Whether the system let the peak start anew before training."""
    import_s: float
    """Of the backend alone: numpy is there already."""
    load_s: float
    """From files to a model that can be trained."""
    first_step_ms: float
    """A backend may put off part of loading to this step, which is not among the others."""
    step_ms_p10: float
    step_ms_median: float
    step_ms_p90: float
    step_cpu_ms: float
    """Median CPU time of a step, of all threads."""
    reference_ms: float
    """Median CPU time of a small task of fixed size, done between the steps (`speed.py`)."""
    step: float
    """A step in references, which a machine whose speed changes has about as many of at any time: the median of each
    step's CPU time to the mean of what the reference took before and after it.
    """
    step_energy_j: float | None = None
    """Mean of a timed step, of all that the sensor sees; None, here and below: the device does not tell."""
    power: str | None = None
    """Of which parts (`devices/sensors.py`)."""
    temperature_c: float | None = None
    """The highest over the timed steps."""
    throttled: bool | None = None
    """Whether heat or a weak supply slowed the processor down meanwhile."""


def is_bundle(model: str) -> bool:
    """Say whether a model's name is the folder of a bundle."""
    return (Path(model) / _MANIFEST).exists()


def backends_for(names: Iterable[str], model: str) -> list[str]:
    """Spell `all` out: every installed backend that can compute the model."""
    every = ["onnx"] if is_bundle(model) else compute.installed()
    return list(dict.fromkeys(one for name in names for one in (every if name == "all" else [name])))


def measure(plan: Plan, environment: Mapping[str, str]) -> Measurement:
    """Measure in a fresh child process with that environment.

    Raises:
        ConfigError: no such model, or the backend cannot compute it.
        DeviceError: this device lacks what the backend needs, or memory.
    """
    reply = _run(["-m", "edge_runtime.measure"], json.dumps(asdict(plan)), environment)
    record = json.loads(reply)
    if "error" in record:
        kind = ConfigError if record["exit-code"] == ConfigError.exit_code else DeviceError
        raise kind(record["error"])
    return build(Measurement, record, "measurement")


def idle_rss_bytes(environment: Mapping[str, str]) -> int:
    """Measure what an agent holds that waits for work, in a fresh process: its program loaded, not yet connected."""
    return int(_run(["-c", _IDLE], "", environment))


def _run(arguments: list[str], line: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        input=line + "\n",
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=environment,
        start_new_session=True,  # Ctrl-C is for this process, which then ends its child
        preexec_fn=die_with_parent,  # one system call, looked up before the fork
    )
    if done.returncode:
        status = done.returncode
        how = f"signal {-status}: out of memory, most often" if status < 0 else f"exit status {status}"
        raise DeviceError(f"the measuring process died ({how})")
    return done.stdout


_TIMES = ("step ms", "p10", "p90", "first", "import s", "load s")
_MEMORY = ("baseline MB", "peak MB", "over MB", "floor MB")
_HARDWARE: dict[str, Callable[[Measurement], str]] = {
    "step J": lambda one: "" if one.step_energy_j is None else f"{one.step_energy_j:.3g}",
    "hottest C": lambda one: "" if one.temperature_c is None else f"{one.temperature_c:.0f}",
    "throttled": lambda one: "" if one.throttled is None else "yes" if one.throttled else "no",
}
"""Columns that are there if any backend's measurement has something to say in them."""


def table(measurements: Sequence[Measurement]) -> str:
    """Lay measurements of one model out as plain text: a device has no rich."""
    hardware = [name for name, say in _HARDWARE.items() if any(say(one) for one in measurements)]
    rows: list[tuple[str, ...]] = [("backend", "batch", *_TIMES, *_MEMORY, *hardware)]
    for one in measurements:
        times_ms = (one.step_ms_median, one.step_ms_p10, one.step_ms_p90, one.first_step_ms)
        memory = (one.baseline_rss_bytes, one.peak_rss_bytes, one.over_baseline_bytes, one.floor_bytes)
        rows.append(
            (
                one.backend,
                str(one.batch),
                *(f"{value:.1f}" for value in times_ms),
                *(f"{value:.2f}" for value in (one.import_s, one.load_s)),
                *(f"{value / 1e6:.1f}" for value in memory),
                *(_HARDWARE[name](one) or "-" for name in hardware),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        + "\n"
        for row in rows
    )
