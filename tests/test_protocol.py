from dataclasses import replace

from edge_runtime.message import Blob, Chunk, Fate, Hello, Need, Offer, Refuse, Status, Task, Welcome
from edge_runtime.protocol import Check, DeviceCore, Keep, Memory, Recall, Remember, Send, SendChunks, Train, Tune

SETUP, DOWN, UP = (Blob(letter * 64, size) for letter, size in (("a", 10), ("b", 100_000), ("c", 70_000)))
TASK = Task("run", 1, 0, "train", "", SETUP, DOWN)
OFFER = Offer("run", 0, "train", UP, {})
FATE = Fate("run", 0, "train", UP.digest, "applied")


def core(memory: Memory = Memory(), held: set[str] | None = None) -> DeviceCore:  # noqa: B008  # frozen
    return DeviceCore(memory, held or {SETUP.digest, DOWN.digest}, Hello("boot"))


def after_training(memory: Memory = Memory()) -> DeviceCore:  # noqa: B008  # frozen
    device = core(memory)
    device.handle(TASK)
    device.trained(TASK, UP, {})
    return device


def test_a_task_fetches_what_is_missing_and_then_trains() -> None:
    device = core(held={SETUP.digest})
    assert device.handle(TASK) == [Recall(DOWN)]
    assert device.recalled(DOWN, set()) == [Tune(DOWN), Send(Need(DOWN.digest, (0, 1)))]
    first = Chunk(DOWN.digest, 0, bytes(65_536))
    assert device.handle(first) == [Keep(DOWN, first)]
    assert device.handle(first) == []
    last = Chunk(DOWN.digest, 1, bytes(34_464))
    assert device.handle(last) == [Keep(DOWN, last), Check(DOWN)]
    assert device.checked(DOWN, True) == [Tune(None), Train(TASK)]


def test_what_follows_a_task_unasked_is_waited_for_and_asked_for_only_if_it_does_not_come() -> None:
    device, announced = core(held={SETUP.digest}), replace(TASK, sent=2)
    assert device.handle(announced) == [Recall(DOWN)]
    assert device.recalled(DOWN, set()) == [Tune(DOWN)]
    first = Chunk(DOWN.digest, 0, bytes(65_536))
    assert device.handle(first) == [Keep(DOWN, first)]
    assert device.handle(TASK) == [Send(Status("run", 0, "fetching"))]  # the same task, repeated
    assert [device.tick() for _ in range(2)] == [[], [Send(Need(DOWN.digest, (1,)))]]
    last = Chunk(DOWN.digest, 1, bytes(34_464))
    assert device.handle(last) == [Keep(DOWN, last), Check(DOWN)]
    assert device.checked(DOWN, False) == [Recall(DOWN)]
    assert device.recalled(DOWN, set()) == [Send(Need(DOWN.digest, (0, 1)))]  # nothing is on its way any more


def test_what_follows_a_task_unasked_is_asked_for_by_a_device_that_had_to_fetch_the_set_up_first() -> None:
    device = core(held={"x"})
    device.handle(replace(TASK, sent=2))
    assert device.recalled(SETUP, set()) == [Send(Need(SETUP.digest, (0,)))]
    assert device.handle(Chunk(DOWN.digest, 0, bytes(65_536))) == []
    assert device.checked(SETUP, True) == [Recall(DOWN)]
    assert device.recalled(DOWN, set()) == [Tune(DOWN), Send(Need(DOWN.digest, (0, 1)))]


def test_what_was_kept_before_a_restart_is_not_asked_for_again() -> None:
    device = core(held={SETUP.digest})
    device.handle(TASK)
    assert device.recalled(DOWN, {0}) == [Tune(DOWN), Send(Need(DOWN.digest, (1,)))]
    device = core(held={SETUP.digest})
    device.handle(TASK)
    assert device.recalled(DOWN, {0, 1}) == [Check(DOWN)]


def test_a_new_connection_asks_anew_for_what_was_on_its_way() -> None:
    device = core(held={SETUP.digest})
    device.handle(TASK)
    device.recalled(DOWN, {0})
    assert device.start() == [Send(Hello("boot")), Send(Need(DOWN.digest, (1,)))]


def test_a_device_listens_to_large_blobs_only_and_to_one_at_a_time() -> None:
    device = core(held={"x"})
    device.handle(TASK)
    assert device.recalled(SETUP, set()) == [Send(Need(SETUP.digest, (0,)))]  # ten bytes
    device.checked(SETUP, True)
    assert Tune(DOWN) in device.recalled(DOWN, set())
    other = Blob("d" * 64, 100_000)
    device.handle(replace(TASK, round=1, down=other))
    assert device.recalled(other, set())[0] == Tune(other)


