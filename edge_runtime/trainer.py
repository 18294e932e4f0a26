"""The trainer: does one task, in a process of its own, so that the memory goes back to the system afterwards.

`work` is the whole of it, without files or processes: bytes in, bytes out, the same for the same input. The child
process (`python -m edge_runtime.trainer`) reads one JSON object per line on stdin, and answers each with a line of JSON
and the bytes it announces. It serves one task and exits; kept warm, it serves until its stdin closes.
"""

import dataclasses
import hashlib
import importlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import (
    accounts,
    algorithm,
    bundle,
    coding,
    config,
    costs,
    data,
    importance,
    inference,
    logs,
    models,
    narrow,
    needs,
    peers,
    personal,
    seed_set,
    setup,
    wire,
)
from edge_runtime.accounts import Account
from edge_runtime.algorithm import Deploys, Fitted, Model, OwnModel, Server, SparseClient, State, Weighs
from edge_runtime.compression import codec, submodel
from edge_runtime.compute import DEFAULT, Compute, installed, usual
from edge_runtime.devices import meter
from edge_runtime.devices.profile import profile
from edge_runtime.errors import ConfigError, DecodeError, DeviceError
from edge_runtime.grid import Grid, Initial
from edge_runtime.message import Blob, Task
from edge_runtime.processes import give_back_freed_memory
from edge_runtime.speed import reference_ms
from edge_runtime.store import FileStore, Store
from edge_runtime.trainer_process import Outcome
from edge_runtime.tree import Flat, Layout
from edge_runtime.wire import Uplink
from edge_runtime.workshop import Workshop

log = logging.getLogger(__name__)

_ROUNDING = 1
"""Added to a task's seed for what stochastic rounding draws."""


@dataclass(frozen=True)
class Job:
    """What a device brings to a task: its data and its way of computing."""

    device: str
    data: data.DataConfig
    cache: str
    compute: Compute = DEFAULT
    factories: tuple[str, ...] = ()
    """Models `package.module:factory` that this device is willing to import; built-in models need none."""
    algorithms: tuple[str, ...] = ()
    """Algorithms `package.module` that it is willing to import; those that are built in need none."""
    up: str = ""
    """How this device would have its updates coded, if the run's way is dearer."""


def work(job: Job, task: Task, store: Store, workshop: Workshop | None = None, keep: bool = False) -> Outcome:
    """Do a task: decode, train or evaluate, measure, encode. Of `store` only what is in use is in memory.

    `workshop` may have models and data at hand; without it they are loaded for this task. `keep`: give the personal
    model too.
    """
    started_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        result = _work(job, task, store, workshop or Workshop(), keep)
    except (ConfigError, DeviceError, DecodeError, OSError) as error:
        return Outcome(reason=str(error))
    times = {"wall-s": time.perf_counter() - started_s, "cpu-s": time.process_time() - cpu_s}
    return dataclasses.replace(result, metrics={**result.metrics, **times})


