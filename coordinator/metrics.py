"""What a coordinator tells Prometheus while it runs: `edge-coordinator start --metrics PORT`.

docs/metrics.md has all names. The coordinator's thread makes the figures, at most once a second (`Metrics.look`); the
thread of the HTTP server hands out those that were made last. No figure has a device in its labels: a fleet may be
large, its ids come from the network, and how good a device is belongs to its owner. Reports have devices one by one.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from edge_runtime import __version__
from edge_runtime.coordinator.run import Run
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.tally import STATES, state_of
from edge_runtime.errors import ConfigError

try:
    import prometheus_client as prometheus
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as missing:
    raise ConfigError("--metrics needs prometheus-client; run: pip install 'edge-runtime[metrics]'") from missing

_PREFIX = "edge_coordinator_"
_EVERY_S = 1.0
_ROUND_S = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Upper ends of the histogram of how long rounds take."""
_ACCURACIES = ("shared", "personal-before", "personal")
Samples = Mapping[tuple[str, ...], float]


class Metrics(Collector):
    """The figures of one process, whichever run it is at."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._clock, self._due_s, self._since_s = clock, 0.0, 0.0
        self._run, self._round, self._closed = "", 0, 0
        self._made: tuple[Metric, ...] = ()
        name = f"{_PREFIX}round_duration_seconds"
        self._durations = prometheus.Histogram(name, "How long rounds took.", buckets=_ROUND_S, registry=self.registry)
        self.registry.register(self)
        prometheus.ProcessCollector(registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        """Give the figures that were made last; on any thread."""
        return self._made

    def look(self, run: Run, coordinator: Coordinator) -> None:
        """Note what rounds were closed, and make the figures anew if they are old; on the coordinator's thread."""
        now_s, number = self._clock(), coordinator.core.standing[0]
        if coordinator.core.plan.run != self._run:
            self._run, self._round, self._since_s, self._due_s = coordinator.core.plan.run, number, now_s, 0.0
        for _ in range(self._round, number):
            self._durations.observe((now_s - self._since_s) / (number - self._round))
            self._closed += 1
        if number != self._round:
            self._round, self._since_s, self._due_s = number, now_s, 0.0
        if now_s >= self._due_s:
            self._due_s = now_s + _EVERY_S
            self._made = (_counter("rounds", "Rounds that were closed.", self._closed), *_figures(run, coordinator))


def _figures(run: Run, coordinator: Coordinator) -> Iterator[Metric]:
    settings, tally, core = run.config, coordinator.tally, coordinator.core
    number, answered, asked = core.standing
    about = {"version": __version__, "algorithm": settings.algorithm, "model": settings.model, "run": core.plan.run}
    info = GaugeMetricFamily(f"{_PREFIX}run_info", "The run that this process is at.", labels=list(about))
    info.add_metric(list(about.values()), 1.0)
    yield info
    yield _gauge("round", "The open round, from 0.", {(): number})
    yield _gauge("rounds_planned", "Rounds that were asked for.", {(): settings.rounds})
    yield _gauge("round_updates", "Updates of the open round.", {("asked",): asked, ("taken",): answered}, "state")
    yield _counter("updates_accepted", "Updates that counted, evaluations among them.", tally.accepted)
    yield _counters("updates_rejected", "Updates that were thrown out.", tally.rejected, "reason")
    yield _counters("messages_dropped", "Messages that were not taken.", _dropped(coordinator), "reason")
    yield _counters("received_messages", "Messages of devices that were taken.", tally.received, "kind")
    yield _counters("received_bytes", "Their bytes, seals included.", tally.received_bytes, "kind")
    yield _counters("sent_messages", "Messages to devices.", tally.sent, "kind")
    yield _counters("sent_bytes", "Their bytes, seals included.", tally.sent_bytes, "kind")
    traffic = tally.traffic()
    both = {"up": traffic.up_bytes, "down": traffic.down_bytes}
    yield _counters("socket_bytes", "Bytes on the coordinator's socket; up: to the broker.", both, "direction")
    yield from _fleet(coordinator)


def _fleet(coordinator: Coordinator) -> Iterator[Metric]:
    core, latest = coordinator.core, coordinator.latest.values()
    states = Counter(state_of(core, device) for device in core.progress.known | core.online)
    yield _gauge("devices_online", "Devices that are here.", {(): len(core.online)})
    yield _gauge("devices", "Devices by what they are at.", _by_name({name: states[name] for name in STATES}), "state")
    yield _gauge("devices_unfit", "Devices that get no task: it does not fit them.", {(): len(coordinator.unfit)})
    found: dict[tuple[str, ...], float] = {}
    for name in _ACCURACIES:
        known = [figures[f"accuracy-{name}"] for figures in latest if f"accuracy-{name}" in figures]
        found |= {(name, which): value for which, value in _statistics(known).items()}
    what = "Accuracy on the devices' own data, of each device's latest update (0 to 1)."
    yield _gauge("accuracy_ratio", what, found, "model", "statistic")
    staleness = _statistics([figures["staleness"] for figures in latest if "staleness" in figures])
    what = "Other updates between a task and its own, of each device's latest update; asynchronous runs."
    yield _gauge("update_staleness", what, _by_name(staleness), "statistic")
    peaks = [peak for figures in latest if (peak := _peak(figures))]
    what = "Highest memory of a device's agent and trainer together, of each device's latest update."
    yield _gauge("device_memory_bytes", what, _by_name(_statistics(peaks)), "statistic")


def _by_name(values: Mapping[str, float]) -> Samples:
    return {(name,): value for name, value in values.items()}


def _peak(figures: Mapping[str, float]) -> float:
    return figures.get("agent-peak-rss-bytes", 0.0) + figures.get("trainer-peak-rss-bytes", 0.0)


def _statistics(values: list[float]) -> dict[str, float]:
    """Give mean, quantiles and largest; nothing of nothing."""
    if not values:
        return {}
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return {"mean": float(np.mean(values)), "p10": low, "p50": middle, "p90": high, "max": max(values)}


def _dropped(coordinator: Coordinator) -> dict[str, int]:
    """Count by reason, over all devices; what the queue had no room for is one more."""
    found = Counter({"queue full": coordinator.tally.lost})
    for reasons in coordinator.dropped.counts.values():
        found.update(reasons)
    return found


def _gauge(name: str, what: str, values: Samples, *labels: str) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}{name}", what, labels=labels)
    for which, value in values.items():
        family.add_metric(which, value)
    return family


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_PREFIX}{name}", what, value=value)


def _counters(name: str, what: str, values: Mapping[str, float], label: str) -> Metric:
    family = CounterMetricFamily(f"{_PREFIX}{name}", what, labels=[label])
    for which, value in sorted(values.items()):
        family.add_metric([which], value)
    return family


@contextlib.contextmanager
def serving(address: str) -> Iterator[Metrics]:
    """Serve the figures over HTTP, under /metrics, while the context lasts.

    Args:
        address: PORT, of this machine alone, or HOST:PORT.

    Raises:
        ConfigError: that is none, or somebody has it.
    """
    host, port = _parse(address)
    metrics = Metrics()
    try:
        server, thread = prometheus.start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise ConfigError(f"--metrics {address}: nobody can listen there: {error.strerror or error}") from error
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _parse(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (port.isdecimal() and 0 < int(port) < 65_536) or (colon and not host):
        raise ConfigError(f"--metrics {address}: give PORT, or HOST:PORT, as in 9464")
    return host.strip("[]") or "127.0.0.1", int(port)
