import dataclasses
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from edge_runtime import aggregate, fixed, robust
from edge_runtime.aggregate import AGGREGATORS, Averaging
from edge_runtime.coordinator import attacks
from edge_runtime.errors import ConfigError, DecodeError

ROBUST = AGGREGATORS[1:]
TOO_MANY = "lower byzantine or bucket, or let more devices answer"


def outcome(config: Averaging, rows: Any, seed: int = 7, order: Any = None) -> Any:
    """Aggregate rows [n, size], which arrive from their devices in an order."""
    held = aggregate.of(config, rows.shape[1], seed)
    for i in range(len(rows)) if order is None else order:
        held.add(f"device-{i:03d}", rows[i])
    model = np.zeros(rows.shape[1], np.float32)
    held.step(model)
    return -model


def drawn(count: int, size: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0, 1, (count, size)).astype(np.float32)


@pytest.mark.parametrize(
    ("aggregator", "cohort", "byzantine", "bucket", "least"),
    [
        ("krum", 25, 5, 2, 0),
        ("krum", 42, 10, 2, 23),
        ("krum", 20, 3, 3, 9),
        ("multi-krum", 42, 10, 2, 23),
        *[(name, *numbers, 0) for name in ("median", "geometric-median", "trimmed-mean")
          for numbers in ((25, 5, 2), (42, 10, 2), (20, 3, 3), (6, 1, 2), (5, 1, 2))],
        ("median", 6, 2, 2, 5),
        ("geometric-median", 6, 2, 2, 5),
        ("trimmed-mean", 20, 10, 1, 21),
        ("centred-clipping", 4, 2, 0, 5),
        ("norm-bound", 4, 2, 1, 5),
        ("krum", 7, 2, 1, 0),
        ("krum", 6, 2, 1, 7),
    ],
)  # fmt: skip
def test_an_aggregator_that_could_not_withstand_so_many_liars_is_refused(
    aggregator: str, cohort: int, byzantine: int, bucket: int, least: int
) -> None:
    wanted = {"aggregator": aggregator, "cohort": cohort, "byzantine": byzantine, "bucket": bucket}
    if not least:
        assert Averaging(**wanted).shortage(cohort) == ""  # type: ignore[arg-type]
        return
    made = f" in buckets of {bucket} are {math.ceil(cohort / bucket)}" if bucket > 1 else ""
    told = f"{aggregator} with byzantine {byzantine} needs {least} inputs; {cohort} updates{made}; {TOO_MANY}"
    with pytest.raises(ConfigError) as caught:
        Averaging(**wanted)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_without_a_known_cohort_no_condition_is_checked() -> None:
    assert Averaging(aggregator="krum", byzantine=10, bucket=2).cohort == 0


@pytest.mark.parametrize(("picks", "fits"), [(5, True), (6, False)])
def test_multi_krum_averages_no_more_than_may_be_honest(picks: int, fits: bool) -> None:
    config = Averaging(aggregator="multi-krum", byzantine=2, krum_picks=picks)
    assert (config.shortage(9) == "") == fits


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"aggregator": "average"}, "aggregator must be one of mean, median"),
        ({"aggregator": "median", "byzantine": -1}, "byzantine must be at least 0"),
        ({"bucket": -1}, "bucket must be at least 0"),
        ({"krum_picks": -1}, "krum-picks must be at least 0"),
        ({"cohort": -1}, "cohort must be at least 0"),
        ({"clip_radius": 0.0}, "clip-radius must be above 0"),
        ({"clip_steps": 0}, "clip-steps must be at least 1"),
        ({"weights": "votes"}, "weights must be one of"),
        ({"aggregator": "median", "weights": "samples"}, "weights must be uniform with aggregator median"),
        ({"byzantine": 1}, "byzantine 1 with aggregator mean, which withstands none; choose another aggregator"),
        ({"nearest_mixing": True}, "nearest-mixing needs an aggregator other than mean"),
    ],
)
def test_settings_that_cannot_be_are_refused(wanted: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"algorithm: {told}"):
        Averaging(**wanted)


@pytest.mark.parametrize("bucket", [0, 1, 3, 5])
def test_the_mean_is_the_exact_sum_bit_for_bit_whatever_the_bucket(bucket: int) -> None:
    rows, total = drawn(5, 1000), fixed.Total(1000)
    for row in rows:
        total.add(row)
    model = np.zeros(1000, np.float32)
    total.step(model)
    assert outcome(Averaging(bucket=bucket), rows).tobytes() == (-model).tobytes()


