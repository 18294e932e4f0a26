"""FedH2L against closed forms and worked numbers; `e1` and so on are sections of its specification."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, losses, models, sgd, wire
from edge_runtime.algorithm import Model, OwnModel
from edge_runtime.algorithms import fedh2l
from edge_runtime.algorithms.fedh2l import Config, Down, Up, project, resolve
from edge_runtime.errors import ConfigError, DecodeError, DeviceError
from edge_runtime.seed_set import SeedSet
from edge_runtime.topology import neighbours
from edge_runtime.tree import Layout

G, L = np.array([-1.0, 2.0]), np.array([1.0, 0.0])
HALF = np.zeros((1, 2), np.float32)
"""Scores of a student that finds both classes equally likely."""
Make = Callable[..., Any]


class Table:
    """Scores are the parameters themselves: sample i has row i, so that gradients can be read off."""

    def vjp(self, params: Any, x: Any) -> Any:
        rows = x[:, 0].astype(int)

        def pullback(slope: Any) -> Any:
            back = np.zeros_like(params["w"])
            np.add.at(back, rows, slope)
            return {"w": back}

        return params["w"][rows], pullback


class Linear:
    """x W', differentiated by hand."""

    def vjp(self, params: Any, x: Any) -> Any:
        return x @ params["w"].T, lambda slope: {"w": slope.T @ x}


class Recorder:
    """Gives the private gradient `l(w)` for private samples (x = 0) and `g` for seeds (x = 1); notes every call."""

    def __init__(self, g: Any, private: Callable[[Any], Any]) -> None:
        self.g, self.private, self.calls = np.asarray(g), private, list[tuple[str, Any]]()

    def vjp(self, params: Any, x: Any) -> Any:
        w = np.concatenate([np.array(part) for part in params.values()])
        seeds = bool(x[0, 0])

        def pullback(slope: Any) -> Any:
            self.calls.append(("seeds" if seeds else "private", w))
            flat = np.asarray(self.g if seeds else self.private(w), np.float32)
            return {name: flat[i : i + 1] for i, name in enumerate(params)}

        return np.zeros((len(x), 2), np.float32), pullback


def table(rows: int, classes: int) -> Model:
    return Model(Layout(("w",), ((rows, classes),)), Table())


def seeds_of(rows: int, classes: int) -> SeedSet:
    x = np.arange(rows, dtype=np.float32)[:, None]
    return SeedSet(x, np.arange(rows) % classes, tuple(f"class {i}" for i in range(classes)))


def a_config(seeds: SeedSet, **settings: Any) -> Config:
    return Config(seed_set=seeds.identity.hex(), **settings)


def learned(g: Any, private: Callable[[Any], Any], **settings: Any) -> tuple[Recorder, Any]:
    """Do one step of MUTUAL at (0, 0); give what was asked of the model, and where the step led."""
    recorder = Recorder(g, private)
    layout = Layout(("a", "b"), ((1,), (1,)))
    model = OwnModel(layout, recorder, Model(layout, recorder), np.zeros(2, np.float32))
    seeds = SeedSet(np.ones((1, 1), np.float32), np.zeros(1, np.int64), ("left", "right"))
    plain = {"lr": 0.1, "lr_decay": 1.0, "local_steps": 1, "mutual_steps": 1, "weight_decay": 0.0, "clip_norm": 0.0}
    config = a_config(seeds, **(plain | settings))
    private_data = PrivateData(seeds)
    fedh2l.Client(config, model, None).round(Down(0, seeds.identity, 1, np.array([0.5, 0.5], np.float32)), private_data)
    return recorder, recorder.calls[-1][1]  # the last call is LOCAL's, made where MUTUAL led


class PrivateData:
    """A single private sample, x = 0."""

    class_names = ()

    def __init__(self, seeds: SeedSet) -> None:
        self.seed_set, self.rng = seeds, np.random.default_rng(0)

    def __len__(self) -> int:
        return 1

    def sample(self, batch_size: int) -> Any:
        return algorithm.Batch(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))

    def epoch(self, batch_size: int) -> Any:
        yield self.sample(batch_size)


def test_e1_a_conflict_is_projected_away_exactly() -> None:
    assert project(G, L).tolist() == [0.0, 2.0]
    assert resolve(G, [L]).tolist() == [0.0, 2.0]


