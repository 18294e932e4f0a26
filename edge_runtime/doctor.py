"""`edge-agent doctor`: everything that must be so for a device to take part, tried one after the other."""

import importlib.util
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_runtime import checkup, config, identity, seal, station
from edge_runtime.checkup import Check, Finding, bad, good, hold, warn
from edge_runtime.compute import Compute, installed, usual
from edge_runtime.devices.profile import profile
from edge_runtime.devices.sensors import Sensors
from edge_runtime.errors import ConfigError, DecodeError, DeviceError
from edge_runtime.files import locked
from edge_runtime.identity import Identity
from edge_runtime.message import Blob, Fate, Message, Offer, ask_topic, down_topic, up_topic
from edge_runtime.probe import Probe
from edge_runtime.processes import die_with_parent
from edge_runtime.seal import Envelope, Plain, SealError
from edge_runtime.station import LINK, Station
from edge_runtime.trainer_process import Job, ProcessTrainer

_HOT_C = 85.0
_SMALL_BYTES, _TINY_BYTES = 256_000_000, 96_000_000
"""An agent that waits takes 30 to 45 MB; a trainer with the smallest models about 70 more."""
_ROOM_BYTES = 32_000_000
_FEW_SAMPLES = 10
_ANSWER_S, _AGAIN_S = 6.0, 1.0
_DIFFERENCE = 1e-3
_TEST_S = 120.0
_BITS = {1: "the supply is too weak (under-voltage)", 2: "the frequency is capped", 4: "throttled", 8: "hot"}


@dataclass(frozen=True)
class Agent:
    """What an agent would be started with."""

    station: Station
    trouble: str
    """Why nobody knows who this is; empty: all is well."""
    store: Path
    cache: Path
    job: Job
    take_over: bool = False
    """Whether to end the connection of the agent that runs here, which then comes back by itself."""
    sensors: Sensors = field(default_factory=Sensors)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def compute(self) -> Compute:
        """Read how it computes.

        Raises:
            ConfigError: as `Compute`.
        """
        return config.build(Compute, self.job["compute"], "compute")


def hears(fleet: str, name: str) -> tuple[str, ...]:
    """Name the topics that a device must be let read; `edge/FLEET/all/+` is asked for a digest at a time."""
    return (
        down_topic(fleet, name), f"edge/{fleet}/all/{'0' * 16}", f"edge/{fleet}/peer/+", ask_topic(fleet, name, "+")
    )  # fmt: skip


def who(agent: Agent) -> Finding:
    """See whether this device knows who it is, and whether key, certificate and authority belong together."""
    found = agent.station.who
    if found is not None:
        identity.verify(found, found.certificate)
    if agent.trouble:
        raise ConfigError(agent.trouble)
    if found is None:
        todo = "enrol it (`edge-coordinator device enroll`) where others can reach the broker"
        return warn(f"{agent.station.name!r}, without an identity: anybody can say so", todo)
    return good(f"{found.name!r} in fleet {found.fleet!r}, by {found.certificate.parent}")


def running(agent: Agent) -> Finding:
    """See whether an agent is at work on this device's store: a second connection by its name would end its own."""
    text = locked(agent.store / "lock")
    if text is None:
        return good("no agent is at work here now")
    held_by = text.decode("ascii", "replace").strip()
    seen = f"an agent is at work here ({held_by})"
    if not agent.station.secured:
        return good(f"{seen}; what is tried at the broker goes by another name")
    if agent.take_over:
        return warn(f"{seen}; its connection ends now, and it will come back by itself", "", held_by=held_by)
    todo = "stop it (systemctl stop edge-agent), or say --take-over, for what needs a connection by its name"
    return hold(seen, todo)