def test_the_mean_weighs_by_samples() -> None:
    held = aggregate.of(Averaging(weights="samples", samples_cap=10), 1, 0)
    for device, value, samples in [("a", 1.0, 3), ("b", 0.0, 1), ("c", 0.0, 99)]:
        held.add(device, np.array([value], np.float32), samples)
    model = np.zeros(1, np.float32)
    held.step(model)
    assert (held.count, model[0]) == (3, np.float32(-3 / 14))


def test_a_mean_by_owners_divides_at_every_coordinate_by_those_who_own_it() -> None:
    held = aggregate.of(Averaging(), 3, 0, owners=True)
    held.add("a", np.array([1, 2], np.float32), where=np.array([True, True, False]))
    held.add("b", np.array([3], np.float32), where=np.array([True, False, False]))
    model = np.zeros(3, np.float32)
    held.step(model)
    assert model.tolist() == [-2, -2, 0]


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_a_model_moves_by_the_rate_times_the_aggregate(aggregator: str) -> None:
    rows = np.full((3, 2), 0.5, np.float32)
    held = aggregate.of(Averaging(aggregator=aggregator), 2, 0)
    for i, row in enumerate(rows):
        held.add(str(i), row)
    model = np.ones(2, np.float32)
    held.step(model, 0.25)
    assert model == pytest.approx([0.875, 0.875], abs=1e-7)


def distances(x: Any) -> Any:
    return ((x[:, None] - x) ** 2).sum(axis=2)


def direct(config: Averaging, rows: Any) -> Any:
    """Aggregate rows [n, size] all at once, without tiles, files or coordinates."""
    x, f = rows.astype(np.float64), config.byzantine
    if config.nearest_mixing:
        x = robust.nearest_mixing(distances(x), f) @ x
    centred = np.vstack([x, np.zeros(x.shape[1])])
    return {
        "median": lambda: robust.median(x),
        "trimmed-mean": lambda: robust.trimmed_mean(x, f),
        "geometric-median": lambda: robust.geometric_median(x) @ x,
        "krum": lambda: robust.krum(distances(x), f) @ x,
        "multi-krum": lambda: robust.krum(distances(x), f, len(x) - f - 2) @ x,
        "centred-clipping": lambda: robust.clipping(centred, config.clip_radius, config.clip_steps) @ centred,
        "norm-bound": lambda: robust.clipping(centred, config.clip_radius, 1) @ centred,
    }[config.aggregator]()


@pytest.mark.parametrize("aggregator", ROBUST)
@pytest.mark.parametrize("mixing", [False, True])
def test_tiles_of_any_size_give_what_all_rows_at_once_give(
    aggregator: str, mixing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = drawn(9, 203)
    config = Averaging(aggregator=aggregator, byzantine=2, nearest_mixing=mixing, clip_radius=12.0)
    wanted = direct(config, rows)
    for cells in (1, 9 * 50, 1 << 18):
        monkeypatch.setattr(aggregate, "_CELLS", cells)
        np.testing.assert_allclose(outcome(config, rows), wanted, rtol=0, atol=3e-7)  # float32's last bit near 4


@pytest.mark.parametrize("aggregator", ROBUST)
@pytest.mark.parametrize("extra", [{}, {"bucket": 2}, {"nearest_mixing": True}, {"bucket": 2, "nearest_mixing": True}])
def test_the_order_of_arrival_does_not_change_one_bit(aggregator: str, extra: dict[str, Any]) -> None:
    rows, config = drawn(11, 40), Averaging(aggregator=aggregator, byzantine=1, **extra)
    rng = np.random.default_rng(1)
    found = {outcome(config, rows, order=rng.permutation(11)).tobytes() for _ in range(6)}
    assert len(found) == 1


@pytest.mark.parametrize("aggregator", ["median", "trimmed-mean", "geometric-median"])
def test_renaming_the_devices_does_not_change_the_outcome(aggregator: str) -> None:
    rows, config = drawn(9, 40), Averaging(aggregator=aggregator, byzantine=2)
    renamed = outcome(config, rows[::-1].copy())
    np.testing.assert_allclose(renamed, outcome(config, rows), rtol=0, atol=2e-7)


@pytest.mark.parametrize("aggregator", ["median", "trimmed-mean", "geometric-median", "centred-clipping", "norm-bound"])
def test_one_bucket_of_all_devices_is_the_mean(aggregator: str) -> None:
    rows = drawn(6, 50)
    config = Averaging(aggregator=aggregator, bucket=6, clip_radius=1e3)
    np.testing.assert_allclose(outcome(config, rows), rows.mean(0, dtype=np.float64), rtol=0, atol=1e-7)


def test_buckets_are_drawn_anew_in_every_round_and_from_the_seed() -> None:
    rows, config = drawn(6, 3), Averaging(aggregator="median", bucket=2)

    def rounds(seed: int) -> list[bytes]:
        held, found = aggregate.of(config, 3, seed), []
        for _ in range(8):
            for i, row in enumerate(rows):
                held.add(str(i), row)
            model = np.zeros(3, np.float32)
            held.step(model)
            held.clear()
            found.append(model.tobytes())
        return found

    assert rounds(1) == rounds(1)
    assert rounds(1) != rounds(2)
    assert len(set(rounds(1))) > 1


def test_an_update_that_is_taken_again_replaces_the_first() -> None:
    held = aggregate.of(Averaging(aggregator="median"), 2, 0)
    for device, value in [("a", 400), ("b", 2), ("c", 3), ("a", 1)]:
        held.add(device, np.full(2, value, np.float32))
    model = np.zeros(2, np.float32)
    held.step(model)
    assert (held.count, model.tolist()) == (3, [-2, -2])


def test_an_update_of_a_part_is_a_row_that_is_zero_elsewhere_and_leaves_nothing_of_the_row_before() -> None:
    held = aggregate.of(Averaging(aggregator="median"), 4, 0)
    held.add("a", np.full(4, 9, np.float32))
    held.clear()
    held.add("a", np.full(4, 7, np.float32))
    held.add("a", np.array([5, 6], np.float32), where=np.array([True, False, False, True]))
    model = np.zeros(4, np.float32)
    held.step(model)
    assert (-model).tolist() == [5, 0, 0, 6]


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, fixed.LIMIT, -fixed.LIMIT])
def test_a_value_that_is_not_finite_or_too_large_is_refused_and_nothing_changes(aggregator: str, bad: float) -> None:
    held = aggregate.of(Averaging(aggregator=aggregator), 2, 0)
    for device in "abc":
        held.add(device, np.ones(2, np.float32))
    with pytest.raises(DecodeError, match="not finite or not below 512"):
        held.add("a", np.array([1, bad], np.float32))
    with pytest.raises(DecodeError, match="3 values where 2 are expected"):
        held.add("d", np.ones(3, np.float32))
    model = np.zeros(2, np.float32)
    held.step(model)
    assert held.count == 3
    assert model == pytest.approx([-1, -1], abs=1e-7)


