"""From the figures that devices sent along with their updates to the rows of a report."""

from collections.abc import Mapping, Sequence

from edge_runtime.coordinator.journal import Accepted
from edge_runtime.coordinator.report import Row
from edge_runtime.coordinator.run import RunConfig

_HARDWARE = {"energy-j": (0, 1e9), "temperature-c": (-100, 300), "throttled": (0, 1), "battery": (0, 1)}
"""What sensors may tell of a task, and within which limits hardware does; 1e9 J are a kilowatt for eleven days."""


def rows(accepted: Sequence[Accepted], config: RunConfig) -> list[Row]:
    """Make one row per update: per device and round.

    An asynchronous run has no rounds: there, as many updates as there are devices count as one, in the order in which
    they were accepted. A fast device may have several in one.

    A device counts the bytes on its socket from the run's first task on and reports the count with each offer, before
    the upload. So what came down for a round is the difference to the round before, and what went up (with everything
    said until the next offer) the difference to the round after; the last round of all has none.
    """
    made = []
    by_device: dict[str, list[Accepted]] = {}
    for item in _in_rounds(accepted, config):
        by_device.setdefault(item.device, []).append(item)
    for items in by_device.values():
        for before, item, after in zip([None, *items], items, [*items[1:], None], strict=False):
            made.append(_row(before, item, after))
    return made


def _in_rounds(accepted: Sequence[Accepted], config: RunConfig) -> list[Accepted]:
    """Put updates in the order of each device's own."""
    ordered = sorted(accepted, key=lambda item: item.number)
    if config.habit == "asynchronous":
        devices = config.devices
        scores = sum(item.phase == "score" for item in ordered)  # the first ones: they come before all training
        ordered = [
            item._replace(round=min(max(0, place - scores) // devices, config.rounds))
            for place, item in enumerate(ordered)
        ]
    return sorted(ordered, key=lambda item: (item.device, item.round))


def _row(before: Accepted | None, item: Accepted, after: Accepted | None) -> Row:
    figures = item.metrics
    return Row(
        round=item.round,
        device=item.device,
        phase="train" if item.phase == "peers" else item.phase,
        payload_bytes_up=_whole(figures, "payload-bytes-up") or 0,
        payload_bytes_down=_whole(figures, "payload-bytes-down") or 0,
        socket_bytes_up=_difference(item, after, "socket-bytes-up") if after else None,
        socket_bytes_down=_difference(before, item, "socket-bytes-down"),
        idle_rss_bytes=_whole(figures, "agent-idle-rss-bytes"),
        agent_peak_rss_bytes=_whole(figures, "agent-peak-rss-bytes"),
        trainer_peak_rss_bytes=_whole(figures, "trainer-peak-rss-bytes"),
        cpu_s=figures.get("cpu-s"),
        wall_s=figures.get("wall-s"),
        accuracy_shared=figures.get("accuracy-shared"),
        accuracy_personal_before=figures.get("accuracy-personal-before"),
        accuracy_personal=figures.get("accuracy-personal"),
        loss=figures.get("loss"),
        staleness=figures.get("staleness"),
        deployed_bytes=_whole(figures, "deployed-bytes"),
        train_samples=_whole(figures, "train-samples") or 0,
        test_samples=_whole(figures, "test-samples") or 0,
        **hardware(figures),
    )


def hardware(figures: Mapping[str, float]) -> dict[str, float]:
    """Give what a device says of its hardware, by the names of a row; not what no hardware says."""
    told = [(name, figures[name], limits) for name, limits in _HARDWARE.items() if name in figures]
    return {name.replace("-", "_"): value for name, value, (least, most) in told if least <= value <= most}


def _whole(figures: dict[str, float], name: str) -> int | None:
    return int(figures[name]) if name in figures else None


def _difference(before: Accepted | None, after: Accepted, name: str) -> int | None:
    """Count between two offers; after a restart of the agent, which counts from zero again, since that restart."""
    now, then = _whole(after.metrics, name), _whole(before.metrics, name) if before else 0
    if now is None:
        return None
    return now - then if then is not None and now >= then else now
