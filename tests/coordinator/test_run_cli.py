"""What is done with a run that is there: its devices' models as files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime import data
from edge_runtime.config import cache_folder
from edge_runtime.coordinator import exporting, run_cli
from edge_runtime.data import DataConfig
from edge_runtime.errors import ConfigError
from edge_runtime.store import FileStore

DEVICE = "person-01-left"


def command(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "edge_runtime.coordinator.cli", *arguments]
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=300, env=environment)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two watches that collected their models."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--parts", "2", "--rounds", "2", "--labels-per-class", "3", "--no-baseline", "--runs", str(folder)]
    done = command("simulate", *flags, "--set", "run.collect=true", state=folder)
    assert done.returncode == 0, done.stderr
    return folder / "latest"


def test_a_devices_model_becomes_a_signed_file_that_is_as_good_as_the_run_reported(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    flags = ["--device", DEVICE, "--out", str(out), "--data", "watch", "--part", "0", "--parts", "2", "--json"]
    done = command("run", "export", str(run), *flags, state=tmp_path)
    assert done.returncode == 0, done.stderr
    found, (first, _) = json.loads(done.stdout), json.loads((run / "report.json").read_text())["devices"]
    assert found["format"] == "sparse"
    assert found["accuracy"] == pytest.approx(first["accuracy_personal"], abs=1e-6)
    assert command("run", "verify", str(out), state=tmp_path).returncode == 0
    split = data.load(DataConfig(parts=2), cache_folder())
    program = (
        "import sys, numpy, onnxruntime; x = numpy.load(sys.argv[2]); s = onnxruntime.InferenceSession(sys.argv[1]); "
    )
    program += "numpy.save(sys.argv[3], s.run(None, {'x': x})[0])"
    np.save(tmp_path / "x.npy", split.x_test)
    paths = [str(out), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    subprocess.run([sys.executable, "-I", "-c", program, *paths], check=True)
    right = np.load(tmp_path / "y.npy").argmax(axis=1) == split.y_test
    assert right.mean() == pytest.approx(found["accuracy"])
    manifest = out.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace(DEVICE, "person-02-left"))
    done = command("run", "verify", str(out), state=tmp_path)
    assert done.returncode == 2
    assert "changed since it was signed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_model_is_looked_for_where_the_run_collected_it_and_then_in_the_devices_store(tmp_path: Path) -> None:
    report = {"run": "d33", "algorithm": "fedspa", "devices": [{"id": "a"}, {"id": "b"}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    store = FileStore(tmp_path / "devices" / "a")
    store.keep_personal("d33", b"of the store", serve=False)
    store.close()
    assert run_cli.find(tmp_path, "a").read_bytes() == b"of the store"
    collected = tmp_path / "fedspa" / "personal" / "a.bin"
    collected.parent.mkdir(parents=True)
    collected.write_bytes(b"collected")
    assert run_cli.find(tmp_path, "a") == collected
    with pytest.raises(ConfigError, match=r"holds no personal model of b: let a run collect them"):
        run_cli.find(tmp_path, "b")
    with pytest.raises(ConfigError, match=r"--device 'c' is not in this run; it has a, b"):
        run_cli.find(tmp_path, "c")
    with pytest.raises(ConfigError, match=r"--device: one of a, b"):
        run_cli.find(tmp_path, None)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"run": 1, "algorithm": 2, "devices": [3]}'])
def test_a_folder_without_a_finished_run_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ConfigError, match="no finished run there"):
        run_cli.find(tmp_path, "a")


def test_what_an_export_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == "cryptography" else True)
    with pytest.raises(ConfigError, match=r"export needs cryptography; run: pip install 'edge-runtime\[export\]'"):
        exporting.start("manifest", [])