def answered(agent: Agent) -> Finding:
    """Ask the coordinator about a result of a run that is not there, which it answers at any time and forgets."""
    at = agent.station
    envelope = _envelope(at.who)
    nothing = Offer("doctor", 0, "train", Blob(secrets.token_hex(32), 0))
    with Probe(station.link_of(at)) as probe:
        probe.subscribe([down_topic(at.fleet, at.name)])
        started_s = time.monotonic()
        trouble = ""
        while time.monotonic() - started_s < _ANSWER_S:
            probe.publish(up_topic(at.fleet, at.name), envelope.seal(nothing))
            probe.wait(lambda: bool(probe.heard), _AGAIN_S)
            while probe.heard:
                message, why = _opened(envelope, probe.heard.pop(0)[1])
                trouble = why or trouble
                if isinstance(message, Fate) and message.digest == nothing.blob.digest:
                    took_ms = 1000 * (time.monotonic() - started_s)
                    return good(f"a coordinator of fleet {at.fleet!r} answers", answer_ms=round(took_ms))
    if trouble:
        seen = f"somebody answers in fleet {at.fleet!r} whom this device does not know ({trouble})"
        return bad(seen, "enrol this device again: the coordinator has another key")
    return warn(f"no coordinator answers in fleet {at.fleet!r}",
                "all is well if no run is on; else look at --fleet, and at edge-coordinator doctor")  # fmt: skip


def _envelope(found: Identity | None) -> Envelope:
    if found is None or found.coordinator is None:
        return Plain()
    return seal.seals(found.fleet, found.name, found.key, found.coordinator).coordinator


def _opened(envelope: Envelope, data: bytes) -> tuple[Message | None, str]:
    try:
        return envelope.open(data)[0], ""
    except SealError as error:
        return None, "" if error.reason in seal.ORDINARY else str(error)
    except DecodeError as error:
        return None, str(error)


def samples(agent: Agent) -> Finding:
    """Load this device's data."""
    from edge_runtime import data

    split = data.load(config.build(data.DataConfig, agent.job["data"], "data"), agent.cache)
    train, test, shape = len(split.y_train), len(split.y_test), list(split.x_train.shape[1:])
    classes = len(set(split.y_train.tolist()))
    seen = (
        f"{train:,} samples to train on and {test:,} to test on, of shape {shape}; {classes} of {split.classes} classes"
    )
    figures = {"train_samples": train, "test_samples": test, "classes": classes}
    if min(train, test) < _FEW_SAMPLES:
        return warn(seen, f"fewer than {_FEW_SAMPLES} tell little: collect more", **figures)
    if classes < 2:
        return warn(seen, "with samples of one class a model learns to say that class", **figures)
    return good(seen, **figures)


def trainer(agent: Agent) -> Finding:
    """Start a trainer process, as a task would."""
    try:
        found = ProcessTrainer(agent.job, agent.store).check()
    except ConfigError as error:
        raise DeviceError(f"a trainer process cannot do its work: {error}") from error
    room = int(found["room-bytes"])
    seen = f"has {room / 1e6:,.0f} MB beside it; the reference takes {found['reference-ms']:.2f} ms"
    figures = {"room_bytes": room, "reference_ms": round(found["reference-ms"], 3)}
    if 0 < room < _ROOM_BYTES:
        return warn(seen, "free some memory, or raise --memory-mb: only the smallest models fit", **figures)
    return good(seen, **figures)


def memory(agent: Agent) -> Finding:  # noqa: ARG001  # a check is a function of its context
    """See how much memory there is."""
    return checkup.memory(_SMALL_BYTES, _TINY_BYTES)


def disk(agent: Agent) -> Finding:
    """See whether state and prepared data can be written."""
    return checkup.disk({"store": agent.store, "cache": agent.cache})


def state(agent: Agent) -> Finding:
    """See whether something of what this device keeps was found to be damaged."""
    aside = sorted(path.name for path in agent.store.rglob("*.corrupt-*"))
    if aside:
        seen = f"{agent.store}: set aside as damaged: {', '.join(aside[:4])}"
        return warn(seen, "look at the disk (dmesg); remove them when you have seen them")
    return good(f"{agent.store}: {'in use' if (agent.store / 'memory.json').exists() else 'nothing yet'}")


