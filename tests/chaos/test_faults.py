"""A little of each row about faults at writes, damaged files and hostile messages; `make chaos` does all of it."""

import os
from pathlib import Path

import pytest

from tests.chaos import damage, faults, live
from tests.chaos.on_disk import Fleet, Plan, undisturbed
from tests.chaos.scorecard import Row, Scale

pytestmark = pytest.mark.filterwarnings(  # a process that dies closes nothing
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
SMALL = {"R5": 0.05, "R6": 0.01, "R9": 0.001, "R9-live": 0.003, "R13": 0.05, "R14": 0.002, "R22": 0.1, "backup": 0.1}


@pytest.mark.parametrize("row", [*faults.ROWS, *damage.ROWS, *live.ROWS], ids=lambda row: str(row.name))
def test_a_little_of_the_row_is_met(row: Row, tmp_path: Path) -> None:
    if row.name == "R13" and os.geteuid():
        pytest.skip("a small disk is a tmpfs, which only root may mount")
    figure = row.measure(Scale(SMALL[row.name], 1, tmp_path))
    assert figure.met or row.name == "R9", (figure.text, figure.details)
    assert not figure.details.get("faults"), figure.details["faults"]


def test_points_count_the_writes_of_one_role_only(tmp_path: Path) -> None:
    coordinator = faults.count(tmp_path / "one", Plan(), "coordinator")
    agent = faults.count(tmp_path / "two", Plan(), "agent")
    assert coordinator.kinds["commit"] > 0
    assert "commit" not in agent.kinds
    assert agent.kinds["replace"] > 0


def test_a_coordinator_that_acknowledges_before_it_journals_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: what is journalled reaches the disk only with the next thing."""
    from edge_runtime.coordinator.journal import Journal

    late: list[object] = []
    real = Journal.accept

    def accept(self: Journal, *arguments: object) -> None:
        for waiting in late:
            real(self, *waiting)  # type: ignore[misc]
        late[:] = [arguments]

    expected = undisturbed(tmp_path / "calm", Plan(rounds=2))
    monkeypatch.setattr(Journal, "accept", accept)
    found = [faults.die(tmp_path / str(at), Plan(rounds=2), "coordinator", at, expected) for at in (60, 90)]
    assert any(found)


def test_a_device_whose_disk_damages_what_it_takes_says_so_and_does_not_fetch_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(tmp_path, Plan())
    monkeypatch.setattr("edge_runtime.store.write_atomic", lambda path, data: path.write_bytes(data[:50]))
    assert not fleet.play(60.0)
    assert fleet.coordinator is not None
    assert "mend its disk" in fleet.coordinator.core.refused["a"]
    fleet.close()
