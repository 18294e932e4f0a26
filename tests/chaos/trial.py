"""One run of a fleet, disturbed or not, and the verdict: `python -m tests.chaos.trial '{"devices": 20, "rounds": 5}'`.

The coordinator is `edge-coordinator start` with the toy algorithm as a module of one's own. The verdict compares what
the journal holds, what every device keeps and what each was told with each other, and with what must come out.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.store import FileStore, named
from tests.chaos import light, links, schedule, toy, watch
from tests.chaos.fleet import ROOT, Fleet, left_over
from tests.chaos.heckler import Heckler
from tests.chaos.links import Proxy

_SLOW_BYTES_PER_S = 200_000.0


@dataclass(frozen=True)
class Plan:
    """What is run, and what happens to it."""

    devices: int
    rounds: int
    broker: str = "auto"
    seed: int = 0
    every_s: float = 0.0
    """Between two faults; 0: undisturbed."""
    kinds: tuple[str, ...] = tuple(schedule.KINDS)
    most: int = 0
    """Faults after which there are no more, so that a run ends on the slowest machine; 0: any number."""
    early: bool = False
    """Whether faults begin with the first process, not with the first round."""
    loss: float = 0.0
    """Part of the packets that the devices' links lose, both ways."""
    slow: bool = False
    """Whether every tenth device has a slow link, which can be cut."""
    heckle: float = 0.0
    """Messages a second from a hostile client: garbage, and what others said before."""
    quorum: float = 1.0
    deadline_s: float = 600.0
    clocks: bool = False
    """Whether the clocks of the processes are wrong, and jump."""
    model: str = "linear"
    """Bounds how many values a message may carry."""
    values: int = 3_000
    """That each message carries, both ways; four bytes each."""
    chunk: int = 4_096
    train_s: float = 0.02
    limit_s: float = 1800.0
    sample_s: float = 1.0
    """Between two looks at memory and open files."""
    away_s: float = 0.0
    """How long agents stay away that were killed; 0: not long."""
    strike: str = ""
    """Kill this once, in the middle of the run, when half of a round's updates have come: coordinator or broker."""
    spy: bool = False
    """Whether to count the chunks that devices send."""


@dataclass
class Verdict:
    """What came of it."""

    finished: bool = False
    seconds: float = 0.0
    """From the start of the coordinator to the end of the last round."""
    digest: str = ""
    """Of the shared model and of every device's state."""
    right: bool = False
    """Whether these are what they must be; not asked with a partial quorum."""
    kills: dict[str, int] = field(default_factory=dict)
    lives: int = 0
    falls: list[str] = field(default_factory=list)
    lost: int = 0
    """Updates that a device was told were applied, and that the journal does not hold."""
    twice: int = 0
    """Updates that were applied more than once, or of which a device was told two fates."""
    orphans: int = 0
    leaked: list[str] = field(default_factory=list)
    retrained: int = 0
    """Tasks that a device did more than once."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Say whether nothing was lost, doubled or left behind."""
        return self.finished and not (self.lost or self.twice or self.orphans or self.leaked or self.falls)


