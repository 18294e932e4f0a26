"""Runs that are there: listed, shown, stopped, gone on with, and computed again."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import fleet, runs
from edge_runtime.errors import ConfigError, RunError

NAMES = ["person-01-left", "person-01-right", "person-02-left"]
FLAGS = ["--data", "watch", "--parts", "3", "--labels-per-class", "3"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "edge_runtime.coordinator.cli", *arguments]


def said(*arguments: str) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its updates."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--parts", "2", "--rounds", "2", "--labels-per-class", "3", "--no-baseline", "--runs", str(folder)]
    said("simulate", *flags, "--set", "run.keep-updates=true", "--set", "run.seed-samples=14")
    return folder


def test_a_run_that_kept_its_updates_is_computed_again_to_the_same_bits(simulated: Path) -> None:
    (folder,) = runs.folders(simulated)
    assert said("run", "replay", str(simulated)) == (
        "4 updates again: all 2 checkpoints are bit-equal, and so is the final model\n"
    )
    record = json.loads(said("run", "replay", str(folder), "--json"))
    assert record == {"rounds": 2, "updates": 4, "differs": None, "model": True, "equal": True}


def test_runs_are_listed_and_shown(simulated: Path) -> None:
    (listed,) = json.loads(said("run", "list", str(simulated), "--json"))
    shown = json.loads(said("run", "show", str(simulated), "--json"))
    assert listed == shown
    assert (shown["state"], shown["algorithm"], shown["rounds"], shown["devices"]) == ("finished", "fedspa", 2, 2)
    assert shown["accepted"] == 6


def test_a_run_is_prepared_again_from_its_folder_alone(simulated: Path) -> None:
    (folder,) = runs.folders(simulated)
    run, link = runs.rebuild(folder)
    assert link is None
    assert (run.config.algorithm, run.config.rounds, run.config.keep_updates) == ("fedspa", 2, True)
    assert run.asked == runs.rebuild(folder)[0].asked


def test_where_nothing_is_one_line_says_so(simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run there"):
        runs.the_one(tmp_path)
    with pytest.raises(ConfigError, match="no coordinator is at this run"):
        runs.stop(runs.the_one(simulated), 1.0)
    (tmp_path / "journal.sqlite").write_bytes(b"nonsense" * 100)
    with pytest.raises(RunError, match="cannot be read"):
        runs.standing(tmp_path)
    done = subprocess.run(command("run", "resume", str(simulated)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "was simulated in memory" in done.stderr


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command beside the test; whatever becomes of that, it does not outlive it."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command(*arguments), stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.kill()


def started(place: Path, port: int) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    flags = ["start", "-p", str(port), "--folder", str(place), "--runs", str(place.parent), "--rounds", "10"]
    for setting in ("run.devices=3", "algorithm.local-epochs=1", "run.keep-updates=true"):
        flags += ["--set", setting]
    return running(*flags)


def wait_for_round(place: Path, number: int) -> None:
    until = time.monotonic() + 90
    while not list(place.glob("*/checkpoint-*")) or runs.standing(runs.the_one(place)).round < number:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_journal_that_cannot_be_read_hides_no_other_run(simulated: Path, tmp_path: Path) -> None:
    (good,) = runs.folders(simulated)
    shutil.copytree(good, tmp_path / "good")
    for name, content in (("bad", b"nonsense" * 100), ("young", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "journal.sqlite").write_bytes(content)
    done = subprocess.run(command("run", "list", str(tmp_path), "--json"), capture_output=True, text=True, check=False)
    assert [one["folder"] for one in json.loads(done.stdout)] == [str(tmp_path / "good")]
    bad, young = done.stderr.splitlines()
    assert "bad/journal.sqlite: cannot be read" in bad
    assert "young/journal.sqlite: a run is only just being made" in young
    assert done.returncode == 5


def test_a_run_is_stopped_at_once_and_goes_on_from_its_folder_alone(tmp_path: Path) -> None:
    place = tmp_path / "first"
    with (
        brokers.start("auto", folder=tmp_path / "broker") as broker,
        fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False),
        started(place, broker.port) as first,
    ):
        wait_for_round(place, 1)
        assert runs.standing(runs.the_one(place)).process == first.pid
        assert f"process {first.pid} has ended; the run is stopped" in said("run", "stop", str(place))
        assert first.wait() == 130
        report = json.loads(said("run", "resume", str(place), "--json"))
    assert report["rounds"] == 10
    assert [device["training_rounds"] for device in report["devices"]] == [10, 10, 10]
    assert "checkpoints are bit-equal, and so is the final model" in said("run", "replay", str(place))
    shown = json.loads(said("run", "show", str(place), "--json"))
    assert (shown["state"], shown["starts"]) == ("finished", 2)


def test_a_run_goes_on_from_a_backup_though_its_devices_have_come_further(tmp_path: Path) -> None:
    place, backup = tmp_path / "run", tmp_path / "backup"
    with (
        brokers.start("auto", folder=tmp_path / "broker") as broker,
        fleet.agents(NAMES, broker, FLAGS, tmp_path, warm=False),
        started(place, broker.port) as first,
    ):
        wait_for_round(place, 1)
        said("run", "stop", str(place))
        assert first.wait() == 130
        shutil.copytree(place, backup)
        kept = runs.standing(runs.the_one(place)).round
        with running("run", "resume", str(place)):
            wait_for_round(place, kept + 3)
        shutil.rmtree(place)
        backup.rename(place)
        report = json.loads(said("run", "resume", str(place), "--json"))
    assert [device["training_rounds"] for device in report["devices"]] == [10, 10, 10]
    assert "checkpoints are bit-equal, and so is the final model" in said("run", "replay", str(place))
    assert json.loads(said("run", "show", str(place), "--json"))["starts"] == 2
