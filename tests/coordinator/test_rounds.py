import pytest

from edge_runtime.coordinator.actions import (
    Accept,
    Action,
    Assign,
    Close,
    Finish,
    Keep,
    Look,
    Plan,
    Progress,
    Recall,
    Register,
    Sample,
    SendChunks,
    Tell,
)
from edge_runtime.coordinator.rounds import RoundsCore
from edge_runtime.message import Blob, Chunk, Fate, Hello, Message, Need, Offer, Refuse, Status, Welcome

DEVICES = ("a", "b", "c")
UP = Blob("c" * 64, 70_000)
FIRST, LAST = Chunk(UP.digest, 0, bytes(65_536)), Chunk(UP.digest, 1, bytes(4_464))


def offer(round_: int = 0, blob: Blob = UP, phase: str = "train", run: str = "run") -> Offer:
    return Offer(run, round_, phase, blob, {})


def fate(what: str, reason: str = "", run: str = "run", round_: int = 0) -> Fate:
    return Fate(run, round_, "train", UP.digest, what, reason)


def opened(quorum: float = 0.6, rounds: int = 2, evaluate: bool = False) -> RoundsCore:
    core = RoundsCore(Plan("run", 1, rounds, 3, quorum=quorum, evaluate=evaluate), Progress())
    for device in DEVICES:
        core.handle(device, Hello("x"))
    core.opened(DEVICES)
    return core


def deliver(core: RoundsCore, device: str) -> list[object]:
    assert core.handle(device, offer()) == [Recall(device, offer())]
    core.recalled(device, offer(), set())
    core.handle(device, FIRST)
    assert core.handle(device, LAST) == [Keep(device, offer(), LAST), Accept(device, offer())]
    return list(core.accepted(device, offer()))


def test_the_first_round_opens_when_enough_devices_said_hello() -> None:
    core = RoundsCore(Plan("run", 1, 2, 2), Progress())
    assert core.handle("a", Hello("x")) == [Register("a"), Tell("a", Welcome("run"))]
    assert core.handle("b", Hello("x")) == [Register("b"), Tell("b", Welcome("run")), Sample(("a", "b"))]
    assert core.opened(("a", "b")) == [Assign("a", False), Assign("b", False)]


def test_after_a_restart_nobody_need_say_hello_for_the_next_round_to_open() -> None:
    accepted = {"a": UP.digest, "b": UP.digest}
    core = RoundsCore(Plan("run", 2, 2, 3), Progress(cohort=DEVICES, accepted=accepted, known=set(DEVICES)))
    assert core.start() == [Assign("c", False)]
    assert deliver(core, "c") == [Tell("c", fate("applied")), Close()]
    assert core.closed() == [Sample(DEVICES)]


def test_a_round_closes_when_its_whole_cohort_has_answered_and_the_next_opens() -> None:
    core = opened()
    assert deliver(core, "a") == [Tell("a", fate("applied"))]
    deliver(core, "b")
    assert deliver(core, "c") == [Tell("c", fate("applied")), Close()]
    assert core.closed() == [Sample(DEVICES)]
    assert core.progress.round == 1


def test_a_run_ends_after_its_last_round_or_after_the_evaluation() -> None:
    for evaluate in (False, True):
        core = opened(rounds=1, evaluate=evaluate)
        for device in DEVICES:
            deliver(core, device)
        actions = core.closed()
        assert actions == ([Sample(DEVICES)] if evaluate else [Finish()])
        assert (core.progress.phase, core.progress.finished) == ("evaluate", not evaluate)


def test_an_update_is_acknowledged_only_after_it_was_accepted() -> None:
    core = opened()
    core.handle("a", offer())
    assert core.recalled("a", offer(), set()) == [Tell("a", Need(UP.digest, (0, 1)))]
    assert core.handle("a", FIRST) == [Keep("a", offer(), FIRST)]
    assert core.handle("a", FIRST) == []
    assert core.handle("a", LAST) == [Keep("a", offer(), LAST), Accept("a", offer())]


def test_a_second_offer_of_an_accepted_update_asks_the_journal() -> None:
    core = opened()
    deliver(core, "a")
    assert core.handle("a", offer()) == [Look("a", offer())]


def test_an_offer_for_a_round_that_is_over_asks_the_journal_and_one_of_another_run_is_gone() -> None:
    core = opened()
    core.progress.round = 1
    assert core.handle("a", offer(0)) == [Look("a", offer(0))]
    assert core.handle("a", offer(run="old")) == [Tell("a", fate("gone", run="old"))]


def test_an_offer_for_a_round_to_come_is_of_no_task_that_was_given() -> None:
    core = opened()
    assert core.handle("a", offer(1)) == [Tell("a", fate("rejected", "no such task was given", round_=1))]


def test_an_update_from_outside_the_cohort_or_beyond_the_size_limit_is_rejected() -> None:
    core = opened()
    (action,) = core.handle("z", offer())
    assert isinstance(action, Tell)
    assert isinstance(action.message, Fate)
    assert action.message.fate == "rejected"
    huge = Blob(UP.digest, core.plan.max_blob + 1)
    assert core.handle("a", offer(blob=huge)) != [Tell("a", Need(UP.digest, tuple(range(16))))]


def test_at_the_deadline_a_quorum_closes_the_round_and_who_was_missing_is_not_waited_for_again() -> None:
    core = opened(quorum=0.6)
    deliver(core, "a")
    assert core.deadline() == []
    deliver(core, "b")
    assert core.deadline() == [Close()]
    assert core.deadline() == []
    assert core.closed() == [Sample(("a", "b"))]