@pytest.mark.parametrize("aggregator", ROBUST)
def test_a_round_of_too_few_updates_does_not_move_the_model(aggregator: str, caplog: pytest.LogCaptureFixture) -> None:
    config = Averaging(aggregator=aggregator, byzantine=2)
    assert not outcome(config, drawn(4, 3)).any()
    assert "does not move" in caplog.text
    assert outcome(config, drawn(7, 3)).all()


def play(held: aggregate.Aggregate, rounds: range) -> list[bytes]:
    found = []
    for round_ in rounds:
        for i, row in enumerate(drawn(6, 3, round_)):
            held.add(str(i), row)
        model = np.zeros(3, np.float32)
        held.step(model)
        held.clear()
        found.append(model.tobytes())
    return found


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_an_aggregator_goes_on_from_its_state_bit_for_bit(aggregator: str) -> None:
    config = Averaging(aggregator=aggregator, bucket=2, clip_radius=0.5)
    straight, stopped, resumed = (aggregate.of(config, 3, 5) for _ in range(3))
    wanted = play(straight, range(6))
    assert play(stopped, range(3)) == wanted[:3]
    resumed.add("left-over", np.ones(3, np.float32))
    resumed.restore(stopped.state())
    assert resumed.count == 0
    assert play(resumed, range(3, 6)) == wanted[3:]


def test_the_mean_adds_nothing_to_a_servers_state() -> None:
    assert aggregate.of(Averaging(), 3, 0).state() == {}


def test_centred_clipping_comes_to_what_all_agree_on_however_far_it_is() -> None:
    held = aggregate.of(Averaging(aggregator="centred-clipping", clip_radius=1.0, clip_steps=1), 1, 0)
    moves = []
    for _ in range(6):
        for device in "abc":
            held.add(device, np.array([4.5], np.float32))
        model = np.zeros(1, np.float32)
        held.step(model)
        held.clear()
        moves.append(-float(model[0]))
    assert moves == [1, 2, 3, 4, 4.5, 4.5]


