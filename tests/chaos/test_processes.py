"""The rows of `processes.py` at a scale of seconds: what is tested here is also that they can be measured."""

import itertools
from pathlib import Path

import pytest

from edge_runtime.coordinator.broker import find_mosquitto
from edge_runtime.message import WINDOW
from tests.chaos import links, schedule, toy
from tests.chaos.scorecard import Scale, rows
from tests.chaos.trial import Plan, faketime, leaks, trial
from tests.chaos.watch import slope

ROWS = {row.name: row for row in rows()}


@pytest.mark.parametrize(
    "kind",
    [
        "amqtt",
        pytest.param("mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="no mosquitto here")),
    ],
)
def test_a_fleet_whose_parts_are_killed_stopped_and_heckled_ends_as_an_undisturbed_one(
    kind: str, tmp_path: Path
) -> None:
    plan = Plan(20, 8, broker=kind, seed=3, every_s=1.5, most=5, slow=True, heckle=20.0, train_s=0.5, limit_s=400.0)
    verdict = trial(plan, tmp_path)
    assert verdict.clean, verdict
    assert verdict.right, verdict
    assert sum(verdict.kills.values()) > 0


def test_an_update_that_is_lost_or_made_twice_would_show(tmp_path: Path) -> None:
    model, pasts = toy.expected(["a", "b"], 3, 0)
    assert toy.expected(["a", "b"], 3, 1)[0] != model
    assert toy.expected(["a"], 3, 0)[0] != model
    assert pasts["a"].times == 3
    up, after = toy.answer(toy.Down(0, 5, 2, toy.noise(5, 0), 0), "a", toy.Past(2, 7))
    other, _ = toy.answer(toy.Down(0, 5, 2, toy.noise(5, 0), 0), "a", toy.Past(2, 8))
    assert up.value != other.value
    assert after.times == 3


@pytest.mark.slow
def test_after_a_broker_was_away_all_agents_subscribe_again_in_time(tmp_path: Path) -> None:
    figure = ROWS["R21"].measure(Scale(0.04, 1, tmp_path))
    assert figure.met, f"{figure.text} {figure.details}"


@pytest.mark.slow
def test_a_coordinator_that_was_killed_in_a_round_has_nothing_trained_again_and_a_window_of_chunks_sent_again(
    tmp_path: Path,
) -> None:
    found = ROWS["R7"].measure(Scale(0.04, 1, tmp_path)).details
    assert found["right"], found
    assert found["retrained"] == 0
    assert int(str(found["chunks_again"])) <= WINDOW


@pytest.mark.slow
@pytest.mark.skipif(not links.can_lose(), reason="needs root, unshare and nft")
def test_a_fleet_on_links_that_lose_packets_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    verdict = trial(Plan(10, 5, seed=2, loss=0.1, every_s=4.0, most=3, kinds=schedule.KILLS, limit_s=400.0), tmp_path)
    assert verdict.clean, verdict
    assert verdict.right, verdict


@pytest.mark.slow
@pytest.mark.skipif(faketime() is None, reason="needs faketime")
def test_clocks_that_are_wrong_and_jump_change_nothing(tmp_path: Path) -> None:
    verdict = trial(Plan(8, 8, seed=2, clocks=True, train_s=0.5, limit_s=150.0), tmp_path)
    assert verdict.clean, verdict
    assert verdict.right, verdict
    assert verdict.details["jumps"] > 0
    assert {1970, 2038} < set(verdict.details["years"])


def test_a_schedule_is_the_same_for_the_same_seed_and_only_for_that() -> None:
    names = tuple("abcdefghij")
    one, same, other = (list(itertools.islice(schedule.faults(seed, 3.0, names), 20)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert {fault.kind for fault in one} <= set(schedule.KINDS)


def test_a_slope_is_that_of_the_line() -> None:
    assert slope([(0, 1.0), (1, 3.0), (2, 5.0)]) == pytest.approx(2.0)
    assert slope([(0, 1.0)]) == 0.0


def test_what_a_fleet_leaves_is_seen(tmp_path: Path) -> None:
    (tmp_path / "home" / "spool").mkdir(parents=True)
    (tmp_path / "home" / "spool" / "d000").write_bytes(b"rest")
    assert leaks(tmp_path / "home", []) == [str(tmp_path / "home" / "spool" / "d000")]
