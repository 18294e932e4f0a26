"""PersA-FL against closed forms, mostly on f(w) = a/2 (w - c)^2."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm
from edge_runtime.algorithm import Batch, Model
from edge_runtime.algorithms import persafl
from edge_runtime.algorithms.persafl import Client, Config, Down, Server
from edge_runtime.compression import codec
from edge_runtime.errors import ConfigError, DecodeError, DeviceError

Make = Callable[..., Any]
NUMBERS = {"adaptation_lr": 0.1, "attraction": 2.0, "inner_lr": 0.1, "inner_steps": 200}


class Feed:
    """Batches in a given order, over and over; all of them are an epoch."""

    def __init__(self, *batches: Any) -> None:
        self.batches, self.rng = batches, np.random.default_rng(0)
        self._next = itertools.cycle(batches)

    def __len__(self) -> int:
        return sum(len(batch.y) for batch in self.batches)

    def sample(self, batch_size: int) -> Batch:
        return next(self._next)

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        yield from self.batches


def batch(*rows: Any) -> Batch:
    return Batch(np.array(rows, np.float32), np.zeros(len(rows), np.int64))


def plain(option: str, **wanted: Any) -> Config:
    """Make settings without clipping; on quadratics a difference of gradients is exact whatever the distance."""
    base = {"option": option, "lr": 1.0, "local_steps": 1, "clip_norm": 0.0, "hessian_step": 1.0}
    return Config(**(base | NUMBERS | wanted))


@pytest.fixture
def quadratic(flat_model: Make) -> Model:
    """f(w) = mean a/2 (w - c)^2 over samples (a, c)."""
    return flat_model(lambda w, x: np.mean(x[:, 0] * (w - x[:, 1]), keepdims=True), (1,))


@pytest.fixture
def fourth(flat_model: Make) -> Model:
    """f(w) = w^4 / 4."""
    return flat_model(lambda w, x: w**3, (1,))


def delta(model: Model, config: Config, w: Any, feed: Any) -> float:
    """Give what a device sends for w; with one step of length 1 that is the gradient of its option."""
    start = np.full(model.layout.size, w, np.float32)
    return float(Client(config, model, None).round(Down(0, start), feed).values[0])


def personal(model: Model, config: Config, w: float, feed: Any) -> float:
    client = Client(config, model, None)
    client.round(Down(0, np.array([w], np.float32)), feed)
    return float(client.personal(None).values[0])


@pytest.mark.parametrize(
    ("option", "wanted", "expected"),
    [("A", {}, -6.0), ("B", {"hessian": "none"}, -4.8), ("B", {}, -3.84), ("C", {}, -3.0)],
)
def test_the_gradient_of_each_option_is_the_closed_form(
    option: str, wanted: Any, expected: float, quadratic: Model
) -> None:
    assert delta(quadratic, plain(option, **wanted), 0.0, Feed(batch((2, 3)))) == pytest.approx(expected, rel=1e-6)


def test_the_personal_model_is_w_or_one_step_from_it_or_the_minimum_near_it(quadratic: Model) -> None:
    feed = Feed(batch((2, 3)))
    assert personal(quadratic, plain("A"), 0.0, feed) == 0.0
    assert personal(quadratic, plain("A", lr=0.1, personal_steps=2), 0.0, feed) == pytest.approx(3 * (1 - 0.8**2))
    assert personal(quadratic, plain("B"), 0.0, feed) == pytest.approx(0.6)
    theta = personal(quadratic, plain("C"), 0.0, feed)
    assert theta == pytest.approx(1.5)
    assert (theta - 3) ** 2 + theta**2 == pytest.approx(4.5)  # the envelope's value


def test_the_personal_model_is_made_of_all_local_data_whatever_the_batches(quadratic: Model) -> None:
    rows = [(2, 3), (1, -1), (4, 0.5)]
    uneven = Feed(batch(*rows[:2]), batch(rows[2]))
    for option in "BC":
        config = plain(option)
        assert personal(quadratic, config, 0.3, uneven) == pytest.approx(
            personal(quadratic, config, 0.3, Feed(batch(*rows)))
        )


def test_a_personal_model_that_diverges_is_told(flat_model: Make) -> None:
    model = flat_model(lambda w, x: -np.exp(np.abs(w)), (1,))
    with pytest.raises(DeviceError, match="personal model diverged"):
        persafl.personalise(plain("C"), model, np.ones(1, np.float32), Feed(batch((1, 1))))


@pytest.mark.parametrize(
    ("option", "wanted", "optimum", "value"),
    [
        ("A", {}, 0.5, 0.75),
        ("B", {}, -0.142857, 0.274286),
        ("B", {"hessian": "none"}, 0.2, None),
        ("C", {}, 0.285714, 0.428571),
    ],
)
def test_each_option_goes_to_an_optimum_of_its_own(
    option: str, wanted: Any, optimum: float, value: float | None, quadratic: Model, arrivals: Make
) -> None:
    clients = [(1.0, -1.0), (3.0, 1.0)]
    config = plain(option, lr=0.2, adaptation_lr=0.2, inner_lr=0.25, inner_steps=12, **wanted)
    feeds = [Feed(batch(client)) for client in clients]
    run = arrivals("persafl", config, [quadratic] * 2, feeds, [1.0])
    for _ in range(150):
        w = float(run.round()[0])
    assert w == pytest.approx(optimum, abs=2e-6)
    if value is not None:
        owns = [personal(quadratic, config, w, feed) for feed in feeds]
        pulls = [config.attraction / 2 * (own - w) ** 2 if option == "C" else 0.0 for own in owns]
        losses = [a / 2 * (own - c) ** 2 for (a, c), own in zip(clients, owns, strict=True)]
        assert np.mean(np.add(losses, pulls)) == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize(("option", "expected"), [("A", -2.01696), ("B", -1.487471), ("C", -1.228530)])
def test_local_steps_contract_by_the_slope_of_the_option(option: str, expected: float, quadratic: Model) -> None:
    config = plain(option, lr=0.1, local_steps=5)
    assert delta(quadratic, config, 0.0, Feed(batch((2, 3)))) == pytest.approx(expected, abs=1e-6)


def test_updates_are_added_to_the_model_as_it_stands(quadratic: Model, arrivals: Make) -> None:
    feeds = [Feed(batch((1, -1))), Feed(batch((1, 1)))]
    run = arrivals("persafl", plain("A", lr=0.5), [quadratic] * 2, feeds, [0.0])
    assert [run.arrive(device)[0] for device in (0, 1) * 3] == [-0.5, 0.0, -0.25, 0.25, -0.125, 0.25]


@pytest.mark.parametrize(
    ("same", "expected"),
    [((0, 1, 2), 1.28), ((0, 0, 0), 1.14), ((0, 0, 1), 1.20), ((0, 1, 0), 1.30)],
    ids=["three batches", "one batch", "D is D'", "D is D''"],
)
def test_three_batches_make_maml_unbiased_and_fewer_do_not(
    same: tuple[int, ...], expected: float, quadratic: Model
) -> None:
    # All ways to draw curvatures 2 ± 1, at distance 1 from the minimum: no sampling error.
    draws = itertools.product((1.0, 3.0), repeat=max(same) + 1)
    slopes = [delta(quadratic, plain("B"), 1.0, Feed(*(batch((draw[k], 0)) for k in same))) for draw in draws]
    assert np.mean(slopes) == pytest.approx(expected, rel=1e-5)


def test_a_step_of_maml_draws_three_batches_and_the_others_one(quadratic: Model) -> None:
    for option, hessian, expected in [("A", "auto", 1), ("B", "auto", 3), ("B", "none", 2), ("C", "auto", 1)]:
        drawn: list[int] = []
        feed = Feed(batch((2, 3)))
        feed.sample = lambda size, drawn=drawn: drawn.append(size) or batch((2, 3))  # type: ignore[assignment,misc]
        delta(quadratic, plain(option, hessian=hessian, local_steps=4, lr=0.1), 0.0, feed)
        assert len(drawn) == 4 * expected


@pytest.mark.parametrize("step", [0.1, 0.2])
def test_a_difference_of_gradients_lies_at_a_distance_that_v_does_not_change(step: float, fourth: Model) -> None:
    # f'' v = 6 at w = 1, v = 2; the ends lie at w ± step, and w ± 0.2 gives 6.08
    product = persafl._hessian_product(
        plain("B", hessian_step=step), fourth, np.ones(1, np.float32), batch(0), np.full(1, 2, np.float32)
    )
    assert product[0] == pytest.approx(6 + 2 * step**2, rel=1e-5)


class Curved:
    """w^4 / 4 with its second derivative; a difference over a distance of 1 would be 2 v off."""

    def __init__(self, inner: Any) -> None:
        self.vjp = inner.vjp

    def hvp(self, params: Any, x: Any, direction: Any, bend: Any) -> Any:
        return {"w": 3 * params["w"] ** 2 * direction["w"]}


@pytest.mark.parametrize(("hessian", "product"), [("exact", 3.0), ("auto", 3.0), ("difference", 4.0)])
def test_the_exact_hessian_is_taken_where_there_is_one(hessian: str, product: float, fourth: Model) -> None:
    model = Model(fourth.layout, Curved(fourth.oracle))
    config = plain("B", hessian=hessian, adaptation_lr=0.5)
    u = 1 - 0.5  # w = 1
    assert delta(model, config, 1.0, Feed(batch(0))) == pytest.approx(u**3 - 0.5 * product * u**3, rel=1e-5)


def test_an_exact_hessian_on_a_backend_without_is_refused(fourth: Model) -> None:
    with pytest.raises(DeviceError, match="no second derivatives"):
        delta(fourth, plain("B", hessian="exact"), 1.0, Feed(batch(0)))


def test_where_the_gradient_is_zero_maml_stays(quadratic: Model) -> None:
    assert delta(quadratic, plain("B"), 3.0, Feed(batch((2, 3)))) == 0.0


@pytest.mark.parametrize(
    ("steps", "theta", "gradient"),
    [(1, 0.6, -1.2), (2, 0.96, -1.92), (3, 1.176, -2.352), (4, 1.3056, -2.6112), (5, 1.38336, -2.76672)],
)
def test_few_inner_steps_give_an_inexact_minimum_and_the_error_that_theory_says(
    steps: int, theta: float, gradient: float, quadratic: Model
) -> None:
    config, feed = plain("C", inner_steps=steps), Feed(batch((2, 3)))
    assert personal(quadratic, config, 0.0, feed) == pytest.approx(theta, rel=1e-6)
    assert delta(quadratic, config, 0.0, feed) == pytest.approx(gradient, rel=1e-6)
    residual = 2 * (theta - 3) + 2 * theta
    assert abs(gradient + 3) == pytest.approx(2 * abs(residual) / (2 + 2))


@pytest.mark.parametrize("tolerance", [1.0, 0.1, 0.01])
def test_inner_steps_stop_at_the_tolerance(tolerance: float, quadratic: Model) -> None:
    feed = Feed(batch((2, 3)))
    theta = personal(quadratic, plain("C", tolerance=tolerance), 0.0, feed)
    residual = 6.0
    while residual > tolerance:
        residual *= 1 - 0.1 * 4
    assert 6 - 4 * theta == pytest.approx(residual, abs=1e-5)


@pytest.mark.parametrize("w", [0.3, 1.2, 3.0, 4.4])
def test_on_a_loss_that_is_not_convex_the_error_is_within_its_bound(w: float, flat_model: Make) -> None:
    model, feed = flat_model(lambda w, x: np.sin(w), (1,)), Feed(batch(0))  # L = 1
    exact = delta(model, plain("C", attraction=3.0, inner_steps=500), w, feed)
    for tolerance in (0.3, 0.03):
        rough = delta(model, plain("C", attraction=3.0, tolerance=tolerance), w, feed)
        assert abs(rough - exact) <= 3 * tolerance / (3 - 1) + 1e-6


def test_one_inner_step_is_plain_training_with_a_smaller_step(mlp: Model, new_fleet: Make) -> None:
    wanted = {"weight_decay": 0.0, "clip_norm": 0.0, "lr_decay": 1.0, "local_steps": 4}
    inner = {"attraction": 8.0, "inner_lr": 0.05, "inner_steps": 1}
    moreau = new_fleet("persafl", option="C", lr=0.5, **inner, **wanted)
    other = new_fleet("persafl", option="A", lr=0.5 * 8.0 * 0.05, **wanted)
    for _ in range(3):
        moreau.round()
        other.round()
    np.testing.assert_allclose(moreau.server.shared(), other.server.shared(), atol=1e-6)  # float32


def test_with_no_adaptation_maml_is_plain_training_bit_for_bit(mlp: Model, mlp_data: Any) -> None:
    x, y = mlp_data["device-3"]
    three = [Batch(x[i : i + 3], y[i : i + 3]) for i in (0, 2, 5, 1, 3, 4)]
    w = np.random.default_rng(1).normal(0, 1, mlp.layout.size).astype(np.float32)
    ups = []
    for option, batches in (("B", three), ("A", three[1::3])):
        config = plain(option, adaptation_lr=0.0, lr=0.3, local_steps=2, momentum=0.5, hessian_step=1e-3)
        ups.append(Client(config, mlp, None).round(Down(0, w), Feed(*batches)).values)
    assert ups[0].tobytes() == ups[1].tobytes()
    assert ups[0].any()


def test_a_strong_attraction_is_plain_training_and_none_is_no_training(quadratic: Model) -> None:
    feed = Feed(batch((2, 3)))
    strong = plain("C", attraction=1e6, inner_lr=1e-6)
    assert delta(quadratic, strong, 0.0, feed) == pytest.approx(-5.999988, abs=1e-6)
    weak = plain("C", attraction=1e-6, inner_lr=0.4)
    assert delta(quadratic, weak, 0.0, feed) == pytest.approx(0.0, abs=1e-5)


def test_the_envelope_is_as_smooth_as_its_closed_form_on_curvatures_of_either_sign(quadratic: Model) -> None:
    for h in (-1.0, -0.5, 0.5, 1.0):
        slope = delta(quadratic, plain("C", attraction=3.0), 1.0, Feed(batch((h, 0))))
        assert slope == pytest.approx(3 * h / (3 + h), rel=1e-5)
        assert abs(slope) <= 3 / (3 - 1) + 1e-6


def test_answers_to_one_version_one_by_one_are_a_round_of_fedavg(quadratic: Model, arrivals: Make) -> None:
    rng = np.random.default_rng(4)
    feeds = [Feed(batch((a, c))) for a, c in zip(rng.uniform(0.5, 2, 4), rng.normal(0, 2, 4), strict=True)]
    wanted = {"lr": 0.2, "local_steps": 3, "lr_decay": 1.0, "weight_decay": 0.0, "clip_norm": 0.0}
    average = algorithm.load("fedavg").Config(**wanted)
    one = arrivals("persafl", plain("A", server_lr=0.25, **wanted), [quadratic] * 4, feeds, [0.7])
    other = arrivals("fedavg", average, [quadratic] * 4, feeds, [0.7])
    for device in (2, 0, 3, 1):
        w = one.arrive(device)
    assert w == pytest.approx(other.round(), rel=4e-7)  # three roundings to float32 more


def test_a_synchronous_run_of_plain_training_is_fedavg_bit_for_bit(new_fleet: Make) -> None:
    wanted = {"weight_decay": 1e-3, "clip_norm": 1.0, "lr_decay": 0.9, "local_steps": 0, "momentum": 0.3}
    average, plainly = new_fleet("fedavg", **wanted), new_fleet("persafl", option="A", **wanted)
    for _ in range(3):
        average.round()
        plainly.round()
    assert plainly.server.shared().tobytes() == average.server.shared().tobytes()


def ages(server: Server) -> dict[int, int]:
    """Count updates by their staleness."""
    counts = np.frombuffer(server.state()["arrived"], np.int64)  # type: ignore[arg-type]
    return {int(age): int(counts[age]) for age in np.flatnonzero(counts)}


def test_devices_of_equal_speed_are_each_as_stale_as_there_are_others(quadratic: Model, arrivals: Make) -> None:
    run = arrivals("persafl", plain("A", lr=0.01), [quadratic] * 4, [Feed(batch((1, 0)))] * 4, [1.0])
    for device in (0, 1, 2, 3) * 5:
        run.arrive(device)
    assert ages(run.server) == {0: 1, 1: 1, 2: 1, 3: 17}


def test_an_update_is_the_way_from_the_devices_own_start_not_from_the_servers_model(
    quadratic: Model, arrivals: Make
) -> None:
    run = arrivals("persafl", plain("A", lr=0.5), [quadratic] * 2, [Feed(batch((1, 5)))] * 2, [1.0])
    for _ in range(3):
        before = float(run.arrive(0)[0])
    assert float(run.arrive(1)[0]) - before == pytest.approx(0.5 * (5 - 1))


def test_momentum_starts_anew_with_every_download(quadratic: Model) -> None:
    config = plain("A", lr=0.1, local_steps=3, momentum=0.9)
    client, down, feed = Client(config, quadratic, None), Down(0, np.ones(1, np.float32)), Feed(batch((2, 3)))
    assert client.round(down, feed).values == client.round(down, feed).values


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"staleness": "apply"}, (1, 1, 1)),
        ({"staleness": "down-weight"}, (1, 2**-0.5, 4**-0.5)),
        ({"staleness": "down-weight", "staleness_exponent": 2.0}, (1, 1 / 4, 1 / 16)),
        ({"staleness": "adapt", "staleness_limit": 1}, (1, 1, 1 / 3)),
        ({"staleness": "adapt", "staleness_limit": 2}, (1, 1, 2 / 3)),
        ({"staleness": "drop", "staleness_limit": 1}, (1, 1, 0)),
    ],
)
def test_a_stale_update_counts_as_the_setting_says(wanted: Any, expected: Any, quadratic: Model) -> None:
    config = plain("A", server_lr=0.5, **wanted)
    for age, part in zip((0, 1, 3), expected, strict=True):
        server = Server(config, quadratic.layout, np.zeros(1, np.float32), {}, 0)
        for _ in range(3):
            server.absorb("other", persafl.Up(server.round, 1, np.zeros(1, np.float32)))
            server.close()
        server.absorb("device", persafl.Up(3 - age, 1, np.full(1, -8, np.float32)))
        server.close()
        assert server.shared() == pytest.approx(8 * 0.5 * part)
        assert server.state()["dropped"] == (part == 0)


def test_dropping_what_is_stale_does_not_make_everyone_stale(quadratic: Model, arrivals: Make) -> None:
    config = plain("A", lr=0.1, staleness="drop", staleness_limit=1)
    run = arrivals("persafl", config, [quadratic] * 4, [Feed(batch((1, 5)))] * 4, [0.0])
    for device in (0, 1, 2, 3) * 50:
        w = float(run.arrive(device)[0])
    assert w == pytest.approx(5, abs=1e-2)
    assert 80 <= run.server.state()["dropped"] <= 120
    assert sum(ages(run.server).values()) == 200
    assert run.server.round == 200
    resumed = Server(config, quadratic.layout, np.zeros(1, np.float32), {}, 0)
    resumed.restore(run.server.state())
    assert codec.encode_state(resumed.state()) == codec.encode_state(run.server.state())


def test_a_stale_update_is_checked_before_it_is_made_smaller_or_dropped(quadratic: Model) -> None:
    for wanted in ({"staleness": "down-weight", "staleness_exponent": 3.0}, {"staleness": "drop"}):
        server = Server(plain("A", staleness_limit=1, **wanted), quadratic.layout, np.zeros(1, np.float32), {}, 0)
        for _ in range(3):
            server.absorb("other", persafl.Up(server.round, 1, np.zeros(1, np.float32)))
            server.close()
        before = codec.encode_state(server.state())
        for values in ([600.0], [np.nan], [1.0, 2.0], []):
            with pytest.raises(DecodeError):
                server.absorb("device", persafl.Up(0, 1, np.array(values, np.float32)))
        assert codec.encode_state(server.state()) == before


@pytest.mark.parametrize(
    "wanted", [{"option": "A"}, {"option": "A", "personal_steps": 1}, {"option": "B"}, {"option": "C"}]
)
def test_whatever_the_option_order_and_restarts_change_no_bit(wanted: Any, new_fleet: Make) -> None:
    outcomes = []
    for restarts, order in ((False, "0123"), (True, "3102")):
        fleet = new_fleet("persafl", **wanted)
        for _ in range(3):
            fleet.round([f"device-{k}" for k in order])
            state = codec.decode_state(codec.encode_state(fleet.server.state()), 4 * fleet.model.layout.size)
            if restarts:
                fleet.server = fleet.new_server()
                fleet.server.restore(state)
        outcomes.append((fleet.server.shared().tobytes(), codec.encode_state(state), fleet.states))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("wanted", "kept"), [({"option": "A"}, False), ({"option": "B"}, True), ({"option": "C"}, True)]
)
def test_a_device_keeps_its_personal_model_until_it_has_trained_the_next(
    wanted: Any, kept: bool, new_fleet: Make
) -> None:
    fleet = new_fleet("persafl", **wanted)
    first = fleet.decoded(fleet.down("device-1"), Down)
    assert fleet.client("device-1").personal(first).dense().tobytes() == first.values.tobytes()
    fleet.round()
    down = fleet.decoded(fleet.down("device-1"), Down)
    held = fleet.personal["device-1"] if kept else down.values
    assert fleet.client("device-1").personal(down).dense().tobytes() == held.tobytes()
    assert len(fleet.states["device-1"]) < 10 or kept


def test_clipping_and_decay_act_on_the_gradient_of_the_option(quadratic: Model) -> None:
    feed = Feed(batch((2, 3)))
    assert delta(quadratic, plain("C", clip_norm=0.5), 0.0, feed) == pytest.approx(-0.5)
    assert delta(quadratic, plain("C", weight_decay=0.1), 1.0, feed) == pytest.approx(-2 + 0.1)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"option": "D"}, "option must be one of A, B, C"),
        ({"hessian": "full"}, "hessian must be one of"),
        ({"staleness": "ignore"}, "staleness must be one of"),
        ({"staleness": "drop"}, "staleness drop needs a staleness-limit"),
        ({"staleness": "adapt"}, "staleness adapt needs a staleness-limit"),
        ({"attraction": 0.0}, "attraction must be above 0"),
        ({"attraction": 10.0, "inner_lr": 0.2}, "inner-lr must be above 0 and below 0.2, not 0.2"),
        ({"server_lr": 0.0}, "server-lr must be above 0"),
        ({"inner_steps": 0}, "inner-steps must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wanted: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**wanted)
