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
