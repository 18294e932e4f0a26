"""The protocol simulated over very many seeds (R1): a network that loses, doubles and reorders, crashes everywhere.

`tests/coordinator/test_simulation.py` says what is simulated. A seed that ends otherwise than the undisturbed run, or
does not end, is named here and repeated there with SIM_SEED.
"""

import functools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tests.chaos.scorecard import Figure, Row, Scale
from tests.coordinator import test_simulation as simulation

SEEDS = 100_000
_AT_ONCE = 250
_PATIENCE = 500
"""Seeds within which a planted bug must show."""
_BUGS: dict[str, dict[str, Any]] = {
    "a pending update is overwritten": {"core": simulation.ForgetsPending},
    "an update is counted twice": {"journal": simulation.CountsTwice},
}


def wrong(seeds: range) -> list[int]:
    """List those of the seeds whose run does not end as the undisturbed one."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return [seed for seed in seeds if _differs(seed)]
    finally:
        logging.disable(before)


def found_after(bug: dict[str, Any]) -> int | None:
    """Count the seeds until a planted bug shows; None: it does not."""
    return next((seed + 1 for seed in range(_PATIENCE) if _differs(seed, **bug)), None)


def _differs(seed: int, **bug: Any) -> bool:
    try:
        return simulation.play(seed, **bug) != _undisturbed()
    except Exception:  # noqa: BLE001  # whatever a fault breaks is a finding
        return True


@functools.cache
def _undisturbed() -> tuple[float, ...]:
    return simulation.play(0, simulation.Faults(), crash=0.0)


def _r1(scale: Scale) -> Figure:
    number = scale.of(SEEDS)
    first = scale.seed * SEEDS
    bad = sorted(seed for part in _spread(wrong, _parts(first, number)) for seed in part)
    shown = {bug: found_after(how) for bug, how in _BUGS.items()}
    shown["updates absorbed again in another order"] = next(
        (n + 1 for n in range(_PATIENCE) if simulation.wrong_without_rounds(n, 2, simulation.ForgetsOrder)), None
    )
    text = f"{len(bad)} of {number} seeds wrong or stuck; planted bugs found after {list(shown.values())} seeds"
    met = not bad and None not in shown.values()
    return Figure(text, met, {"seeds": number, "first": first, "wrong": bad[:100], "planted": shown})


def _parts(first: int, number: int) -> list[range]:
    end = first + number
    return [range(start, min(start + _AT_ONCE, end)) for start in range(first, end, _AT_ONCE)]


def _spread(work: Callable[[range], list[int]], parts: list[range]) -> Iterator[list[int]]:
    """Do the parts on all cores; few of them here, which a test can follow."""
    if len(parts) == 1:
        yield work(parts[0])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        yield from pool.map(work, parts)


ROWS = [
    Row(
        "R1",
        "simulated seeds that end wrong or stuck: 15 % lost, 10 % doubled, reordered, crashes at every boundary",
        "0 of 100,000; planted bugs are found",
        _r1,
    )
]
