import hashlib

import numpy as np
import pytest

from edge_runtime import models
from edge_runtime.errors import ConfigError
from edge_runtime.tree import Layout


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cnn", 1_663_370),
        ("cnn-large", 9_639_306),
        ("cnn-wide", 1_199_882),
        ("lenet", 61_706),
        ("linear", 7_850),
        ("mlp", 25_450),
        ("watch-cnn", 33_767),
        ("watch-cnn-small", 3_607),
        ("watch-mlp", 38_919),
    ],
)
def test_built_in_models_have_exactly_so_many_parameters(name: str, size: int) -> None:
    assert models.find(name).layout.size == size
    assert name in models.names()


def test_layers_are_named_by_kind_and_place() -> None:
    assert models.find("cnn").layout.names == (
        *("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"),
        *("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"),
    )
    assert models.find("cnn").layout.shapes[2] == (64, 32, 5, 5)


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'watchcnn' is unknown; did you mean 'watch-cnn'\?"):
        models.find("watchcnn")


def test_initial_values_are_the_same_bits_for_the_same_seed_only() -> None:
    spec = models.find("lenet")

    first, again, other = models.initial(spec, 3), models.initial(spec, 3), models.initial(spec, 4)

    assert first.tobytes() == again.tobytes()
    assert first.dtype == np.float32
    assert np.mean(first == other) < 0.01


def test_initial_weights_and_biases_fill_the_interval_of_the_fan_in_and_norms_begin_as_the_identity() -> None:
    spec = models.find("watch-cnn")

    tree = spec.layout.views(models.initial(spec, 0))

    bound = 1 / np.sqrt(32 * 5)
    weight = tree["conv2.weight"]
    assert 0.99 * bound < np.abs(weight).max() <= np.float32(bound)
    # A uniform distribution's deviation is bound / sqrt(3); 10,240 draws stray from it by about 0.5 %.
    assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert 0 < np.abs(tree["conv2.bias"]).max() <= np.float32(bound)
    assert (tree["groupnorm1.weight"] == 1).all()
    assert (tree["groupnorm1.bias"] == 0).all()


def test_initial_parameters_survive_a_file(tmp_path) -> None:
    layout = Layout(("a", "file"), ((2, 3), (1,)))
    flat = np.arange(7, dtype=np.float32)

    models.write_initial(tmp_path / "model.npz", layout, flat)
    read_layout, read_flat = models.read_initial(tmp_path / "model.npz")

    assert read_layout == layout
    assert read_layout.digest() == layout.digest()
    assert read_flat.tobytes() == flat.tobytes()


@pytest.mark.parametrize("flat", [np.zeros(2, np.float32), np.zeros(3), np.array([1, np.nan, 1], np.float32)])
def test_a_file_with_unfit_initial_values_is_refused(tmp_path, flat) -> None:
    models.write_initial(tmp_path / "model.npz", Layout(("a",), ((3,),)), flat)

    with pytest.raises(ConfigError, match=r"model\.npz: its values are not 3 finite float32"):
        models.read_initial(tmp_path / "model.npz")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_a_damaged_or_missing_file_of_initial_values_is_refused(tmp_path, damage) -> None:
    if damage is not None:
        (tmp_path / "model.npz").write_bytes(damage)

    with pytest.raises(ConfigError, match=r"model\.npz: not a file of initial parameters"):
        models.read_initial(tmp_path / "model.npz")


def test_of_a_sparse_model_only_what_is_held_is_drawn_and_has_the_same_values() -> None:
    spec = models.find("cnn")
    held = np.random.default_rng(0).random(spec.layout.size) < 0.1
    assert np.array_equal(models.initial(spec, 3, held), models.initial(spec, 3)[held])


def test_the_initial_parameters_stay_as_they_are() -> None:
    flat = models.initial(models.find("cnn"), 3)
    assert hashlib.sha256(flat.astype("<f4").tobytes()).hexdigest()[:16] == "07ddc51eec9dae08"
    bound = 1 / 5  # of 25 inputs
    assert np.abs(flat[:800]).max() < bound
    assert abs(flat[:800].mean()) < bound / 10