def backends(agent: Agent) -> Finding:
    """Let every installed backend make one step of training, and compare with numpy's."""
    chosen, there = usual(agent.compute), installed()
    if chosen == "ort_training":
        there = [chosen]
    elif chosen not in there:
        raise DeviceError(f"--backend {chosen}: not installed here: pip install 'edge-runtime[{chosen}]'")
    findings = []
    for name in there:
        found = _step(name, agent)
        harmless = name != chosen and found.verdict == checkup.FAIL
        findings.append(replace(found, verdict=checkup.WARN, blocks=False) if harmless else found)
    findings.append(good(f"tasks are computed by {chosen}", backend=chosen))
    if "onnx" not in there and agent.compute.backend == "auto":
        findings.append(warn("onnxruntime is not installed: numpy computes, more slowly, and only built-in models",
                             "pip install 'edge-runtime[onnx]'"))  # fmt: skip
    return checkup.worst(findings)


def _step(backend: str, agent: Agent) -> Finding:
    compute = {**agent.job["compute"], "backend": backend}
    done = subprocess.run(
        [sys.executable, "-m", "edge_runtime.selftest"],
        input=json.dumps(compute) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=_TEST_S,
        env=dict(agent.environment) or None,
        start_new_session=True,
        preexec_fn=die_with_parent,  # one system call, looked up before the fork
    )
    mend = f"install it anew: pip install --force-reinstall 'edge-runtime[{backend}]'"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return bad(f"{backend} does not work: {last[:200]}", mend)
    found = json.loads(done.stdout)
    if "error" in found:
        return bad(f"{backend}: {found['error']}", "")
    seen = f"{backend}: a step in {found['step_ms']:.1f} ms, {found['difference']:.0e} from numpy's"
    figures = {f"{backend}_difference": found["difference"], f"{backend}_step_ms": round(found["step_ms"], 2)}
    return (
        good(seen, **figures)
        if found["difference"] < _DIFFERENCE
        else bad(f"{seen}: it computes wrongly", mend, **figures)
    )


def hardware(agent: Agent) -> Finding:
    """Read what this device says of its power and heat."""
    sensors = agent.sensors
    heat_c, slow, bits = sensors.temperature_c(), sensors.throttled(), sensors.throttle_bits()
    tells = [f"power ({sensors.power.name})"] if sensors.power else []
    tells += [f"temperature ({heat_c:.0f} °C)"] if heat_c is not None else []
    tells += [f"throttling ({'throttled now' if slow else 'not throttled'})"] if slow is not None else []
    battery = sensors.battery()
    tells += [f"battery ({100 * battery:.0f} %)"] if battery is not None else []
    seen = f"tells its {', '.join(tells)}" if tells else "tells nothing of its power and heat: reports have none of it"
    figures = {"temperature_c": heat_c, "throttled": None if slow is None else int(slow), "battery": battery}
    if slow or (heat_c or 0) > _HOT_C:
        why = ", ".join(word for bit, word in _BITS.items() if bits & bit)
        return warn(f"{seen}{': ' if why else ''}{why}", "cool it, or give it a stronger supply: rounds take longer",
                    **figures)  # fmt: skip
    return good(seen, **figures)


def packages(agent: Agent) -> Finding:  # noqa: ARG001
    """See whether what every agent imports is there."""
    missing = [
        name for name in ("numpy", "paho", "zstandard", "cryptography") if importlib.util.find_spec(name) is None
    ]
    if missing:
        return bad(f"not installed: {', '.join(missing)}", "pip install --force-reinstall edge-runtime")
    return good(f"Python {profile().python} on {profile().arch}")


CHECKS: tuple[Check[Agent], ...] = (
    Check("python", packages),
    Check("identity", who, ConfigError.exit_code),
    Check("running", running),
    *station.checks(lambda agent: agent.station),
    Check("coordinator", answered, LINK, ("may",)),
    Check("memory", memory),
    Check("disk", disk),
    Check("state", state),
    Check("data", samples, ConfigError.exit_code),
    Check("trainer", trainer, DeviceError.exit_code, ("data",)),
    Check("backends", backends),
    Check("hardware", hardware),
)
