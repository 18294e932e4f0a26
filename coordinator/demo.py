"""The commands that run something: the demo with all its processes, a simulation, a run over somebody's broker."""

import dataclasses
import fnmatch
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime import algorithm, config, data
from edge_runtime.compute import Compute
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import fleet, live, report, session
from edge_runtime.coordinator.gate import Gate
from edge_runtime.coordinator.run import Run, RunConfig, describe, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.session import Outcome
from edge_runtime.coordinator.simulate import Scene
from edge_runtime.coordinator.tally import state_of
from edge_runtime.data import DataConfig
from edge_runtime.datasets import folder as folder_data
from edge_runtime.link import Link
from edge_runtime.seed_set import SeedSet
from edge_runtime.transport import Faults

log = logging.getLogger(__name__)

_PICTURE_S = 0.1
Tables = dict[str, dict[str, Any]]
Reported = tuple[dict[str, Any], Path]
Look = Callable[[Run, Coordinator], None]
"""Called a few times a second with the run and who coordinates it; must not change either."""


def nobody(run: Run, coordinator: Coordinator) -> None:
    """Look at nothing."""


def demo(tables: Tables, runs: Path, broker: str, warm: bool, baseline: bool, look: Look = nobody) -> Reported:
    """Run everything on this machine: a broker, one agent per device of the data set, and the runs.

    Raises:
        EdgeError: of whatever cannot be.
    """
    settings, names = _data(tables)
    tables["run"]["devices"] = len(names)
    _check_variants(tables, names)
    plans = _plans(tables, baseline)
    folder = _folder(runs)
    outcomes = []
    with (
        brokers.start(broker, folder=folder / "broker") as running,
        fleet.agents(names, running, [*_flags(settings), *_allowed(plans[0])], folder, warm) as processes,
    ):
        connection = Link(running.host, running.port, "_coordinator")
        for run in plans:

            def alive() -> None:
                running.check()
                fleet.check(processes, names, folder)

            with _watching(run, names, alive, look) as watch:
                where = folder / run.config.algorithm
                outcomes.append(session.over_mqtt(run, connection, where, running.kind, watch))
    return _report(outcomes, names, {"data": config.table(settings)}, folder, runs)


def simulated(tables: Tables, runs: Path, faults: Faults, compute: Compute, baseline: bool) -> Reported:
    """Play the runs in this process.

    Raises:
        EdgeError: of whatever cannot be.
    """
    settings, names = _data(tables)
    tables["run"]["devices"] = len(names)
    _check_variants(tables, names)
    plans = _plans(tables, baseline)
    folder = _folder(runs)
    outcomes = []
    for run in plans:
        factories = (run.config.model,)
        scene = Scene(settings, names, config.cache_folder(), compute, factories, faults)
        with _watching(run, names, lambda: None) as watch:
            outcomes.append(session.in_memory(run, scene, folder / run.config.algorithm, watch))
    return _report(outcomes, names, {"data": config.table(settings)}, folder, runs)


@dataclass(frozen=True)
class Beside:
    """What there is beside a run over a broker."""

    beat: session.Beat
    look: Look = nobody
    broker: str = "external"
    """Its kind, if it is ours: what the report calls it."""


def coordinate(
    tables: Tables, connection: Link, folder: Path, runs: Path, gate: Gate | None, beside: Beside
) -> Reported:
    """Coordinate one run over a broker, or go on with it; with a `gate` messages are sealed.

    Raises:
        EdgeError: of whatever cannot be.
    """
    (run,) = _plans(tables, baseline=False)
    folder.mkdir(parents=True, exist_ok=True)
    return _coordinate(run, connection, folder / run.config.algorithm, runs, gate, beside)


def go_on(
    run: Run, connection: Link, folder: Path, gate: Gate | None, beat: session.Beat, look: Look = nobody
) -> Reported:
    """Go on with the run that `folder` holds.

    Raises:
        EdgeError: of whatever cannot be.
    """
    return _coordinate(run, connection, folder, folder.parent.parent, gate, Beside(beat, look))


def _coordinate(run: Run, connection: Link, folder: Path, runs: Path, gate: Gate | None, beside: Beside) -> Reported:
    with _watching(run, [], lambda: None, beside.look) as watch:
        outcome = session.over_mqtt(run, connection, folder, beside.broker, watch, gate, beside.beat)
    return _report([outcome], [], {}, folder.parent, runs)


def _plans(tables: Tables, baseline: bool) -> list[Run]:
    settings = config.build(RunConfig, tables["run"], "run")
    run = prepare(settings, tables["algorithm"], tables.get("variant"), _seeds(settings, tables["data"]))
    wanted = baseline and run.config.algorithm != "fedavg"
    return [run, session.baseline_of(run, tables["baseline"])] if wanted else [run]


