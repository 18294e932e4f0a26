"""`edge-agent measure` as a person or a script runs it. What it finds is this machine's business and not tested."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from edge_runtime import bundle, compute, config, measure_process
from edge_runtime.compute import Compute
from edge_runtime.devices import meter
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.measure_process import Measurement, Plan

PLAN = Plan("lenet", Compute("numpy"), batch=4, steps=2)
ENVIRONMENT = config.environment(1)


def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime.cli", "measure", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("backend", compute.installed())
def test_every_installed_backend_is_measured(backend: str) -> None:
    found = measure_process.measure(replace(PLAN, compute=Compute(backend)), ENVIRONMENT)

    assert (found.model, found.backend, found.batch, found.steps) == ("lenet", backend, 4, 2)
    assert found.parameters == found.active == 61_706
    assert found.floor_bytes == 3 * 4 * 61_706
    assert 0 < found.baseline_rss_bytes <= found.peak_rss_bytes
    assert found.training_peak_rss_bytes <= found.peak_rss_bytes
    assert found.over_baseline_bytes == found.training_peak_rss_bytes - found.baseline_rss_bytes
    assert 0 < found.step_ms_p10 <= found.step_ms_median <= found.step_ms_p90


def test_short_steps_are_timed_more_often_unless_somebody_says_how_often() -> None:
    found = measure_process.measure(Plan("linear", Compute("numpy"), batch=1), ENVIRONMENT)
    assert found.steps > 20
    assert found.step > 0


@pytest.mark.parametrize("backend", compute.installed())
def test_below_density_1_the_active_values_are_trained_and_a_bit_tells_which(backend: str) -> None:
    found = measure_process.measure(replace(PLAN, compute=Compute(backend), density=0.25), ENVIRONMENT)

    # A quarter of the weights, rounded down in each of 5 tensors, and all 236 biases.
    weights = 61_706 - 236
    assert found.parameters == 61_706
    assert weights // 4 + 236 - 5 <= found.active <= weights // 4 + 236
    assert found.floor_bytes == 3 * 4 * found.active + 7_714


def test_auto_is_measured_as_the_backend_that_it_chose() -> None:
    found = measure_process.measure(replace(PLAN, compute=Compute("auto")), ENVIRONMENT)
    assert found.backend == ("onnx" if "onnx" in compute.installed() else "numpy")


def test_a_bundles_folder_is_measured_on_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for name, content in bundle.files(bundle.built_in("linear")).items():
        (tmp_path / name).write_bytes(content)
    model = str(tmp_path)

    found = measure_process.measure(Plan(model, Compute("auto"), batch=4, steps=2), ENVIRONMENT)

    assert (found.backend, found.parameters) == ("onnx", 7_850)
    assert measure_process.backends_for(["all"], model) == ["onnx"]


def test_all_backends_are_the_installed_ones_each_once() -> None:
    assert measure_process.backends_for(["numpy", "all"], "lenet") == [
        "numpy",
        *(name for name in compute.installed() if name != "numpy"),
    ]


def test_the_asking_side_loads_neither_numpy_nor_a_framework() -> None:
    program = (
        "import sys, edge_runtime.measure_process; print(sorted({'torch', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_json_has_the_profile_the_idle_agent_and_every_key_of_a_measurement() -> None:
    done = agent("--model", "linear", "--backend", "numpy", "--batch", "4", "--steps", "2", "--json")

    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert set(record) == {"version", "profile", "agent_idle_rss_bytes", "measurements"}
    assert record["profile"]["cores"] >= 1
    assert record["agent_idle_rss_bytes"] > 0
    assert [set(one) for one in record["measurements"]] == [{field.name for field in fields(Measurement)}]


def test_the_table_has_a_line_for_each_backend() -> None:
    done = agent("--model", "linear", "--backend", "numpy", "--backend", "auto", "--batch", "4", "--steps", "2")

    assert (done.returncode, done.stderr) == (0, "")
    assert "linear, 7,850 parameters, 1 thread\n" in done.stdout
    header, first, second = done.stdout.split("\n\n")[1].splitlines()
    assert header.split()[:2] == ["backend", "batch"]
    assert first.split()[:2] == ["numpy", "4"]
    assert len(first) == len(second) == len(header)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "lenett"), "did you mean 'lenet'"),
        (("--model", "package.module:net"), "is code"),
        (("--backend", "tensorflow"), "'tensorflow' is unknown"),
        (("--accelerator", "tpu"), "'tpu' is unknown"),
        (("--batch", "0"), "batch must be 1 or more, not 0"),
        (("--batch", "many"), "--batch must be a whole number, not 'many'"),
        (("--steps", "-1"), "steps must be 1 or more, not -1"),
        (("--density", "1e-5"), "no active weight; raise it"),
        (("--density", "0"), "density must be above 0 and at most 1, not 0"),
        (("--density", "nan"), "density must be above 0 and at most 1, not nan"),
        (("--threads", "0"), "threads must be 1 or more, not 0"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = agent(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_the_child_refuses_is_raised_here_as_what_it_was() -> None:
    with pytest.raises(DeviceError, match="only on the CPU"):
        measure_process.measure(replace(PLAN, compute=Compute("numpy", "cuda")), ENVIRONMENT)
    with pytest.raises(ConfigError, match="is unknown"):
        measure_process.measure(replace(PLAN, model="nothing"), ENVIRONMENT)


def test_a_child_that_dies_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DeviceError, match=r"the measuring process died \(exit status 1\)"):
        measure_process.measure(PLAN, ENVIRONMENT)


def test_the_peak_starts_anew_where_the_system_lets_it() -> None:
    code = (
        "from edge_runtime.devices import meter\n"
        "block = b'x' * (64 << 20); del block\n"
        "before = meter.peak_rss_bytes(); print(meter.reset_peak(), before, meter.peak_rss_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reset, before, after = done.stdout.split()
    assert int(after) < int(before) - (60 << 20) if reset == "True" else after == before


def test_a_peak_that_the_kernel_does_not_keep_is_not_reset(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("VmRSS:\t   30 kB\n")
    assert not meter.reset_peak(tmp_path)
    assert not meter.reset_peak(tmp_path / "nowhere")
