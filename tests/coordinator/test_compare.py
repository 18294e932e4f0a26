"""Reports read again: two beside each other, and as tables."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edge_runtime.coordinator import cli, compare, report, report_html, report_tables, reports_cli, summary
from edge_runtime.coordinator.report import Row, RunInfo
from edge_runtime.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs/report.md"
ONE = {"run": {"rounds": 2, "up": "lossless"}, "algorithm": {"density": 0.5}}
OTHER = {"run": {"rounds": 2, "up": "step:0.5"}, "algorithm": {"lr": 0.1}}


def made(settings: dict[str, Any], accuracy: float, up: int, wall_s: float) -> report.Report:
    rows = [
        Row(
            number,
            device,
            "train",
            up,
            200,
            None,
            None,
            None,
            None,
            None,
            1.0,
            wall_s,
            None,
            0.5,
            accuracy,
            1.5,
            30,
            10,
        )
        for number in (0, 1)
        for device in "ab"
    ]
    info = RunInfo(f"r{up}", "fedspa", 2, "watch-cnn", 1000, 7, settings, "loopback", wall_s=2 * wall_s)
    return report.build(info, rows)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    folders = tmp_path / "runs" / "first", tmp_path / "runs" / "second"
    for folder, which in zip(folders, (made(ONE, 0.9, 100, 2.0), made(OTHER, 0.8, 50, 4.0)), strict=True):
        folder.mkdir(parents=True)
        report.write(folder, which)
    return folders


def test_settings_that_differ_are_listed_with_both_values() -> None:
    found = compare.differences(made(ONE, 0.9, 100, 2.0), made(OTHER, 0.8, 50, 4.0))
    assert found == [("algorithm.density", 0.5, None), ("algorithm.lr", None, 0.1), ("run.up", "lossless", "step:0.5")]


def test_figures_stand_side_by_side_with_their_differences(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["run", "compare", *map(str, pair), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert list(told["runs"]) == ["first", "second"]
    assert told["comparison"]["payload_bytes_up_ratio"] == 2.0
    assert told["comparison"]["accuracy_personal_points"] == pytest.approx(10.0)
    assert told["wall_s"] == [4.0, 8.0]
    assert told["settings"][0] == {"key": "algorithm.density", "first": 0.5, "second": None}


def test_the_table_says_what_is_better_and_how_long_it_took(pair: tuple[Path, Path]) -> None:
    both = compare.beside(*map(reports_cli.read, pair), ("first", "second"))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(summary.comparison_table(both))
    text = console.export_text()
    assert "first and second" in text
    assert "+10.0 points" in text
    assert "2.00 x more" in text
    assert "the whole run" in text
    assert "2.00 x less" in text


def test_the_page_has_the_curves_of_both(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cli.main(["run", "compare", *map(str, pair), "--html", str(tmp_path / "both.html"), "--json"])
    page = (tmp_path / "both.html").read_text()
    assert "second, personal model" in page
    assert "shared model</text>" not in page
    assert report_html.page(compare.beside(*map(reports_cli.read, pair), ("first", "second"))) == page


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "compare", "runs/first", "runs/secnd"], "did you mean 'runs/second'?"),
        (["run", "compare", "runs/first", "runs/first"], "are the same run"),
        (["report", "run/first"], "did you mean 'runs/first'?"),
        (["report", "elsewhere"], "run `edge-coordinator demo` first"),
    ],
)
def test_a_run_that_is_not_there_is_answered_with_the_nearest_one(
    words: list[str], complaint: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(pair[0].parents[1])
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert complaint in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"schema": "other/1"}'])
def test_what_is_no_report_is_said_to_be_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ConfigError, match="no report"):
        reports_cli.read(tmp_path)


def test_tables_have_a_line_for_each_round_and_device(pair: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    cli.main(["report", str(pair[0]), "--csv", str(tmp_path / "tables"), "--json"])
    rounds = list(csv.DictReader(io.StringIO((tmp_path / "tables/rounds.csv").read_text())))
    devices = list(csv.DictReader(io.StringIO((tmp_path / "tables/devices.csv").read_text())))
    assert [(row["round"], row["accuracy_personal_mean"], row["socket_bytes_up"]) for row in rounds] == [
        ("0", "0.9", ""),
        ("1", "0.9", ""),
    ]
    assert [(row["id"], row["algorithm"], row["payload_bytes_up"], row["wall_s"]) for row in devices] == [
        ("a", "fedspa", "100.0", "2.0"),
        ("b", "fedspa", "100.0", "2.0"),
    ]


def test_columns_are_those_of_the_documentation() -> None:
    text = DOCS.read_text()
    for columns in (report_tables.ROUND_COLUMNS, report_tables.DEVICE_COLUMNS):
        assert ",".join(columns) in text.replace("\\\n", "")