def test_memory_is_that_of_a_few_tiles_and_not_of_the_fleet() -> None:
    count, size = 64, 200_000
    for aggregator in ("median", "trimmed-mean", "geometric-median", "multi-krum"):
        config = Averaging(aggregator=aggregator, byzantine=3, nearest_mixing=aggregator == "median", bucket=2)
        held, model = aggregate.of(config, size, 0), np.zeros(size, np.float32)
        tracemalloc.start()
        for i, seed in enumerate(range(count)):
            held.add(str(i), drawn(1, size, seed)[0])
        tracemalloc.reset_peak()
        held.step(model)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 8 * aggregate._CELLS < 4 * count * size / 3


def descend(config: Averaging, liars: int, width: float, rate: float = 0.2) -> float:
    """Let 7 devices and some liars (inner-product manipulation) minimise; give the honest mean gradient's last norm.

    Device m has the gradient A_m A_m' (x - c_m) with c_m drawn within `width` of one common point.
    """
    rng = np.random.default_rng(0)
    factors = [rng.normal(0, 0.5, (4, 6)) for _ in range(7)]
    slopes = [factor @ factor.T for factor in factors]
    goals = [np.array([1.0, -1, 0.5, 2]) + width * rng.normal(0, 1, 4) for _ in slopes]
    model, held = np.zeros(4, np.float32), aggregate.of(config, 4, 0)
    for _ in range(400):
        good = np.stack([a @ (model - c) for a, c in zip(slopes, goals, strict=True)]).astype(np.float32)
        rows = np.vstack([good, attacks.inner_product(good, liars, rng)]).clip(-500, 500)
        for i, row in enumerate(rows):
            held.add(str(i), row)
        held.step(model, rate)
        held.clear()
    return float(np.linalg.norm(good.mean(0)))


@pytest.mark.parametrize("aggregator", ["median", "trimmed-mean", "geometric-median", "multi-krum"])
@pytest.mark.parametrize("mixing", [False, True])
def test_where_one_model_fits_all_devices_liars_leave_no_floor(aggregator: str, mixing: bool) -> None:
    config = Averaging(aggregator=aggregator, byzantine=2, nearest_mixing=mixing)
    assert descend(config, 2, width=0.0) < 1e-5  # the model's own resolution, float32 near 2, times a slope of 3


def test_the_mean_is_led_away_by_the_same_liars() -> None:
    assert descend(Averaging(), 2, width=0.0) > 100
    assert descend(Averaging(), 0, width=0.0) < 1e-5


@pytest.mark.parametrize("aggregator", ["median", "geometric-median"])
def test_where_devices_differ_a_floor_stays_that_grows_with_their_distance(aggregator: str) -> None:
    config = Averaging(aggregator=aggregator, byzantine=2)
    floors = [descend(config, 2, width) for width in (0.25, 0.5)]
    assert floors[0] > 0.01
    assert floors[1] ** 2 / floors[0] ** 2 == pytest.approx(4, rel=1e-3)


def test_a_median_never_moves_a_model_of_which_every_device_sees_one_coordinate() -> None:
    def end(config: Averaging, goal: Any) -> Any:
        model, held = np.zeros(3, np.float32), aggregate.of(config, 3, 0)
        for _ in range(200):
            for m in range(3):
                held.add(str(m), np.where(np.arange(3) == m, model - goal, np.float32(0)))
            held.step(model)
            held.clear()
        return model

    even, uneven = np.full(3, 3, np.float32), np.array([3, -2, 5], np.float32)
    assert end(Averaging(aggregator="median"), uneven).tolist() == [0, 0, 0]
    assert end(Averaging(aggregator="geometric-median"), even) == pytest.approx(even, abs=1e-4)
    assert end(Averaging(aggregator="median", bucket=2), uneven) == pytest.approx(uneven, abs=1e-4)


def test_nor_does_the_geometric_median_once_most_devices_see_nothing_any_more() -> None:
    rows = np.diag([0.0, 0.0, 5.0]).astype(np.float32)
    assert not outcome(Averaging(aggregator="geometric-median"), rows).any()


def test_every_setting_of_the_aggregator_matters() -> None:
    rows = drawn(9, 5)
    base = Averaging(aggregator="multi-krum", byzantine=1, bucket=1)
    clipped = Averaging(aggregator="centred-clipping", clip_radius=1.0)
    changes: list[dict[str, Any]] = [{"krum_picks": 2}, {"byzantine": 2}, {"bucket": 2}, {"nearest_mixing": True}]
    pairs = [*((base, change) for change in changes), (clipped, {"clip_radius": 0.5}), (clipped, {"clip_steps": 1})]
    for config, change in pairs:
        assert not np.array_equal(outcome(config, rows), outcome(dataclasses.replace(config, **change), rows))
    found = {outcome(Averaging(aggregator=name, byzantine=1, clip_radius=1.0), rows).tobytes() for name in ROBUST}
    assert len(found) == len(ROBUST)
