"""Central differential privacy: what is clipped, what noise is added, what is promised, and what a crash changes."""

import dataclasses
import hashlib
import math
import shutil
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_runtime import config, fixed, wire
from edge_runtime.algorithms import fedavg
from edge_runtime.coordinator import privacy, report
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.privacy import Private, gaussians
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.session import in_memory
from edge_runtime.coordinator.simulate import Scene
from edge_runtime.coordinator.summary import summary_table
from edge_runtime.data import DataConfig, device_names
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.message import Blob, Chunk, Hello, Offer

SIZE = len(prepare(RunConfig(algorithm="fedavg", model="linear"), {}).initial)
NAMES = ["a", "b", "c"]
KEY = b"k" * 32


def stepped(held: Private, *rows: Any) -> Any:
    model = np.zeros(held.size, np.float32)
    for number, row in enumerate(rows):
        held.add(str(number), row)
    held.step(model)
    held.clear()
    return -model


# The clip


@pytest.mark.parametrize("length", [1.0001, 3.0, 900.0])
def test_a_longer_update_keeps_its_direction_and_is_never_longer_than_the_clip(length: float) -> None:
    row = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    row *= np.float32(length / np.linalg.norm(row))
    held = Private(1000, 1.0, 0.0, KEY)
    held.add("a", row)
    units = held._total._sum  # what is summed, to the last digit
    exact = sum(int(unit) ** 2 for unit in units)
    assert exact <= int(1 / fixed.UNIT) ** 2
    assert exact == pytest.approx(int(1 / fixed.UNIT) ** 2, rel=1e-9)
    np.testing.assert_allclose(units * fixed.UNIT, row / length, rtol=0, atol=1e-6)


def test_a_shorter_update_is_left_as_it_is() -> None:
    row = np.array([0.25, -0.5, 0.125], np.float32)
    assert stepped(Private(3, 1.0, 0.0, KEY), row).tolist() == row.tolist()