@pytest.mark.parametrize(
    ("said", "expected"),
    [(Hello("y"), Tell("c", Welcome("run"))), (offer(), Look("c", offer()))],
    ids=["hello", "its late answer"],
)
def test_a_device_that_vanished_rejoins_in_a_later_round(said: Message, expected: Action) -> None:
    core = opened(quorum=0.6, rounds=3)
    deliver(core, "a")
    deliver(core, "b")
    core.deadline()
    core.closed()
    core.opened(("a", "b"))
    assert "c" not in core.online
    assert core.handle("c", said) == [expected]
    core.progress.accepted = {"a": UP.digest, "b": UP.digest}
    assert core.closed() == [Sample(("a", "b", "c"))]


def test_a_device_that_lost_its_state_gets_its_task_anew() -> None:
    core = opened()
    assert core.handle("a", Refuse("run", 0, True, "lost")) == [Assign("a", True)]
    core.tick()
    assert Assign("a", True) in core.tick() + core.tick()


def test_a_round_goes_on_without_a_device_that_refuses() -> None:
    core = opened()
    deliver(core, "a")
    deliver(core, "b")
    assert core.handle("c", Refuse("run", 0, False, "disk full")) == [Close()]


def test_a_run_in_which_too_many_refuse_says_so_instead_of_waiting() -> None:
    core = opened()
    for device in DEVICES:
        core.handle(device, Refuse("run", 0, False, "no torch"))
    assert core.stuck == "3 of 3 devices refused (a: no torch)"


@pytest.mark.parametrize("says", [None, Status("run", 0, "training")])
def test_a_device_is_reminded_of_its_task_less_and_less_often_whatever_it_says(says: Status | None) -> None:
    core = opened()
    reminded = []
    for tick in range(1, 41):
        if Assign("a", False) in core.tick():
            reminded.append(tick)
        if says is not None:
            core.handle("a", says)
    assert reminded == [1, 2, 4, 8, 16, 32]
    assert core.handle("a", Hello("boot")) == [Assign("a", False)]
    assert Assign("a", False) in core.tick()
    for _ in range(4):
        core.tick()
    assert core.handle("a", Refuse("run", 0, True, "lost")) == [Assign("a", True)]
    assert Assign("a", True) in core.tick()


def test_damaged_bytes_are_asked_for_again() -> None:
    core = opened()
    core.handle("a", offer())
    core.recalled("a", offer(), {0, 1})
    assert core.damaged("a") == [Recall("a", offer())]
    assert core.recalled("a", offer(), {0}) == [Tell("a", Need(UP.digest, (1,)))]


def test_chunks_of_a_task_are_sent_to_the_cohort_only() -> None:
    core = opened()
    need = Need("d" * 64, (0,))
    assert core.handle("a", need) == [SendChunks("a", need)]
    assert core.handle("z", need) == []


def test_after_a_restart_the_open_round_goes_on_with_its_cohort() -> None:
    progress = Progress(1, "train", DEVICES, {"a": UP.digest}, set(DEVICES))
    core = RoundsCore(Plan("run", 2, 2, 3), progress)
    assert core.start() == [Assign("b", False), Assign("c", False)]


def test_after_the_scores_comes_the_first_round_and_a_late_refusal_of_them_does_not_count_in_it() -> None:
    core = RoundsCore(Plan("run", 1, 2, 3, quorum=1.0, score=True), Progress(phase="score"))
    for device in DEVICES:
        core.handle(device, Hello("x"))
    assert core.opened(("a", "b")) == [Assign("a", False), Assign("b", False)]
    refusal = Refuse("run", 0, False, "too large", "score")
    assert core.handle("a", refusal) == []
    scored = offer(phase="score")
    core.handle("b", scored)
    core.recalled("b", scored, {0, 1})
    assert core.accepted("b", scored) == [Tell("b", Fate("run", 0, "score", UP.digest, "applied")), Close()]
    assert (core.following().round, core.following().phase) == (0, "train")
    core.closed()
    core.opened(DEVICES)
    assert core.handle("a", refusal) == []
    assert core.missing() == ["a", "b", "c"]
    assert core.handle("b", scored) == [Look("b", scored)]


def test_scores_that_nobody_need_give_are_over_at_once() -> None:
    core = RoundsCore(Plan("run", 1, 2, 1, score=True), Progress(phase="score"))
    assert Sample(("a",)) in core.handle("a", Hello("x"))
    assert core.opened(()) == [Close()]
    assert core.closed() == [Sample(("a",))]
    assert core.progress.phase == "train"


@pytest.mark.parametrize("answer", ["refuses", "is silent"])
def test_who_gives_no_scores_does_not_stop_the_run(answer: str) -> None:
    core = RoundsCore(Plan("run", 1, 2, 3, quorum=1.0, score=True), Progress(phase="score"))
    for device in DEVICES:
        core.handle(device, Hello("x"))
    core.opened(("a", "b"))
    core.handle("a", Refuse("run", 0, False, "too large", "score"))
    if answer == "refuses":
        assert core.handle("b", Refuse("run", 0, False, "too large", "score")) == [Close()]
        assert core.stuck == ""
    else:
        assert core.deadline() == [Close()]
    core.closed()
    assert core.progress.phase == "train"


def test_an_offer_that_is_too_large_is_an_answer() -> None:
    core = RoundsCore(Plan("run", 1, 2, 2, quorum=0.5, max_blob=1000), Progress())
    for device in ("a", "b"):
        core.handle(device, Hello("x"))
    core.opened(("a", "b"))
    (told,) = core.handle("a", offer())
    assert isinstance(told, Tell)
    assert isinstance(told.message, Fate)
    assert (told.message.fate, told.message.reason) == ("rejected", "too large: 70000 bytes, at most 1000")
    assert core.missing() == ["b"]
