"""What is let in below the algorithms: by shape and by norm, alike after a restart."""

import dataclasses
import hashlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_runtime import aggregate, wire
from edge_runtime.algorithms import fedavg, fedh2l, ffgg, local
from edge_runtime.coordinator.admission import Admission, norm
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.message import Blob, Chunk, Fate, Hello, Offer
from edge_runtime.tree import Layout

NAMES = [f"device-{number}" for number in range(6)]
SIZE = len(prepare(RunConfig(algorithm="fedavg", model="linear"), {}).initial)


def up(length: float, round_: int = 0, size: int = SIZE) -> fedavg.Up:
    values = np.zeros(size, np.float32)
    values[:4] = length / 2
    return fedavg.Up(round_, 1, values)


def closed(admission: Admission, *lengths: float) -> None:
    for number, length in enumerate(lengths):
        admission.note(str(number), up(length))
    admission.close()


def test_a_norm_far_above_the_median_of_those_accepted_is_refused_with_both_numbers() -> None:
    admission = Admission(5.0)
    admission.check(up(400.0), SIZE)  # nobody knows yet what is usual
    closed(admission, 1.0, 2.0, 100.0)
    admission.check(up(9.99), SIZE)
    with pytest.raises(DecodeError, match=r"norm 10\.1 is above 5 times 2, the median of those accepted"):
        admission.check(up(10.1), SIZE)


def test_within_a_round_the_limit_stands_still_so_that_the_order_of_arrival_makes_no_difference() -> None:
    admission = Admission(2.0)
    closed(admission, 1.0)
    admission.note("a", up(500.0))
    assert admission.most == 2.0


def test_the_limit_follows_the_last_eight_rounds() -> None:
    admission = Admission(2.0)
    closed(admission, 100.0)
    for _ in range(8):
        closed(admission, 1.0)
    assert admission.most == 2.0


def test_a_fifth_of_liars_cannot_move_the_limit_beyond_what_honest_devices_send() -> None:
    admission = Admission(5.0)
    closed(admission, *[1.0] * 8, 400.0, 400.0)
    assert admission.most == 5.0


def test_a_device_that_is_noted_again_counts_once() -> None:
    admission = Admission(1.5)
    for length in (9.0, 9.0, 1.0):
        admission.note("a", up(length))
    admission.note("b", up(1.0))
    admission.close()
    assert admission.most == 1.5


def test_the_limit_goes_on_from_its_state_and_forgets_the_open_round() -> None:
    one, other = Admission(5.0), Admission(5.0)
    closed(one, 1.0, 3.0)
    state = one.state()
    other.note("a", up(77.0))
    other.restore(dict(state))
    other.close()
    assert other.most == one.most == 10.0
    assert Admission(0.0).state() == {}


def test_updates_that_are_all_nothing_make_no_limit() -> None:
    admission = Admission(5.0)
    closed(admission, 0.0, 0.0)
    admission.check(up(3.0), SIZE)


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_a_change_of_another_shape_than_the_models_is_refused_without_any_limit(size: int) -> None:
    with pytest.raises(DecodeError, match=f"{size} values where {SIZE} are expected"):
        Admission(0.0).check(fedavg.Up(0, 1, np.zeros(size, np.float32)), SIZE)


def test_what_is_no_change_of_the_model_is_left_to_its_algorithm() -> None:
    for sent in (local.Up(0), fedh2l.Up(0, b"", np.full(20, 1e3, np.float32))):
        Admission(5.0).check(sent, SIZE)


def test_the_norm_of_a_part_is_that_of_its_values() -> None:
    layout = Layout(("a", "b"), ((3,), (2,)))
    sent = ffgg.Up(0, 1, layout.cut(np.array([9, 9, 9, 3, 4], np.float32), ["b"]))
    found = wire.change(sent)
    assert found is not None
    assert norm(found) == 5.0


def test_a_norm_is_right_where_float32_overflows() -> None:
    assert norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30, rel=1e-6)


# The real coordinator


def a_run(**settings: Any) -> Run:
    config = RunConfig(algorithm="fedavg", model="linear", rounds=4, devices=6, evaluate=False)
    return prepare(config, {"robust": True, **settings})


Sent = list[tuple[str, Any]]


def coordinator(folder: Path) -> tuple[Coordinator, Sent, Journal]:
    run, journal, sent = a_run(), Journal(folder, durable=False), []
    post: Any = SimpleNamespace(send=lambda *said: bool(sent.append(said)) or True, share=bool, room=lambda: True)
    made = Coordinator(run.plan("run", journal.next_epoch()), run, journal, post)
    made.start()
    for name in NAMES:
        made.handle(name, Hello("test"))
    return made, sent, journal


def send(made: Coordinator, device: str, length: float) -> None:
    round_ = made.core.progress.round
    payload = wire.encode(dataclasses.replace(up(length), round=round_))
    blob = Blob(hashlib.sha256(payload).hexdigest(), len(payload))
    made.handle(device, Offer("run", round_, "train", blob, {}))
    made.handle(device, Chunk(blob.digest, 0, payload))


