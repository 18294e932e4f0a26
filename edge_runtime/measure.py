"""The measuring child: trains a model on random data in a process of its own, and says what that took.

`python -m edge_runtime.measure` reads a `measure_process.Plan` as one line of JSON on stdin and answers with one line:
a `measure_process.Measurement`, or `{"error": ..., "exit-code": ...}`. A fresh process for every measurement, or else
the memory of one would be in the next.

The steps are those of `sgd.descend` with momentum .9, as a device trains; data and parameters are random numbers, which
cost what real ones cost. Memory is read at three places: with everything imported (the baseline; the samples are there
too, under 1 MB of images), with the model loaded, and at the peak of training, for which the peak is started anew, so
that what importing took on the way is told apart. Between steps a small task of fixed size is timed (`speed.py`), in
which steps can be told that a machine does whose speed changes.
"""

import contextlib
import dataclasses
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import backends, bundle, models, packed, sgd
from edge_runtime.algorithm import Batch
from edge_runtime.algorithms import fedspa
from edge_runtime.bundle import Bundle
from edge_runtime.compression import mask as masks
from edge_runtime.compute import Compute, installed
from edge_runtime.config import build
from edge_runtime.data import SeededBatches
from edge_runtime.devices import meter
from edge_runtime.devices.energy import Recorder
from edge_runtime.devices.sensors import Sensors
from edge_runtime.errors import ConfigError, EdgeError
from edge_runtime.mask import Mask, from_bits
from edge_runtime.measure_process import Measurement, Plan, is_bundle
from edge_runtime.processes import give_back_freed_memory
from edge_runtime.speed import Reference
from edge_runtime.tree import Flat, Layout

_WARM_UP = 3
"""Steps that are not timed: the first ones pick kernels and grow pools of memory."""
_FEWEST_STEPS, _LEAST_S = 20, 1.0
_SAMPLES_PER_BATCH = 4
"""How many batches of samples the device is given to draw from."""
_LR = 1e-4  # small, so that no model diverges on noise


class _TimedBatches(SeededBatches):
    """Random samples that note the time whenever a batch is asked for, where one step ends and the next begins.

    Between the two the reference is timed, so that the machine's speed is known at every step.
    """

    def __init__(self, batch: int, shape: tuple[int, ...], kind: str, classes: int) -> None:
        rng = np.random.default_rng(0)
        count = _SAMPLES_PER_BATCH * batch
        # Indices into an embedding of unknown size: 0 and 1 are in any that has two rows.
        x = rng.integers(0, 2, (count, *shape)) if kind == "int64" else rng.random((count, *shape), np.float32)
        super().__init__(x, rng.integers(0, classes, count), 0)
        self.reference = Reference()
        self.warmed_up: Callable[[], object] = lambda: None
        self.ended_s: list[tuple[float, float]] = []
        self.reference_ms: list[float] = []
        self.began_s: list[tuple[float, float]] = []

    def sample(self, batch_size: int) -> Batch:
        self.ended_s.append(_now_s())
        self.reference_ms.append(self.reference.time_ms())
        if len(self.began_s) == _WARM_UP:
            self.warmed_up()
        self.began_s.append(_now_s())
        return super().sample(batch_size)

    def timed_s(self) -> float:
        """Say how long the timed steps took so far, with what is between them."""
        return self.ended_s[-1][0] - self.began_s[_WARM_UP][0]

    def steps_ms(self) -> NDArray[np.float64]:
        """Say how long each step took but the last, whose end nobody saw, and of how much CPU time [steps, 2]."""
        return 1000 * np.subtract(self.ended_s[1:], self.began_s[:-1])


