"""A run among equals: the same bits as a coordinated one, whatever the network does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import config, data, peers, setup, trainer, wire
from edge_runtime.algorithms.fedh2l import Up
from edge_runtime.coordinator import simulate as simulation
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.simulate import Scene
from edge_runtime.data import DataConfig
from edge_runtime.errors import ConfigError
from edge_runtime.message import Task
from edge_runtime.store import MemoryStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.transport import CALM, Faults

DATA = DataConfig(labels_per_class=3, parts=4)
NAMES = data.device_names(DATA)
BAD = Faults(drop=0.15, duplicate=0.1, delay_s=1.5)


def a_run(habit: str, rounds: int = 3, deadline_s: float = 1e5, **settings: Any) -> Run:
    run = RunConfig("fedh2l", rounds=rounds, devices=len(NAMES), habit=habit, deadline_s=deadline_s, evaluate=False)
    seeds = data.seed_set(DATA, 28, config.cache_folder())
    table = {"local-steps": 2, "lr": 0.05, "batch-size": 8, **settings}
    return prepare(run, table, {}, seeds)


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Play a simulated run: play(run, faults) gives the bytes that every device's last state has, and the figures."""
    number = iter(range(100))

    def play(run: Run, faults: Faults = CALM) -> tuple[list[bytes], list[Any]]:
        stores: list[MemoryStore] = []

        class Kept(MemoryStore):
            def __init__(self) -> None:
                super().__init__()
                stores.append(self)

        monkeypatch.setattr(simulation, "MemoryStore", Kept)
        journal = Journal(tmp_path / str(next(number)))
        simulation.simulate(
            run, "run", Scene(DATA, NAMES, config.cache_folder(), faults=faults), journal, lambda c: None
        )
        accepted = journal.accepted()
        journal.close()
        return [state_of(store) for store in stores], accepted

    return play


def state_of(store: MemoryStore) -> bytes:
    """Give the state after the last round, whose fate a device may not have heard when the simulation ends."""
    memory = store.memory
    newest = memory.talk.said[-1] if memory.talk else memory.pending
    return store.states[newest.blob.digest if newest else memory.base]


def test_devices_among_themselves_end_in_the_same_bits_as_with_a_coordinator(play: Any) -> None:
    coordinated, _ = play(a_run("synchronous"))
    among_equals, accepted = play(a_run("decentralised"))
    assert among_equals == coordinated
    assert len(set(among_equals)) == len(NAMES)
    assert [(item.phase, item.device) for item in accepted] == [("peers", name) for name in NAMES]
    assert all(0 <= item.metrics["accuracy-personal"] <= 1 for item in accepted)


@pytest.mark.parametrize("topology", ["full", "ring", "random"])
def test_what_the_network_loses_doubles_and_reorders_makes_no_difference(topology: str, play: Any) -> None:
    run = a_run("decentralised", topology=topology)
    calm, _ = play(run)
    lossy, accepted = play(run, BAD)
    assert lossy == calm
    assert all(item.metrics["peers-missing"] == 0 for item in accepted)


def test_an_algorithm_that_needs_a_coordinator_is_refused() -> None:
    with pytest.raises(ConfigError, match="fedavg runs synchronous, not 'decentralised'"):
        prepare(RunConfig("fedavg", habit="decentralised"), {})


def test_a_coordinator_waits_for_all_rounds_at_once() -> None:
    assert a_run("decentralised", rounds=9, deadline_s=2.0).deadline_s == 20.0
    assert a_run("synchronous", rounds=9, deadline_s=2.0).deadline_s == 2.0


def work(run: Run, store: MemoryStore, round_: int, base: str, heard: dict[str, bytes]) -> Outcome:
    """Do a round of the first device with what it heard."""
    task = Task(
        "run", 1, round_, "peers", base, store.write(setup.encode(run.description)), store.write(peers.pack(heard))
    )
    return trainer.work(trainer.Job(NAMES[0], DATA, str(config.cache_folder())), task, store)


def test_what_a_peer_says_that_makes_no_sense_is_left_out_and_laid_at_its_door() -> None:
    run, store = a_run("decentralised"), MemoryStore()
    first = work(run, store, 0, "", {})
    base = store.put(first.payload, first.state).digest
    identity = run.settings.identity
    said = np.tile(np.eye(7, dtype=np.float32)[0], 28)
    good, nan = wire.encode(Up(0, identity, said)), wire.encode(Up(0, identity, said * np.nan))
    other = wire.encode(Up(0, identity[:-1] + b"?", said))
    late = wire.encode(Up(1, identity, said))

    alone = work(run, store, 1, base, {"good": good})
    among = work(run, store, 1, base, {"good": good, "nan": nan, "other": other, "late": late, "mute": b"?"})

    assert alone.payload == among.payload != work(run, store, 1, base, {}).payload
    assert alone.faults == {}
    assert sorted(among.faults) == ["late", "mute", "nan", "other"]
    assert "not finite" in among.faults["nan"]
    assert "the seed set of other differs: samples, labels or their order" in among.faults["other"]
    assert "round 1, not 0" in among.faults["late"]


def test_a_run_of_fedh2l_without_a_seed_set_is_refused_before_it_starts() -> None:
    with pytest.raises(ConfigError, match=r"needs a seed set; say run\.seed-samples or run\.seed-file"):
        prepare(RunConfig("fedh2l"), {})