def test_e1_a_ridge_as_in_gems_code_leaves_a_thousandth() -> None:
    assert project(G, L, ridge=1e-3)[0] == pytest.approx(-1 + 0.999001, abs=1e-9)
    assert resolve(G, [L], ridge=1e-3)[0] == pytest.approx(-1 + 0.999001, abs=1e-9)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_e1_a_gradient_without_conflict_is_untouched_bit_for_bit(kind: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        g, own = rng.normal(size=(2, 50)).astype(kind)
        own = own if g @ own >= 0 else -own
        before = g.tobytes()
        assert project(g, own).tobytes() == resolve(g, [own, own], margin=0.5).tobytes() == before


def test_e1_a_projection_never_lengthens_and_does_not_care_how_long_the_other_is_nor_how_often() -> None:
    rng = np.random.default_rng(1)
    for scale in (1e-6, 1.0, 3.7, 1e6):
        g, own = rng.normal(size=(2, 20))
        z = project(g, own)
        assert np.linalg.norm(z) <= np.linalg.norm(g)
        np.testing.assert_allclose(project(g, scale * own), z, rtol=0, atol=1e-14)
        np.testing.assert_allclose(project(z, own), z, rtol=0, atol=1e-14)
    assert project(project(G, L), L) is not G
    assert project(project(G, L), L).tolist() == [0.0, 2.0]


def test_e3_a_margin_turns_further_than_it_must() -> None:
    g = np.array([-0.1, 1.0])
    np.testing.assert_allclose(resolve(g, [L]), [0, 1], atol=1e-15)
    np.testing.assert_allclose(resolve(g, [L], margin=0.5), [0.4, 1], atol=1e-15)
    assert resolve(np.array([0.1, 1.0]), [L], margin=0.5).tolist() == [0.1, 1.0]


def test_e4_the_teacher_comes_first_in_the_divergence() -> None:
    value, slope = losses.distillation(HALF, np.array([[0.9, 0.1]], np.float32))
    assert value == pytest.approx(0.368064, abs=1e-6)
    np.testing.assert_allclose(slope, [[-0.4, 0.4]], atol=1e-7)
    p, q = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    assert float((q * np.log(q / p)).sum()) == pytest.approx(0.510826, abs=1e-6)  # the other way round
    seeds = seeds_of(1, 2)
    config = a_config(seeds, seed_loss=False)
    found = fedh2l.mutual_gradient(table(1, 2), HALF.ravel(), seeds, np.array([[0.9, 0.1]], np.float32), config)
    np.testing.assert_allclose(found, [-0.4, 0.4], atol=1e-7)  # not -+ 0.549306


def test_e4_the_divergence_is_the_mean_over_a_batch() -> None:
    teacher = np.tile(np.array([[0.9, 0.1]], np.float32), (4, 1))
    assert losses.distillation(np.zeros((4, 2), np.float32), teacher)[0] == pytest.approx(0.368064, abs=1e-6)


def test_e5_the_mean_of_divergences_is_that_from_the_mean_but_for_a_constant() -> None:
    one, two = np.array([[0.9, 0.1]], np.float32), np.array([[0.3, 0.7]], np.float32)
    mean = (one + two) / 2

    def both(outputs: Any) -> tuple[float, float]:
        terms = [losses.distillation(outputs, teacher)[0] for teacher in (one, two)]
        return sum(terms) / 2, losses.distillation(outputs, mean)[0]

    assert both(HALF) == pytest.approx((0.225174, 0.020136), abs=1e-6)
    for outputs in np.random.default_rng(2).normal(0, 2, (20, 1, 2)).astype(np.float32):
        pairwise, of_mean = both(outputs)
        assert pairwise - of_mean == pytest.approx(0.205038, abs=1e-5)  # float32
        slopes = [losses.distillation(outputs, teacher)[1] for teacher in (one, two)]
        np.testing.assert_allclose(sum(slopes) / 2, losses.distillation(outputs, mean)[1], atol=1e-7)


def test_e5_what_the_server_passes_on_has_the_gradient_of_all_pairs() -> None:
    seeds, rng = seeds_of(6, 3), np.random.default_rng(3)
    config = a_config(seeds)
    said = {name: losses.softmax(rng.normal(0, 2, (6, 3)).astype(np.float32)) for name in ("a", "b", "c", "d")}
    server = a_server(config)
    speak(server, said)
    outputs = rng.normal(0, 1, (6, 3)).astype(np.float32)
    teacher = fedh2l.as_teacher(server.down("a", False).posteriors, 3)
    pairs = [losses.distillation(outputs, said[other])[1] for other in ("b", "c", "d")]
    np.testing.assert_allclose(losses.distillation(outputs, teacher)[1], sum(pairs) / 3, atol=1e-7)


@pytest.mark.parametrize(
    ("temperature", "plain", "scaled"), [(1, 0.611856, 0.611856), (2, 0.176759, 0.707036), (4, 0.046159, 0.738543)]
)
def test_e5_the_square_of_the_temperature_keeps_the_gradient_large(
    temperature: float, plain: float, scaled: float
) -> None:
    student, teacher = np.array([[2.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    _, slope = losses.distillation(student, losses.softmax(teacher, temperature), temperature)
    assert slope[0, 0] == pytest.approx(scaled, abs=2e-6)
    assert slope[0, 0] / temperature**2 == pytest.approx(plain, abs=2e-6)


@pytest.mark.parametrize(("conflict", "led_to", "loss"), [("none", [0.1, -0.2], 0.625), ("project", [0, -0.2], 0.52)])
def test_e6_a_projected_step_does_not_raise_the_own_loss_to_first_order(
    conflict: str, led_to: list[float], loss: float
) -> None:
    _, theta = learned(G, lambda w: w - [-1, 0], conflict=conflict)
    np.testing.assert_allclose(theta, led_to, atol=1e-7)
    assert 0.5 * float(((theta - [-1, 0]) ** 2).sum()) == pytest.approx(loss, abs=1e-6)  # second order: above .5


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"weight_decay": 0.5}, {"clip_norm": 0.3}], ids=str)
def test_e7_nothing_brings_a_conflict_back_after_the_projection(settings: dict[str, float]) -> None:
    for steps in (1, 3):
        _, theta = learned(G, lambda w: np.array([1.0, 0.0]), mutual_steps=steps, **settings)
        assert theta[0] == 0
        assert theta[1] < 0


def test_e8_both_gradients_are_taken_at_the_same_point() -> None:
    recorder, _ = learned(G, lambda w: w - [-1, 0], mutual_steps=3)
    for seeds, private in zip(recorder.calls[:6:2], recorder.calls[1:6:2], strict=True):
        assert (seeds[0], private[0]) == ("seeds", "private")
        assert seeds[1].tolist() == private[1].tolist()


def test_e8_a_gradient_of_next_to_nothing_holds_nothing_up() -> None:
    for own in (np.zeros(2), np.full(2, 1e-20)):
        assert project(G, own) is G
        assert resolve(G, [own, own]) is G
    np.testing.assert_allclose(resolve(G, [np.zeros(2), L]), [0, 2], atol=1e-15)


def test_e8_all_tensors_are_projected_as_one_vector() -> None:
    _, theta = learned([-1.0, 2.0], lambda w: np.array([1.0, 1.0]))
    np.testing.assert_allclose(theta, [0.1, -0.2], atol=1e-7)  # <g, l> = 1 > 0; tensor by tensor the first would be 0


def test_e9_received_posteriors_are_floored_and_of_sum_1() -> None:
    rough = np.array([1.0, 0.0, 0.0, 0.3333, 0.3333, 0.3333], np.float16).astype(np.float32)
    rows = fedh2l.as_teacher(rough, 3)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    assert rows.min() >= 0.99e-8
    assert np.isfinite(losses.distillation(np.array([[90.0, -90, 0]] * 2, np.float32), rows)[0])


def test_e9_what_is_sent_are_the_posteriors_of_the_trained_model(new_fleet: Make) -> None:
    fleet = new_fleet("fedh2l")
    for _ in range(2):
        ups = fleet.round()
    up = fleet.decoded(ups["device-1"], Up)
    model = fleet.model
    outputs, _ = model.oracle.vjp(model.layout.views(fleet.personal["device-1"]), fleet.seed_set.x)
    np.testing.assert_allclose(up.posteriors.reshape(-1, 3), losses.softmax(outputs), atol=1e-6)
    assert up.identity == fleet.seed_set.identity


def test_e10_a_device_by_itself_trains_as_if_there_were_nothing_else(new_fleet: Make, mlp_data: Any) -> None:
    data = {"device-0": mlp_data["device-0"]}
    for order in ("mutual-first", "local-first"):
        fleet = new_fleet("fedh2l", data=data, order=order)
        x = fleet.own("device-0").initial
        for round_ in range(3):
            x = sgd.descend(fleet.model, x, fleet.batches("device-0"), fleet.config, round_)
            fleet.round()
            assert fleet.personal["device-0"].tobytes() == x.tobytes()


def test_e10_without_distillation_the_mutual_gradient_is_that_of_the_labels(mlp: Model) -> None:
    rng = np.random.default_rng(4)
    seeds = SeedSet(rng.normal(size=(5, 4)).astype(np.float32), np.arange(5) % 3, ("a", "b", "c"))
    theta = rng.normal(0, 0.5, mlp.layout.size).astype(np.float32)
    teacher = losses.softmax(rng.normal(size=(5, 3)).astype(np.float32))
    found = fedh2l.mutual_gradient(mlp, theta, seeds, teacher, a_config(seeds, distillation=0.0))
    assert found.tobytes() == sgd.gradient(mlp, theta, algorithm.Batch(seeds.x, seeds.y)).tobytes()


def test_e10_devices_that_say_the_same_have_nothing_to_teach() -> None:
    seeds, theta = seeds_of(4, 3), np.random.default_rng(5).normal(0, 1, 12).astype(np.float32)
    said = losses.softmax(theta.reshape(4, 3))
    server = a_server(a_config(seeds))
    speak(server, dict.fromkeys("abc", said))
    teacher = fedh2l.as_teacher(server.down("a", False).posteriors, 3)
    found = fedh2l.mutual_gradient(table(4, 3), theta, seeds, teacher, a_config(seeds, seed_loss=False))
    np.testing.assert_allclose(found, 0, atol=1e-7)


def test_e10_who_is_missing_is_left_out_of_the_mean() -> None:
    seeds, rng = seeds_of(4, 3), np.random.default_rng(6)
    said = {name: losses.softmax(rng.normal(size=(4, 3)).astype(np.float32)) for name in "abc"}
    server = a_server(a_config(seeds))
    speak(server, said)
    down = server.down("a", False)
    np.testing.assert_allclose(down.posteriors.reshape(4, 3), (said["b"] + said["c"]) / 2, atol=1e-7)
    speak(server, {"a": said["a"], "c": said["c"]})
    down = server.down("a", False)
    assert down.peers == 1
    np.testing.assert_allclose(down.posteriors.reshape(4, 3), said["c"], atol=1e-7)


def test_e11_it_is_the_mutual_gradient_that_gives_way() -> None:
    _, theta = learned(G, lambda w: np.array([1.0, 0.0]))
    np.testing.assert_allclose(-theta / 0.1, [0, 2], atol=1e-6)  # the other way round: l + g/5 = (.8, .4)


def test_f_a_thousand_dimensions_and_ten_thousand_conflicts_leave_none() -> None:
    rng = np.random.default_rng(7)
    worst = 0.0
    for _ in range(10_000):
        g, own = rng.normal(size=(2, 1000))
        worst = min(worst, float(project(g, own) @ own))
    assert worst >= -1e-9


def test_f_the_quadratic_program_of_one_row_is_the_closed_form() -> None:
    rng = np.random.default_rng(8)
    for _ in range(500):
        g, own = rng.normal(size=(2, 30)) * 10.0 ** rng.uniform(-3, 3, (2, 1))
        np.testing.assert_allclose(resolve(g, [own]), project(g, own), rtol=0, atol=1e-9 * max(1, np.abs(g).max()))


def _by_all_subsets(g: Any, rows: Any) -> Any:
    """Solve the same program by trying every set of active constraints."""
    best = None
    for size in range(len(rows) + 1):
        for active in itertools.combinations(range(len(rows)), size):
            chosen = rows[list(active)]
            z = g - chosen.T @ np.linalg.lstsq(chosen @ chosen.T, chosen @ g, rcond=None)[0] if size else g
            if (rows @ z >= -1e-9).all() and (best is None or np.linalg.norm(z - g) < np.linalg.norm(best - g)):
                best = z
    return best


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_f_the_quadratic_program_finds_the_nearest_point_that_all_rows_allow(rows: int) -> None:
    rng = np.random.default_rng(rows)
    for _ in range(60):
        common = rng.normal(size=6)
        many = common * rng.uniform(0, 3) + rng.normal(size=(rows, 6)) * 10.0 ** rng.uniform(-2, 2, (rows, 1))
        g = rng.normal(size=6) - common
        np.testing.assert_allclose(resolve(g, list(many)), _by_all_subsets(g, many), rtol=0, atol=1e-9)


def test_f_the_conditions_of_karush_kuhn_and_tucker_hold() -> None:
    rng = np.random.default_rng(9)
    for trial in range(200):
        rows = rng.normal(size=(4, 40)) + 0.5 * (trial % 3)
        if trial % 5 == 0:
            rows[3] = 2 * rows[1]  # one says what another says
        g = rng.normal(size=40)
        z = resolve(g, list(rows))
        v = np.linalg.lstsq(rows[:3].T if trial % 5 == 0 else rows.T, z - g, rcond=None)[0]
        kept = rows[: len(v)]
        np.testing.assert_allclose(kept.T @ v, z - g, atol=1e-9)
        assert (v >= -1e-9).all()
        assert (rows @ z >= -1e-9).all()
        np.testing.assert_allclose(v * (kept @ z), 0, atol=1e-9)


def test_f_a_projection_brings_no_two_points_further_apart() -> None:
    rng = np.random.default_rng(10)
    for _ in range(300):
        one, other, own = rng.normal(size=(3, 5))
        assert np.linalg.norm(project(one, own) - project(other, own)) <= np.linalg.norm(one - other) + 1e-12


def test_f_devices_that_only_listen_to_each_other_come_to_agree() -> None:
    seeds, rng = seeds_of(3, 3), np.random.default_rng(11)
    config = a_config(seeds, seed_loss=False)
    model = table(3, 3)
    thetas = {name: rng.normal(0, 2, 9).astype(np.float32) for name in "abc"}
    server = a_server(config)
    for _ in range(400):
        said = {name: losses.softmax(theta.reshape(3, 3)) for name, theta in thetas.items()}
        speak(server, said)
        for name, theta in thetas.items():
            teacher = fedh2l.as_teacher(server.down(name, False).posteriors, 3)
            thetas[name] = theta - fedh2l.mutual_gradient(model, theta, seeds, teacher, config)
    spread = np.ptp(np.stack([said[name] for name in "abc"]), axis=0)
    assert spread.max() < 1e-3


def test_f_five_hundred_seeds_take_20000_bytes_where_the_weights_of_lenet_take_246824() -> None:
    seeds = seeds_of(500, 10)
    said = losses.softmax(np.random.default_rng(12).normal(size=(500, 10)).astype(np.float32)).ravel()
    data = wire.encode(Up(3, seeds.identity, said))
    assert said.nbytes == 20_000
    assert models.find("lenet").layout.size * 4 == 246_824
    assert len(data) < 20_200  # identity, round and the container
    again = wire.decode(data, Up, Layout(("w",), ((1,),)), algorithm.wire_values(a_config(seeds)))
    assert np.array_equal(again.posteriors, said)


def a_server(config: Config, **devices: bytes) -> fedh2l.Server:
    return fedh2l.Server(config, Layout(("w",), ((2,),)), np.zeros(2, np.float32), devices, 7)


def speak(server: fedh2l.Server, said: dict[str, Any]) -> None:
    """Play a round in which these devices say these posteriors."""
    for device, rows in said.items():
        server.absorb(device, Up(server.round, server._config.identity, np.asarray(rows, np.float32).ravel()))
    server.close()


def certain(seeds: int, classes: int, label: int) -> Any:
    """Posteriors that put everything on one class."""
    return np.tile(np.eye(classes, dtype=np.float32)[label], (seeds, 1))


@pytest.mark.parametrize(("topology", "heard"), [("full", {1, 2, 3, 4}), ("ring", {1, 4})])
def test_a_device_hears_its_neighbours_only(topology: str, heard: set[int]) -> None:
    server = a_server(a_config(seeds_of(2, 5), topology=topology))
    speak(server, {f"device-{i}": certain(2, 5, i) for i in range(5)})
    down = server.down("device-0", False)
    assert down.peers == len(heard)
    assert set(np.flatnonzero(down.posteriors[:5])) == heard


def test_random_neighbours_change_from_round_to_round_and_are_the_same_when_asked_again() -> None:
    members = [f"device-{i}" for i in range(8)]
    drawn = [neighbours(members, "device-0", "random", 3, 7, round_) for round_ in range(20)]
    assert drawn == [neighbours(reversed(members), "device-0", "random", 3, 7, round_) for round_ in range(20)]
    assert all(len(set(chosen)) == 3 and "device-0" not in chosen for chosen in drawn)
    assert {name for chosen in drawn for name in chosen} == set(members[1:])
    server = a_server(a_config(seeds_of(2, 8), topology="random", peers=3))
    speak(server, {name: certain(2, 8, i) for i, name in enumerate(members)})
    down = server.down("device-0", False)
    assert {members[i] for i in np.flatnonzero(down.posteriors[:8])} == set(
        neighbours(members, "device-0", "random", 3, 7, 1)
    )


def test_a_ring_of_two_has_one_neighbour_and_of_one_none() -> None:
    assert neighbours(["a", "b"], "a", "ring", 2, 0, 0) == ("b",)
    assert neighbours(["a"], "a", "ring", 2, 0, 0) == ()
    assert neighbours(["a", "c"], "b", "ring", 2, 0, 0) == ("a", "c")


def test_what_was_said_long_ago_counts_as_long_as_the_setting_says() -> None:
    for age, peers in ((1, [1, 0, 0]), (2, [1, 1, 0])):
        server = a_server(a_config(seeds_of(2, 3), max_age=age))
        speak(server, {"b": certain(2, 3, 1)})
        found = []
        for _ in range(3):
            found.append(server.down("a", False).peers)
            server.close()
        assert found == peers


def test_in_the_first_round_nobody_has_spoken() -> None:
    down = a_server(a_config(seeds_of(2, 3))).down("a", True)
    assert (down.peers, down.posteriors.tolist()) == (0, [0.0] * 6)


def other(seeds: SeedSet, **change: Any) -> SeedSet:
    return dataclasses.replace(seeds, **change)


SEEDS = seeds_of(6, 3)
DIFFERENT = [
    (other(SEEDS, x=SEEDS.x + 1), "samples, labels or their order: SHA-256"),
    (other(SEEDS, x=SEEDS.x[::-1]), "samples, labels or their order: SHA-256"),
    (other(SEEDS, y=SEEDS.y[::-1]), "samples, labels or their order: SHA-256"),
    (seeds_of(5, 3), "number of samples: 6 here, 5 there"),
    (other(SEEDS, class_names=("class 1", "class 0", "class 2")), "names or order of the classes"),
    (other(SEEDS, class_names=("class 0", "class 1", "class 2", "class 3")), "number of classes: 3 here, 4 there"),
]


@pytest.mark.parametrize(("theirs", "words"), DIFFERENT, ids=lambda value: value if isinstance(value, str) else "")
def test_another_seed_set_is_refused_on_both_sides_and_what_differs_is_named(theirs: SeedSet, words: str) -> None:
    said = certain(6, 3, 0).ravel()
    server = a_server(a_config(SEEDS))
    with pytest.raises(DecodeError, match=f"seed set of wrist differs: {words}"):
        server.absorb("wrist", Up(0, theirs.identity, said))
    assert server.down("a", False).peers == 0
    model = table(6, 3)
    client = fedh2l.Client(a_config(SEEDS), OwnModel(model.layout, model.oracle, model, np.zeros(18, np.float32)), None)
    with pytest.raises(DecodeError, match=f"Down: seed set differs from this device's: {words}"):
        client.round(Down(0, theirs.identity, 1, said), PrivateData(SEEDS))
    reverse = fedh2l.Client(a_config(theirs), OwnModel(model.layout, model.oracle, model, np.zeros(18)), None)
    with pytest.raises(DecodeError, match="the run's seed set differs"):
        reverse.round(Down(0, theirs.identity, 1, said), PrivateData(SEEDS))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("class 0", "class 2", "class 1"), "class 1 is 'class 1' in the seed set, 'class 2' in this device's data"),
        (("class 0", "class 1"), "number of classes: 3 in the seed set, 2 in this device's data"),
    ],
)
def test_a_device_whose_classes_are_in_another_order_is_told_which(names: tuple[str, ...], words: str) -> None:
    model = table(6, 3)
    client = fedh2l.Client(a_config(SEEDS), OwnModel(model.layout, model.oracle, model, np.zeros(18, np.float32)), None)
    data = PrivateData(SEEDS)
    data.class_names = names  # type: ignore[assignment]
    with pytest.raises(DeviceError, match=words):
        client.round(Down(0, SEEDS.identity, 0, np.zeros(18, np.float32)), data)


