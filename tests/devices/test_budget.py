"""Estimates are read off straight lines between what was measured; costs from a file are checked to the last field."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.devices import budget
from edge_runtime.devices.budget import Costs, Estimate, Limits, Needs, Point

DENSE = [Point("onnx", 1.0, batch, 1000 + 10 * batch, 1 + 0.5 * batch) for batch in (4, 16)]
PACKED = [
    Point("onnx", density, batch, round(1000 * density) + 10 * batch, 2 * density + 0.5 * batch)
    for density in (0.1, 0.5)
    for batch in (4, 16)
]
COSTS = Costs("here", (*DENSE, *PACKED))


@pytest.mark.parametrize("batch", [1, 4, 7, 16, 100])
def test_what_is_affine_in_the_batch_is_met_everywhere(batch: int) -> None:
    found = budget.estimate(COSTS, "onnx", 1.0, batch)
    assert found == Estimate(1000 + 10 * batch, pytest.approx(1 + 0.5 * batch))


@pytest.mark.parametrize("density", [0.05, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("batch", [4, 10, 64])
def test_what_is_affine_in_batch_and_density_is_met_for_packed_models(density: float, batch: int) -> None:
    found = budget.estimate(COSTS, "onnx", density, batch)
    assert found is not None
    assert found.peak_bytes == pytest.approx(1000 * density + 10 * batch, abs=1)
    assert found.step == pytest.approx(2 * density + 0.5 * batch)


def test_between_three_batches_the_nearer_two_count() -> None:
    bent = Costs(
        "here", tuple(Point("onnx", 1.0, batch, size, 1.0) for batch, size in ((4, 100), (16, 100), (64, 580)))
    )
    sizes = [budget.estimate(bent, "onnx", 1.0, batch).peak_bytes for batch in (10, 16, 40, 128)]  # type: ignore[union-attr]
    assert sizes == [100, 100, 340, 1220]


def test_one_density_stands_for_all_of_its_kind_and_the_dense_model_for_itself() -> None:
    only = Costs("here", (*DENSE, *PACKED[:2]))
    assert budget.estimate(only, "onnx", 0.7, 4) == budget.estimate(only, "onnx", 0.1, 4)
    assert budget.estimate(Costs("here", tuple(DENSE)), "onnx", 0.5, 4) is None
    assert budget.estimate(COSTS, "torch", 1.0, 4) is None


@given(
    st.lists(st.tuples(st.integers(1, 512), st.integers(1, 10**9)), min_size=1, max_size=5, unique_by=lambda at: at[0]),
    st.integers(1, 2048),
)
def test_no_estimate_is_nothing_and_beyond_the_ends_more_never_takes_less(
    measured: list[tuple[int, int]], batch: int
) -> None:
    costs = Costs("here", tuple(Point("onnx", 1.0, at, size, 1.0) for at, size in measured))
    found = budget.estimate(costs, "onnx", 1.0, batch)
    assert found is not None
    assert found.peak_bytes > 0
    last = max(measured)
    assert batch <= last[0] or found.peak_bytes >= last[1]


def test_costs_survive_a_file() -> None:
    assert budget.read(json.loads(json.dumps(budget.record(COSTS)))) == COSTS


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"machine": None},
        {"points": []},
        {"points": {}},
        {"points": "ab"},
        {"points": [1]},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_record_of_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="costs: "):
        budget.read({**budget.record(COSTS), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"backend": 1},
        {"density": 0},
        {"density": 1.5},
        {"density": math.nan},
        {"density": True},
        {"batch": 0},
        {"batch": 4.0},
        {"batch": 16},
        {"over_bytes": -1},
        {"over_bytes": 2**60},
        {"step": math.inf},
        {"step": "1"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_point_with_a_wrong_field_is_refused(change: dict[str, Any]) -> None:
    record = budget.record(COSTS)
    record["points"] = [{**record["points"][0], **change}, *record["points"][1:]]
    with pytest.raises(ValueError, match="costs: "):
        budget.read(record)


NEEDS = Needs(50_000_000, 10.0, 8_000)


def test_a_device_without_limits_lacks_nothing() -> None:
    assert budget.lacking(NEEDS, Limits()) == ""
    assert budget.lacking(Needs(50_000_000, None, 8_000), Limits(room_bytes=50_000_000)) == ""


def test_what_is_lacking_is_told_in_the_devices_own_units() -> None:
    assert budget.lacking(NEEDS, Limits(room_bytes=49_999_999)) == (
        "it needs up to 50 MB of memory beside the program, and the device has 49"
    )
    # 10 references of 2 ms, and a quarter more for what the estimate may be off
    assert budget.lacking(NEEDS, Limits(step_ms=25, reference_ms=2)) == ""
    assert budget.lacking(NEEDS, Limits(step_ms=24, reference_ms=2)) == (
        "a step of it takes up to 25 ms there, and the device allows 24"
    )
    assert budget.lacking(NEEDS, Limits(round_bytes=7_999)) == (
        "a round of it takes about 8 kB of messages, and the device allows 7"
    )


def test_a_limit_that_cannot_be_checked_is_not_met() -> None:
    for needs, limits in ((NEEDS, Limits(step_ms=99)), (Needs(1, None, 1), Limits(step_ms=99, reference_ms=1))):
        assert "is not known" in budget.lacking(needs, limits)


def test_a_task_takes_its_training_with_the_margin_and_vectors_of_the_models_size() -> None:
    small, large = (budget.task_bytes(1_000_000, values) for values in (0, 1_000_000))
    assert large - small == 4 * budget.VECTORS * 1_000_000
    assert budget.task_bytes(2_000_000, 0) - small == 1_150_000
