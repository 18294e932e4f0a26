"""FedSpa against worked numbers (E1 to E10) and against the mistakes that implementations of it make (traps)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, packed, sgd, wire
from edge_runtime.algorithm import Model
from edge_runtime.algorithms import fedspa
from edge_runtime.algorithms.fedspa import Config, Down, Server, Up, active_counts, erk, moves, prune
from edge_runtime.compression import mask as masks
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.mask import from_bits
from edge_runtime.tree import Layout

Make = Callable[..., Any]

LENET = Layout(
    ("c1.w", "c1.b", "c2.w", "c2.b", "f3.w", "f3.b", "f4.w", "f4.b"),
    ((20, 1, 5, 5), (20,), (50, 20, 5, 5), (50,), (500, 800), (500,), (10, 500), (10,)),
)
MLP_784 = Layout(("fc1.w", "fc1.b", "fc2.w", "fc2.b"), ((100, 784), (100,), (10, 100), (10,)))
AB = Layout(("a", "b"), ((4, 4), (2, 4)))


def held(fleet: Any, device: str) -> Any:
    """Give the mask that a device holds in its state."""
    return masks.decode(fleet.client(device)._state["mask"], fleet.model.layout.size)


def told(fleet: Any, device: str) -> Any:
    """Give the mask that the server half believes a device to hold."""
    down = fleet.server.down(device, True)
    if down.mask:
        return masks.decode(down.mask, fleet.model.layout.size)
    return masks.from_seed(down.seed, fleet.model.layout.sizes, active_counts(fleet.model.layout, fleet.config))


def ones(text: str) -> Any:
    return np.array([bit == "1" for bit in text])


def move(
    layout: Layout, old: Any, weights: Any, gradient: Any, numbers: tuple[int, ...], exclude: bool = False
) -> tuple[Any, Any]:
    """Move a mask once; gives what was dropped and the new mask, both as bits of the dense model."""
    mask = from_bits(layout, old)
    dropped = prune(mask, mask.pack(weights), numbers)
    kept = mask.keep(~dropped)
    barred = mask if exclude else kept
    slopes = (gradient[where] for where in layout.slices)
    grown = [packed.largest(g, at, n) for g, at, n in zip(slopes, barred.places, numbers, strict=True)]
    return mask.keep(dropped).bits(), kept.add(grown).bits()


# Densities


@pytest.mark.parametrize(
    ("density", "densities", "counts"),
    [
        (0.5, [0.4285714, 0.6428571], (6, 5)),
        (0.75, [0.6428571, 0.9642857], (10, 7)),
        (0.8, [0.7, 1.0], (11, 8)),
        (1.0, [1.0, 1.0], (16, 8)),
    ],
)
def test_e1_erk_of_two_small_tensors(density: float, densities: list[float], counts: tuple[int, ...]) -> None:
    assert erk(AB.shapes, density) == pytest.approx(densities, abs=1e-6)
    assert active_counts(AB, Config(density=density)) == counts


@pytest.mark.parametrize(
    ("density", "sparse", "total"),
    [
        (0.2, {"c2.w": 0.18582, "f3.w": 0.18873}, 86215),
        (0.5, {"c2.w": 0.48570, "f3.w": 0.49329}, 215539),
        (0.05, {"c1.w": 0.70191, "c2.w": 0.03623, "f3.w": 0.03679}, 21552),
    ],
)
def test_e2_erk_of_lenet(density: float, sparse: dict[str, float], total: int) -> None:
    densities = dict(zip(LENET.names, erk(LENET.shapes, density), strict=True))
    for name, value in densities.items():
        assert value == pytest.approx(sparse.get(name, 1.0), abs=5e-6)
    assert sum(active_counts(LENET, Config(density=density, mask_1d=True))) == total


def test_e4_biases_are_masked_at_very_low_density_only_if_asked() -> None:
    assert active_counts(MLP_784, Config(density=0.01, mask_1d=True)) == (636, 72, 79, 7)
    assert active_counts(MLP_784, Config(density=0.1, mask_1d=True))[1::2] == (100, 10)
    assert active_counts(MLP_784, Config(density=0.01))[1::2] == (100, 10)


def test_uniform_densities_and_erk_of_power_zero_are_the_same() -> None:
    uniform = active_counts(LENET, Config(density=0.2, distribution="uniform"))
    assert uniform == (100, 20, 5000, 50, 80000, 500, 1000, 10)
    assert active_counts(LENET, Config(density=0.2, erk_power=0.0)) == uniform


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_trap_15_density_is_the_part_that_is_kept(density: float, distribution: str) -> None:
    config = Config(density=density, distribution=distribution)
    server = Server(config, LENET, np.ones(LENET.size, np.float32), {}, 0)
    down = server.down("d", True)
    kept = masks.from_seed(down.seed, LENET.sizes, active_counts(LENET, config))
    matrices = np.concatenate([np.full(n, len(s) > 1) for n, s in zip(LENET.sizes, LENET.shapes, strict=True)])
    assert kept[~matrices].all()
    assert len(down.values) == np.count_nonzero(kept)
    assert abs(np.count_nonzero(kept & matrices) - density * matrices.sum()) <= 4  # rounded down in each of 4 tensors


def test_a_tensor_without_an_active_weight_is_refused_by_both_halves(mlp: Model) -> None:
    config = Config(density=0.01)
    with pytest.raises(ConfigError, match=r"density 0\.01 leaves 'w1' no active weight"):
        Server(config, mlp.layout, np.zeros(mlp.layout.size, np.float32), {}, 0)
    with pytest.raises(ConfigError, match="'w1'"):
        fedspa.Client(config, mlp, None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"density": 0.0}, "density must be above 0 and at most 1, not 0.0"),
        ({"density": 1.01}, "density must be above 0 and at most 1, not 1.01"),
        ({"prune_rate": 1.5}, "prune-rate must be at least 0 and at most 1"),
        ({"erk_power": -1.0}, "erk-power must be at least 0"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"mode": "static"}, "mode must be one of dst, rsm, not 'static'"),
        ({"grow": "topk"}, "grow must be one of gradient, random"),
        ({"distribution": "er"}, "distribution must be one of erk, uniform"),
        ({"mask_order": "after"}, "mask-order must be one of after-train, before-train, split"),
        ({"mask_init": "own"}, "mask-init must be one of by-mode, same, different"),
        ({"aggregate": "count"}, "aggregate must be one of cohort, owners"),
        ({"mode": "rsm", "mask_init": "same"}, "mask-init same with mode rsm is FedAvg on one sparse model"),
        ({"weights": "n"}, "weights must be one of uniform, samples"),
        ({"lr": -1.0}, "lr must be above 0"),
    ],
)
def test_a_setting_out_of_range_is_named_as_it_was_written(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**setting)


# Moving masks


def test_e5_the_move_rate_is_a_cosine_over_the_rounds_of_the_run() -> None:
    config = Config(prune_rate=0.5, rounds=500)
    golden = {0: 0.5, 1: 0.499995065, 100: 0.452254249, 125: 0.426776695, 250: 0.25, 375: 0.073223305, 499: 4.934786e-6}
    for round_, rate in golden.items():
        assert config.move_rate(round_) == pytest.approx(rate, abs=1e-9)
    assert np.mean([config.move_rate(t) for t in range(500)]) == pytest.approx(0.2505)
    assert [config.move_rate(t) for t in (500, 501, 1000)] == [0, 0, 0]
    assert moves((100, 10), (50, 5), config.move_rate(499), False) == (1, 1)
    assert moves((100, 10), (50, 5), config.move_rate(500), False) == (0, 0)


def test_e6_what_is_dropped_is_rounded_up_but_not_for_a_bit_of_noise() -> None:
    assert 0.07 * 100 > 7
    assert moves((1000,), (100,), 0.07, False) == (7,)
    assert moves((1000,), (100,), 0.071, False) == (8,)


def test_as_many_move_as_there_is_room_for() -> None:
    assert moves((10, 10, 10), (8, 4, 10), 0.5, True) == (2, 2, 0)
    assert moves((10, 10, 10), (8, 4, 10), 0.5, False) == (4, 2, 0)


@pytest.mark.parametrize(("exclude", "moved"), [(False, "10110010"), (True, "10011010")])
def test_e7_prune_and_grow(exclude: bool, moved: str) -> None:
    layout = Layout(("w",), ((2, 4),))
    weights = np.array([0.9, -0.1, 0.4, -0.6, 0, 0, 0, 0], np.float32)
    gradient = np.array([0.01, 0.05, -0.7, 0.02, 0.3, -0.2, 0.8, 0.1], np.float32)
    old = ones("11110000")
    numbers = moves(layout.sizes, (4,), 0.5, exclude)
    dropped, new = move(layout, old, weights, gradient, numbers, exclude)
    assert numbers == (2,)
    assert np.flatnonzero(dropped).tolist() == [1, 2]
    assert new.tolist() == ones(moved).tolist()


def test_trap_11_of_equals_those_that_come_first_are_chosen() -> None:
    layout = Layout(("u", "w"), ((2, 2), (3, 4)))
    old = ones("1100" + "010101010101")
    dropped, new = move(layout, old, np.full(16, -0.5, np.float32), np.full(16, 2, np.float32), (1, 3))
    assert np.flatnonzero(dropped).tolist() == [0, 5, 7, 9]
    assert np.flatnonzero(new).tolist() == [0, 1, 4, 5, 6, 11, 13, 15]


def test_random_growth_travels_as_a_seed_and_what_was_dropped(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa", grow="random", mask_init="same")
    up = fleet.decoded(fleet.train("device-0")[0], Up)
    for wrong in (up.mask[:16], b"short", up.mask[:16] + b"\x01" + up.mask[17:]):
        with pytest.raises(DecodeError):
            fleet.server.absorb("device-0", dataclasses.replace(up, mask=wrong))
    old = told(fleet, "device-0")
    fleet.server.absorb("device-0", up)
    fleet.server.close()
    new = told(fleet, "device-0")
    layout = fleet.model.layout
    grown = masks.decode_change(up.mask[16:], old, layout.shapes, up.mask[:16])
    assert (new == grown).all()
    assert (new != old).any()
    assert [new[where].sum() for where in layout.slices] == [old[where].sum() for where in layout.slices]
    other = dataclasses.replace(up, mask=bytes(16) + up.mask[16:])
    again = new_fleet("fedspa", grow="random", mask_init="same")
    again.server.absorb("device-0", other)
    again.server.close()
    assert (told(again, "device-0") != new).any(), "another seed, and the same growth"


# Equivalences


@pytest.mark.parametrize("aggregate", ["cohort", "owners"])
@pytest.mark.parametrize("weights", ["uniform", "samples"])
@pytest.mark.parametrize("mode", ["dst", "rsm"])
def test_e10_i_with_all_weights_active_it_is_fedavg_bit_for_bit(
    mode: str, weights: str, aggregate: str, new_fleet: Make
) -> None:
    common = {"momentum": 0.5, "clip_norm": 0.5, "weights": weights}
    average, sparse = (
        new_fleet("fedavg", **common),
        new_fleet("fedspa", density=1.0, mode=mode, aggregate=aggregate, **common),
    )
    for cohort in (None, ["device-3", "device-0"], ["device-1"], None):
        average.round(cohort)
        sparse.round(cohort)
        assert sparse.server.shared().tobytes() == average.server.shared().tobytes()
    for device in average.data:
        assert sparse.personal[device].tobytes() == average.personal[device].tobytes()


def test_e10_iii_one_device_alone_does_masked_sgd(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa", mode="rsm", lr_decay=0.9)
    fleet.round(["device-2"])
    mask = held(fleet, "device-2")
    active = from_bits(fleet.model.layout, mask)
    x = active.pack(fleet.initial)
    fresh = new_fleet("fedspa", mode="rsm", lr_decay=0.9)
    for round_ in range(3):
        model = packed.of(fleet.model, active)
        x = sgd.descend(model, x, fresh.batches("device-2"), fresh.config, round_)
        fresh.round(["device-2"])
        np.testing.assert_allclose(fresh.server.shared()[mask], x, atol=1e-6)  # w - (w - x) in float32
    assert (fresh.server.shared()[~mask] == fleet.initial[~mask]).all()


def test_e10_iv_permuting_the_coordinates_commutes_with_moving_the_mask() -> None:
    order = np.random.default_rng(5).permutation(8)
    layout = Layout(("w",), ((4, 2),))
    rng = np.random.default_rng(6)
    weights, gradient = rng.normal(0, 1, (2, 8)).astype(np.float32)
    old = ones("11001100")
    dropped, new = move(layout, old, weights, gradient, (2,))
    dropped_there, new_there = move(layout, old[order], weights[order], gradient[order], (2,))
    assert (dropped_there == dropped[order]).all()
    assert (new_there == new[order]).all()


@pytest.mark.parametrize("mask_order", ["after-train", "before-train", "split"])
def test_e10_v_masks_that_move_at_rate_zero_are_static(mask_order: str, new_fleet: Make) -> None:
    static = new_fleet("fedspa", mode="rsm")
    still = new_fleet("fedspa", mode="dst", mask_init="different", prune_rate=0.0, mask_order=mask_order)
    for _ in range(3):
        ups = static.round(), still.round()
        assert ups[0] == ups[1]
    assert still.server.shared().tobytes() == static.server.shared().tobytes()
    assert still.devices == {}


@pytest.mark.parametrize("mask_order", ["after-train", "before-train", "split"])
def test_e10_vi_a_dense_mask_never_moves(mask_order: str, new_fleet: Make) -> None:
    fleet = new_fleet("fedspa", density=1.0, mask_order=mask_order)
    for _ in range(3):
        fleet.round()
    assert fleet.devices == {}


# The wire


@pytest.mark.parametrize("mode", ["dst", "rsm"])
def test_trap_1_bytes_are_those_of_the_active_values_and_the_masks_change(mode: str, flat_model: Make) -> None:
    size, active, header = 60_000, 30_000, 100
    rng = np.random.default_rng(0)
    noise, initial = rng.normal(0, 1, size), rng.normal(0, 1, size).astype(np.float32)
    model = flat_model(lambda w, x: w + noise, (300, 200))
    config = Config(mode=mode, density=0.5, local_steps=1)
    server, client = Server(config, model.layout, initial, {}, 0), fedspa.Client(config, model, None)
    down = server.down("d", True)
    up = client.round(down, Cloudless())
    values = len(wire.encode(server.down("d", False)))
    assert 0.8 * 4 * active < values <= 4 * active + header  # a lossless coding of normal values gains little
    assert values < len(wire.encode(down)) <= values + 16 + header
    change = len(wire.encode(up)) - len(wire.encode(dataclasses.replace(up, mask=b"")))
    assert 0 < change <= size / 8 + header if mode == "dst" else change == 0
    assert len(wire.encode(up)) <= 4 * active + change + header
    server.absorb("d", up)
    server.close()
    again = len(wire.encode(server.down("d", True)))
    assert again <= 4 * active + header + (size / 8 if mode == "dst" else 16)


class Cloudless:
    """One sample that says nothing, for models whose gradient does not look at it."""

    rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 1

    def sample(self, batch_size: int) -> algorithm.Batch:
        return algorithm.Batch(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))


@pytest.mark.parametrize("mask_order", ["after-train", "before-train", "split"])
def test_a_mask_travels_as_a_seed_once_then_as_changes_and_in_full_after_a_loss(
    mask_order: str, new_fleet: Make
) -> None:
    fleet = new_fleet("fedspa", mask_order=mask_order)
    first = fleet.server.down("device-0", True)
    assert (len(first.seed), first.mask) == (16, b"")
    for _ in range(3):
        fleet.round()
    later = fleet.server.down("device-0", False)
    assert (later.seed, later.mask) == (b"", b"")
    lost = fleet.server.down("device-0", True)
    assert lost.seed == b""
    assert (masks.decode(lost.mask, fleet.model.layout.size) == held(fleet, "device-0")).all()
    assert (lost.values == fleet.server.shared()[held(fleet, "device-0")]).all()


def test_dynamic_masks_begin_the_same_and_static_ones_different(new_fleet: Make) -> None:
    def seeds(**wanted: Any) -> int:
        fleet = new_fleet("fedspa", **wanted)
        return len({fleet.server.down(device, True).seed for device in fleet.data})

    assert seeds(mode="dst") == seeds(mode="dst", mask_init="same") == 1
    assert seeds(mode="rsm") == seeds(mode="dst", mask_init="different") == 4
    one, other = new_fleet("fedspa"), new_fleet("fedspa")
    other.seed = 8
    assert one.server.down("d", True).seed != other.new_server().down("d", True).seed


@pytest.mark.parametrize("grow_by", ["gradient", "random"])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("mask_order", ["after-train", "before-train", "split"])
def test_masks_move_and_keep_their_number_of_active_weights_in_every_tensor(
    mask_order: str, exclude: bool, grow_by: str, new_fleet: Make
) -> None:
    fleet = new_fleet("fedspa", mask_order=mask_order, exclude_just_pruned=exclude, grow=grow_by, mask_init="same")
    counts = active_counts(fleet.model.layout, fleet.config)
    seen: list[set[bytes]] = []
    for _ in range(4):
        fleet.round()
        now = [held(fleet, device) for device in fleet.data]
        for mask in now:
            assert tuple(int(mask[where].sum()) for where in fleet.model.layout.slices) == counts
        seen.append({mask.tobytes() for mask in now})
        for device in fleet.data:
            assert (told(fleet, device) == held(fleet, device)).all()
    assert len(seen[-1]) > 1, "the devices' masks never went apart"


def test_an_update_whose_mask_may_not_be_is_refused(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa", mode="dst")
    fleet.round()
    before, model = dict(fleet.devices), fleet.server.shared().tobytes()
    up, _ = fleet.train("device-0")
    good = fleet.decoded(up, Up)
    old = held(fleet, "device-0")
    more, swapped, bias = old.copy(), old.copy(), old.copy()
    more[np.flatnonzero(~old)[0]] = True
    swapped[[np.flatnonzero(old[:24])[0], 30 + np.flatnonzero(~old[30:48])[0]]] = [False, True]
    bias[[24, np.flatnonzero(~old)[0]]] = [False, True]
    for wrong, named in [(more, "'w1'"), (swapped, "'w1'"), (bias, "'w1'|'b1'")]:
        with pytest.raises(DecodeError, match=named):
            fleet.server.absorb("device-0", dataclasses.replace(good, mask=masks.encode_change(old, wrong)))
    assert fleet.devices == before
    fleet.server.close()
    assert fleet.server.shared().tobytes() == model


def test_a_static_mask_may_not_move(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa", mode="rsm")
    fleet.round()
    good = fleet.decoded(fleet.train("device-0")[0], Up)
    old = held(fleet, "device-0")
    new = old.copy()
    new[[np.flatnonzero(old[:24])[0], np.flatnonzero(~old[:24])[0]]] = [False, True]
    with pytest.raises(DecodeError, match="static"):
        fleet.server.absorb("device-0", dataclasses.replace(good, mask=masks.encode_change(old, new)))


def test_a_device_refuses_a_mask_that_may_not_be_and_values_without_one(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa")
    down = fleet.server.down("device-0", True)
    short = np.ones(fleet.model.layout.size, np.bool_)
    with pytest.raises(DecodeError, match="'w1'"):
        fleet.client("device-0").personal(Down(0, down.values, b"", masks.encode(short)))
    with pytest.raises(DecodeError, match="holds none"):
        fleet.client("device-0").personal(Down(0, down.values, b"", b""))
    with pytest.raises(DecodeError, match="seed of 5 bytes"):
        fleet.client("device-0").personal(Down(0, down.values, b"short", b""))


# Training and aggregation


def quadratic(flat_model: Make, goal: Any) -> Model:
    return flat_model(lambda w, x: w - goal)


def plain(**wanted: Any) -> Config:
    settings = {"lr": 0.5, "lr_decay": 1.0, "weight_decay": 0.0, "clip_norm": 0.0, "local_steps": 2, "rounds": 10}
    return Config(**(settings | wanted))


def test_trap_2_a_weight_that_is_zero_but_active_trains(flat_model: Make) -> None:
    model = quadratic(flat_model, np.ones(8))
    server = Server(plain(), model.layout, np.zeros(8, np.float32), {}, 0)
    client = fedspa.Client(plain(), model, None)
    up = client.round(server.down("d", True), Cloudless())
    assert up.values.tolist() == [-0.75] * 4


def test_trap_3_the_servers_model_moves_only_where_a_mask_of_the_cohort_is_on(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa", density=0.2, mode="dst", mask_init="different")
    for cohort in (["device-1"], ["device-2", "device-3"], None):
        owned = np.zeros(fleet.model.layout.size, np.bool_)
        for device in cohort or fleet.data:
            owned |= told(fleet, device)
        before = fleet.server.shared()
        fleet.round(cohort)
        assert (fleet.server.shared()[~owned] == before[~owned]).all()
        assert (fleet.server.shared()[owned] != before[owned]).any()


def test_traps_4_and_6_a_clipped_step_is_as_long_within_the_mask_as_it_may_be(flat_model: Make) -> None:
    model = quadratic(flat_model, np.full(8, 100.0))
    config = plain(clip_norm=1.0, local_steps=1)
    server = Server(config, model.layout, np.zeros(8, np.float32), {}, 0)
    up = fedspa.Client(config, model, None).round(server.down("d", True), Cloudless())
    assert np.linalg.norm(up.values) == pytest.approx(0.5)  # lr * clip-norm; 0.35 if clipped before it is masked


def test_trap_5_a_weight_that_has_just_grown_has_no_velocity(flat_model: Make) -> None:
    model = flat_model(lambda w, x: np.ones(8))
    config = plain(momentum=0.9, lr=0.1, local_steps=3, prune_rate=1.0)
    fleet_state, values = None, []
    server = Server(config, model.layout, np.zeros(8, np.float32), {}, 0)
    for first in (True, False):
        client = fedspa.Client(config, model, fleet_state)
        up = client.round(server.down("d", first), Cloudless())
        server.absorb("d", up)
        server.close()
        fleet_state = client.state()
        values.append(up.values)
    assert values[1] == pytest.approx([0.1 + 0.19 + 0.271] * 4)  # for weights that stayed and for weights that grew


def test_trap_7_looking_for_where_to_grow_changes_no_parameter(flat_model: Make) -> None:
    seen: list[Any] = []

    def gradient(w: Any, x: Any) -> Any:
        seen.append(w.copy())
        return np.arange(8.0) - w

    model = flat_model(gradient)
    server = Server(plain(), model.layout, np.ones(8, np.float32), {}, 0)
    client = fedspa.Client(plain(), model, None)
    client.round(server.down("d", True), Cloudless())
    assert (seen[-1] == client.personal(None).dense()).all()
    assert len(seen) == 3  # two steps, and one dense gradient at x_N


@pytest.mark.parametrize(
    ("wanted", "extra"), [({}, 1), ({"grow": "random"}, 0), ({"mode": "rsm"}, 0), ({"prune_rate": 0.0}, 0)]
)
def test_trap_8_a_dense_gradient_is_paid_for_only_where_it_is_used(
    wanted: dict[str, Any], extra: int, flat_model: Make
) -> None:
    calls: list[int] = []
    model = flat_model(lambda w, x: calls.append(1) or w)
    config = plain(local_steps=4, **wanted)
    server = Server(config, model.layout, np.ones(8, np.float32), {}, 0)
    fedspa.Client(config, model, None).round(server.down("d", True), Cloudless())
    assert len(calls) == 4 + extra


def test_trap_9_a_device_that_comes_again_after_many_rounds_gets_the_mask_that_it_last_sent(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa", rounds=8)
    seed_mask = told(fleet, "device-0")
    fleet.round(["device-0"])
    for _ in range(6):
        fleet.round(["device-1", "device-2"])
    sent = held(fleet, "device-0")
    down = fleet.server.down("device-0", False)
    assert fleet.server.round == 7
    assert not np.array_equal(sent, seed_mask)
    assert (down.values == fleet.server.shared()[sent]).all()


def test_trap_10_what_one_device_does_leaves_the_others_masks_alone(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa")
    fleet.round(["device-0", "device-1"])
    before = fleet.devices["device-1"], fleet.states["device-1"], wire.encode(fleet.server.down("device-2", True))
    up, _ = fleet.train("device-0")
    fleet.absorb("device-0", up)
    after = fleet.devices["device-1"], fleet.states["device-1"], wire.encode(fleet.server.down("device-2", True))
    assert after == before


def test_trap_12_weights_that_nobody_owns_are_not_erased(flat_model: Make) -> None:
    model = quadratic(flat_model, np.full(8, 5.0))
    initial = np.arange(1, 9, dtype=np.float32)
    config = plain(mode="rsm")
    server = Server(config, model.layout, initial, {}, 0)
    down = server.down("d", True)
    owned = masks.from_seed(down.seed, (8,), (4,))
    server.absorb("d", fedspa.Client(config, model, None).round(down, Cloudless()))
    server.close()
    assert server.shared() == pytest.approx(np.where(owned, 5 + (initial - 5) / 4, initial))


def test_trap_13_masks_move_at_the_rate_of_the_runs_round_however_rarely_a_device_takes_part(flat_model: Make) -> None:
    model = flat_model(lambda w, x: np.where(w == 0, 9.0, 0.001), (20, 10))
    config = plain(rounds=10, prune_rate=0.5, exclude_just_pruned=True)
    server = Server(config, model.layout, np.linspace(1, 2, 200, dtype=np.float32), {}, 0)
    for _ in range(7):
        server.close()
    down = server.down("d", True)
    client = fedspa.Client(config, model, None)
    client.round(down, Cloudless())
    old = masks.from_seed(down.seed, (200,), (100,))
    new = masks.decode(client.state()["mask"], 200)
    assert (old & ~new).sum() == math.ceil(100 * 0.25 * (1 + math.cos(math.pi * 0.7)))


def test_a_weight_that_grows_takes_the_servers_value(flat_model: Make) -> None:
    model = flat_model(lambda w, x: np.where(w == 0, 9.0, 0.001), (4, 2))
    config = plain(exclude_just_pruned=True)
    initial = np.arange(1, 9, dtype=np.float32)
    server = Server(config, model.layout, initial, {}, 0)
    first = server.down("d", True)
    old = masks.from_seed(first.seed, (8,), (4,))
    client = fedspa.Client(config, model, None)
    server.absorb("d", client.round(first, Cloudless()))
    server.close()
    before = fedspa.Client(config, model, client.state()).personal(server.down("d", False)).dense()
    grown = (before != 0) & ~old
    assert grown.sum() == 2
    assert (before[grown] == initial[grown]).all()


def test_what_a_pruned_weight_had_learned_is_in_the_update(flat_model: Make) -> None:
    model = quadratic(flat_model, np.zeros(8))
    config = plain(exclude_just_pruned=True)
    server = Server(config, model.layout, np.ones(8, np.float32), {}, 0)
    down = server.down("d", True)
    old = masks.from_seed(down.seed, (8,), (4,))
    server.absorb("d", fedspa.Client(config, model, None).round(down, Cloudless()))
    server.close()
    assert server.shared().tolist() == np.where(old, 0.25, 1.0).tolist()


def test_split_drops_after_training_and_grows_before_the_next_by_the_gradient_there(flat_model: Make) -> None:
    gradient = np.array([0.0, 0.0, 0.0, 0.0, 0.4, 0.3, 0.2, 0.1])
    model = flat_model(lambda w, x: gradient)
    config = plain(mask_order="split", local_steps=1, exclude_just_pruned=True, lr=0.001)
    old, initial = ones("11110000"), np.array([4, 3, 2, 1, 9, 9, 9, 9], np.float32)
    start = Down(0, initial[old], b"", masks.encode(old))
    client = fedspa.Client(config, model, None)
    up = client.round(start, Cloudless())
    assert (up.mask, up.values.tolist()) == (b"", [0, 0, 0, 0])
    client = fedspa.Client(config, model, client.state())
    up = client.round(Down(1, initial[old], b"", b""), Cloudless())
    new = masks.decode_change(up.mask, old)
    assert new.tolist() == ones("11001100").tolist()
    assert up.values == pytest.approx([0, 0, 0.0004, 0.0003])
    assert client.personal(None).dense() == pytest.approx([4, 3, 0, 0, -0.0004, -0.0003, 0, 0])


def test_before_train_drops_by_the_values_of_the_devices_own_last_round(flat_model: Make) -> None:
    model = flat_model(lambda w, x: np.array([0.0, 0.0, 0.0, 0.0, 0.4, 0.3, 0.2, 0.1]))
    config = plain(mask_order="before-train", local_steps=1, exclude_just_pruned=True, lr=0.001)
    old, own = ones("11110000"), np.array([4, 3, 2, 1], np.float32)
    client = fedspa.Client(config, model, None)
    client.round(Down(0, own, b"", masks.encode(old)), Cloudless())
    client = fedspa.Client(config, model, client.state())
    up = client.round(Down(1, own[::-1].copy(), b"", b""), Cloudless())
    assert masks.decode_change(up.mask, old).tolist() == ones("11001100").tolist()


@pytest.mark.parametrize("mask_order", ["before-train", "split"])
def test_an_update_on_a_mask_that_moved_first_lands_where_it_belongs(mask_order: str, new_fleet: Make) -> None:
    fleet = new_fleet("fedspa", mask_order=mask_order)
    fleet.round()
    old, before = held(fleet, "device-3"), fleet.server.shared()
    fleet.round(["device-3"])
    new = held(fleet, "device-3")
    changed = fleet.server.shared() != before
    assert (new & ~old).any()
    assert (changed <= new).all()
    assert changed[new & ~old].any()
    start = np.where(old & new, before, 0)
    np.testing.assert_allclose(
        fleet.server.shared()[new], (before - start + fleet.personal["device-3"])[new], atol=1e-6
    )


def test_trap_14_what_a_device_is_measured_by_is_its_own_model(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa")
    fleet.round()
    for device in fleet.data:
        down, client = fleet.decoded(fleet.down(device), Down), fleet.client(device)
        assert client.shared(down) is None
        assert (client.personal(down).dense() == np.where(held(fleet, device), fleet.server.shared(), 0)).all()


def test_samples_weigh_updates_up_to_the_cap(flat_model: Make) -> None:
    config = plain(density=1.0, weights="samples", samples_cap=3)
    server = Server(config, flat_model(None).layout, np.zeros(8, np.float32), {}, 0)
    for samples, value in [(1, 4.0), (10**9, 8.0)]:
        server.absorb(f"d{samples}", Up(0, samples, np.full(8, value, np.float32), b""))
    server.close()
    assert server.shared().tolist() == [-7.0] * 8


def test_nothing_of_a_device_stays_in_the_servers_memory(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa")
    fleet.round()
    known = {key: value for key, value in vars(fleet.server).items() if key != "_devices"}
    assert not [key for key, value in known.items() if isinstance(value, dict | list | set)]
    assert set(fleet.devices) == set(fleet.data)