def test_a_blob_with_a_wrong_digest_is_fetched_again() -> None:
    device = core(held={SETUP.digest})
    device.handle(TASK)
    device.recalled(DOWN, {0, 1})
    assert device.checked(DOWN, False) == [Recall(DOWN)]
    assert device.recalled(DOWN, {1}) == [Tune(DOWN), Send(Need(DOWN.digest, (0,)))]


def test_a_chunk_of_the_wrong_length_or_index_is_dropped() -> None:
    device = core(held={SETUP.digest})
    device.handle(TASK)
    device.recalled(DOWN, set())
    assert device.handle(Chunk(DOWN.digest, 1, bytes(65_536))) == []
    assert device.handle(Chunk(DOWN.digest, 2, bytes(1))) == []
    assert device.handle(Chunk(UP.digest, 0, bytes(65_536))) == []


def test_a_result_is_durable_before_it_is_offered() -> None:
    device = core()
    device.handle(TASK)
    actions = device.trained(TASK, UP, {})
    first = [Send(replace(OFFER, sent=1)), SendChunks(UP, (0,))]
    assert actions == [Remember(Memory("run", 1, 0, "", SETUP.digest, OFFER)), *first]
    assert device.tick() == [Send(OFFER)]


def test_nothing_follows_the_offer_of_an_empty_result() -> None:
    device, nothing = core(), Blob("e" * 64, 0)
    device.handle(TASK)
    assert device.trained(TASK, nothing, {})[1:] == [Send(replace(OFFER, blob=nothing))]


def test_a_pending_result_answers_every_task_until_its_fate_is_known() -> None:
    device = after_training()
    assert device.handle(TASK) == [Send(OFFER)]
    assert device.handle(replace(TASK, round=1)) == [Send(OFFER)]
    assert device.handle(replace(TASK, run="other")) == [Send(OFFER)]
    assert device.tick() == [Send(OFFER)]


def test_the_state_takes_effect_with_the_fate_applied_and_with_no_other() -> None:
    for fate, base in (("applied", UP.digest), ("late", ""), ("rejected", ""), ("gone", "")):
        device = after_training()
        device.handle(replace(FATE, fate=fate))
        assert (device.memory.base, device.memory.pending) == (base, None)


def test_an_evaluation_leaves_the_state_in_force() -> None:
    device = after_training()
    device.handle(FATE)
    evaluation = replace(TASK, round=1, phase="evaluate", base=UP.digest)
    device.handle(evaluation)
    device.checked(DOWN, True)
    device.checked(SETUP, True)
    empty = Blob("d" * 64, 0)
    device.trained(evaluation, empty, {})
    device.handle(Fate("run", 1, "evaluate", empty.digest, "applied"))
    assert device.memory.base == UP.digest


def test_a_fate_for_another_update_changes_nothing() -> None:
    device = after_training()
    for other in ({"run": "x"}, {"round": 1}, {"digest": "d" * 64}, {"phase": "evaluate"}):
        assert device.handle(replace(FATE, **other)) == []
    assert device.memory.pending == OFFER


def test_a_task_of_an_older_coordinator_is_ignored_and_one_that_is_done_is_declined() -> None:
    device = after_training()
    device.handle(FATE)
    assert device.handle(replace(TASK, round=1, epoch=0)) == []
    declined = Refuse("run", 0, False, "round 0 is behind this device")
    assert device.handle(TASK) == [Send(declined)]
    device.handle(replace(TASK, round=1, base=UP.digest))
    assert device.handle(TASK) == []  # late: the coordinator waits for the other one


def test_a_coordinator_that_was_started_from_a_backup_is_right_about_the_round() -> None:
    device = core(Memory("run", epoch=1, round=5, base=UP.digest))
    for late in (replace(TASK, round=5), replace(TASK, round=3)):
        (action,) = device.handle(late)
        assert isinstance(action, Send)
        assert isinstance(action.message, Refuse)
        assert not action.message.lost
    assert device.handle(replace(TASK, round=3, epoch=2, base=UP.digest))[-1] == Train(device.task)  # type: ignore[arg-type]
    assert device.handle(replace(TASK, round=6)) == []
    device.trained(replace(TASK, round=3, epoch=2, base=UP.digest), UP, {})
    assert (device.memory.epoch, device.memory.round) == (2, 3)