def _now_s() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure(plan: Plan) -> Measurement:
    """Measure in this process, which should have done nothing before.

    Raises:
        ConfigError: no such model, or the backend cannot compute it.
        DeviceError: this device lacks what the backend needs.
    """
    graphs = bundle.read(Path(plan.model)) if is_bundle(plan.model) else None
    batches = _batches(plan, graphs)
    backend = backends.choose(plan.compute, plan.model, graphs)
    started_s = time.perf_counter()
    if backend in installed():  # where it is not, `load` says how to install it
        importlib.import_module(f"edge_runtime.backends.{backend}")
    import_s = time.perf_counter() - started_s
    imported = meter.memory()
    started_s = time.perf_counter()
    dense = backends.load(plan.compute, plan.model, graphs)
    model = packed.of(dense, _mask(dense.layout, plan.density)) if plan.density < 1 else dense
    load_s = time.perf_counter() - started_s
    start = _start(model.layout, dense.layout.shapes)
    loaded = meter.memory()
    reset = meter.reset_peak()
    sensors = Sensors()
    recorder = Recorder(sensors)

    def train(steps: int) -> None:
        settings = sgd.Sgd(lr=_LR, momentum=0.9, local_steps=steps, batch_size=plan.batch)
        sgd.descend(model, start, batches, settings, 0)

    with contextlib.ExitStack() as stack:
        batches.warmed_up = lambda: stack.enter_context(recorder)
        # One step more than are timed: a step ends where the next begins.
        train(_WARM_UP + (plan.steps or _FEWEST_STEPS) + 1)
        missing_s = 0 if plan.steps else _LEAST_S - batches.timed_s()
        if missing_s > 0:
            train(math.ceil(missing_s / batches.timed_s() * _FEWEST_STEPS))
    trained, hardware = meter.memory(), recorder.figures()
    (first_ms, _), (steps_ms, steps_cpu_ms) = batches.steps_ms()[0], batches.steps_ms()[_WARM_UP:].T
    reference_ms = np.array(batches.reference_ms[_WARM_UP:])
    p10, median, p90 = (float(value) for value in np.percentile(steps_ms, [10, 50, 90]))
    return Measurement(
        model=plan.model,
        backend=backend,
        device=plan.compute.device,
        threads=plan.compute.threads,
        arena=plan.compute.arena,
        batch=plan.batch,
        steps=len(steps_ms),
        density=plan.density,
        parameters=dense.layout.size,
        active=model.layout.size,
        floor_bytes=_floor_bytes(dense.layout.size, model.layout.size),
        baseline_rss_bytes=imported.rss_bytes,
        loaded_rss_bytes=loaded.rss_bytes,
        training_peak_rss_bytes=trained.peak_rss_bytes,
        peak_rss_bytes=max(imported.peak_rss_bytes, loaded.peak_rss_bytes, trained.peak_rss_bytes),
        over_baseline_bytes=trained.peak_rss_bytes - imported.rss_bytes,
        peak_was_reset=reset,
        import_s=import_s,
        load_s=load_s,
        first_step_ms=float(first_ms),
        step_ms_p10=p10,
        step_ms_median=median,
        step_ms_p90=p90,
        step_cpu_ms=float(np.median(steps_cpu_ms)),
        reference_ms=statistics.median(reference_ms),
        step=float(np.median(steps_cpu_ms / ((reference_ms[1:] + reference_ms[:-1]) / 2))),
        step_energy_j=None if recorder.energy_j is None else recorder.energy_j / (len(steps_ms) + 1),
        power=sensors.power.name if sensors.power else None,
        temperature_c=hardware.get("temperature-c"),
        throttled=bool(hardware["throttled"]) if "throttled" in hardware else None,
    )


def _mask(layout: Layout, density: float) -> Mask:
    """Draw a mask as FedSpa does for a device's first round: by the ERK rule, with all biases."""
    counts = fedspa.active_counts(layout, fedspa.Config(density=density))
    return from_bits(layout, masks.from_seed(bytes(masks.SEED_BYTES), layout.sizes, counts))


def _start(layout: Layout, shapes: Sequence[tuple[int, ...]]) -> Flat:
    """Draw parameters [size] in place: a detour through float64 could leave the process larger than training makes it.

    Weights are uniform in +-1 / sqrt(fan in), where `shapes` are those of the dense model; biases and the weights of
    norms, of one dimension, are all .1.
    """
    flat = np.empty(layout.size, np.float32)
    rng = np.random.default_rng(0)
    rng.random(out=flat, dtype=np.float32)
    flat -= np.float32(0.5)
    for where, shape in zip(layout.slices, shapes, strict=True):
        if len(shape) < 2:
            flat[where] = 0.1
        else:
            flat[where] *= np.float32(2 / math.sqrt(math.prod(shape[1:])))
    return flat


def _batches(plan: Plan, graphs: Bundle | None) -> _TimedBatches:
    if graphs is not None:
        return _TimedBatches(plan.batch, graphs.input_shape, graphs.input_type, graphs.outputs)
    if ":" in plan.model:
        raise ConfigError(
            f"model: {plan.model!r} is code; measure the bundle that `edge-coordinator export` makes of it"
        )
    spec = models.find(plan.model)
    return _TimedBatches(plan.batch, spec.input_shape, "float32", spec.classes)


def _floor_bytes(size: int, active: int) -> int:
    """Count float32 parameters, gradients and momentum of what is active, and a bit each for which those are."""
    return 3 * 4 * active + (math.ceil(size / 8) if active < size else 0)


def answer(line: str) -> dict[str, Any]:
    """Measure what a line of JSON asks for; an error of ours becomes a record too."""
    record = json.loads(line)
    compute = build(Compute, record.pop("compute"), "compute")
    try:
        return dataclasses.asdict(measure(Plan(compute=compute, **record)))
    except EdgeError as error:
        return {"error": str(error), "exit-code": error.exit_code}


def main() -> None:
    """Answer one line on stdin with one on stdout."""
    give_back_freed_memory()  # as a trainer does
    sys.stdout.write(json.dumps(answer(sys.stdin.readline())) + "\n")


if __name__ == "__main__":
    main()