def _check_variants(tables: Tables, names: list[str]) -> None:
    """Say which pattern fits none of the devices, which are known here."""
    for name, variant in tables.get("variant", {}).items():
        pattern = variant.get("devices") if isinstance(variant, dict) else None
        if isinstance(pattern, str) and not fnmatch.filter(names, pattern):
            log.warning("variant.%s: devices %r fits none of %s, ...", name, pattern, ", ".join(names[:3]))


def _seeds(run: RunConfig, table: dict[str, Any]) -> SeedSet | None:
    """Get the seed set that the devices of a run are to know."""
    if run.seed_file:
        return folder_data.seed_set(Path(run.seed_file))
    if not run.seed_samples:
        return None
    return data.seed_set(config.build(DataConfig, table, "data"), run.seed_samples, config.cache_folder())


def _data(tables: Tables) -> tuple[DataConfig, list[str]]:
    settings = config.build(DataConfig, tables["data"], "data")
    names = data.device_names(settings)
    data.load(dataclasses.replace(settings, part=0), config.cache_folder())  # once, before twenty processes ask for it
    return settings, names


def _flags(settings: DataConfig) -> list[str]:
    flags = []
    for key, value in config.table(settings).items():
        if key not in ("name", "part"):
            flags += [f"--{'data-seed' if key == 'seed' else key}", str(value)]
    return ["--data", settings.name, *flags]


def _allowed(run: Run) -> list[str]:
    """Let agents of ours import what whoever started them wants to run."""
    flags = ["--allow-model", run.config.model] if ":" in run.config.model and not run.config.input else []
    return [*flags, *(["--allow-algorithm", run.parts.name] if algorithm.is_own(run.parts.name) else [])]


def _folder(runs: Path) -> Path:
    folder = runs / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=False)
    return folder


@contextmanager
def _watching(
    run: Run, names: list[str], alive: Callable[[], None], look: Look = nobody
) -> Iterator[Callable[[Coordinator], None]]:
    """Show a run while it goes on, and raise as soon as a process that it needs has died."""
    with live.Live() as screen:
        started_s = time.monotonic()
        shown: tuple[object, ...] = ()
        due_s = started_s

        def watch(coordinator: Coordinator) -> None:
            nonlocal shown, due_s
            alive()
            look(run, coordinator)
            number, answered, asked = coordinator.core.standing
            where = number, coordinator.core.progress.phase, answered > 0, asked > 0
            now_s = time.monotonic()
            if where != shown or now_s >= due_s:  # a picture of a large fleet takes longer than most events
                shown, due_s = where, now_s + _PICTURE_S
                screen.show(status(run, coordinator, names, now_s - started_s))

        yield watch


def status(run: Run, coordinator: Coordinator, names: list[str], elapsed_s: float) -> live.Status:
    """Take a picture of a run for the live table."""
    progress = coordinator.core.progress
    round_, answered, asked = coordinator.core.standing
    return live.Status(
        run.config.algorithm,
        round_,
        run.config.rounds,
        progress.phase,
        answered,
        asked,
        elapsed_s,
        tuple(_device_status(coordinator, device) for device in names or sorted(progress.known)),
        coordinator.dropped.harmful(),
    )


def _device_status(coordinator: Coordinator, device: str) -> live.DeviceStatus:
    state = state_of(coordinator.core, device)
    if device not in coordinator.latest:
        return live.DeviceStatus(device, state)
    figures = coordinator.latest[device]
    peak = figures.get("agent-peak-rss-bytes", 0.0) + figures.get("trainer-peak-rss-bytes", 0.0)
    return live.DeviceStatus(
        device,
        state,
        figures.get("accuracy-personal-before"),
        figures.get("accuracy-personal"),
        figures.get("payload-bytes-up"),
        figures.get("payload-bytes-down"),
        peak or None,
    )


def _report(outcomes: list[Outcome], names: list[str], extra: dict[str, Any], folder: Path, runs: Path) -> Reported:
    """Report the first outcome with the others as baselines beside it, and let `runs/latest` point at it."""
    reports: list[report.Report] = []
    for outcome in reversed(outcomes):
        run = outcome.run
        info = report.RunInfo(
            run=outcome.run_id,
            algorithm=run.config.algorithm,
            rounds=run.config.rounds,
            model=run.config.model,
            parameters=len(run.initial),
            seed=run.config.seed,
            configuration={**describe(run), **extra},
            broker=outcome.broker,
            started=outcome.started,
            wall_s=outcome.wall_s,
            devices=tuple(names),
            choices=outcome.choices,
            rejected=tuple(outcome.rejected),
            privacy=outcome.privacy,
            dropped=outcome.dropped,
            profiles=outcome.profiles,
        )
        reports.append(report.build(info, outcome.rows, tuple(reports)))
    report.write(folder, reports[-1])
    _publish(folder, runs)
    return reports[-1], folder


def _publish(folder: Path, runs: Path) -> None:
    if folder.parent != runs:
        return  # a folder of the user's own choice
    try:
        report.publish(folder)
    except OSError as error:
        log.warning("%s cannot point at the report: %s", runs / "latest", error)
