"""The template: what it writes, its own tests, and its run over a real broker with real agents."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import fleet, new
from edge_runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "edge_runtime.coordinator.cli"]
SENSOR = ["--data", "pumps.data:Sensor"]
ALLOWED = ["--allow-algorithm", "pumps.fedmine"]


def run(*command: str | Path, cwd: Path, path: Path | None = None, limit_s: float = 900) -> Any:
    places = [str(place) for place in (path, ROOT) if place]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=limit_s
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project as a person does."""
    path = tmp_path_factory.mktemp("new") / "pumps"
    done = run(*CLI, "new", path, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    assert f"cd {path} && python -m pytest" in done.stdout
    return path


@pytest.fixture(scope="module")
def installed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it, without any index, into a folder of its own; gives that."""
    place = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    done = run(*pip, "--no-build-isolation", "--target", place, project, cwd=project)
    assert done.returncode == 0, done.stderr
    return place


def test_it_holds_what_its_readme_says(project: Path) -> None:
    files = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    written = {".gitignore", "README.md", "pyproject.toml", "run.toml", "tests/test_project.py"}
    written |= {f"pumps/{name}.py" for name in ("__init__", "models", "data", "fedmine")}
    assert written <= files
    assert not [path for path in files if "my_project" in (project / path).read_text(errors="replace")]


def test_what_is_there_is_not_overwritten(project: Path) -> None:
    before = (project / "README.md").read_bytes()
    done = run(*CLI, "new", project, cwd=project)
    assert done.returncode == 2
    assert done.stderr == f"edge-coordinator: {project}: is there already; choose another PATH, or remove it\n"
    assert (project / "README.md").read_bytes() == before


def test_a_file_is_not_overwritten_and_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        new.write(tmp_path / "file", "pumps")
    (tmp_path / "empty").mkdir()
    assert tmp_path / "empty" / "pumps" / "fedmine.py" in new.write(tmp_path / "empty", "pumps")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


@pytest.mark.parametrize(("text", "name"), [("pumps", "pumps"), ("My-Pumps", "my_pumps"), ("a.b c", "a_b_c")])
def test_a_package_is_named_after_its_folder(text: str, name: str) -> None:
    assert new.package_name(text) == name


@pytest.mark.parametrize(
    "text", ["7pumps", "", "class", "pümpe", "tests", "json", "numpy", "edge-runtime", "Edge_Runtime"]
)
def test_a_package_is_named_as_no_other(text: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        new.package_name(text)


def test_it_is_written_in_the_style_of_this_repository(project: Path) -> None:
    for arguments in (
        ("check", "--select", "E,F,I,B,UP,W", "--line-length", "120"),
        ("format", "--check", "--line-length", "120"),
    ):
        done = run(sys.executable, "-m", "ruff", *arguments, "--isolated", project, cwd=project)
        assert done.returncode == 0, done.stdout


def test_its_own_tests_pass_where_it_is_installed(project: Path, installed: Path) -> None:
    # From another folder: what is imported is what was installed.
    done = run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        project / "tests",
        "-c",
        project / "pyproject.toml",
        cwd=installed,
        path=installed,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 passed" in done.stdout


def test_its_own_tests_pass_in_its_folder_without_installing_it(project: Path) -> None:
    done = run(sys.executable, "-m", "pytest", "-q", "-k", "not network", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[brokers.Broker]:
    with brokers.start("auto", folder=tmp_path / "broker") as running:
        yield running


def report_of(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_runs_over_a_broker_with_agents_to_the_bits_of_its_simulation(
    project: Path, installed: Path, broker: brokers.Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), str(ROOT)]))
    monkeypatch.chdir(tmp_path)  # where there is no project to be found
    names = ["machine-0", "machine-1", "machine-2"]
    command = [*CLI, "start", "-p", str(broker.port), "--config", project / "run.toml", "--json", "--rounds", "2"]
    command += ["--folder", tmp_path / "run", "--runs", tmp_path, "--set", "run.devices=3"]
    with fleet.agents(names, broker, [*SENSOR, *ALLOWED], tmp_path, warm=False) as agents:
        report = report_of(run(*command, cwd=tmp_path, path=installed))
        fleet.check(agents, names, tmp_path)
    assert [device["id"] for device in report["devices"]] == names
    assert report["algorithm"] == "pumps.fedmine"
    simulated = [*CLI, "simulate", "--config", project / "run.toml", "--json", "--rounds", "2", "--source", "3"]
    simulated += ["--no-baseline", "--runs", tmp_path / "memory"]
    report_of(run(*simulated, cwd=tmp_path, path=installed))
    ends = [next(tmp_path.glob(f"{where}/pumps.fedmine/model.bin")) for where in ("run", "memory/2*")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_device_that_does_not_allow_its_algorithm_is_named_in_the_report_and_the_others_go_on(
    project: Path, installed: Path, broker: brokers.Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), str(ROOT)]))
    monkeypatch.chdir(tmp_path)
    command = [*CLI, "start", "-p", str(broker.port), "--config", project / "run.toml", "--json", "--rounds", "1"]
    command += ["--folder", tmp_path / "run", "--runs", tmp_path, "--set", "run.devices=2", "--set", "run.quorum=0.5"]
    with fleet.agents(["stranger"], broker, SENSOR, tmp_path, warm=False), ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, *command, "--set", "run.deadline-s=30", cwd=tmp_path, path=installed)
        while not running.done() and not any("stranger" in p.read_text() for p in tmp_path.rglob("presence.json")):
            time.sleep(0.2)  # without it the others might be done before it is there
        with fleet.agents(["machine-0", "machine-1"], broker, [*SENSOR, *ALLOWED], tmp_path, warm=False):
            done = running.result()
    choices = {device["id"]: device["choice"] for device in report_of(done)["devices"]}
    assert choices["machine-0"] is choices["machine-1"] is None
    assert choices["stranger"].startswith("no task: it does not allow the algorithm pumps.fedmine")
    assert "device stranger gets no task: it does not allow the algorithm pumps.fedmine" in done.stderr