def _work(job: Job, task: Task, store: Store, workshop: Workshop, keep: bool) -> Outcome:
    run = setup.decode(store.read(task.setup.digest))
    split = workshop.split(job.data, Path(job.cache))
    parts = _algorithm(job, run.algorithm)
    settings = config.build(parts.Config, run.config, "algorithm")
    shared_model, name = _load(job, run.model, workshop), (run.own or run.model).name
    _check_private(run, algorithm.private_names(settings, shared_model.layout), task.phase)
    model = _own(job, run, shared_model, workshop) if parts.Client.own_model else shared_model
    received = store.read(task.down.digest)
    if task.phase == "score":
        return _score(job, run.model, shared_model, received, split)
    account, state = _kept(store.state(task.base), model, shared_model.layout)
    client = parts.Client(settings, model, state)
    support = client.support if isinstance(client, SparseClient) else lambda down: None
    initial = _initial(run.model, run.seed) if run.model.drawn else None
    reading = _Reading(shared_model.layout, algorithm.wire_values(settings), support, account.held, initial)
    shared, down, held, faults = _unpack(job.device, task, received, run, parts, settings, reading)
    seeds = seed_set.decode(run.seed_set) if run.seed_set else None
    seed = _seed(run.seed, job.device, task.round)
    batches = data.SeededBatches(split.x_train, split.y_train, seed, split.class_names, seeds)
    before = client.personal(down)
    batch, density = needs.batch_of(settings), needs.density_of(parts, settings)
    _check_room(job.compute, run.own or run.model, before.model, batch, density)
    _check_fit(name, before, split)
    shared = client.shared(down) if shared is None else shared
    metrics = {"train-samples": float(len(split.y_train)), "test-samples": float(len(split.y_test))}
    if shared is not None:
        metrics["accuracy-shared"] = inference.accuracy(Fitted(shared_model, shared), split)
    metrics["accuracy-personal-before"] = inference.accuracy(before, split)
    del before, shared  # their memory is for training
    up = client.round(down, batches)
    after, codes = client.personal(None), client.deployed() if isinstance(client, Deploys) else None
    metrics["accuracy-personal"] = inference.accuracy(after, split)
    metrics |= {"deployed-bytes": float(len(codes.data))} if codes else {}
    origin = inference.origin(run, task, job.device, split, metrics["accuracy-personal"])
    collects = run.collect and task.phase == "evaluate"
    card = run.own or run.model
    own = personal.encode(origin, personal.bare(card), after, codes) if keep or collects else b""
    del after
    if keep:
        served = inference.accuracy_served(store.served(), origin, split, job.compute, workshop)
        metrics |= {} if served is None else {"accuracy-served": served}
    if task.phase == "evaluate":
        return Outcome(own if collects else b"", metrics=metrics, personal=own)
    uplink = _uplink(run, job, seed, algorithm.wire_columns(settings))
    sent, debt = wire.encode_up(up, shared_model.layout, run.private, uplink, support(None), account.debt)
    left = accounts.encode(Account(held, debt))
    return Outcome(sent, codec.encode_state({**client.state(), **left}), metrics, faults=faults, personal=own)


def _kept(data: bytes | None, model: Model, shared: Layout) -> tuple[Account, State | None]:
    """Read what this device kept: of the wire, and its algorithm's state."""
    if data is None:
        return Account(), None
    return accounts.decode(codec.decode_state(data, 4 * (model.layout.size + shared.size)), shared)


def _uplink(run: setup.Setup, job: Job, seed: list[int], columns: int) -> Uplink:
    """Choose how an update travels: as the run says, or as this device asks if that is cheaper."""
    chosen = coding.parse(run.up, "setup: up")
    if job.up:
        chosen = coding.cheaper(chosen, coding.parse(job.up, "--up"))
    rng = np.random.default_rng([*seed, _ROUNDING]) if run.rounding == "stochastic" else None
    return Uplink(chosen, run.error_feedback, rng, columns)


def _check_private(run: setup.Setup, found: tuple[str, ...], phase: str) -> None:
    """Refuse a run that would keep other tensors private than its settings say, or ask for them in another way."""
    if found and (run.collect or phase == "score"):
        asked = "its gradients' size" if phase == "score" else "the personal model, which holds it"
        raise DeviceError(f"the run keeps {found[0]} private and asks for {asked}; nothing was sent")
    if differing := set(run.private) ^ set(found):
        names = ", ".join(sorted(differing))
        raise DeviceError(f"the run's settings and its set-up differ in whether {names} is private")


def _algorithm(job: Job, name: str) -> algorithm.Algorithm:
    """Load the algorithm of a run; code that the device's owner has not named is never imported."""
    if algorithm.is_own(name) and name not in job.algorithms:
        raise DeviceError(
            f"algorithm {name!r} is code that this device does not allow: start it with --allow-algorithm"
        )
    return algorithm.load(name)


def _load(job: Job, card: setup.ModelCard, workshop: Workshop) -> Model:
    """Load a model, which must have the tensors that the coordinator says."""
    if ":" in card.name and not card.bundle and card.name not in job.factories:
        raise DeviceError(
            f"model {card.name!r} is code that this device does not allow: start it with --allow-model, or give the "
            "run an input, so that devices get graphs of it"
        )
    if card.cut and narrow.find(card.name, card.cut).layout != card.layout:
        raise DecodeError(f"setup: the part of {card.name!r} that it names has other tensors than it says")
    model = workshop.model(job.compute, card)
    if model.layout != card.layout:
        raise DeviceError(
            f"model {card.name!r} has other tensors on this device than on the coordinator: "
            f"{_difference(model.layout, card.layout)}; install the same version of it on both"
        )
    return model


