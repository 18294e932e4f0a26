"""What a task takes: closed forms of what can be counted."""

import math

import pytest

from edge_runtime import algorithm, coding, needs
from edge_runtime.devices import budget
from edge_runtime.devices.budget import Costs, Point

COSTS = Costs("here", (Point("onnx", 1.0, 4, 10_000_000, 1.0),))


def test_values_bit_for_bit_take_32_bits_each_way() -> None:
    empty = needs.round_bytes(0, 3, 1.0, coding.LOSSLESS, coding.LOSSLESS)
    assert needs.round_bytes(1000, 3, 1.0, coding.LOSSLESS, coding.LOSSLESS) - empty == 8000
    assert needs.round_bytes(1000, 3, 1.0, coding.parse("bf16", ""), coding.LOSSLESS) - empty == 6000


def test_of_a_packed_model_its_values_travel_and_its_mask_at_its_entropy() -> None:
    empty = needs.round_bytes(0, 1, 0.5, coding.LOSSLESS, coding.LOSSLESS)
    assert needs.round_bytes(8000, 1, 0.5, coding.LOSSLESS, coding.LOSSLESS) - empty == 8000 * 4 + 2 * 1000


def test_steps_take_the_entropy_of_a_normal_distribution_and_the_model_moves_on() -> None:
    step = coding.parse("step:1", "")
    empty = needs.round_bytes(0, 1, 1.0, step, step)
    entropy = math.log2(math.sqrt(2 * math.pi * math.e))
    assert needs.round_bytes(80_000, 1, 1.0, step, step) - empty == math.ceil(10_000 * (2 * entropy + 2))


def test_only_an_algorithm_with_masks_trains_a_part_of_the_parameters() -> None:
    fedspa, fedavg = algorithm.load("fedspa"), algorithm.load("fedavg")
    assert needs.density_of(fedspa, fedspa.Config(density=0.25)) == 0.25
    assert needs.density_of(fedavg, fedavg.Config()) == 1.0


@pytest.mark.parametrize("own", [False, True])
def test_memory_is_that_of_training_where_it_was_measured_and_of_the_graphs_where_not(own: bool) -> None:
    vectors = budget.OWN_VECTORS if own else budget.VECTORS
    measured = needs.memory_bytes(COSTS, 5, "onnx", 1.0, 4, 1000, own)
    assert measured == budget.task_bytes(10_000_000, 1000, vectors)
    for known, backend in ((None, "onnx"), (COSTS, "torch")):
        assert needs.memory_bytes(known, 5, backend, 1.0, 4, 1000, own) == budget.task_bytes(5, 1000, vectors)
