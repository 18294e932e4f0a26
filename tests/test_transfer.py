from edge_runtime.message import Blob, Chunk, Need
from edge_runtime.transfer import Incoming

BLOB = Blob("a" * 64, 40 * 10, 10)


def chunk(index: int) -> Chunk:
    return Chunk(BLOB.digest, index, bytes(10))


def take(incoming: Incoming, *indices: int) -> None:
    for index in indices:
        assert incoming.take(chunk(index))


def test_a_window_is_asked_for_and_then_the_next() -> None:
    incoming = Incoming(BLOB)
    assert incoming.ask().want == tuple(range(16))
    take(incoming, *range(15))
    assert incoming.ask_next() is None
    take(incoming, 15)
    assert incoming.ask_next() == Need(BLOB.digest, tuple(range(16, 32)))


def test_only_what_is_missing_is_asked_for() -> None:
    assert Incoming(BLOB, {0, 2, *range(5, 39)}).ask().want == (1, 3, 4, 39)
    assert Incoming(BLOB, range(40)).complete


def test_a_chunk_that_nobody_asked_for_counts() -> None:
    incoming = Incoming(BLOB)
    incoming.ask()
    take(incoming, 20, *range(16))
    assert incoming.ask_next() == Need(BLOB.digest, (*range(16, 20), *range(21, 33)))


def test_when_the_last_of_a_window_came_what_did_not_is_lost_and_asked_for_at_once() -> None:
    incoming = Incoming(BLOB)
    incoming.ask()
    take(incoming, *range(3), *range(4, 16))
    assert incoming.ask_next() == Need(BLOB.digest, (3, *range(16, 31)))


def test_silence_is_answered_by_asking_for_the_last_chunk_and_then_ever_less_often() -> None:
    incoming = Incoming(BLOB)
    incoming.ask()
    answers = [incoming.tick() for _ in range(31)]
    asked = [number for number, need in enumerate(answers, 1) if need]
    assert {need for need in answers if need} == {Need(BLOB.digest, (15,))}
    assert asked == [2, 5, 10, 19]


def test_what_is_merely_slow_is_asked_for_twice_at_most_in_one_chunk() -> None:
    incoming, asked = Incoming(BLOB), list[int]()
    coming = list(incoming.ask().want)
    while not incoming.complete:  # one chunk comes in five ticks, in order
        needs = [incoming.tick() for _ in range(5)]
        coming += [index for need in needs if need for index in need.want]
        index = coming.pop(0)
        asked.append(index)
        need = incoming.ask_next() if incoming.take(chunk(index)) else None
        coming += need.want if need else []
    assert len(asked) <= 40 + 6


def test_after_a_new_connection_what_was_on_its_way_is_asked_for_again() -> None:
    incoming = Incoming(BLOB)
    incoming.ask()
    take(incoming, 0, 1)
    incoming.lose()
    assert incoming.ask_next() == Need(BLOB.digest, tuple(range(2, 18)))


def test_a_chunk_counts_once_and_only_if_it_is_one() -> None:
    incoming = Incoming(BLOB)
    assert incoming.take(chunk(0))
    assert not incoming.take(chunk(0))
    assert not incoming.take(chunk(40))
    assert not incoming.take(Chunk(BLOB.digest, 1, bytes(9)))
    assert not incoming.take(Chunk("b" * 64, 1, bytes(10)))