def test_a_later_start_of_the_coordinator_that_asks_for_what_is_pending_is_remembered() -> None:
    device = after_training()
    remembered, said = device.handle(replace(TASK, epoch=2))
    assert (remembered, said) == (Remember(replace(device.memory, epoch=2)), Send(OFFER))
    device.handle(FATE)
    (declined,) = device.handle(replace(TASK, epoch=2))  # said again: it is not done twice
    assert isinstance(declined, Send)
    assert isinstance(declined.message, Refuse)


def test_the_same_task_from_a_coordinator_that_was_started_again_does_not_train_again() -> None:
    device = core()
    device.handle(TASK)
    assert device.handle(replace(TASK, epoch=2)) == [Send(Status("run", 0, "training"))]
    device.trained(TASK, UP, {})
    assert device.memory.epoch == 2


def test_a_task_that_builds_on_a_state_that_is_lost_is_refused_as_such() -> None:
    (action,) = core().handle(replace(TASK, base=UP.digest))
    assert isinstance(action, Send)
    assert isinstance(action.message, Refuse)
    assert action.message.lost


def test_chunks_are_sent_of_the_pending_update_only() -> None:
    device = after_training()
    assert device.handle(Need(UP.digest, (1,))) == [SendChunks(UP, (1,))]
    assert device.handle(Need(UP.digest, (2,))) == []
    assert device.handle(Need(DOWN.digest, (0,))) == []


def test_the_result_of_a_task_that_was_replaced_is_dropped() -> None:
    device = core()
    device.handle(TASK)
    device.handle(replace(TASK, round=1))
    assert device.trained(TASK, UP, {}) == []
    assert device.failed(TASK, "late") == []


def test_a_task_that_is_cut_in_other_chunks_is_the_same_task_and_its_blob_is_fetched_anew() -> None:
    device = core(held={SETUP.digest})
    device.handle(TASK)
    device.recalled(DOWN, {0})
    smaller = replace(DOWN, chunk=32_768)
    assert device.handle(replace(TASK, down=smaller)) == [Recall(smaller)]
    assert device.recalled(smaller, set()) == [Tune(smaller), Send(Need(DOWN.digest, (0, 1, 2, 3)))]
    device.checked(smaller, True)
    assert device.handle(TASK) == [Send(Status("run", 0, "training"))]
    assert isinstance(device.trained(TASK, UP, {})[0], Remember)


def test_a_pending_result_is_cut_in_smaller_chunks_when_its_task_is() -> None:
    device = after_training()
    smaller = replace(OFFER, blob=replace(UP, chunk=32_768))
    (remember, offer) = device.handle(replace(TASK, down=replace(DOWN, chunk=32_768)))
    assert remember == Remember(replace(device.memory, pending=smaller))
    assert offer == Send(smaller)
    assert device.handle(TASK) == [Send(smaller)]
    assert device.handle(Need(UP.digest, (2,))) == [SendChunks(smaller.blob, (2,))]


def test_a_device_says_hello_at_the_start_and_offers_what_is_pending() -> None:
    assert core().start() == [Send(Hello("boot"))]
    assert core(Memory("run", 1, 0, "", SETUP.digest, OFFER)).start() == [Send(Hello("boot")), Send(OFFER)]


def test_a_device_waits_for_an_answer_to_each_hello() -> None:
    device = core()
    device.start()
    assert device.waiting
    device.handle(Welcome("run"))
    assert not device.waiting
    device.start()
    assert device.waiting


def test_scores_come_before_the_round_of_their_number_and_change_no_state() -> None:
    asked, device = replace(TASK, phase="score"), core()
    scored = Offer("run", 0, "score", UP, {})
    assert device.handle(asked) == [Train(asked)]
    remembered, said, _ = device.trained(asked, UP, {})
    assert (remembered, said) == (
        Remember(Memory("run", 1, -1, "", SETUP.digest, scored)),
        Send(replace(scored, sent=1)),
    )
    assert device.handle(replace(FATE, phase="score")) == [Remember(Memory("run", 1, -1, "", SETUP.digest))]
    held = core(device.memory)
    assert held.handle(TASK) == [Train(TASK)]
    assert held.handle(asked) == []  # it comes late, and must not end the training
    held.trained(TASK, UP, {})
    held.handle(FATE)
    assert held.handle(asked) == [Send(Refuse("run", 0, False, "round 0 is behind this device", "score"))]


def test_who_cannot_score_says_so_of_that_task_only() -> None:
    device = core()
    device.handle(asked := replace(TASK, phase="score"))
    assert device.failed(asked, "too large") == [Send(Refuse("run", 0, False, "too large", "score"))]
    assert device.handle(TASK) == [Train(TASK)]
