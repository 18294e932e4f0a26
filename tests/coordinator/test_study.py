"""The study of all algorithms: cells run once, figures by hand, tables that agree, and attackers that do harm."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.coordinator import cli, study, study_grid, study_plots, study_report, study_run
from edge_runtime.coordinator.adversary import Attack
from edge_runtime.coordinator.journal import Accepted
from edge_runtime.coordinator.pace import Pace
from edge_runtime.coordinator.study import Case, Cell, Scenario
from edge_runtime.data import DataConfig
from edge_runtime.errors import ConfigError

BOTH = (("", "shared"), (" + fine-tuning", "personal"))
TINY = Scenario(
    "tiny",
    "four devices with a few pictures",
    DataConfig("fashion-mnist", parts=10, labels_per_class=5),
    "linear",
    {"rounds": 3},
    {"lr": 0.05, "local-epochs": 1, "batch-size": 8},
    (Case("alone", "local"), Case("together", "fedavg", shows=BOTH)),
    "numpy",
)


def one(case: Case, scenario: Scenario = TINY) -> dict[str, Any]:
    return study_run.play(Cell(scenario, case, 0))


def record(case: str, seed: int, personal: float, shared: float | None, wall_s: float = 1.0) -> dict[str, Any]:
    final = {"shared": shared, "personal_before": 0.1, "personal": personal}
    point = {"updates": 10, "virtual_s": 2.0 + seed, "bytes_up": 100.0, "bytes_down": 300.0, **final}
    return {
        "scenario": "tiny",
        "case": case,
        "seed": seed,
        "versions": {"edge-runtime": "9.9", "commit": "abc"},
        "final": {name: {"mean": value, "p10": value, "devices": 4} for name, value in final.items()},
        "payload_bytes_up": 1000.0,
        "payload_bytes_down": 3000.0,
        "virtual_s": 20.0,
        "curve": [point, point],
        "times": {"wall_s": wall_s, "cpu_s": wall_s},
    }


@pytest.fixture(scope="module")
def honest() -> dict[str, Any]:
    return one(TINY.cases[1])


@pytest.fixture
def found() -> dict[str, Any]:
    cells = [record("alone", seed, personal, None) for seed, personal in enumerate((0.5, 0.6, 0.7))]
    cells += [record("together", seed, 0.8, 0.4 + 0.2 * seed) for seed in (0, 1)]
    return study_report.build([TINY], cells, "edge-coordinator bench algorithms")


def test_a_study_that_was_killed_goes_on_without_repeating_what_is_finished(tmp_path: Path) -> None:
    cells = study.cells([TINY], 1)
    told: list[str] = []

    def stop(cell: Cell, record: dict[str, Any]) -> None:
        told.append(cell.name)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study_run.run(cells, tmp_path, 1, stop)
    assert told == ["tiny--alone--0"]
    assert study_run.run(cells, tmp_path, 1, lambda cell, record: told.append(cell.name)) == []
    assert told == ["tiny--alone--0", "tiny--together--0"]
    assert study_run.run(cells, tmp_path, 1, lambda cell, record: told.append(cell.name)) == []
    assert len(told) == 2


def test_a_cell_with_other_settings_or_a_damaged_file_is_run_anew(tmp_path: Path) -> None:
    cell = Cell(TINY, TINY.cases[0], 0)
    study_run.run([cell], tmp_path, 1, lambda cell, record: None)
    other = dataclasses.replace(cell, scenario=dataclasses.replace(TINY, settings={**TINY.settings, "lr": 0.04}))
    assert study_run.read(cell, tmp_path) is not None
    assert study_run.read(other, tmp_path) is None
    (tmp_path / "tiny--alone--0.json").write_text("{")
    assert study_run.read(cell, tmp_path) is None


def test_a_cell_that_fails_leaves_the_others_and_its_reason(tmp_path: Path) -> None:
    diverging = Case("diverges", "local", {"lr": 1e30, "clip-norm": 0.0, "weight-decay": 1e30})
    told: list[str] = []
    cells = [Cell(TINY, diverging, 0), Cell(TINY, TINY.cases[0], 0)]
    (failure,) = study_run.run(cells, tmp_path, 2, lambda cell, record: told.append(cell.name))
    assert failure.startswith("tiny--diverges--0: ")
    assert "diverged" in failure
    assert told == ["tiny--alone--0"]


def test_the_same_cell_gives_the_same_record_apart_from_times(honest: dict[str, Any]) -> None:
    assert {**one(TINY.cases[1]), "times": None} == {**honest, "times": None}


def test_devices_that_lie_spoil_the_mean(honest: dict[str, Any]) -> None:
    spoilt = one(Case("spoilt", "fedavg", attack=Attack("inner-product", part=0.3)))
    assert honest["final"]["shared"]["mean"] > 0.5
    assert spoilt["final"]["shared"]["mean"] < 0.2
    assert len(spoilt["attackers"]) == 3
    assert spoilt["final"]["shared"]["devices"] == 7


def test_wrong_labels_make_the_shared_model_worse(honest: dict[str, Any]) -> None:
    flipped = one(Case("flipped", "fedavg", attack=Attack("label-flip", part=0.4)))["final"]["shared"]["mean"]
    assert flipped < honest["final"]["shared"]["mean"] - 0.05


def test_slow_devices_hold_every_round_up_and_change_nothing_else(honest: dict[str, Any]) -> None:
    slow = one(Case("slow", "fedavg", pace=Pace(slow_part=0.3, slow_factor=10)))
    assert (honest["virtual_s"], slow["virtual_s"]) == (3.0, 30.0)
    assert [point["virtual_s"] for point in slow["curve"]] == [10.0, 20.0, 30.0]
    assert slow["final"] == honest["final"]


def test_figures_are_means_over_the_honest_devices_and_bytes_of_all() -> None:
    def item(round_: int, phase: str, device: str, accuracy: float, size: float) -> Accepted:
        figures = {"accuracy-personal": accuracy, "payload-bytes-up": size, "payload-bytes-down": 2 * size}
        return Accepted(round_, phase, device, round_, {**figures, "virtual-s": 1.0 + round_})

    accepted = [item(0, "train", "a", 0.2, 10.0), item(0, "train", "liar", 0.9, 30.0)]
    accepted += [item(1, "train", "a", 0.4, 10.0), item(1, "train", "b", 0.6, 50.0)]
    accepted += [item(2, "evaluate", name, accuracy, 9.0) for name, accuracy in (("a", 0.5), ("b", 0.7), ("liar", 0.0))]
    made = study_run.figures(accepted, {"liar"}, 4, 2)
    assert made["final"]["personal"] == pytest.approx({"mean": 0.6, "p10": 0.52, "devices": 2})
    assert made["final"]["shared"]["mean"] is None
    assert (made["payload_bytes_up"], made["payload_bytes_down"], made["virtual_s"]) == (25.0, 50.0, 2.0)
    assert [(point["bytes_up"], point["virtual_s"]) for point in made["curve"]] == [(10.0, 1.0), (25.0, 2.0)]
    assert [point["personal"] for point in made["curve"]] == pytest.approx([0.2, 0.5])


def test_mean_and_standard_error_are_those_worked_out_by_hand() -> None:
    # Deviations -1, 0, 1: an unbiased variance of 1, over 3 values.
    assert study_report.mean_and_error([1.0, 2.0, None, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    assert study_report.mean_and_error([5.0]) == (5.0, None)
    assert study_report.mean_and_error([None]) == (None, None)


def test_a_case_with_two_lines_shows_the_shared_model_and_what_fine_tuning_makes_of_it(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["scenarios"][0]["rows"]}
    assert list(rows) == ["alone", "together", "together + fine-tuning"]
    assert (rows["together"]["accuracy"], rows["together"]["accuracy_se"]) == pytest.approx((0.5, 0.1))
    assert rows["together + fine-tuning"]["accuracy"] == pytest.approx(0.8)
    assert rows["alone"]["accuracy_shared"] is None


def test_csv_json_and_markdown_say_the_same(found: dict[str, Any]) -> None:
    rows = json.loads(json.dumps(found))["scenarios"][0]["rows"]
    lines = list(csv.DictReader(io.StringIO(study_report.to_csv(found))))
    assert [line["name"] for line in lines] == [row["name"] for row in rows]
    assert [float(line["accuracy"]) for line in lines] == [row["accuracy"] for row in rows]
    assert [float(line["accuracy_se"]) for line in lines] == [row["accuracy_se"] for row in rows]
    text = study_report.to_markdown(found)
    assert "Made by `edge-coordinator bench algorithms` with edge-runtime 9.9 (abc), seeds 0, 1, 2." in text
    assert "| alone | 60.0 ± 5.8 | 60.0 ± 5.8 | – | 1.0 kB | 3.0 kB | 20.0 s | 1.0 s |" in text
    assert "| together | 50.0 ± 10.0 |" in text


def test_every_scenario_has_a_plot(found: dict[str, Any], tmp_path: Path) -> None:
    (path,) = study_plots.write(found, tmp_path / "plots")
    assert path.name == "tiny.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert study_plots.smooth([1.0, 3.0, 5.0], 2) == [2.0, 4.0]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="--case: 'fedavgg' is unknown; did you mean 'fedavg'"):
        study.select(study_grid.SCENARIOS, ["watch"], ["fedavgg"])
    with pytest.raises(ConfigError, match="--scenario: 'whatch' is unknown; did you mean 'watch'"):
        study.select(study_grid.SCENARIOS, ["whatch"], None)


def test_every_cell_of_the_study_can_be_prepared_and_has_a_file_of_its_own(tmp_path: Path) -> None:
    small = {"watch-cnn", "mlp", "lenet"}
    for scenarios, models in ((study_grid.SCENARIOS, {*small, "cnn"}), (study.quick(study_grid.SCENARIOS), small)):
        cells = study.cells(scenarios, 1)
        assert len({study_run.path(cell, tmp_path) for cell in cells}) == len(cells)
        assert {cell.prepare().config.model for cell in cells} == models


def test_the_command_prints_the_study_as_json_and_writes_what_is_asked_for(tmp_path: Path) -> None:
    flags = ["--quick", "--scenario", "attacks", "--case", "fedavg, no attack", "--out", str(tmp_path / "out")]
    flags += [
        "--json",
        "--csv",
        str(tmp_path / "t.csv"),
        "--plots",
        str(tmp_path),
        "--markdown",
        str(tmp_path / "t.md"),
    ]
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "bench", "algorithms", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["command"].startswith("edge-coordinator bench algorithms --quick")
    assert printed["seeds"] == [0]
    assert "1/1 attacks, fedavg, no attack, seed 0: " in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out", "t.csv", "t.md", "attacks.png"}


def test_a_quick_study_of_a_slow_scenario_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "algorithms", "--quick", "--scenario", "large"])
    assert stopped.value.code == 2
    assert "--quick: this scenario is slow" in capsys.readouterr().err


def test_groups_of_devices_have_lines_and_curves_of_their_own() -> None:
    group = "device-00[0-4]"
    case = Case("together", "fedavg", shows=(("", "personal"), (" (some)", f"personal of {group}")), groups=(group,))
    scenario = dataclasses.replace(TINY, cases=(case,))
    played = one(case, scenario)
    whole, some = study_report.build([scenario], [played], "bench")["scenarios"][0]["rows"]
    assert whole["accuracy"] != some["accuracy"]
    assert [len(row["curve"]) for row in (whole, some)] == [3, 3]
    assert played["final"][f"personal of {group}"]["devices"] == 5
