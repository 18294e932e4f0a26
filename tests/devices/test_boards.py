import json
from pathlib import Path

import pytest

from edge_runtime.devices import boards

DOCS = Path(__file__).parents[2] / "docs"
FILES = sorted((DOCS / "boards").glob("*.json"))


def test_the_page_is_what_the_script_makes_of_the_files(tmp_path: Path) -> None:
    boards.main([str(DOCS / "boards"), str(tmp_path / "boards.md")])
    assert (tmp_path / "boards.md").read_text("utf-8") == (DOCS / "boards.md").read_text("utf-8")


def test_every_measurement_is_a_row() -> None:
    assert FILES
    made = boards.page(map(boards.read, FILES))
    count = sum(len(json.loads(path.read_text())["measurements"]) for path in FILES)
    assert sum(line.startswith("| ") for line in made.splitlines()) == count + 1


def test_a_board_that_tells_energy_shows_it_and_a_hostile_name_stays_in_its_cell() -> None:
    record = boards.read(FILES[0])
    (one, *_) = record["measurements"]
    record |= {"measurements": [{**one, "step_energy_j": 0.0123}], "profile": {**record["profile"], "cpu": "a|b\nc"}}
    (row,) = [line for line in boards.page([record]).splitlines() if line.startswith("| ") and "a/b c" in line]
    assert row.endswith("| 12.3 |")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"profile": {}}', '{"profile": {"cpu": "x", "cores": 2}, "measurements": 1}']
)
def test_another_file_is_named_and_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"board\.json: not what `edge-agent measure --json` prints"):
        boards.read(path)
