"""Who forges, alters or plays again what others said: runs under attack, on real brokers that let anybody do anything.

An attack goes on as long as the run does. What it must not do: change one bit of what the run leaves, here or on any
device, or keep it from ending.
"""

import functools
import random
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import wire
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator.gate import EQUIVOCATION, STRANGERS, Dropped, Sealed
from edge_runtime.devices import meter
from edge_runtime.message import (
    Blob,
    Chunk,
    Fate,
    Hello,
    Message,
    Need,
    Offer,
    Refuse,
    Task,
    Welcome,
    decode,
    down_topic,
    encode,
    up_topic,
)
from edge_runtime.seal import FORGED, REPEATED, SEALED_BYTES, STALE, UNKNOWN, UNSEALED, Head, place, put_in, random_tag
from tests.chaos import toy
from tests.chaos.scorecard import Figure, Row, Scale
from tests.chaos.sealed_fleet import FLEET, HONEST, VALUES, Crook, Fleet, Hostile, Members, Terms, blob_of

BLOB = Blob("ab" * 32, 1000)
_AT_ONCE = 100
"""Messages of one kind at one strike: more would fill the queues of both sides, and be an attack of another kind."""


@dataclass(frozen=True)
class Attack:
    """Something that is done again and again while a run goes on."""

    name: str
    strike: Callable[[Fleet, Hostile, int], None]
    """Called with the number of the strike."""
    reasons: frozenset[str]
    """As what the sides must have counted it."""


def _wrap(fleet: Fleet, signer: str, direction: str, device: str, message: Message) -> bytes:
    """Seal as whoever has that key would, and with tags that were seen."""
    where = place(FLEET, direction, device)
    return put_in(fleet.members.keys[signer], where, Head(random_tag(), random_tag(), 1 << 40), encode(message))


def _forge(fleet: Fleet, hostile: Hostile, direction: str, messages: list[Message]) -> None:
    topic = up_topic if direction == "up" else down_topic
    for device in HONEST:
        for message in messages:
            hostile.say(topic(FLEET, device), encode(message))
            for signer in ("mallory", "a", "b"):
                if signer != device or direction == "down":
                    hostile.say(topic(FLEET, device), _wrap(fleet, signer, direction, device, message))


def forged_tasks(fleet: Fleet, hostile: Hostile, number: int) -> None:
    """Tell devices what to do in the coordinator's name: of this run, of the next round, of another run."""
    tasks = [Task(run, 9, number % 9, "train", "", BLOB, BLOB) for run in ("run", "another")]
    _forge(fleet, hostile, "down", [*tasks, Need("ab" * 32, (0,)), Welcome("another")])


def forged_fates(fleet: Fleet, hostile: Hostile, number: int) -> None:
    """Tell devices what became of the very updates that they offer."""
    offers = [offer for offer in _offers(hostile)[-12:] if offer.round >= 0]
    fates = [Fate(o.run, o.round, o.phase, o.blob.digest, ("applied", "rejected")[number % 2]) for o in offers]
    _forge(fleet, hostile, "down", list(fates))


def forged_offers(fleet: Fleet, hostile: Hostile, number: int) -> None:
    """Offer, refuse and greet in the name of devices."""
    round_ = number % fleet.terms.rounds
    offer = Offer("run", round_, "train", blob_of(b"forged"))
    refuse = Refuse("run", round_, False, "cannot")
    _forge(fleet, hostile, "up", [offer, refuse, replace(refuse, lost=True), Hello("forged", room=1)])
    for device in HONEST:
        hostile.say(up_topic(FLEET, device), encode(Chunk(offer.blob.digest, 0, b"forged")))


def replays(fleet: Fleet, hostile: Hostile, number: int) -> None:
    """Play everything again that was ever said, on its topic: some of it at each strike, in turns."""
    heard = list(hostile.heard)
    for index in range(min(len(heard), _AT_ONCE)):
        hostile.say(*heard[(number * _AT_ONCE + index) % len(heard)])