def fates(sent: Sent) -> dict[str, tuple[str, str]]:
    return {device: (said.fate, said.reason) for device, said in sent if isinstance(said, Fate)}


def test_a_huge_update_is_told_why_it_is_refused_and_is_in_the_journal_under_its_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, sent, journal = coordinator(tmp_path)
    for name in NAMES:
        send(made, name, 1.0)
    assert made.core.progress.round == 1
    with caplog.at_level(logging.ERROR):
        send(made, NAMES[5], 6.0)
    assert fates(sent)[NAMES[5]][0] == "rejected"
    assert "norm 6 is above 5 times 1" in fates(sent)[NAMES[5]][1]
    assert [(one.round, one.device) for one in journal.rejected()] == [(1, NAMES[5])]
    for name in NAMES[:5]:
        send(made, name, 1.0)
    assert made.core.progress.round == 2  # one liar does not keep the round open
    journal.close()


def test_a_resumed_coordinator_decides_as_the_one_that_was_killed(tmp_path: Path) -> None:
    made, _, journal = coordinator(tmp_path)
    for number, name in enumerate(NAMES):
        send(made, name, 1.0 + number)
    for name in NAMES[:3]:
        send(made, name, 10.0)
    limit = made._downlink._admission.most
    journal.close()  # nothing else is told that it ends
    again, sent, journal = coordinator(tmp_path)
    assert again.core.progress.round == 1
    assert again._downlink._admission.most == limit == 17.5
    send(again, NAMES[3], 17.6)
    assert fates(sent)[NAMES[3]][0] == "rejected"
    send(again, NAMES[4], 10.0)
    send(again, NAMES[5], 10.0)
    assert again.core.progress.round == 2
    journal.close()


# The key `robust`


@pytest.mark.parametrize(
    ("settings", "liars"),
    [({"devices": 6}, 1), ({"devices": 20}, 4), ({"devices": 100, "cohort": 10}, 2), ({"devices": 24}, 4)],
)
def test_robust_stands_for_mixing_and_a_trimmed_mean_that_withstand_a_fifth(
    settings: dict[str, int], liars: int
) -> None:
    made = prepare(RunConfig(algorithm="fedavg", model="linear", **settings), {"robust": True}).settings
    found = (made.aggregator, made.nearest_mixing, made.byzantine, made.norm_limit)
    assert found == ("trimmed-mean", True, liars, aggregate.NORM_LIMIT)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedspa", "quped", "ffgg", "ditto", "persafl", "fedbuff"])
def test_every_algorithm_that_averages_can_be_robust(algorithm: str) -> None:
    run = RunConfig(algorithm=algorithm, model="mlp", devices=10, habit="synchronous")
    made = prepare(run, {"robust": True})
    assert (made.settings.byzantine, made.settings.norm_limit) == (2, 5.0)
    assert "robust" not in made.description.config  # devices and the report see what it stands for


def test_what_a_person_says_beside_robust_counts() -> None:
    run = RunConfig(algorithm="fedspa", model="linear", devices=30)
    made = prepare(run, {"robust": True, "aggregator": "multi-krum", "byzantine": 5}).settings
    assert (made.aggregator, made.byzantine, made.norm_limit) == ("multi-krum", 5, 5.0)


def test_robust_takes_an_asynchronous_runs_buffer_for_its_cohort() -> None:
    run = RunConfig(algorithm="fedbuff", model="linear", devices=30, habit="asynchronous", buffer=10)
    assert prepare(run, {"robust": True}).settings.byzantine == 2


@pytest.mark.parametrize(
    ("algorithm", "run", "table", "told"),
    [
        (
            "fedavg",
            {"devices": 4},
            {},
            "robust needs rounds of at least 5, of 6 asked, and these may close with 4 of 4",
        ),
        ("fedavg", {"devices": 5}, {}, "robust needs rounds of at least 5 for byzantine 1, .* close with 4 of 5"),
        ("fedavg", {"devices": 20}, {"byzantine": 7}, "at least 17 for byzantine 7, .* close with 16 of 20"),
        (
            "fedavg",
            {"devices": 20, "quorum": 1.0},
            {},
            "cannot close once 4 liars are rejected; lower run.quorum to 0.8",
        ),
        ("fedasync", {"devices": 20}, {}, "robust: fedasync takes no mean that liars could spoil"),
        ("local", {"devices": 20}, {}, "robust: local takes no mean"),
        ("fedavg", {"devices": 20}, {"weights": "samples"}, "weights must be uniform with aggregator trimmed-mean"),
        ("fedavg", {"devices": 20}, {"robust": "yes"}, "robust must be true or false, not 'yes'"),
        ("fedavg", {"devices": 20}, {"norm-limit": 0.5}, "norm-limit must be at least 1"),
    ],
)
def test_robust_is_refused_in_one_line_where_it_would_withstand_nobody(
    algorithm: str, run: dict[str, Any], table: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        prepare(RunConfig(algorithm=algorithm, model="linear", **run), {"robust": True, **table})
    assert "\n" not in str(caught.value)


def test_robust_false_is_as_nothing() -> None:
    assert prepare(RunConfig(algorithm="fedavg", model="linear"), {"robust": False}).settings.aggregator == "mean"
