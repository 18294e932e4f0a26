"""What the journal keeps, what it notices, and what it drops."""

import contextlib
import dataclasses
import errno
import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.coordinator import archive, database
from edge_runtime.coordinator.actions import Progress
from edge_runtime.coordinator.journal import Accepted, Journal, Rejected
from edge_runtime.errors import ConfigError, DeviceError, RunError
from edge_runtime.message import Blob, Offer, Task, encode

DEVICES = ("a", "b")


def offer_of(round_: int, device: str, loss: float = 0.5) -> tuple[Offer, bytes]:
    data = f"{round_} {device}".encode()
    blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
    return Offer("run", round_, "train", blob, {"loss": loss, "train-samples": 7.0}), data


def do_rounds(journal: Journal, start: int, end: int) -> None:
    """Let `a` be counted and `b` be thrown out, round after round."""
    for number in range(start, end):
        journal.open_round(number, "train", DEVICES)
        journal.accept("a", *offer_of(number, "a", number + 1 / 3), number, "held")
        journal.reject("b", offer_of(number, "b")[0], "nonsense", number)
        journal.close_round(Progress(number, "train", DEVICES), b"state %d" % number, Progress(number + 1, "train"))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with contextlib.closing(Journal(tmp_path / "run")) as made:
        for device in DEVICES:
            made.devices.register(device)
        yield made


def test_a_second_coordinator_is_told_who_has_the_run(journal: Journal) -> None:
    with pytest.raises(ConfigError, match=rf"another coordinator, process {os.getpid()} on .* has this run open"):
        Journal(journal.folder)


def test_old_updates_are_packed_and_nothing_of_them_is_lost_to_the_report(journal: Journal) -> None:
    rounds = 2 * archive.KEPT_ROUNDS + 10
    do_rounds(journal, 0, rounds)
    accepted = journal.accepted()
    assert [(one.round, one.device, one.number) for one in accepted] == [(n, "a", n) for n in range(rounds)]
    assert [one.metrics["loss"] for one in accepted] == pytest.approx([n + 1 / 3 for n in range(rounds)], rel=1e-6)
    assert journal.rejected() == [Rejected(n, "b", "nonsense") for n in range(rounds)]
    assert accepted[-1] == Accepted(
        rounds - 1, "train", "a", rounds - 1, offer_of(0, "a", rounds - 1 + 1 / 3)[0].metrics
    )
    assert len(journal.checkpoints()) <= 2 * archive.KEPT_ROUNDS


def test_the_newest_update_of_a_device_is_known_however_long_ago_it_was(journal: Journal) -> None:
    do_rounds(journal, 0, 1)
    journal.devices.register("c")
    journal.open_round(1, "train", ("c",))
    journal.accept("c", *offer_of(1, "c"), 1)
    journal.close_round(Progress(1, "train", ("c",)), b"state", Progress(2, "train"))
    do_rounds(journal, 2, 3 * archive.KEPT_ROUNDS)
    assert journal.fate("c", offer_of(1, "c")[0]) == ("applied", "")
    assert journal.fate("a", offer_of(0, "a")[0]) == ("late", "the round is over")
    newest = 3 * archive.KEPT_ROUNDS - 1
    assert journal.fate("b", offer_of(newest, "b")[0]) == ("rejected", "nonsense")


def test_the_newest_update_offered_as_that_of_another_round_is_not_taken_for_it(journal: Journal) -> None:
    do_rounds(journal, 0, 2)
    newest = offer_of(1, "a")[0]
    for other in (0, 2, 200):
        assert journal.fate("a", dataclasses.replace(newest, round=other))[0] != "applied"
    assert journal.fate("a", newest) == ("applied", "")


def test_every_start_has_a_higher_number_whatever_the_clock_says(journal: Journal) -> None:
    assert [journal.next_epoch(now_s) for now_s in (0, 1000, 1000, 0, 999, 2000)] == [1, 1000, 1001, 1002, 1003, 2000]
    assert journal.get("starts") == "6"


def test_the_database_grows_by_little_once_old_updates_are_packed(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path / "run", durable=False)) as journal:
        sizes = []
        for start in range(0, 1600, 200):
            do_rounds(journal, start, start + 200)
            pages = journal._database.row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            sizes.append(pages[0])
        assert sizes[-1] - sizes[1] < 100 * 1200, sizes


def test_an_asynchronous_run_counts_packed_updates_too(journal: Journal) -> None:
    numbers = 3 * archive.KEPT_ROUNDS * len(DEVICES)
    for number in range(numbers):
        device = DEVICES[number % 2]
        journal.accept(device, *offer_of(number, device), number)
        if number % 2:
            journal.close_versions(b"state", Progress(number + 1, "train"))
    progress = journal.progress(asynchronous=True)
    assert (progress.round, progress.applied) == (numbers, numbers)
    assert progress.judged == {"a": numbers - 2, "b": numbers - 1}
    assert len(journal.accepted()) == numbers


def still_of(folder: Path) -> Path:
    """Leave a journal as a kill would."""
    with contextlib.closing(Journal(folder / "live")) as journal:
        for device in DEVICES:
            journal.devices.register(device)
        do_rounds(journal, 0, 3)
        journal._database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        journal.devices.ask("a", "bf16")
        shutil.copytree(folder / "live", folder / "still", ignore=shutil.ignore_patterns("*-shm"))
    return folder / "still"