def moved(fleet: Fleet, hostile: Hostile, number: int) -> None:
    """Play what one device said or was told on the topic of another, and back at whom it came from."""
    for topic, payload in hostile.heard[-_AT_ONCE // 5 :]:
        if payload[:2] == b"\xec\x02":
            for kind in ("up", "down"):
                for device in HONEST:
                    other = f"edge/{FLEET}/{kind}/{device}"
                    if other != topic:
                        hostile.say(other, payload)


def flipped(fleet: Fleet, hostile: Hostile, number: int) -> None:
    """Flip a bit of everything that is said, once; of chunks with a checksum that fits again."""
    rng = random.Random(number)  # repeatable on purpose
    start = getattr(hostile, "flipped", 0)
    heard = hostile.heard[start:]
    hostile.flipped = start + len(heard)  # type: ignore[attr-defined]
    for topic, payload in heard:
        data = bytearray(payload)
        data[rng.randrange(2, len(data))] ^= 1 << rng.randrange(8)
        if payload[:2] == b"\xec\x01":
            data[6:38], data[2:6] = payload[6:38], payload[2:6]
            data[-1] ^= 1
            data[38:42] = zlib.crc32(data[42:], zlib.crc32(data[6:38], int.from_bytes(data[2:6], "little"))).to_bytes(
                4, "little"
            )
        hostile.say(topic, bytes(data))


def nobodies(fleet: Fleet, hostile: Hostile, number: int) -> None:
    """Speak as devices that do not exist, or no longer belong."""
    for count in range(50):
        hostile.say(up_topic(FLEET, f"nobody-{number}-{count}"), encode(Hello("boot")))
    hostile.say(up_topic(FLEET, "mallory"), _wrap(fleet, "mallory", "up", "mallory", Hello("boot")))


FORGERIES = frozenset((FORGED, UNSEALED))
ATTACKS = (
    Attack("forged tasks", forged_tasks, FORGERIES),
    Attack("forged fates", forged_fates, FORGERIES),
    Attack("forged offers, refusals and greetings", forged_offers, FORGERIES),
    Attack("all that was said, played again", replays, frozenset((REPEATED,))),
    Attack("messages on others' topics", moved, frozenset((FORGED,))),
    Attack("flipped bits", flipped, frozenset((FORGED,))),
    Attack("strangers and who was revoked", nobodies, frozenset((UNKNOWN,))),
)


def _offers(hostile: Hostile) -> list[Offer]:
    found = []
    for topic, payload in list(hostile.heard):
        if "/up/" in topic and payload[:2] == b"\xec\x02":
            message = decode(payload[SEALED_BYTES:])
            if isinstance(message, Offer):
                found.append(message)
    return found


def under(attacks: tuple[Attack, ...], kind: str, folder: Path, terms: Terms) -> tuple[str, dict[str, Any]]:
    """Play a run under attacks; say what is wrong with its end (empty: nothing), and what was counted."""
    with brokers.start(kind, folder=folder / "broker") as broker, Fleet(broker, folder, terms) as fleet:
        hostile, numbers = Hostile(fleet.link("hostile")), iter(range(1 << 30))

        def strike() -> None:
            number = next(numbers)
            for attack in attacks:
                attack.strike(fleet, hostile, number)
            time.sleep(0.1)

        try:
            fleet.wait(strike)
        except RuntimeError as error:
            return str(error), {}
        finally:
            hostile.close()
        counts = {
            reason: fleet.coordinator.dropped.total(reason) for reason in (FORGED, UNSEALED, REPEATED, STALE, UNKNOWN)
        }
        for agent in fleet.agents.values():
            counts |= {reason: counts.get(reason, 0) + count for reason, count in agent.device.dropped.items()}
        wanted = frozenset().union(*(attack.reasons for attack in attacks))
        missed = [reason for reason in sorted(wanted) if not counts.get(reason)]
        wrong = fleet.differs() or (f"nothing was counted as {', '.join(missed)}" if missed else "")
        return wrong, {**counts, "said": hostile.said}


def slow_loris(kind: str, folder: Path, rounds: int) -> str:
    """Let an enrolled device offer a large update in small chunks and send one now and then, never all."""
    deadline_s = 3.0
    terms = Terms(rounds, len(HONEST) + 1, 0.7, deadline_s, 0.1)

    def offer(crook: Crook, task: Task) -> None:
        data = bytes(200_000)
        crook.say(Offer(task.run, task.round, task.phase, replace(blob_of(data), chunk=1024)))

    with (
        brokers.start(kind, folder=folder / "broker") as broker,
        Fleet(broker, folder, terms, ("loris",)) as fleet,
    ):
        crook, digest = Crook(fleet, "loris", offer), blob_of(bytes(200_000)).digest
        sent, started_s = iter(range(1 << 30)), time.monotonic()

        def drip() -> None:
            time.sleep(0.4)
            crook.say(Chunk(digest, next(sent) % 190, bytes(1024)))

        try:
            fleet.wait(drip)
        finally:
            crook.close()
        took_s = time.monotonic() - started_s
        counted = {(one.round, one.device) for one in fleet.accepted}
        kept_bytes = sum(path.stat().st_size for path in (folder / "run" / "spool").glob("*"))
        if counted != {(number, name) for number in range(rounds) for name in HONEST}:
            return f"{len(counted)} updates counted, not {rounds * len(HONEST)}"
        limit_s = rounds * (deadline_s + 6.0) + 20.0
        if took_s > limit_s or kept_bytes > 300_000:
            return f"it took {took_s:.0f} s (at most {limit_s:.0f}), and {kept_bytes} bytes were kept"
    return ""


def equivocation(kind: str, folder: Path) -> str:
    """Let an enrolled device offer a second update for a round in which one of it counts already."""
    terms = Terms(2, len(HONEST) + 1)

    def offer(crook: Crook, task: Task) -> None:
        for value in (1, 2):
            data = wire.encode(toy.Up(task.round, value, task.round + 1, toy.noise(value, VALUES)))
            blob = blob_of(data)
            fates = len(crook.fates)
            for _ in range(40):
                crook.say(Offer(task.run, task.round, task.phase, blob))
                time.sleep(0.1)
                if any(isinstance(one, Fate) and one.digest == blob.digest for one in crook.fates[fates:]):
                    break
                if value == 1:
                    crook.send(blob, data)

    def beside(crook: Crook, task: Task) -> None:  # its messages come in on the thread that calls this
        import threading

        threading.Thread(target=offer, args=(crook, task), daemon=True).start()

    with (
        brokers.start(kind, folder=folder / "broker") as broker,
        Fleet(broker, folder, terms, ("twice",)) as fleet,
    ):
        crook = Crook(fleet, "twice", beside)
        try:
            fleet.wait()
            told = [one.reason for one in crook.fates if isinstance(one, Fate) and one.fate == "rejected"]
        finally:
            crook.close()
        counted = [one for one in fleet.accepted if one.device == "twice"]
        caught = fleet.coordinator.dropped.counts.get("twice", {}).get(EQUIVOCATION, 0)
        if (
            len(counted) != terms.rounds
            or not caught
            or "another update of this device stands for this round" not in told
        ):
            return f"{len(counted)} of it counted, {caught} caught, told {told}"
    return ""


def yesterday(kind: str, folder: Path, terms: Terms) -> str:
    """Play every message of a whole run again into the next one, of the same devices."""
    with brokers.start(kind, folder=folder / "broker") as broker:
        hostile = Hostile(Fleet(broker, folder, terms).link("hostile"))
        try:
            with Fleet(broker, folder, terms) as first:
                first.wait()
            recorded = list(hostile.heard)
            strikes = iter(range(1 << 30))

            def strike() -> None:
                at = next(strikes) * _AT_ONCE
                for index in range(at, at + _AT_ONCE):
                    hostile.say(*recorded[index % len(recorded)])
                time.sleep(0.1)

            with Fleet(broker, folder, terms, after=first) as fleet:
                fleet.wait(strike)
                stale = fleet.coordinator.dropped.total(STALE)
                return fleet.differs() or ("" if stale > len(HONEST) else "nothing of it came")
        except RuntimeError as error:
            return str(error)
        finally:
            hostile.close()


def flood(number: int) -> tuple[float, float, str]:
    """Give a gate and a device `number` messages that are not theirs; say how many bytes and microseconds each cost."""
    members = Members(("coordinator", "mallory", *HONEST))
    gate, device, dropped = Sealed(FLEET, members.keys["coordinator"], members), members.seal("a"), Dropped()
    rng = random.Random(0)  # repeatable on purpose
    where = place(FLEET, "up", "a")
    forged = put_in(members.keys["mallory"], where, Head(random_tag(), random_tag(), 1), encode(Hello("boot")))
    old = members.seal("a").seal(Hello("boot"))
    kinds: list[Callable[[int], tuple[str, bytes]]] = [
        lambda n: (f"nobody-{n}", forged),
        lambda n: ("a", forged[:90] + n.to_bytes(8, "big") + forged[98:]),
        lambda n: ("a", encode(Hello(f"boot-{n}"))),
        lambda n: ("a", old),
        lambda n: ("b", rng.randbytes(n % 5000)),
    ]

    def take(count: int) -> None:
        for index in range(count):
            name, data = kinds[index % len(kinds)](index)
            for who, opens in ((name, functools.partial(gate.open, name)), ("a", device.open)):
                try:
                    opens(data)
                except ValueError as error:
                    dropped.add(who, getattr(error, "reason", "malformed"), str(error), gate.vouches)
                else:
                    raise AssertionError(f"taken: {data[:40]!r}")

    take(2000)
    before, started_s = meter.rss_bytes(), time.monotonic()
    take(number)
    spent_s = time.monotonic() - started_s
    grown = meter.rss_bytes() - before
    held = "" if set(dropped.counts) <= {STRANGERS, "a", "b"} else f"{len(dropped.counts)} names are held"
    return grown, 1e6 * spent_s / number, held


def kinds() -> Iterator[str]:
    """List the brokers that are here."""
    yield "amqtt"
    if brokers.find_mosquitto() is not None:
        yield "mosquitto"


def measure_gate(scale: Scale) -> Figure:
    """Attack runs in every way, on every broker that is here."""
    tried, wrong, details = 0, [], {}
    terms = Terms(scale.of(6, 3))
    together = scale.part < 1
    groups = [ATTACKS] if together else [*((attack,) for attack in ATTACKS), ATTACKS]
    for kind in kinds():
        for number, attacks in enumerate(groups):
            name = "all at once" if len(attacks) > 1 else attacks[0].name
            fault, counts = under(attacks, kind, scale.folder / kind / str(number), terms)
            tried, details[f"{kind}: {name}"] = tried + 1, counts
            wrong += [f"{kind}: {name}: {fault}"] if fault else []
        for name, fault in (
            ("slow loris", slow_loris(kind, scale.folder / kind / "loris", scale.of(5, 2))),
            ("a whole run played again into the next", yesterday(kind, scale.folder / kind / "yesterday", terms)),
            ("two updates for one round", equivocation(kind, scale.folder / kind / "twice")),
        ):
            tried += 1
            wrong += [f"{kind}: {name}: {fault}"] if fault else []
    number = scale.of(100_000)
    grown_bytes, each_us, held = flood(number)
    tried += 1
    if grown_bytes > 4e6 or held:
        wrong.append(f"{number:,} forged messages: {grown_bytes / 1e6:.1f} MB more {held}")
    details["flood"] = {"messages": number, "grown_bytes": grown_bytes, "each_us": round(each_us, 1)}
    text = f"{tried - len(wrong)} of {tried}; {number:,} forged messages leave {grown_bytes / 1e6:.1f} MB"
    return Figure("; ".join([text, *wrong]), not wrong, details)


def measure_admission(scale: Scale) -> Figure:
    """Time what seals and checks of bytes cost a coordinator for an update of 100 KB, beside the journal: CPU time."""
    members = Members(("coordinator", *HONEST))
    device, gate = members.seal("a"), Sealed(FLEET, members.keys["coordinator"], members)
    data = np.random.default_rng(0).bytes(100_000)
    blob = blob_of(data, 65_536)
    chunks = [Chunk(blob.digest, index, data[slice(*blob.span(index))]) for index in range(blob.chunks)]
    try:
        gate.open("a", device.seal(Hello("boot")))
    except ValueError as error:
        device.open(gate.greet("a", error.stranger, Welcome("run")))  # type: ignore[attr-defined]
    up = [Hello("boot"), Offer("run", 0, "train", blob), *chunks]
    down = [
        Task("run", 1, 0, "train", "", blob, blob),
        Need(blob.digest, (0, 1)),
        Fate("run", 0, "train", blob.digest, "applied"),
    ]
    spent: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(scale.of(2000, 100)):
        for sealed, times in spent.items():
            said = [device.seal(message) if sealed else encode(message) for message in up]
            started_s = time.thread_time()
            taken = [gate.open("a", one) if sealed else decode(one) for one in said]
            whole = b"".join(one.data for one in taken if isinstance(one, Chunk))
            if blob_of(whole).digest != blob.digest:
                raise AssertionError("the update is another")
            for message in down:
                _ = gate.seal("a", message) if sealed else encode(message)
            times.append(1e3 * (time.thread_time() - started_s))
    ms, bare_ms = (statistics.median(spent[sealed]) for sealed in (True, False))
    p99_ms = sorted(spent[True])[int(0.99 * len(spent[True]))]
    added_bytes = SEALED_BYTES * (2 + len(down))
    text = f"{ms:.2f} ms (median; p99 {p99_ms:.2f}), of which signatures {ms - bare_ms:.2f}; {added_bytes} bytes more"
    details = {"median_ms": ms, "p99_ms": p99_ms, "without_seals_ms": bare_ms, "added_bytes": added_bytes}
    return Figure(text, ms <= 1.0, details)


ROWS = [
    Row("R19", "signatures and admission of an update of 100 KB", "at most 1 ms", measure_admission),
    Row(
        "R23b",
        "messages forged, altered and played again (T1, T3, T5, T12, T19)",
        "all refused, the same state",
        measure_gate,
    ),
]
