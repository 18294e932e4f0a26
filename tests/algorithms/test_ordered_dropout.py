"""A device may train a narrower part than its own for a round: it does what a device with that part does."""

import numpy as np
import pytest

from edge_runtime import models, narrow
from edge_runtime.algorithm import no_cut
from edge_runtime.algorithms import fedavg
from edge_runtime.backends import numpy as backend
from edge_runtime.compression import mask, submodel
from edge_runtime.compression.submodel import Cut
from edge_runtime.data import SeededBatches
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.models import ModelSpec
from edge_runtime.tree import Flat, Layout

MLP = models.find("mlp")
STRUCTURE = narrow.structure(MLP)
HALF, QUARTER = submodel.nested(STRUCTURE, 0.5), submodel.nested(STRUCTURE, 0.25)
SIZE = MLP.layout.size
ROUNDS = 400
ALWAYS = fedavg.Config(lr=0.1, local_steps=3, batch_size=8, aggregate="owners", ordered_dropout=1.0, rounds=ROUNDS)


def server_of(config: fedavg.Config, cuts: tuple[Cut, ...], initial: Flat | None = None) -> fedavg.Server:
    server = fedavg.Server(config, MLP.layout, np.zeros(SIZE, np.float32) if initial is None else initial, {}, 7)
    server.cut_of = {"whole": None, "half": HALF, "quarter": QUARTER}.__getitem__
    server.cuts = cuts
    return server


def batches(spec: ModelSpec) -> SeededBatches:
    rng = np.random.default_rng(3)
    return SeededBatches(rng.random((20, *spec.input_shape)), rng.integers(0, spec.classes, 20), 5)


@pytest.mark.parametrize("name", ["mlp", "lenet", "watch-cnn"])
def test_a_device_that_trains_a_part_ends_where_a_device_with_that_part_does(name: str) -> None:
    spec = models.find(name)
    cut = submodel.nested(narrow.structure(spec), 0.5)
    part, start = narrow.narrow(spec, cut), models.initial(spec, 1)
    wide, thin = (fedavg.Client(ALWAYS, backend.from_spec(one), None) for one in (spec, part))
    found = wide.round(fedavg.Down(0, start, mask.encode(cut.bits)), batches(spec)).values
    wanted = thin.round(fedavg.Down(0, start[cut.bits]), batches(spec)).values
    assert np.allclose(found[cut.bits], wanted, atol=1e-6)  # rows of zeros may change the order of a sum
    assert np.abs(wanted).max() > 1e-3
    assert not found[~cut.bits].any()
    assert np.array_equal(wide.personal(None).values[~cut.bits], start[~cut.bits])


def test_what_a_device_leaves_out_counts_nowhere() -> None:
    server = server_of(ALWAYS, (HALF,))
    for device, change in (("whole", 3.0), ("half", 1.0)):
        size = SIZE if device == "whole" else int(HALF.bits.sum())
        server.absorb(device, fedavg.Up(0, 5, np.full(size, change, np.float32)))
    server.close()
    assert np.array_equal(server.shared(), np.where(HALF.bits, np.float32(-2), np.float32(0)))


def test_a_device_is_told_which_of_its_values_to_train() -> None:
    initial = models.initial(MLP, 1)
    server = server_of(ALWAYS, (QUARTER,), initial)
    whole, half, quarter = (server.down(device, first=True) for device in ("whole", "half", "quarter"))
    assert np.array_equal(whole.values, initial)
    assert np.array_equal(mask.decode(whole.kept, SIZE), QUARTER.bits)
    assert np.array_equal(half.values[mask.decode(half.kept, len(half.values))], initial[QUARTER.bits])
    assert quarter.kept == b""  # nothing is narrower


def test_each_draw_is_the_same_whenever_it_is_asked_for_and_none_is_made_after_the_last_round() -> None:
    sometimes = fedavg.Config(aggregate="owners", ordered_dropout=0.5, rounds=ROUNDS)
    server, again = (server_of(sometimes, (HALF, QUARTER)) for _ in range(2))
    drawn = []
    for round_ in range(ROUNDS + 1):
        server.round = again.round = round_
        drawn.append(server.down("whole", first=True).kept)
        assert drawn[-1] == again.down("whole", first=False).kept
    assert drawn[-1] == b""
    of = {name: drawn.count(mask.encode(cut.bits)) for name, cut in (("half", HALF), ("quarter", QUARTER))}
    assert all(70 <= count <= 130 for count in of.values())  # 100 are expected, with a standard deviation of 9


def test_without_parts_the_average_is_that_of_a_run_without_dropout_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    plain = fedavg.Config(aggregate="owners", rounds=ROUNDS)
    servers = [server_of(config, ()) for config in (plain, ALWAYS)]
    updates = [rng.normal(0, 0.1, SIZE).astype(np.float32) for _ in range(4)]
    for server in servers:
        server.cut_of = no_cut
        for number, update in enumerate(updates):
            assert server.down(f"device-{number}", first=True).kept == b""
            server.absorb(f"device-{number}", fedavg.Up(0, 5, update))
        server.close()
    assert np.array_equal(*(server.shared() for server in servers))


def test_an_update_of_another_size_is_refused_and_changes_nothing() -> None:
    server = server_of(ALWAYS, (HALF,))
    with pytest.raises(DecodeError, match="values where"):
        server.absorb("whole", fedavg.Up(0, 5, np.ones(SIZE - 1, np.float32)))
    assert server.total.count == 0


def test_a_mask_of_another_size_is_refused() -> None:
    model = backend.from_spec(MLP)
    down = fedavg.Down(0, np.zeros(SIZE, np.float32), mask.encode(np.random.default_rng(0).random(SIZE // 2) < 0.5))
    with pytest.raises(DecodeError):
        fedavg.Client(ALWAYS, model, None).round(down, batches(MLP))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_a_probability_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match="ordered-dropout must be at least 0 and at most 1"):
        fedavg.Config(ordered_dropout=wrong)


def test_a_part_of_other_channels_than_a_device_has_is_not_drawn() -> None:
    other = Cut(STRUCTURE, tuple(~kept for kept in HALF.kept))
    assert server_of(ALWAYS, (HALF, other)).down("half", first=True).kept == b""
    assert Layout(MLP.layout.names, other.shapes).size == int(other.bits.sum())