def read(folder: Path) -> tuple[Any, ...]:
    with contextlib.closing(Journal(folder)) as journal:
        return (
            journal.progress(),
            journal.accepted(),
            journal.rejected(),
            journal.checkpoint(),
            journal.devices.base("a"),
        )


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal", "seal"])
def test_a_journal_with_a_flipped_bit_or_a_lost_end_is_never_taken_for_another(name: str, tmp_path: Path) -> None:
    still, rng = still_of(tmp_path), random.Random(3)
    expected = read(shutil.copytree(still, tmp_path / "good"))
    data = (still / name).read_bytes()
    lines: list[str] = []
    for number in range(60):
        place = shutil.copytree(still, tmp_path / f"{number}")
        bad = bytearray(data)
        if number % 2:
            del bad[rng.randrange(len(bad)) :]
        else:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        (place / name).write_bytes(bytes(bad))
        try:
            assert read(place) == expected
        except (RunError, DeviceError) as error:
            lines.append(str(error))
    assert not [line for line in lines if "\n" in line]
    assert lines or name == "seal"


def test_a_journal_whose_last_transactions_are_gone_says_how_many(tmp_path: Path) -> None:
    still = still_of(tmp_path)
    (still / "journal.sqlite-wal").unlink()
    with pytest.raises(RunError, match=r"the last \d+ of \d+ transactions are gone; restore a backup"):
        Journal(still)


def test_a_row_that_was_changed_behind_its_back_is_noticed(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path)) as journal:
        journal.devices.register("a")
        journal._database.connection.executescript("DROP TRIGGER device_UPDATE; UPDATE device SET base = 'other';")
    with pytest.raises(RunError, match="its rows do not fit their sum"):
        Journal(tmp_path)


def test_an_interruption_while_a_row_is_summed_is_no_damage(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*values: object) -> int:
        raise KeyboardInterrupt  # as the handler of Ctrl-C does, wherever the program is

    monkeypatch.setattr(database, "fingerprint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        do_rounds(journal, 0, 1)
    monkeypatch.undo()
    do_rounds(journal, 0, 2)
    assert len(list(journal.accepted())) == 2


@pytest.mark.parametrize("damage", [b"", b"nonsense"])
def test_a_damaged_checkpoint_is_replaced_by_its_copy(damage: bytes, journal: Journal) -> None:
    do_rounds(journal, 0, 2)
    path = journal.folder / "checkpoint-000002"
    path.write_bytes(damage)
    assert journal.checkpoint() == b"state 1"
    assert path.read_bytes() == b"state 1"
    assert path.with_name("checkpoint-000002.corrupt-1").read_bytes() == damage
    path.write_bytes(damage)
    path.with_suffix(".copy").unlink()
    with pytest.raises(RunError, match="this checkpoint and its copy are lost or damaged"):
        journal.checkpoint()


def test_a_damaged_update_is_not_absorbed(journal: Journal) -> None:
    journal.open_round(0, "train", DEVICES)
    journal.accept("a", *offer_of(0, "a"), 0)
    journal._database.connection.execute("UPDATE upload SET payload = x'00'")
    with pytest.raises(RunError, match="update 0 of a is damaged"):
        list(journal.payloads(0))


def test_a_grid_that_is_damaged_is_as_good_as_gone(journal: Journal) -> None:
    journal.files.keep_grid("000000+0", b"values")
    assert journal.files.grid("000000+0") == b"values"
    (journal.folder / "grids" / "000000+0").write_bytes(b"x" * 40)
    assert journal.files.grid("000000+0") is None


def test_what_a_crash_left_half_written_is_cleared_up(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    left = [tmp_path / ".checkpoint-000001.tmp", tmp_path / "grids" / ".1.tmp", tmp_path / "down" / ("0" * 64)]
    for path in left:
        path.write_bytes(b"half")
    Journal(tmp_path).close()
    assert not [path for path in left if path.exists()]


def test_an_open_task_is_read_again_unless_another_version_of_this_program_wrote_it(journal: Journal) -> None:
    blob = offer_of(0, "a")[0].blob
    task = Task("run", 1, 0, "train", "", blob, blob)
    journal.assign("a", task, b"0 a")
    assert journal.assigned("a") == task
    with journal._database.transaction():
        before = encode(task).replace(b',"sent":0', b"")
        journal._database.write("UPDATE assignment SET task = ? WHERE device = 'a'", (before,))
    assert journal.assigned("a") is None
    assert journal.assigned("b") is None


def test_a_disk_without_room_is_said_in_one_line_and_the_reserve_is_given_back(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.files.reserve(2_000_000)
    assert (journal.folder / "reserve").stat().st_size == 2_000_000
    real = os.statvfs(journal.folder)
    nearly = os.statvfs_result((real.f_bsize, 1000, 10, 10, 1500, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: nearly)
    with pytest.raises(DeviceError, match=r"the disk has 1500 kB left, and 2000 are needed; free some space"):
        journal.files.check_room()
    assert journal.files.release()
    assert not journal.files.release()
    monkeypatch.undo()
    journal.files.refill()
    assert (journal.folder / "reserve").exists()


def test_a_disk_that_refuses_a_write_is_no_end_of_the_run(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(DeviceError, match="No space left on device; free some space"):
        journal.set("key", "value")
