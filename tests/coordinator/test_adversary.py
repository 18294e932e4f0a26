"""Devices that lie in a simulation: whom they wait for, and what they send."""

from typing import Any

import numpy as np
import pytest

from edge_runtime import wire
from edge_runtime.algorithms import ffgg
from edge_runtime.algorithms.fedavg import Up
from edge_runtime.coordinator import attacks
from edge_runtime.coordinator.adversary import Adversary, Attack, crafted, flip_labels, plant_backdoor
from edge_runtime.data import Split
from edge_runtime.errors import ConfigError
from edge_runtime.tree import Layout, Part

LAYOUT = Layout(("w",), ((3,),))
LIARS = frozenset({"x", "y"})
COHORT = ("a", "b", "x", "y")


def up(round_: int, samples: int, *values: float) -> bytes:
    return wire.encode(Up(round_, samples, np.array(values, np.float32)))


def decode(payload: bytes) -> Any:
    return wire.decode(payload, Up, LAYOUT)


def adversary(kind: str, lockstep: bool = True) -> Adversary:
    return Adversary(attacks.ATTACKS[kind], LIARS, decode, seed=0, lockstep=lockstep)


def test_liars_wait_for_all_honest_devices_of_their_round() -> None:
    one = adversary("mimic")
    one.see("a", 4, up(4, 1, 1, 2, 3))
    assert not one.ready(4, COHORT)
    one.see("b", 4, b"")  # it failed, and will send nothing
    assert one.ready(4, COHORT)
    assert not one.ready(5, COHORT)


def test_a_lie_is_made_of_the_honest_updates_of_the_round_in_the_order_of_the_devices() -> None:
    one = adversary("mimic")
    one.see("c", 3, up(3, 1, 9, 9, 9))
    one.see("b", 4, up(4, 1, 4, 5, 6))
    one.see("a", 4, up(4, 1, 1, 2, 3))
    lie = decode(one.forge("x", 4, up(4, 77, 0, 0, 0), COHORT))
    assert (lie.round, lie.samples, lie.values.tolist()) == (4, 77, [1, 2, 3])


def test_all_liars_of_a_round_lie_together() -> None:
    one = adversary("inner-product")
    one.see("a", 0, up(0, 1, 1, 2, 3))
    one.see("b", 0, up(0, 1, 3, 2, 1))
    lies = [decode(one.forge(liar, 0, up(0, 1, 0, 0, 0), COHORT)).values for liar in ("x", "y")]
    # Two honest devices, two liars: -2 (2 / 2) times the honest mean, so that the mean of all four is minus half of it.
    assert lies[0].tolist() == lies[1].tolist() == [-4, -4, -4]


def test_a_lie_is_told_about_named_tensors_as_well() -> None:
    layout = Layout(("theta", "w"), ((3,), (1,)))

    def sent(*values: float) -> bytes:
        return wire.encode(ffgg.Up(0, 1, Part(layout.bits(["theta"]), np.array(values, np.float32))))

    one = Adversary(attacks.ATTACKS["mimic"], LIARS, lambda data: wire.decode(data, ffgg.Up, layout), seed=0)
    one.see("a", 0, sent(1, 2, 3))
    one.see("b", 0, sent(4, 5, 6))
    lie = wire.decode(one.forge("x", 0, sent(0, 0, 0), COHORT), ffgg.Up, layout)
    assert (layout.names_of(lie.values), lie.values.values.tolist()) == (("theta",), [1, 2, 3])


def test_a_liar_alone_turns_what_it_would_have_sent_itself() -> None:
    lie = decode(adversary("sign-flip").forge("x", 0, up(0, 1, 1, -2, 3), ("x",)))
    assert lie.values.tolist() == [-1, 2, -3]


def test_liars_that_are_no_minority_do_as_if_they_were_honest_where_the_attack_needs_one() -> None:
    lie = decode(adversary("a-little-is-enough").forge("x", 0, up(0, 1, 1, 2, 3), ("x", "y")))
    assert lie.values.tolist() == [1, 2, 3]


def test_without_rounds_liars_wait_for_nobody_and_look_at_the_latest_updates() -> None:
    one = adversary("inner-product", lockstep=False)
    assert one.ready(9, COHORT)
    for number in range(20):
        one.see(f"device-{number:02d}", number, up(number, 1, number, 0, 0))
    lie = decode(one.forge("x", 30, up(30, 1, 0, 0, 0), ("x",)))
    # The last 16, numbers 4 to 19, have the mean 11.5; one liar among 16 sends -2 * 16 times that.
    assert lie.values.tolist() == [-368, 0, 0]


def test_flipped_labels_are_for_training_only() -> None:
    y = np.array([0, 1, 9])
    made = flip_labels(Split(np.zeros((3, 1)), y, np.zeros((3, 1)), y, 10, tuple("abcdefghij")))
    assert (made.y_train.tolist(), made.y_test.tolist()) == ([9, 8, 0], [0, 1, 9])


def test_a_backdoor_is_a_mark_on_every_other_sample_and_its_class_in_training_alone() -> None:
    x, y = np.random.default_rng(0).random((4, 1, 8, 8)), np.array([3, 4, 5, 6])
    made = plant_backdoor(Split(x, y, x, y, 10, tuple("abcdefghij")))
    assert made.y_train.tolist() == [attacks.TARGET, 4, attacks.TARGET, 6]
    assert (made.x_train[::2] == attacks.marked(x[::2])).all()
    assert (made.x_train[1::2] == x[1::2]).all()
    assert (made.x_test is x, made.y_test.tolist()) == (True, [3, 4, 5, 6])


def test_a_backdoor_is_sent_so_large_that_the_mean_of_all_becomes_it() -> None:
    one = Adversary(crafted("backdoor"), LIARS, decode, seed=0)
    lie = decode(one.forge("x", 0, up(0, 7, 1, 2, 3), COHORT))
    assert (lie.samples, lie.values.tolist()) == (7, [2, 4, 6])  # two liars of four


def test_as_many_devices_lie_as_were_asked_for_and_none_without_an_attack() -> None:
    devices = [f"device-{i}" for i in range(20)]
    assert len(Attack("mimic", part=0.2).members(0, devices)) == 4
    assert Attack(part=0.2).members(0, devices) == frozenset()


@pytest.mark.parametrize(
    ("kind", "part", "words"),
    [("sign-flop", 0.2, "kind must be one of label-flip, backdoor, sign-flip"), ("mimic", 1.0, "part")],
)
def test_an_attack_that_cannot_be_is_refused(kind: str, part: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Attack(kind, part)
