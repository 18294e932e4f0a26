from collections import Counter
from collections.abc import Iterable

import pytest

from edge_runtime.coordinator.downloads import GATHER_S, Downloads, Load
from edge_runtime.message import Blob

BLOB = Blob("a" * 64, 40 * 1000, 1000)
SMALL = Blob("b" * 64, 4000, 1000)


def drain(downloads: Downloads, now_s: float = 0.0) -> list[Load]:
    loads = []
    while load := downloads.next(now_s):
        loads.append(load)
    return loads


def ask(downloads: Downloads, devices: Iterable[str], indices: Iterable[int], expected: int = 3) -> None:
    wanted = list(indices)
    for device in devices:
        downloads.want(device, BLOB, wanted, expected)


def test_what_all_want_goes_once_to_all() -> None:
    downloads = Downloads()
    ask(downloads, "abc", range(16))
    assert drain(downloads) == [Load(("a", "b", "c"), BLOB.digest, index, True) for index in range(16)]
    assert drain(downloads) == []


def test_what_the_fastest_asks_for_goes_to_all_and_is_not_sent_again_to_those_who_ask_later() -> None:
    downloads = Downloads()
    ask(downloads, "abc", range(16))
    drain(downloads)
    ask(downloads, "b", range(16, 32))
    assert {load.to_all for load in drain(downloads)} == {True}
    ask(downloads, "ac", range(16, 32))
    assert drain(downloads) == []


def test_what_is_asked_for_again_was_lost_and_goes_to_the_device_that_asks() -> None:
    downloads = Downloads()
    ask(downloads, "abc", range(16))
    drain(downloads)
    ask(downloads, "b", [3, 7])
    assert drain(downloads) == [Load(("b",), BLOB.digest, index, False) for index in (3, 7)]


def test_what_most_lost_goes_to_all_again() -> None:
    downloads = Downloads()
    ask(downloads, "abc", range(16))
    drain(downloads)
    ask(downloads, "ac", [15])
    assert drain(downloads) == [Load(("a", "c"), BLOB.digest, 15, True)]


def test_the_first_chunks_wait_for_the_devices_that_have_not_asked_yet_but_not_for_long() -> None:
    downloads = Downloads()
    ask(downloads, "ab", [0])
    assert downloads.next(10.0) is None
    assert downloads.due_s() == 10.0 + GATHER_S
    assert downloads.next(10.0 + GATHER_S) == Load(("a", "b"), BLOB.digest, 0, True)
    ask(downloads, "a", [1])
    assert downloads.next(10.0 + GATHER_S) is not None
    assert downloads.due_s() is None


def test_the_first_chunks_go_as_soon_as_all_have_asked() -> None:
    downloads = Downloads()
    ask(downloads, "ab", [0])
    assert downloads.next(0.0) is None
    ask(downloads, "c", [0])
    assert downloads.next(0.0) == Load(("a", "b", "c"), BLOB.digest, 0, True)


def test_a_device_that_is_alone_is_sent_everything_by_itself_and_at_once() -> None:
    downloads = Downloads()
    ask(downloads, "a", range(16), expected=1)
    assert drain(downloads) == [Load(("a",), BLOB.digest, index, False) for index in range(16)]


def test_a_small_blob_goes_to_each_device_by_itself_and_at_once() -> None:
    downloads = Downloads()
    for device in "ab":
        downloads.want(device, SMALL, [0], 3)
    assert drain(downloads) == [Load((device,), SMALL.digest, 0, False) for device in "ab"]


def test_a_device_that_comes_late_is_sent_what_it_missed_by_itself_and_the_rest_with_all() -> None:
    downloads = Downloads()
    ask(downloads, "abc", range(16))
    drain(downloads)
    ask(downloads, "d", range(16))
    assert {load.devices for load in drain(downloads) if not load.to_all} == {("d",)}
    ask(downloads, "a", range(16, 32))
    assert {load.to_all for load in drain(downloads)} == {True}
    ask(downloads, "d", range(16, 32))
    assert drain(downloads) == []


def test_a_device_that_starts_anew_is_sent_again_what_all_were_sent() -> None:
    downloads = Downloads()
    ask(downloads, "abc", range(16))
    ask(downloads, "abc", range(16, 32))
    drain(downloads)
    downloads.leave("b")
    ask(downloads, "b", range(20, 36))
    loads = drain(downloads)
    assert [load.index for load in loads] == list(range(20, 36))
    assert {load.devices for load in loads if load.index < 32} == {("b",)}


def test_a_device_that_does_not_hear_what_is_sent_to_all_is_sent_everything_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    downloads, got = Downloads(), Counter[str]()
    ask(downloads, "abc", range(16))
    for _ in range(4):  # all three are deaf
        for load in drain(downloads):
            got.update(() if load.to_all else load.devices)
        ask(downloads, "abc", [15])
    assert got == dict.fromkeys("abc", 1)
    assert "device c does not hear" in caplog.text
    ask(downloads, "abc", range(16, 32))
    assert not any(load.to_all for load in drain(downloads))


def test_a_device_that_hears_is_still_sent_things_with_all_where_another_is_deaf() -> None:
    downloads = Downloads()
    ask(downloads, "abc", range(16))
    drain(downloads)
    for _ in range(3):
        ask(downloads, "a", [15])
        drain(downloads)
    ask(downloads, "bca", [16])
    assert [(load.to_all, load.devices) for load in drain(downloads)] == [(True, ("b", "c", "a")), (False, ("a",))]


def test_devices_that_have_gone_silent_do_not_count() -> None:
    downloads = Downloads()
    ask(downloads, "abcdef", range(16))
    drain(downloads)
    downloads.next(60.0)
    ask(downloads, "gh", range(16), expected=8)
    assert drain(downloads, 61.0) == []
    assert {load.to_all for load in drain(downloads, 62.0)} == {True}


def test_a_stream_that_nobody_asks_for_is_forgotten() -> None:
    downloads = Downloads()
    ask(downloads, "abc", range(16))
    drain(downloads)
    assert downloads._streams
    downloads.next(60.0)
    assert not downloads._streams


def test_an_index_beyond_the_end_is_not_wanted() -> None:
    downloads = Downloads()
    ask(downloads, "a", [39, 40, 2**32 - 1], expected=1)
    assert [load.index for load in drain(downloads)] == [39]


def test_what_waits_is_bounded_however_often_it_is_asked_for() -> None:
    downloads = Downloads()
    for _ in range(100):
        ask(downloads, "abc", range(16), expected=9)
    assert len(drain(downloads, 1.0)) == 0
    loads = [(load.devices, load.index) for load in drain(downloads, 2.0)]
    assert sorted(loads) == [((device,), index) for device in "abc" for index in range(16)]  # none seems to hear
