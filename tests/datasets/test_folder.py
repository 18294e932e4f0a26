import numpy as np
import pytest

from edge_runtime.datasets import folder
from edge_runtime.errors import ConfigError

X, Y = np.ones((4, 3), np.float64), np.array([0, 1, 2, 1])


def _fill(path, train=None, test=None):
    path.mkdir(exist_ok=True)
    np.savez(path / "train.npz", **({"x": X, "y": Y} | (train or {})))
    np.savez(path / "test.npz", **({"x": X, "y": Y} | (test or {})))
    return path


def test_a_folder_is_one_device(tmp_path) -> None:
    x_train, y_train, x_test, _, classes = folder.read(_fill(tmp_path), 0)

    assert folder.names(tmp_path) == ["device-000"]
    assert (x_train.dtype, y_train.dtype, classes) == (np.float32, np.int64, 3)
    assert np.array_equal(x_test, X)


def test_sub_folders_are_devices_in_alphabetical_order(tmp_path) -> None:
    _fill(tmp_path / "pump-b", {"x": X * 2})
    _fill(tmp_path / "pump-a")
    (tmp_path / "notes").mkdir()

    assert folder.names(tmp_path) == ["pump-a", "pump-b"]
    assert folder.read(tmp_path, 1)[0].max() == 2
    with pytest.raises(ConfigError, match=r"data of 2 device\(s\), so there is no part 2"):
        folder.read(tmp_path, 2)


def test_whole_numbers_stay_whole(tmp_path) -> None:
    assert folder.read(_fill(tmp_path, {"x": X.astype(np.uint8)}), 0)[0].dtype == np.int64


def test_a_device_may_know_of_classes_that_it_has_not_seen(tmp_path) -> None:
    assert folder.read(_fill(tmp_path, {"classes": 7}, {"y": Y + 4}), 0)[4] == 7


BAD = [
    (
        {"x": np.where(np.arange(12).reshape(4, 3) == 7, np.nan, 1.0)},
        r"train\.npz: x holds a NaN or infinity in sample 2",
    ),
    ({"x": X * 1e300}, r"train\.npz: x holds a NaN or infinity in sample 0"),
    ({"x": np.ones(4)}, r"train\.npz: x must be numbers \[samples, \.\.\.\], found float64 \[4\]"),
    ({"x": X[:0], "y": Y[:0]}, r"train\.npz: x must be numbers"),
    ({"x": np.full((4, 3), "a")}, r"train\.npz: x must be numbers"),
    ({"x": np.full((4, 3), None)}, r"train\.npz: cannot be read .*pickle"),
    ({"x": X[:3]}, r"train\.npz: y has 4 labels for the 3 samples in x"),
    ({"y": Y[:, None]}, r"train\.npz: y must be whole numbers \[samples\], found int64 \[4, 1\]"),
    ({"y": Y * 0.5}, r"train\.npz: y must be whole numbers"),
    ({"y": Y - 1}, r"train\.npz: y holds the label -1, but labels go from 0 to 1"),
    ({"classes": 2}, r"train\.npz: y holds the label 2, but labels go from 0 to 1"),
    ({"classes": 2.5}, r"train\.npz: classes must be one whole number"),
]


@pytest.mark.parametrize(("train", "message"), BAD)
def test_wrong_values_are_refused_with_file_and_key(tmp_path, train, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        folder.read(_fill(tmp_path, train), 0)
    assert "\n" not in str(caught.value)


def test_test_data_must_fit_the_training_data(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"test\.npz: y holds the label 9, but labels go from 0 to 2; .*`classes`"):
        folder.read(_fill(tmp_path, test={"y": Y + 7}), 0)
    with pytest.raises(ConfigError, match=r"test\.npz: x has samples of shape \(2,\), but \(3,\) in train\.npz"):
        folder.read(_fill(tmp_path, test={"x": X[:, :2]}), 0)


def test_a_missing_key_file_or_all_data_is_said(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"holds no data; put train\.npz and test\.npz there"):
        folder.names(tmp_path)
    np.savez(tmp_path / "train.npz", x=X)
    with pytest.raises(ConfigError, match=r"train\.npz: lacks the key 'y'"):
        folder.read(tmp_path, 0)
    np.savez(tmp_path / "train.npz", x=X, y=Y)
    with pytest.raises(ConfigError, match=r"test\.npz: cannot be read .*No such file"):
        folder.read(tmp_path, 0)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a zip", b"\x93NUMPY"])
def test_a_file_that_is_not_npz_is_refused(tmp_path, damage) -> None:
    (_fill(tmp_path) / "train.npz").write_bytes(damage)

    with pytest.raises(ConfigError, match=r"train\.npz: cannot be read"):
        folder.read(tmp_path, 0)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "a", "b"], [1, 2, 3], "abc"], ids=str)
def test_class_names_that_do_not_fit_are_refused(tmp_path, names) -> None:
    with pytest.raises(ConfigError, match=r"train\.npz: class_names must be 3 different texts"):
        folder.class_names(_fill(tmp_path, {"class_names": names}), 0)


def test_a_seed_set_is_read_from_a_file(tmp_path) -> None:
    np.savez(tmp_path / "seed.npz", x=X, y=Y, class_names=["x", "y", "z"])

    seeds = folder.seed_set(tmp_path / "seed.npz")

    assert seeds.class_names == ("x", "y", "z")
    assert (seeds.x.dtype, seeds.y.tolist()) == (np.float32, [0, 1, 2, 1])
    np.savez(tmp_path / "seed.npz", x=X, y=Y, classes=2)
    with pytest.raises(ConfigError, match=r"seed\.npz: y holds a label that is not from 0 to 1"):
        folder.seed_set(tmp_path / "seed.npz")
