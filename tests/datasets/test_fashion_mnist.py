import functools
import gzip

import numpy as np
import pytest

from edge_runtime import partition
from edge_runtime.datasets import fashion_mnist
from edge_runtime.errors import ConfigError

IDX = b"\0\0\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))


def _write(path, data: bytes):
    path.write_bytes(gzip.compress(data))
    return path


def test_an_idx_file_is_read_in_its_shape(tmp_path) -> None:
    assert fashion_mnist.read_idx(_write(tmp_path / "a.gz", IDX)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("data", [b"", IDX[:-1], IDX + b"\0", b"\0\0\x0d" + IDX[3:], IDX[:3] + b"\xff" + IDX[4:]])
def test_a_file_that_is_not_idx_is_refused(tmp_path, data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"a\.gz: not an IDX file"):
        fashion_mnist.read_idx(_write(tmp_path / "a.gz", data))


def test_a_missing_data_set_or_a_damaged_file_says_what_to_do(tmp_path) -> None:
    with pytest.raises(ConfigError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist.read(tmp_path / "absent")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(IDX)[:-9])
    with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte\.gz: cannot be read .* install its package again"):
        fashion_mnist.read(tmp_path)


def test_a_device_is_tested_on_its_own_label_mix() -> None:
    rng = np.random.default_rng(0)
    labels, test_labels = rng.permutation(np.repeat(np.arange(10), 60)), np.repeat(np.arange(10), 40)
    raw = [rng.integers(0, 256, (600, 28, 28)), labels, rng.integers(0, 256, (400, 28, 28)), test_labels]
    raw = [array.astype(np.uint8) for array in raw]

    devices = fashion_mnist.parts(raw, functools.partial(partition.dirichlet, alpha=0.3), 10, 0)

    for x_train, y_train, x_test, y_test in devices:
        mix = np.bincount(y_train, minlength=10) / 60
        assert x_train.shape == (60, 28, 28)
        assert len(x_test) == len(y_test)
        assert np.bincount(y_test, minlength=10).tolist() == np.ceil((mix * 40).round(9)).tolist()


def test_images_are_scaled_to_mean_zero_and_deviation_one() -> None:
    if not fashion_mnist.FOLDER.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")

    images = fashion_mnist.scale(fashion_mnist.read(fashion_mnist.FOLDER)[0])

    assert images.shape == (60_000, 1, 28, 28)
    assert images.dtype == np.float32
    assert abs(float(images.mean(dtype=np.float64))) < 1e-3  # the constants have four digits
    assert abs(float(images.std(dtype=np.float64)) - 1) < 1e-3


def test_a_quarter_turn_is_exact_and_no_turn_changes_nothing() -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 28, 28)).astype(np.uint8)

    assert np.array_equal(fashion_mnist.rotate(images, 0), images)
    for quarters in (1, 2, 3):
        assert np.array_equal(fashion_mnist.rotate(images, 90 * quarters), np.rot90(images, quarters, (1, 2)))


def test_a_turned_disc_stays_and_a_turned_dot_moves_by_the_angle() -> None:
    rows, columns = np.mgrid[:28, :28] - 13.5
    disc = np.where(rows**2 + columns**2 < 100, 200, 0).astype(np.uint8)[None]
    dot = np.where((rows**2 + (columns - 8) ** 2) < 4, 200, 0).astype(np.uint8)[None]  # on the right

    inside = rows**2 + columns**2 < 64
    assert (fashion_mnist.rotate(disc, 33)[0][inside] == 200).all()
    turned = fashion_mnist.rotate(dot, 30)[0].astype(float)
    centre = (turned * rows).sum() / turned.sum(), (turned * columns).sum() / turned.sum()
    np.testing.assert_allclose(centre, (-8 * np.sin(np.pi / 6), 8 * np.cos(np.pi / 6)), atol=0.05)  # rounded to bytes


def test_beyond_the_edge_there_is_nothing() -> None:
    turned = fashion_mnist.rotate(np.full((1, 28, 28), 255, np.uint8), 45)[0]

    assert turned[0, 0] == turned[27, 27] == 0
    assert turned[14, 14] == 255


def _labelled(count: int) -> list[np.ndarray]:
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 14, 20] = 100 + labels
    images[:, 0, 0] = np.arange(count) % 256  # at the corner: lost by turning, a name of the sample where it is not
    return [images, labels]


def test_devices_of_rotations_share_angles_and_no_sample() -> None:
    raw = [*_labelled(240), *_labelled(100)]
    how = fashion_mnist.Rotations(domains=3, degrees=90.0, samples=30, test_samples=20, test_all=True)

    devices = fashion_mnist.rotated_parts(raw, how, 6, 0)

    assert [how.angle(domain) for domain in range(3)] == [0, 45, 90]
    upright = [device[0][:, 0, 0] for device in devices[::3]]
    assert len(np.unique(np.concatenate(upright))) == 60
    for part, (x_train, y_train, x_test, y_test) in enumerate(devices):
        assert (x_train.shape, x_test.shape) == ((30, 28, 28), (60, 28, 28))
        expected = np.zeros((30, 28, 28), np.uint8)
        expected[:, 14, 20] = 100 + y_train
        middle = slice(2, 26)
        turned = fashion_mnist.rotate(expected, how.angle(part % 3))
        assert np.array_equal(x_train[:, middle, middle], turned[:, middle, middle])
        assert np.array_equal(x_test, devices[0][2])
        assert np.array_equal(y_test[:20], y_test[20:40])


def test_a_device_can_be_tested_on_its_own_rotation() -> None:
    raw = [*_labelled(240), *_labelled(100)]
    own, every = (
        fashion_mnist.rotated_parts(raw, fashion_mnist.Rotations(3, 90.0, 30, 20, test_all), 6, 0)
        for test_all in (False, True)
    )
    for part in range(6):
        domain = part % 3
        assert np.array_equal(own[part][2], every[part][2][20 * domain : 20 * domain + 20])


@pytest.mark.parametrize("change", [{"samples": 41}, {"test_samples": 101}])
def test_more_rotated_samples_than_there_are_are_refused(change: dict[str, int]) -> None:
    how = fashion_mnist.Rotations(
        **{"domains": 3, "degrees": 90.0, "samples": 30, "test_samples": 20, "test_all": True} | change
    )

    with pytest.raises(ConfigError, match="40 training images a device and 100 for tests"):
        fashion_mnist.rotated_parts([*_labelled(240), *_labelled(100)], how, 6, 0)