def test_a_model_of_another_number_of_classes_is_refused() -> None:
    layout = Layout(("w",), ((4, 1),))
    own = OwnModel(layout, Linear(), Model(layout, Linear()), np.zeros(4, np.float32))
    with pytest.raises(DeviceError, match="number of classes: 3 in the seed set, 4 of the model"):
        fedh2l.Client(a_config(SEEDS), own, None).round(
            Down(0, SEEDS.identity, 0, np.zeros(18, np.float32)), PrivateData(SEEDS)
        )


@pytest.mark.parametrize("bad", [-0.2, 0.5, np.nan, np.inf])
def test_rows_that_are_no_posteriors_are_refused(bad: float) -> None:
    said = certain(6, 3, 0).ravel()
    said[4] = bad
    with pytest.raises(DecodeError, match="a row of its posteriors is not at least 0 and of sum 1"):
        a_server(a_config(SEEDS)).absorb("wrist", Up(0, SEEDS.identity, said))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"conflict": "maybe"}, "conflict must be one of project, qp, none"),
        ({"order": "both"}, "order must be one of"),
        ({"topology": "star"}, "topology must be one of full, ring, random"),
        ({"distillation": -1.0}, "distillation must be at least 0"),
        ({"mutual_epochs": 0}, "mutual-epochs must be at least 1"),
        ({"seed_set": "no"}, "seed-set: .*; leave it to the coordinator"),
        ({"seed_set": "ab" * 48}, "seed-set: seed set: "),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**settings)