def test_the_mean_is_of_clipped_updates() -> None:
    rows = np.array([[300.0, 400.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(stepped(Private(2, 2.0, 0.0, KEY), *rows), [0.6, 1.3], rtol=1e-6)


def test_an_update_of_a_part_is_clipped_by_its_own_values() -> None:
    held, model = Private(3, 1.0, 0.0, KEY), np.zeros(3, np.float32)
    held.add("a", np.array([3.0, 4.0], np.float32), where=np.array([True, False, True]))
    held.step(model)
    np.testing.assert_allclose(-model, [0.6, 0, 0.8], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 512.0])
def test_an_update_that_is_unfit_is_refused_and_nothing_changes(bad: float) -> None:
    held = Private(2, 1.0, 1.0, KEY)
    with pytest.raises(DecodeError, match="not finite or not below"):
        held.add("a", np.array([0, bad], np.float32))
    assert held.count == 0


# The noise


def test_noise_on_the_mean_has_the_deviation_that_was_asked_for_and_no_bias() -> None:
    size, count, clip, noise = 200_000, 8, 0.5, 3.0
    rows = [np.zeros(size, np.float32)] * count
    found = stepped(Private(size, clip, noise, KEY), *rows).astype(np.float64)
    deviation = noise * clip / count
    assert found.std() == pytest.approx(deviation, rel=4 / math.sqrt(2 * size))  # 4 deviations of such an estimate
    assert abs(found.mean()) < 4 * deviation / math.sqrt(size)


def test_numbers_drawn_are_normal_and_the_two_of_a_pair_independent() -> None:
    drawn = gaussians(b"seed", 200_001)
    assert len(drawn) == 200_001
    ordered, normal = np.sort(drawn), NormalDist()
    ranks = (np.arange(len(ordered)) + 0.5) / len(ordered)
    found = np.array([normal.cdf(float(value)) for value in ordered])
    assert np.abs(found - ranks).max() < 1.95 / math.sqrt(len(ordered))  # Kolmogorov and Smirnov, one in a thousand
    half = len(drawn) // 2
    assert abs(np.corrcoef(drawn[:half], drawn[half + 1 :])[0, 1]) < 4 / math.sqrt(half)
    assert abs(np.corrcoef(drawn[:half] ** 2, drawn[half + 1 :] ** 2)[0, 1]) < 4 / math.sqrt(half)


def test_noise_of_another_round_key_or_sum_is_another_and_of_the_same_the_same() -> None:
    zeros, ones = np.zeros(6, np.float32), np.full(6, 0.25, np.float32)
    held, again = Private(6, 1.0, 1.0, KEY), Private(6, 1.0, 1.0, KEY)
    first, second = stepped(held, zeros), stepped(held, zeros)
    assert stepped(again, zeros).tolist() == first.tolist()
    other_key = stepped(Private(6, 1.0, 1.0, b"x" * 32), zeros)
    other_sum = stepped(Private(6, 1.0, 1.0, KEY), ones) - ones
    found = [first, second, other_key, other_sum]
    assert len({one.round(3).tobytes() for one in found}) == 4


def test_noise_does_not_hang_on_the_order_of_arrival() -> None:
    rows = np.random.default_rng(0).normal(0, 0.1, (3, 6)).astype(np.float32)
    found = {stepped(Private(6, 1.0, 1.0, KEY), *rows[order]).tobytes() for order in ([0, 1, 2], [2, 0, 1])}
    assert len(found) == 1


def test_a_server_goes_on_from_its_state_with_the_next_rounds_noise() -> None:
    zeros = np.zeros(6, np.float32)
    straight, resumed = Private(6, 1.0, 1.0, KEY), Private(6, 1.0, 1.0, KEY)
    stepped(straight, zeros)
    resumed.restore(straight.state())
    assert stepped(resumed, zeros).tolist() == stepped(straight, zeros).tolist()


def test_a_round_without_updates_moves_nothing() -> None:
    assert not stepped(Private(6, 1.0, 1.0, KEY)).any()


# The real coordinator


POST: Any = SimpleNamespace(send=lambda device, message: True, share=lambda chunk: True, room=lambda: True)
"""A network that takes everything."""


def a_run(algorithm: str = "fedavg", table: Any = None, **settings: Any) -> Run:
    given = {"rounds": 2, "devices": 3, "evaluate": False, "privacy_clip": 1.0, "privacy_noise": 0.5, **settings}
    return prepare(RunConfig(algorithm=algorithm, **{"model": "linear", **given}), table or {})


def coordinator(folder: Path, run: Run) -> tuple[Coordinator, Journal]:
    journal = Journal(folder, durable=False)
    made = Coordinator(run.plan("run", journal.next_epoch()), run, journal, POST)
    made.start()
    for name in NAMES:
        made.handle(name, Hello("test"))
    return made, journal


def send(made: Coordinator, device: str, value: float) -> None:
    round_ = made.core.progress.round
    payload = wire.encode(fedavg.Up(round_, 1, np.full(SIZE, value, np.float32)))
    blob = Blob(hashlib.sha256(payload).hexdigest(), len(payload))
    made.handle(device, Offer("run", round_, "train", blob, {}))
    made.handle(device, Chunk(blob.digest, 0, payload))


def shared(made: Coordinator) -> Any:
    model = made.server.shared()
    assert model is not None
    return model


def test_after_a_crash_the_same_updates_are_given_the_same_noise_and_others_another(tmp_path: Path) -> None:
    made, journal = coordinator(tmp_path / "one", a_run())
    send(made, "a", 0.001)
    send(made, "b", 0.001)
    journal.close()
    for copy in ("two", "three"):
        shutil.copytree(tmp_path / "one", tmp_path / copy)
    moves = []
    for folder, last in (("one", 0.001), ("two", 0.001), ("three", 0.0013)):
        made, journal = coordinator(tmp_path / folder, a_run())
        before = shared(made)
        send(made, "c", last)
        assert made.core.progress.round == 1
        moves.append(before - shared(made))
        journal.close()
    assert moves[0].tobytes() == moves[1].tobytes()
    apart = moves[2] - moves[0]
    assert apart.std() == pytest.approx(0.5 / 3 * math.sqrt(2), rel=0.05)  # of two independent draws, and no less


def test_two_runs_of_one_seed_have_different_noise(tmp_path: Path) -> None:
    found = []
    for folder in ("one", "two"):
        made, journal = coordinator(tmp_path / folder, a_run(seed=5))
        for name in NAMES:
            send(made, name, 0.001)
        found.append(shared(made).tobytes())
        journal.close()
    assert found[0] != found[1]


def test_the_key_lasts_as_long_as_the_run_and_no_longer(tmp_path: Path) -> None:
    made, journal = coordinator(tmp_path, a_run())
    key = journal.get("privacy-key")
    assert key is not None
    assert len(bytes.fromhex(key)) == 32
    for _ in range(2):
        for name in NAMES:
            send(made, name, 0.001)
    assert made.core.progress.finished
    assert not journal.get("privacy-key")
    journal.close()


def test_a_cohort_is_drawn_by_what_the_public_seed_does_not_tell(tmp_path: Path) -> None:
    cohorts = set()
    for number in range(12):
        made, journal = coordinator(tmp_path / str(number), a_run(cohort=1))
        cohorts.add(made.core.progress.cohort)
        journal.close()
    assert len(cohorts) == 3


# What is promised


@dataclasses.dataclass(frozen=True)
class Asked:
    privacy_clip: float = 1.0
    privacy_noise: float = 5.0
    privacy_delta: float = 1e-5
    cohort: int = 0


class Notes(dict[str, str]):
    def set(self, key: str, value: str) -> None:
        self[key] = value


def every(rounds: int, devices: int) -> list[tuple[int, str]]:
    return [(round_, f"d{device}") for round_ in range(rounds) for device in range(devices)]


def classical(noise: float, rounds: int, delta: float) -> float:
    """Convert Renyi differential privacy of Gaussian noise by Mironov's rule (2017)."""
    orders = 1 + np.geomspace(1e-2, 1e3, 100_000)
    return float((rounds * orders / (2 * noise**2) + math.log(1 / delta) / (orders - 1)).min())


def analytic(noise: float, rounds: int, delta: float) -> float:
    """Solve for the exact epsilon of composed Gaussian noise (Balle and Wang, 2018), which none can be below."""
    mu, cdf = math.sqrt(rounds) / noise, NormalDist().cdf
    low, high = 0.0, 1000.0
    while high - low > 1e-9:
        epsilon = (low + high) / 2
        found = cdf(mu / 2 - epsilon / mu) - math.exp(min(epsilon, 700)) * cdf(-mu / 2 - epsilon / mu)
        low, high = (low, epsilon) if found <= delta else (epsilon, high)
    return high


def test_by_hand_a_hundred_rounds_with_noise_five_are_epsilon_11_6() -> None:
    assert classical(5.0, 100, 1e-5) == pytest.approx(11.6, abs=0.05)


@pytest.mark.parametrize(("noise", "rounds"), [(5.0, 100), (1.0, 1), (20.0, 1000), (0.8, 30)])
def test_the_accountant_lies_between_the_exact_epsilon_and_the_classical_bound(noise: float, rounds: int) -> None:
    pytest.importorskip("dp_accounting")
    found, by = privacy.epsilon(Asked(privacy_noise=noise), rounds, 0)
    assert analytic(noise, rounds, 1e-5) <= found <= classical(noise, rounds, 1e-5)
    assert by.startswith("dp-accounting ")


def test_drawing_all_devices_is_as_if_none_were_drawn_and_drawing_few_is_better() -> None:
    pytest.importorskip("dp_accounting")
    asked = Asked(privacy_noise=4.0, cohort=100)
    whole = privacy.epsilon(dataclasses.replace(asked, privacy_noise=2.0), 10, 0)[0]
    assert privacy.epsilon(asked, 10, 100)[0] == pytest.approx(whole, rel=0.02)  # an exchange is twice as far
    assert privacy.epsilon(asked, 10, 1000)[0] < whole / 2


def test_the_line_has_epsilon_and_all_that_it_rests_on() -> None:
    pytest.importorskip("dp_accounting")
    told = privacy.statement(Asked(), Notes(), every(100, 20))
    rests_on = ["dp-accounting", "100 rounds", "any device may have taken part every time", "replaced by zeros"]
    rests_on += ["clipped to 1", "noise 5 times that", "not covered"]
    for part in ("epsilon 10.7 at delta 1e-05", *rests_on):
        assert part in told
    assert "\n" not in told


def test_the_line_counts_on_a_draw_only_where_everybody_who_was_drawn_answered() -> None:
    pytest.importorskip("dp_accounting")
    asked, notes = Asked(cohort=5), Notes({"privacy-from": "50"})
    whole, lacking = every(10, 5), every(10, 5)[:-1]
    told = privacy.statement(asked, notes, whole)
    assert "each of 5 of at least 50 devices, drawn in secret without replacement" in told
    assert "exchanged for another" in told
    assert "any device may have taken part every time" in privacy.statement(asked, notes, lacking)


def test_without_noise_or_without_an_accountant_no_epsilon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = privacy.statement(Asked(privacy_noise=0.0), Notes(), every(3, 3))
    assert told == "privacy: no epsilon: every update was clipped to 1, and no noise was added (privacy-noise)"

    def missing() -> Any:
        raise ImportError

    monkeypatch.setattr(privacy, "_accounting", missing)
    assert "no epsilon: the accountant is not installed" in privacy.statement(Asked(), Notes(), every(3, 3))
    assert privacy.statement(Asked(privacy_clip=0.0), Notes(), every(3, 3)) == ""


def test_a_whole_run_tells_in_its_report_what_it_has_promised(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    few = DataConfig(labels_per_class=2)
    names = device_names(few)[:3]
    asked = {"rounds": 2, "devices": 3, "privacy_clip": 0.5, "privacy_noise": 2.0}
    run = prepare(RunConfig(algorithm="fedspa", model="watch-mlp", **asked), {"local-steps": 1})  # type: ignore[arg-type]
    outcome = in_memory(run, Scene(few, names, config.cache_folder()), tmp_path, lambda coordinator: None)
    assert outcome.privacy.startswith("privacy: epsilon ")
    assert "over 2 rounds" in outcome.privacy
    info = report.RunInfo(outcome.run_id, "fedspa", 2, "watch-mlp", 1, 0, {}, privacy=outcome.privacy)
    made = report.build(info, outcome.rows)
    assert made["privacy"] == outcome.privacy
    assert outcome.privacy in str(summary_table(made).caption)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedspa", "ditto", "quped", "ffgg", "fedbuff", "persafl"])
def test_an_algorithm_whose_devices_change_one_mean_can_be_private(algorithm: str, tmp_path: Path) -> None:
    run = a_run(algorithm, habit="synchronous", model="mlp")
    made, journal = coordinator(tmp_path, run)
    assert isinstance(made.server.total, Private)  # type: ignore[attr-defined]
    journal.close()


@pytest.mark.parametrize(
    ("algorithm", "settings", "table", "told"),
    [
        ("local", {}, {}, "local has no mean of changes"),
        ("fedasync", {}, {}, "fedasync has no mean of changes"),
        ("fedbuff", {}, {}, "set habit to synchronous, not asynchronous"),
        ("fedavg", {"devices": 20}, {"robust": True}, "bounded for aggregator mean, not trimmed-mean"),
        ("fedspa", {}, {"aggregate": "owners"}, "bounded for aggregate cohort, not owners"),
        ("fedavg", {}, {"weights": "samples"}, "bounded for weights uniform, not samples"),
        ("fedavg", {}, {"norm-limit": 3.0}, "bounded for norm-limit 0"),
        ("fedavg", {"privacy_clip": 0.0}, {}, "privacy-noise needs a privacy-clip"),
        ("fedavg", {"privacy_clip": 257.0}, {}, "privacy-clip must be from 0 to 256"),
        ("fedavg", {"privacy_noise": -1.0}, {}, "privacy-noise from 0 to 1000"),
        ("fedavg", {"privacy_delta": 1.0}, {}, "privacy-delta must lie between 0 and 1"),
    ],
)
def test_privacy_that_would_not_hold_is_refused(algorithm: str, settings: Any, table: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        a_run(algorithm, table, **settings)
