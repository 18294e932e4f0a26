"""Rows that are measured on real processes: broker, coordinator and agents, killed, stopped and cut off on schedule."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from edge_runtime.coordinator.broker import find_mosquitto
from edge_runtime.message import CHUNK_BYTES
from tests.chaos import links, schedule
from tests.chaos.scorecard import Figure, Row, Scale
from tests.chaos.trial import Plan, Verdict, faketime, trial
from tests.chaos.watch import slope

_BROKERS = ("mosquitto", "amqtt")
_WARM = 0.3
"""Part of its life after which what a process has of the system is taken to have settled."""
_LONG = 0.3
"""Part of the run that a process must have lived through to be counted."""


@functools.cache
def _run(plan: Plan, scale: Scale) -> Verdict:
    """Carry a plan out, once for all rows that ask for it."""
    return trial(plan, scale.folder)


def _fleet(scale: Scale, **settings: Any) -> Plan:
    """Plan 200 agents for 50 rounds, or a part of that."""
    settings = {"broker": "auto", **settings}
    return Plan(scale.of(200, 8), scale.of(50, 4), seed=scale.seed, **settings)


def _killed(scale: Scale, broker: str) -> Plan:
    return _fleet(scale, broker=broker, every_s=3.0, kinds=schedule.KILLS, heckle=20.0)


def _lossy(scale: Scale) -> Plan:
    return _fleet(scale, every_s=8.0, kinds=schedule.KILLS, loss=0.1)


def _brokers() -> Sequence[str]:
    return _BROKERS if find_mosquitto() else _BROKERS[1:]


def _same(calm: Verdict, other: Verdict) -> bool:
    return calm.right and other.right and calm.digest == other.digest and calm.clean and other.clean


def _told(verdict: Verdict) -> str:
    """Say what came of a disturbed run."""
    kills = sum(verdict.kills.values())
    text = f"{verdict.seconds:.0f} s, {kills} faults, {verdict.lost} lost, {verdict.twice} twice, "
    text += f"{verdict.orphans} orphans, {len(verdict.leaked)} leaked files"
    return text + (f", {len(verdict.falls)} ended by themselves ({verdict.falls[0]})" if verdict.falls else "")


def _facts(verdict: Verdict) -> dict[str, Any]:
    """Give what is worth keeping of a verdict."""
    facts = {name: getattr(verdict, name) for name in ("seconds", "digest", "kills", "lives", "falls", "retrained")}
    return {**facts, "leaked": verdict.leaked[:20], "folder": verdict.details.get("folder", "")}


def _r2(scale: Scale) -> Figure:
    said, met, details = [], True, {}
    for broker in _brokers():
        calm = _run(_fleet(scale, broker=broker), scale)
        harsh = _run(_killed(scale, broker), scale)
        equal = _same(calm, harsh)
        met &= equal
        said.append(
            f"{broker}: {'equal' if equal else 'NOT EQUAL'} in {_told(harsh)} (undisturbed {calm.seconds:.0f} s)"
        )
        details[broker] = {"undisturbed": _facts(calm), "disturbed": _facts(harsh)}
    return Figure("; ".join(said), met and len(said) == len(_BROKERS), details)


def _r3(scale: Scale) -> Figure:
    calm, harsh = _run(_fleet(scale), scale), _run(_lossy(scale), scale)
    equal = _same(calm, harsh)
    how = "nft" if links.can_lose() else "a proxy that stalls"
    text = f"{'equal' if equal else 'NOT EQUAL'} in {_told(harsh)} (loss by {how})"
    return Figure(text, equal and harsh.seconds <= 300, {"undisturbed": _facts(calm), "disturbed": _facts(harsh)})


def _r4(scale: Scale) -> Figure:
    kind = _brokers()[0]
    calm, killed, lossy = (
        _run(plan, scale) for plan in (_fleet(scale, broker=kind), _killed(scale, kind), _lossy(scale))
    )
    times = killed.seconds / calm.seconds, lossy.seconds / calm.seconds
    text = f"{times[0]:.1f} x under kills, {times[1]:.1f} x with loss (undisturbed {calm.seconds:.0f} s, {kind})"
    return Figure(text, times[0] <= 2 and times[1] <= 10, {"killed": times[0], "lossy": times[1]})


def _r7(scale: Scale) -> Figure:
    plan = Plan(
        scale.of(200, 8),
        4,
        seed=scale.seed,
        model="lenet",
        values=50_000,
        chunk=CHUNK_BYTES,
        train_s=2.0,
        strike="coordinator",
        spy=True,
    )
    verdict = _run(plan, scale)
    struck_s, began_s = verdict.details["struck_s"], verdict.details["coordinator_began_s"]
    first_s = min(at for at, *_ in verdict.details["first_fate_s"] if at > began_s) - struck_s
    again = max(verdict.details["chunks_again"].values(), default=0)
    text = f"{first_s:.1f} s to the first acknowledgement, {verdict.retrained} tasks done again, "
    text += f"at most {again} chunks of {CHUNK_BYTES >> 10} KiB of a device sent again"
    met = verdict.clean and verdict.right and first_s <= 5 and not verdict.retrained and again <= 1
    return Figure(
        text,
        met,
        {"first_s": first_s, "chunks_again": again, "right": verdict.clean and verdict.right, **_facts(verdict)},
    )


def _r8(scale: Scale) -> Figure:
    deadline_s = 4.0
    plan = _fleet(scale, quorum=0.8, deadline_s=deadline_s, every_s=3.0, kinds=schedule.KILLS, away_s=5.0)
    verdict = _run(plan, scale)
    began = [at for _, at in verdict.details["round_s"]]
    struck = [at for at, kind in verdict.details["faults_s"] if kind in ("broker", "coordinator")]
    late = [b - a for a, b in itertools.pairwise(began[1:]) if b - a > _allowed_s(a, b, struck, deadline_s)]
    part = 1 - len(late) / max(1, len(began) - 2)
    text = f"{100 * part:.1f} % of {len(began) - 2} rounds closed by their deadline; {_told(verdict)}"
    details = {"late_s": late, "updates": verdict.details["updates"], **_facts(verdict)}
    return Figure(text, verdict.clean and part >= 0.99, details)


def _allowed_s(began_s: float, ended_s: float, struck: Sequence[float], deadline_s: float) -> float:
    """Say how long a round may take: the deadline begins anew with a coordinator, and there is time to start one."""
    hits = sum(began_s - 5.0 <= at <= ended_s for at in struck)
    return deadline_s + 2.0 + hits * (deadline_s + 5.0)


def _r11(scale: Scale) -> Figure:
    devices, rounds = scale.of(40, 8), scale.of(10, 4)
    harsh = {"every_s": 3.0, "kinds": schedule.KILLS}
    found = {
        (broker, bool(how)): _run(Plan(devices, rounds, broker=broker, seed=scale.seed, **how), scale)  # type: ignore[arg-type]
        for broker in _brokers()
        for how in ({}, harsh)
    }
    digests = {verdict.digest for verdict in found.values()}
    met = len(digests) == 1 and all(verdict.right and verdict.clean for verdict in found.values())
    text = f"{len(digests)} digest(s) of {len(found)} runs on {' and '.join(_brokers())}, by MQTT 3.1.1"
    return Figure(
        f"{text}; iotcore is not among our brokers, and MQTT 5 is not spoken", met, {"digests": sorted(digests)}
    )


def _r15(scale: Scale) -> Figure:
    if faketime() is None:
        return Figure("faketime is not installed here: apt install faketime", False)
    devices, rounds = scale.of(40, 8), scale.of(40, 8)
    calm = _run(Plan(devices, rounds, seed=scale.seed), scale)
    plan = Plan(devices, rounds, seed=scale.seed, clocks=True, train_s=0.2, every_s=4.0, kinds=schedule.KILLS)
    harsh = _run(plan, scale)
    equal = _same(calm, harsh)
    years, jumps = harsh.details["years"], harsh.details.get("jumps", 0)
    text = f"{'equal' if equal else 'NOT EQUAL'} in {_told(harsh)}, with clocks in {', '.join(map(str, years))}"
    return Figure(f"{text} and an hour off, which jumped {jumps} times", equal and len(years) == 3, _facts(harsh))


def _r18(scale: Scale) -> Figure:
    rounds = scale.of(500, 12)
    plan = Plan(
        scale.of(50, 8),
        rounds,
        seed=scale.seed,
        loss=0.05,
        every_s=30.0,
        kinds=("broker", "agents"),
        limit_s=7200.0,
    )
    verdict = _run(plan, scale)
    grown = _growth(verdict)
    megabytes, files = 100 * grown["bytes"] / 1e6, grown["files"]
    text = f"memory {megabytes:+.2f} MB and open files {100 * files:+.2f} in 100 rounds (worst process), "
    text += f"journal {verdict.details['journal_bytes'] / 1e6:.1f} MB after {rounds}; {_told(verdict)}"
    met = verdict.clean and verdict.right and megabytes < 1 and abs(files * rounds) < 1
    return Figure(text, met, {**grown, "journal_bytes": verdict.details["journal_bytes"], **_facts(verdict)})


def _soak(scale: Scale) -> Figure:
    rounds = scale.of(10_000, 100)
    plan = Plan(2, rounds, seed=scale.seed, values=16, train_s=0.0, limit_s=7200.0)
    verdict = _run(plan, scale)
    grown = _growth(verdict)
    text = f"{grown['bytes'] / 1e3:+.2f} kB and {grown['files']:+.4f} open files a round (worst process), "
    text += f"journal {verdict.details['journal_bytes'] / 1e6:.1f} MB after {rounds} rounds in {verdict.seconds:.0f} s"
    met = verdict.clean and verdict.right and grown["bytes"] < 1e3 and grown["files"] * rounds < 1
    return Figure(text, met, {**grown, "journal_bytes": verdict.details["journal_bytes"], **_facts(verdict)})


def _growth(verdict: Verdict) -> dict[str, float]:
    """Fit what each process has of the system over the rounds; give the steepest, of memory and of open files."""
    samples = verdict.details["samples"]
    last = max((sample["round"] for sample in samples), default=0)
    lives: dict[tuple[str, int], list[tuple[float, int, int]]] = {}
    for sample in samples:
        for name, (pid, size_bytes, files) in sample["used"].items():
            if size_bytes:
                lives.setdefault((name or "coordinator", pid), []).append((sample["round"], size_bytes, files))
    grown: dict[str, tuple[float, float]] = {}
    for (name, _), life in lives.items():
        first, span = life[0][0], life[-1][0] - life[0][0]
        settled = [point for point in life if point[0] >= first + _WARM * span]
        if span >= _LONG * last:
            grown[name] = slope([point[:2] for point in settled]), slope([point[::2] for point in settled])
    worst = {f"bytes of {name}": size for name, (size, _) in grown.items()}
    most = max((abs(files) for _, files in grown.values()), default=0.0)
    return {"bytes": max(worst.values(), default=float("inf")), "files": most, **worst}


def _r21(scale: Scale) -> Figure:
    plan = Plan(scale.of(200, 8), 4, seed=scale.seed, train_s=1.0, strike="broker")
    verdict = _run(plan, scale)
    back_s = max(verdict.details["connected"].values()) - verdict.details["struck_s"] - 2.0
    text = f"all {plan.devices} agents subscribed again {back_s:.1f} s after the broker was back (away for 2 s)"
    every = min(verdict.details["connected"].values()) > verdict.details["struck_s"]
    return Figure(text, verdict.clean and verdict.right and every and back_s <= 15, _facts(verdict))


def _links(scale: Scale) -> Figure:
    devices, rounds = scale.of(60, 10), scale.of(20, 4)
    calm = _run(Plan(devices, rounds, seed=scale.seed), scale)
    plan = Plan(devices, rounds, seed=scale.seed, every_s=2.0, early=True, slow=True, heckle=50.0, train_s=0.1)
    harsh = _run(plan, scale)
    equal = _same(calm, harsh)
    return Figure(f"{'equal' if equal else 'NOT EQUAL'} in {_told(harsh)}", equal, _facts(harsh))


ROWS = [
    Row(
        "R2",
        "200 agents x 50 rounds, SIGKILL of broker, coordinator or agents every 3 s, garbage and replays",
        "digest equal to the undisturbed run's on both brokers; 0 lost, twice, orphans, leaked files",
        _r2,
    ),
    Row("R3", "the same with 10 % loss on device links, a kill every 8 s", "equal, at most 300 s", _r3),
    Row("R4", "slowdown under R2 and R3", "at most 2 x and 10 x", _r4, must=False),
    Row(
        "R7",
        "200 agents, SIGKILL of the coordinator in the middle of a round",
        "at most 5 s to the first acknowledgement, nothing trained again, at most 1 chunk a device sent again",
        _r7,
    ),
    Row(
        "R8",
        "kills with a quorum of 80 %",
        "99 % of rounds closed by deadline; one fate for each update",
        _r8,
        must=False,
    ),
    Row("R11", "calm and killed runs on every broker", "identical digests", _r11, must=False),
    Row("R15", "kills while clocks are at 1970, 2038, an hour off, and jump", "digest equal", _r15),
    Row(
        "R18",
        "500 rounds x 50 agents with 5 % loss, a kill every 30 s",
        "memory below 1 MB in 100 rounds, open files 0, journal bounded",
        _r18,
        must=False,
    ),
    Row("R21", "200 agents after a broker's restart", "all subscribed again in 15 s", _r21),
    Row("links", "kills, stops, cuts; a tenth of the links slow; garbage and replays", "digest equal", _links),
    Row("soak", "10,000 rounds of a tiny model", "memory below 1 kB a round, journal compacted", _soak),
]
