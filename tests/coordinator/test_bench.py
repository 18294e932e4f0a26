"""Benchmarks: which measurements are made in which order, and what rows are made of them."""

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from edge_runtime import bundle, config, costs, measure_process
from edge_runtime.compute import Compute
from edge_runtime.coordinator import bench, bench_costs
from edge_runtime.errors import ConfigError
from edge_runtime.measure_process import Measurement, Plan

GRID = bench.Grid(("linear",), ("onnx", "torch"), (4,), (1.0,), steps=2, threads=1, arena=False)
PROFILE = {"board", "cpu", "arch", "cores", "ram_bytes", "free_ram_bytes", "ram_limit_bytes", "accelerators"}
PROFILE |= {"os", "kernel", "python"}


def measurement(plan: Plan, step_ms: float, over_bytes: int = 30) -> Measurement:
    return Measurement(
        model=plan.model,
        backend=plan.compute.backend,
        device="cpu",
        threads=plan.compute.threads,
        arena=False,
        batch=plan.batch,
        steps=plan.steps,
        density=plan.density,
        parameters=1,
        active=1,
        floor_bytes=12,
        baseline_rss_bytes=100,
        loaded_rss_bytes=110,
        training_peak_rss_bytes=100 + over_bytes,
        peak_rss_bytes=150,
        over_baseline_bytes=over_bytes,
        peak_was_reset=True,
        import_s=1.0,
        load_s=1.0,
        first_step_ms=step_ms,
        step_ms_p10=step_ms - 1,
        step_ms_median=step_ms,
        step_ms_p90=step_ms + 1,
        step_cpu_ms=step_ms,
        reference_ms=1.0,
        step=step_ms,
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Replace measuring: the n-th measurement finds n ms a step, and ten times its density over the baseline."""
    plans: list[Plan] = []

    def measure(plan: Plan, environment: dict[str, str]) -> Measurement:
        plans.append(plan)
        return measurement(plan, float(len(plans)), round(10 * plan.density))

    monkeypatch.setattr(measure_process, "measure", measure)
    monkeypatch.setattr(measure_process, "idle_rss_bytes", lambda environment: 25)
    return plans


def coordinator(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def shown(record: bench.Record) -> str:
    text = StringIO()
    Console(file=text, width=120).print(bench.table(record))
    return text.getvalue()


def test_a_grid_is_all_its_combinations_with_the_backends_innermost() -> None:
    grid = replace(GRID, models=("linear", "mlp"), batches=(4, 8), densities=(1.0, 0.5))

    groups = bench.plans(grid)

    assert [(group[0].model, group[0].batch, group[0].density) for group in groups] == [
        *(("linear", 4, 1.0), ("linear", 4, 0.5), ("linear", 8, 1.0), ("linear", 8, 0.5)),
        *(("mlp", 4, 1.0), ("mlp", 4, 0.5), ("mlp", 8, 1.0), ("mlp", 8, 0.5)),
    ]
    assert all([plan.compute.backend for plan in group] == ["onnx", "torch"] for group in groups)


def test_all_of_a_grid_is_checked_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match="'nothing' is unknown"):
        bench.plans(replace(GRID, models=("linear", "nothing")))
    with pytest.raises(ConfigError, match="'tensorflow' is unknown"):
        bench.plans(replace(GRID, backends=("numpy", "tensorflow")))


def test_backends_take_turns_and_are_compared_within_each_turn(asked: list[Plan]) -> None:
    record = bench.step(bench.plans(GRID), {}, 3)

    # onnx took 1, 3 and 5 ms, torch 2, 4 and 6: medians 3 and 4, and of 1/2, 3/4 and 5/6 the one in the middle
    assert [plan.compute.backend for plan in asked] == ["onnx", "torch"] * 3
    assert [(row["backend"], row["step_ms_median"], row["ratio_to_torch"]) for row in record["rows"]] == [
        ("onnx", 3, 0.75),
        ("torch", 4, 1),
    ]
    assert [(row["step_ms_p10"], row["step_ms_p90"]) for row in record["rows"]] == [(2, 4), (3, 5)]
    assert len(record["measurements"]) == 6


def test_without_torch_there_is_no_ratio_to_it(asked: list[Plan]) -> None:
    record = bench.step(bench.plans(replace(GRID, backends=("numpy",))), {}, 1)

    assert [row["ratio_to_torch"] for row in record["rows"]] == [None]
    assert "–" in shown(record)


def test_memory_is_compared_with_the_floor_with_dense_training_and_beside_an_agent(asked: list[Plan]) -> None:
    record = bench.memory(bench.plans(replace(GRID, backends=("onnx",), densities=(1.0, 0.1))), {})

    dense, sparse = record["rows"]
    assert (dense["ratio_to_floor"], dense["ratio_to_dense"]) == (10 / 12, 1)
    assert (sparse["over_baseline_bytes"], sparse["ratio_to_dense"]) == (1, 0.1)
    assert sparse["with_agent_bytes"] == 150 + 25
    assert "x dense" in shown(record)


def test_a_peak_that_could_not_start_anew_is_told(asked: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("linear", Compute("numpy"))
    stale = replace(measurement(plan, 1.0), peak_was_reset=False)
    monkeypatch.setattr(measure_process, "measure", lambda plan, environment: stale)

    said = " ".join(shown(bench.memory([[plan]], {})).split())

    assert "cannot start a peak anew" in said


def test_what_is_measured_is_shown_beside_what_was_estimated(asked: list[Plan], tmp_path: Path) -> None:
    for name, content in bundle.files(bundle.built_in("linear")).items():
        (tmp_path / name).write_bytes(content)
    model = str(tmp_path)
    grid = costs.Grid(("onnx",), (4,), (1.0,), repeats=3)
    bench_costs.measure([model], grid, {})  # finds steps of 1, 2 and 3 references, and 10 bytes
    bench_costs.measure([model], replace(grid, backends=("torch",)), {})
    assert [plan.compute.backend for plan in asked] == ["onnx"] * 3 + ["torch"] * 3

    record = bench.memory(bench.plans(replace(GRID, models=(model,))), {})

    onnx, torch = record["rows"]
    assert (onnx["estimate_bytes"], onnx["estimate_error"], onnx["estimate_step_ms"]) == (10, 0, 2)
    assert (torch["estimate_step_ms"], torch["estimate_step_error"]) == (5, 5 / 8 - 1)
    table = bench_costs.table(record)
    assert table is not None
    assert "at most 0% off in memory and 71% in time, of 2" in str(table.caption)


def test_without_costs_there_is_no_estimate(asked: list[Plan]) -> None:
    record = bench.memory(bench.plans(replace(GRID, backends=("numpy",))), {})
    assert record["rows"][0]["estimate_bytes"] is None
    assert bench_costs.table(record) is None


@pytest.mark.parametrize("kind", ["step", "memory"])
def test_real_measurements_become_json_with_progress_on_stderr(kind: str) -> None:
    turns = ("--repeats", "1") if kind == "step" else ()

    done = coordinator(kind, "--model", "linear", "--backend", "numpy", "--steps", "2", *turns, "--json")

    assert done.returncode == 0
    assert "linear, batch 32, numpy: " in done.stderr
    record = json.loads(done.stdout)
    common = {"kind", "version", "profile", "rows", "measurements"}
    assert set(record) == (common if kind == "step" else common | {"agent_idle_rss_bytes"})
    assert set(record["profile"]) == PROFILE
    config.build(Measurement, record["measurements"][0], "measurement")
    asked = {"model", "parameters", "active", "batch", "density", "backend", "threads", "arena", "steps"}
    found = {"step_ms_median", "step_ms_p10", "step_ms_p90", "ratio_to_torch"}
    if kind == "memory":
        found = {"baseline_rss_bytes", "peak_rss_bytes", "over_baseline_bytes", "floor_bytes", "peak_was_reset"}
        found |= {"ratio_to_floor", "ratio_to_dense", "with_agent_bytes", "step_cpu_ms"}
        found |= {"estimate_bytes", "estimate_error", "estimate_step_ms", "estimate_step_error"}
    assert [set(row) for row in record["rows"]] == [asked | found]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("speed",), "unknown command 'speed'"),
        (("step", "--repeats", "0"), "--repeats must be 1 or more, not 0"),
        (("memory", "--repeats", "2"), "unknown flag '--repeats'"),
        (("step", "--model", "lenett"), "did you mean 'lenet'"),
        (("memory", "--backend", "tensorflow"), "'tensorflow' is unknown"),
        (("memory", "--batch", "0"), "batch must be 1 or more, not 0"),
        (("step", "--density", "1.5"), "density must be above 0 and at most 1, not 1.5"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = coordinator(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