def trial(plan: Plan, folder: Path) -> Verdict:
    """Carry a plan out in processes of its own, and give the verdict; `folder` keeps the logs of one that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.chaos.trial", json.dumps(dataclasses.asdict(plan))]
    if plan.loss and links.can_lose():
        command = links.losing(command, plan.loss)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder.resolve())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        said, _ = process.communicate(timeout=plan.limit_s + 120)
    finally:
        process.kill()
        process.wait()
    return Verdict(**json.loads(said.splitlines()[-1]))


class Trial:
    """A plan, being carried out."""

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        self.plan, self.folder, self.stack = plan, folder, stack
        self.names = tuple(f"d{number:03d}" for number in range(plan.devices))
        port = links.BROKER_PORT if plan.loss and links.can_lose() else 0
        self.fleet = Fleet(folder, plan.broker, port, stack)
        self.home = folder / "run" / "tests.chaos.toy"
        self.rounds = watch.Rounds(self.home)
        self.verdict = Verdict()
        self.struck: list[tuple[float, str]] = []

    def run(self) -> Verdict:
        """Start all, let it be disturbed until it has finished, end all, and judge."""
        plan, fleet = self.plan, self.fleet
        heckler = Heckler(fleet.broker.port, plan.heckle, plan.seed) if plan.heckle else None
        began_s = time.monotonic()
        fleet.coordinate(self._command(), {"FAKETIME": "-1h", **_fake()} if plan.clocks else None)
        while fleet.coordinator and not watch.connected(fleet.coordinator, fleet.broker.port):
            fleet.step(0.05)  # nobody says hello in vain: the next time would be up to 20 s later
        self._start_agents()
        spy = watch.Spy(fleet.broker.port) if plan.spy else None
        self._disturb(began_s)
        verdict = self.verdict
        verdict.finished, verdict.lives, verdict.falls = fleet.finished, fleet.lives, fleet.falls
        verdict.seconds = round((self.rounds.finished_s or time.monotonic()) - began_s, 2)
        if heckler is not None:
            verdict.details["heckled"] = heckler.close()
        if spy is not None:
            verdict.details["chunks_again"] = spy.close()
        verdict.orphans = len(fleet.end_agents())
        verdict.kills = dict(fleet.kills)
        self._measure()
        self.stack.close()
        verdict.orphans += len(_gone(self.folder))
        self._judge()
        return verdict

    def _start_agents(self) -> None:
        plan, fleet = self.plan, self.fleet
        port = fleet.broker.port
        if plan.loss:
            port = links.DEVICE_PORT if links.can_lose() else self._proxy(delay_s=0.01, stalls=plan.loss).port
        slow = self._proxy(delay_s=0.05, rate=_SLOW_BYTES_PER_S).port if plan.slow else 0
        settings = light.Settings(str(self.folder), port, slow, plan.train_s)
        if not plan.clocks:
            fleet.herd(settings, self.names)
            return
        for number, when in enumerate(("@1970-01-02 00:00:00", "@2038-01-19 03:14:00", "+1h", "-1h")):
            path = self.folder / f"clock-{number}"
            path.write_text(when + "\n")
            fleet.herd(settings, self.names[number::4], {"FAKETIME_TIMESTAMP_FILE": str(path), **_fake()})

    def _proxy(self, **settings: Any) -> Proxy:
        proxy = Proxy(self.fleet.broker.port, **settings)
        self.stack.callback(proxy.close)
        self.fleet.proxies.append(proxy)
        return proxy

    def _command(self) -> list[str]:
        plan, path = self.plan, self.folder / "run.toml"
        path.write_text(
            f'[run]\nalgorithm = "tests.chaos.toy"\nmodel = "{plan.model}"\nrounds = {plan.rounds}\n'
            f"devices = {plan.devices}\nquorum = {plan.quorum}\ndeadline-s = {plan.deadline_s}\n"
            f'chunk-bytes = {plan.chunk}\nup = "lossless"\ndown = "lossless"\nseed = {plan.seed}\n'
            f"[algorithm]\nup = {plan.values}\ndown = {plan.values}\n"
        )
        command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "start", "--config", str(path)]
        command += ["-p", str(self.fleet.broker.port), "--json"]
        return [*command, "--folder", str(self.folder / "run"), "--runs", str(self.folder / "runs")]

    def _disturb(self, began_s: float) -> None:
        plan, fleet = self.plan, self.fleet
        drawn = schedule.faults(plan.seed, plan.every_s, self.names, plan.kinds, plan.away_s)
        faults = drawn if plan.every_s else None
        fault = next(faults) if faults else None
        due_s = began_s + fault.wait_s if fault and plan.early else None
        jumps = [1.0, 3.0] if plan.clocks else []
        sample_s, strike, opened_s = began_s, plan.strike, math.inf
        while not fleet.finished and time.monotonic() < began_s + plan.limit_s:
            fleet.step(0.02)
            now_s = time.monotonic()
            self.rounds.look(now_s)
            if self.rounds.opened:
                opened_s = min(opened_s, now_s)
            if fault and due_s is None and self.rounds.opened:
                due_s = now_s + fault.wait_s
            if self.rounds.finished_s is not None or len(self.struck) >= (plan.most or math.inf):
                fault = None  # after the last round all that is left to do is the report
            if fault and faults and due_s is not None and now_s >= due_s:
                fleet.suffer(fault)
                self.struck.append((now_s, fault.kind))
                fault = next(faults)
                due_s = now_s + fault.wait_s
            if jumps and now_s >= opened_s + jumps[0]:  # by then all have been connected by their first clocks
                self._jump(len(jumps))
                jumps.pop(0)
                self.verdict.details["jumps"] = 2 - len(jumps)
            if strike and self.rounds.filled(plan.rounds // 2, 0.5 * plan.devices):
                self.verdict.details["struck_s"] = time.monotonic()
                fleet.suffer(schedule.Fault(0.0, strike, (), 0.0 if strike == "coordinator" else 2.0))
                strike = ""
            if now_s >= sample_s and self.rounds.finished_s is None:
                sample_s = now_s + plan.sample_s
                self.rounds.sample(now_s, fleet.coordinator, {n: fleet.pids.get(n) for n in self.names[:5]})

    def _jump(self, left: int) -> None:
        """Set all clocks to another wrong time: from 1970 to 2038 and back, by an hour either way."""
        times = ("@2038-01-19 03:14:00", "@1970-01-02 00:00:00", "-1h", "+1h")
        for number, when in enumerate(times if left == 2 else reversed(times)):
            (self.folder / f"clock-{number}").write_text(when + "\n")

    def _measure(self) -> None:
        """Take down what rows ask for beyond the verdict."""
        fleet, verdict = self.fleet, self.verdict
        verdict.details |= {"broker": fleet.broker.kind, "coordinator_began_s": fleet.began_s}
        verdict.details |= {"faults_s": self.struck, "samples": self.rounds.samples, "round_s": self.rounds.began}
        size = sum(path.stat().st_size for path in self.home.glob("journal.sqlite*"))
        verdict.details["journal_bytes"] = size

    def _judge(self) -> None:
        plan, verdict = self.plan, self.verdict
        diary = watch.Diary(self.folder / "events")
        held = watch.updates(self.home)
        pasts = {name: _past(self.folder / "devices" / name) for name in self.names}
        model = self.home / "model.bin"
        values = model.read_bytes() if model.exists() else b""
        verdict.digest = hashlib.sha256(values + json.dumps(_plain(pasts), sort_keys=True).encode()).hexdigest()[:16]
        if plan.quorum == 1:
            number, expected = toy.expected(self.names, plan.rounds, plan.seed)
            verdict.right = pasts == expected and values == toy.noise(number, len(values) // 4).tobytes()
        applied = {(fate[0], "train", fate[4]) for fate in diary.fates if fate[3] == "applied" and fate[1] == "train"}
        verdict.lost = len(applied - set(held))
        two = Counter(fate[:3] for fate in diary.fates)
        counts = Counter(device for device, phase, _ in held if phase == "train")
        verdict.twice = sum(number > 1 for number in two.values())
        verdict.twice += sum(counts[name] < pasts[name].times for name in self.names)
        verdict.retrained = sum(number - 1 for number in diary.trained.values())
        verdict.leaked = leaks(self.home, [self.folder / "devices" / name for name in self.names])
        verdict.details |= {
            "years": sorted(diary.years),
            "connected": diary.connected,
            "first_fate_s": diary.fate_s,
            "updates": len(held),
        }


def leaks(home: Path, stores: list[Path]) -> list[str]:
    """List the files that a run and its devices have left, and should not have.

    What may remain: what the memory of a device names, and one partial file that its next download will drop; of the
    coordinator the newest checkpoint.
    """
    kept = {
        "journal.sqlite",
        "journal.sqlite-shm",
        "journal.sqlite-wal",
        "lock",
        "reserve",
        "seal",
        "presence.json",
        "seeds",
        "model.bin",
    }
    found = [path for path in home.rglob("*") if path.is_file() and path.name not in kept]
    newest = max((path.with_suffix("") for path in found if path.name.startswith("checkpoint-")), default=None)
    leaked = [path for path in found if path.with_suffix("") != newest]
    for folder in stores:
        blobs, states = named(FileStore(folder, exclusive=False).load())
        may = {"blobs": blobs, "states": states, "partial": {path.name for path in (folder / "partial").glob("*")}}
        leaked += list((folder / "partial").glob("*"))[1:]
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in {"lock", "memory.json", "memory.copy"} | may.get(
                path.parent.name, set()
            ):
                leaked.append(path)
    return [str(path) for path in leaked]


def _fake() -> dict[str, str]:
    """Give the environment in which a process has a clock of its own; the monotonic one stays as it is."""
    return {"LD_PRELOAD": str(faketime()), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1"}


def faketime() -> Path | None:
    """Find the library that gives a process another clock."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


def _past(folder: Path) -> toy.Past:
    store = FileStore(folder, exclusive=False)
    return light.past_of(store.state(store.load().base))


def _plain(pasts: dict[str, toy.Past]) -> dict[str, Any]:
    return {name: dataclasses.asdict(past) for name, past in pasts.items()}


def _gone(folder: Path) -> list[int]:
    """Wait a moment until nothing is left; end and list what is."""
    deadline_s = time.monotonic() + 3.0
    while (left := left_over(folder)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def main() -> None:
    """Carry out the plan that is the argument."""
    record = json.loads(sys.argv[1])
    plan = Plan(**{**record, "kinds": tuple(record.get("kinds", schedule.KINDS))})
    folder = Path(tempfile.mkdtemp(prefix="trial-"))
    with ExitStack() as stack:
        verdict = Trial(plan, folder, stack).run()
    if verdict.clean and (verdict.right or plan.quorum < 1):
        shutil.rmtree(folder)
    else:
        verdict.details["folder"] = str(folder)
    sys.stdout.write(json.dumps(dataclasses.asdict(verdict)) + "\n")


if __name__ == "__main__":
    main()