def _initial(card: setup.ModelCard, seed: int) -> Initial:
    """Draw what a built-in model begins as, at some places of what this device has of it."""
    spec = models.find(card.name)
    if not card.cut:
        return partial(models.initial, spec, seed)
    bits = submodel.decode(card.cut, narrow.structure(spec)).bits
    return lambda held: models.initial(spec, seed, bits if held is None else submodel.within(bits, held))


def _difference(here: Layout, there: Layout) -> str:
    """Name the first tensor that differs."""
    pairs = (dict(zip(layout.names, layout.shapes, strict=True)) for layout in (here, there))
    ours, theirs = pairs
    name = next((name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name)), None)
    if name is None:
        return "the same in another order"
    return f"{name} {ours.get(name, 'missing')} here, {theirs.get(name, 'missing')} there"


def _own(job: Job, run: setup.Setup, shared: Model, workshop: Workshop) -> OwnModel:
    """Make the device's own model: its initial values are its own too."""
    card = run.own or run.model
    model = shared if run.own is None else _load(job, card, workshop)
    if card.bundle and not card.cut:
        initial = bundle.unpack(card.bundle).initial
        if initial is None:
            raise DeviceError(f"model {card.name!r} came without initial parameters")
    else:
        initial = models.initial(narrow.find(card.name, card.cut), _seed(run.seed, job.device, -1)[0])
    return OwnModel(model.layout, model.oracle, shared, initial)


def _score(job: Job, card: setup.ModelCard, model: Model, received: bytes, split: data.Split) -> Outcome:
    """Say what every unit of the whole model's channels is worth to this device."""
    structure, values = importance.decode_task(received, model.layout)
    _check_room(job.compute, card, model, importance.BATCH, 1.0)
    _check_fit(card.name, Fitted(model, values), split)
    scores = importance.taylor(model, values, split)
    return Outcome(importance.encode_scores(structure, scores), metrics={"train-samples": float(len(split.y_train))})


def _check_room(compute: Compute, card: setup.ModelCard, model: Model, batch: int, density: float) -> None:
    """Refuse what would not fit, before the system ends this process for it."""
    room_bytes = _room_bytes(compute)
    known = None if card.bundle or ":" in card.name else costs.read(bundle.built_in_folder(card.name))
    if room_bytes is None or (known is None and not isinstance(model.oracle, Weighs)):
        return
    if isinstance(model.oracle, Weighs):
        pass_bytes = model.oracle.pass_bytes(batch)
    else:
        held = bundle.built_in(card.name).memory
        pass_bytes = held.fixed + batch * held.per_sample
    own, values = isinstance(model, OwnModel), card.layout.size
    needed = needs.memory_bytes(known, pass_bytes, usual(compute), density, batch, values, own)
    if needed > room_bytes:
        raise DeviceError(
            f"model {card.name!r} needs up to {math.ceil(needed / 1e6)} MB for batches of {batch}, and "
            f"{room_bytes // 1_000_000} MB are free here: lower batch-size or density, or take a smaller model"
        )


def _room_bytes(compute: Compute) -> int | None:
    """Say how much memory there is beside what this process has; None: the system does not tell."""
    found = profile()
    limit_bytes = found.ram_limit_bytes and max(1, found.ram_limit_bytes - meter.rss_bytes() - _agent_rss_bytes())
    return min(filter(None, (compute.memory_mb * 1_000_000, found.free_ram_bytes, limit_bytes)), default=None)


def _agent_rss_bytes() -> int:
    """Read the memory of the process that started this one, which has the same limit."""
    try:
        return meter.memory(os.getppid()).rss_bytes
    except (OSError, ValueError):  # it has gone, or is not for us to see
        return 0


def _check_fit(name: str, fitted: Fitted, split: data.Split) -> None:
    """Evaluate one sample: does the model take this device's data, and can it name all its classes?"""
    x = split.x_train[:1]
    try:
        outputs, _ = fitted.model.oracle.vjp(fitted.model.layout.views(fitted.values), x)
    except DeviceError:
        raise
    except Exception as error:  # of a framework or of the user's own module: whatever they make of a wrong shape
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(f"model {name!r} does not take samples of shape {x.shape[1:]}: {reason}") from error
    if outputs.ndim != 2 or outputs.shape[1] < split.classes:
        raise DeviceError(
            f"model {name!r} gives {outputs.shape[1:]} values a sample, too few for {split.classes} classes"
        )