def test_a_run_without_a_seed_set_is_refused_in_words_that_help() -> None:
    with pytest.raises(ConfigError, match=r"say run\.seed-samples or run\.seed-file"):
        a_server(Config())


@pytest.mark.parametrize("conflict", ["project", "qp", "none"])
def test_devices_of_different_architectures_learn_each_others_domains(
    conflict: str, new_fleet: Make, mlp: Model
) -> None:
    rng = np.random.default_rng(13)
    rule = rng.normal(size=(4, 3))

    def drawn(centre: Any, count: int) -> tuple[Any, Any]:
        x = (rng.normal(size=(count, 4)) + centre).astype(np.float32)
        return x, (x @ rule).argmax(1)

    domains = {"east": np.array([2, 0, 0, 0]), "west": np.array([-2, 0, 0, 0])}
    data = {name: drawn(centre, 60) for name, centre in domains.items()}
    parts = [drawn(centre, 15) for centre in domains.values()]
    seeds = SeedSet(*(np.concatenate([part[i] for part in parts]) for i in range(2)), ("a", "b", "c"))
    tests = [drawn(centre, 500) for centre in domains.values()]

    def accuracy(distillation: float, seed_loss: bool) -> float:
        wanted = {"distillation": distillation, "seed_loss": seed_loss, "conflict": conflict, "lr": 0.1}
        fleet = new_fleet("fedh2l", data=data, seed_set=seeds.identity.hex(), mutual_epochs=5, **wanted)
        fleet.seed_set = seeds
        linear = Model(Layout(("w",), ((3, 4),)), Linear())
        own = {"east": mlp, "west": linear}
        fleet.own = lambda name: OwnModel(own[name].layout, own[name].oracle, mlp, first[name])
        first = {name: rng2.normal(0, 0.3, model.layout.size).astype(np.float32) for name, model in own.items()}
        for _ in range(12):
            fleet.round()
        scores = []
        for name, model in own.items():
            for x, y in tests:
                outputs, _ = model.oracle.vjp(model.layout.views(fleet.personal[name]), x)
                scores.append(losses.accuracy(outputs, y))
        return float(np.mean(scores))

    rng2 = np.random.default_rng(14)
    alone = accuracy(0.0, False)
    rng2 = np.random.default_rng(14)
    assert accuracy(1.0, True) > alone + 0.02
