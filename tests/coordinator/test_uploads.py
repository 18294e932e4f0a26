from dataclasses import replace

import pytest

from edge_runtime.coordinator.actions import Accept, Keep, Recall, Tell
from edge_runtime.coordinator.uploads import Uploads
from edge_runtime.message import Blob, Chunk, Need, Offer

BLOB = Blob("a" * 64, 40 * 10, 10)
OFFER = Offer("run", 0, "train", BLOB)


def chunk(index: int) -> Chunk:
    return Chunk(BLOB.digest, index, bytes(10))


def need(*want: int) -> Need:
    return Need(BLOB.digest, want)


def begun(device: str = "a", have: frozenset[int] = frozenset()) -> Uploads:
    uploads = Uploads(lambda: 1)
    assert uploads.begin(device, OFFER) == [Recall(device, OFFER)]
    uploads.recalled(device, OFFER, have)
    return uploads


def test_what_was_kept_before_a_restart_is_not_asked_for_again() -> None:
    uploads = Uploads(lambda: 1)
    uploads.begin("a", OFFER)
    assert uploads.recalled("a", OFFER, set(range(38))) == [Tell("a", need(38, 39))]
    assert uploads.take("a", chunk(38)) == [Keep("a", OFFER, chunk(38))]
    assert uploads.take("a", chunk(39)) == [Keep("a", OFFER, chunk(39)), Accept("a", OFFER)]


def test_an_update_that_was_kept_whole_is_looked_at_at_once() -> None:
    uploads = Uploads(lambda: 1)
    uploads.begin("a", OFFER)
    assert uploads.recalled("a", OFFER, set(range(40))) == [Accept("a", OFFER)]


def test_of_a_damaged_update_only_what_is_not_good_is_asked_for_again() -> None:
    uploads = begun(have=frozenset(range(39)))
    uploads.take("a", chunk(39))
    assert uploads.damaged("a") == [Recall("a", OFFER)]
    assert uploads.recalled("a", OFFER, set(range(40)) - {7}) == [Tell("a", need(7))]


def test_what_follows_an_offer_unasked_is_not_asked_for_and_then_the_rest_is() -> None:
    uploads, offer = Uploads(lambda: 1), replace(OFFER, sent=2)
    assert uploads.recalled("a", offer, frozenset()) == []
    assert uploads.take("a", chunk(0)) == [Keep("a", offer, chunk(0))]
    assert uploads.take("a", chunk(1)) == [Keep("a", offer, chunk(1)), Tell("a", need(*range(2, 18)))]


def test_what_should_have_followed_an_offer_is_asked_for_once_nothing_comes() -> None:
    uploads = Uploads(lambda: 1)
    uploads.recalled("a", replace(OFFER, sent=2), frozenset())
    asked = [action for _ in range(4) for action in uploads.ask("a")]
    assert asked[0] == Tell("a", need(1))
    assert uploads.recalled("a", replace(OFFER, sent=2), {0, 1}) == [Tell("a", need(*range(2, 18)))]


def test_an_offer_that_is_repeated_asks_for_nothing_twice_unless_the_link_was_made_anew() -> None:
    uploads = begun()
    uploads.take("a", chunk(0))
    assert uploads.begin("a", OFFER) == []
    uploads.lose("a")
    assert uploads.begin("a", OFFER) == [Tell("a", need(*range(1, 17)))]


@pytest.mark.parametrize(
    ("devices", "chunk_bytes", "window"),
    [(1, 65_536, 16), (16, 65_536, 16), (20, 65_536, 12), (200, 65_536, 1), (200, 4_096, 2), (1000, 10, 1)],
)
def test_the_more_devices_have_a_task_the_less_each_has_on_its_way(devices: int, chunk_bytes: int, window: int) -> None:
    uploads = Uploads(lambda: devices)
    blob = Blob("a" * 64, 40 * chunk_bytes, chunk_bytes)
    offer = Offer("run", 0, "train", blob)
    chunks = [Chunk(blob.digest, index, bytes(chunk_bytes)) for index in range(window)]
    assert uploads.recalled("a", offer, set()) == [Tell("a", need(*range(window)))]
    for one in chunks[:-1]:
        assert uploads.take("a", one) == [Keep("a", offer, one)]
    asked = Tell("a", need(*range(window, 2 * window)))
    assert uploads.take("a", chunks[-1]) == [Keep("a", offer, chunks[-1]), asked]