@dataclass(frozen=True)
class _Reading:
    """What it takes to read a message of the run."""

    layout: Layout
    most: int
    support: wire.Support
    held: Grid | None
    initial: Initial

    def down(self, data: bytes, kind: type[Any]) -> tuple[Any, Grid | None]:
        return wire.decode_down(data, kind, self.layout, self.most, self.support, self.held, self.initial)


def _unpack(
    device: str,
    task: Task,
    received: bytes,
    run: setup.Setup,
    parts: algorithm.Algorithm,
    settings: Any,
    reading: _Reading,
) -> tuple[Flat | None, Any, Grid | None, dict[str, str]]:
    """Give the whole shared model where it has come, the Down, its grid, and why Ups of peers made no sense."""
    layout = reading.layout
    if task.phase == "peers":
        server = parts.Server(settings, layout, np.zeros(layout.size, np.float32), {}, run.seed)
        ups = peers.unpack(received)
        down, faults = _listen(
            server, device, task, ups, lambda up: wire.decode_up(up, parts.Up, layout, run.private, reading.most)
        )
        return None, down, None, faults
    if task.phase == "train":
        return None, *reading.down(received, parts.Down), {}
    packed, shared = wire.decode_evaluation(received, layout, reading.initial)
    return shared, *reading.down(packed, parts.Down), {}


def _listen(
    server: Server, device: str, task: Task, ups: dict[str, bytes], decode: Callable[[bytes], Any]
) -> tuple[Any, dict[str, str]]:
    """Make the Down of a run among equals from what the neighbours said in the round before."""
    faults = {}
    while server.round + 1 < task.round:
        server.close()
    for peer, up in sorted(ups.items()):
        try:
            server.absorb(peer, decode(up))
        except DecodeError as error:
            faults[peer] = str(error)
    if task.round:
        server.close()
    return server.down(device, not task.base), faults


def _seed(seed: int, device: str, round_: int) -> list[int]:
    digest = hashlib.sha256(f"{seed}/{device}/{round_}".encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]


def serve(read_line: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
    """Answer one request per line until the lines end.

    A request is `{"job": ..., "task": ..., "store": ...}`, or without a task to only see whether the data loads.
    """
    while line := read_line():
        record = json.loads(line)
        job = _job(record["job"])
        result = _serve_task(job, record["task"], Path(record["store"])) if record["task"] else check(job)
        metrics = {**result.metrics, "trainer-peak-rss-bytes": float(meter.peak_rss_bytes())}
        head: dict[str, Any] = {"metrics": metrics, "reason": result.reason, "faults": result.faults}
        parts = {"payload": result.payload, "state": result.state, "personal": result.personal}
        head |= {name: len(part) for name, part in parts.items()}
        for part in (json.dumps(head).encode() + b"\n", *parts.values()):
            write(part)


def check(job: Job) -> Outcome:
    """See whether the device's data and its own algorithms load, what memory is left, and how fast this machine is."""
    try:
        split = data.load(job.data, Path(job.cache))
        for name in job.algorithms:
            algorithm.load(name)
    except (ConfigError, DeviceError) as error:
        return Outcome(reason=str(error))
    backend = usual(job.compute)
    if backend in installed():  # where it is not, a task will say how to install it
        importlib.import_module(f"edge_runtime.backends.{backend}")
    samples = {"train-samples": float(len(split.y_train)), "test-samples": float(len(split.y_test))}
    machine = {"room-bytes": float(_room_bytes(job.compute) or 0), "reference-ms": reference_ms()}
    return Outcome(metrics={**samples, **machine})


def _serve_task(job: Job, record: dict[str, Any], folder: Path) -> Outcome:
    task = Task(**{**record, "setup": Blob(**record["setup"]), "down": Blob(**record["down"])})
    return work(job, task, FileStore(folder, exclusive=False), keep=True)


def _job(record: dict[str, Any]) -> Job:
    settings = config.build(data.DataConfig, record["data"], "data")
    compute = config.build(Compute, record["compute"], "compute")
    allowed = {name: tuple(record[name]) for name in ("factories", "algorithms")}
    return Job(**{**record, "data": settings, "compute": compute, **allowed})


def main() -> None:
    """Serve on stdin and stdout."""

    def write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    logs.start("trainer", "json" if sys.argv[1:] == ["json"] else "text", "warning")
    give_back_freed_memory()
    serve(sys.stdin.buffer.readline, write)


if __name__ == "__main__":
    main()
