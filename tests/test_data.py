import dataclasses
import multiprocessing
import time

import numpy as np
import pytest

from edge_runtime import data
from edge_runtime.data import DataConfig, SeededBatches
from edge_runtime.datasets import fashion_mnist, watch
from edge_runtime.errors import ConfigError, DeviceError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_fashion(monkeypatch):
    """Stand in for the IDX files: 400 training and 200 test images whose first pixel is their label."""
    labels = np.tile(np.arange(10, dtype=np.uint8), 40)
    images = np.zeros((400, 28, 28), np.uint8)
    images[:, 0, 0] = labels
    monkeypatch.setattr(fashion_mnist, "read", lambda folder: [images, labels, images[:200], labels[:200]])


def _watch_installed() -> bool:
    try:
        return watch.find().is_file()
    except ConfigError:
        return False


needs_watch = pytest.mark.skipif(not _watch_installed(), reason="seglearn is not installed")


@needs_watch
def test_watch_gives_twenty_different_devices_with_all_seven_exercises(cache) -> None:
    splits = [data.load(DataConfig(part=part), cache) for part in range(20)]

    assert len(data.device_names(DataConfig())) == 20
    assert len({split.x_train.tobytes() for split in splits}) == 20
    for split in splits:
        assert split.classes == 7
        assert split.x_train.shape[1:] == split.x_test.shape[1:] == (6, 100)
        assert split.x_train.dtype == np.float32
        assert (np.bincount(split.y_train, minlength=7) >= 10).all()
        assert (np.bincount(split.y_test, minlength=7) >= 1).all()
        assert np.isfinite(split.x_train).all()


@needs_watch
def test_labels_per_class_keeps_the_first_training_windows_and_the_whole_test_set(cache) -> None:
    whole, few = data.load(DataConfig(part=3), cache), data.load(DataConfig(part=3, labels_per_class=5), cache)

    assert np.bincount(few.y_train).tolist() == [5] * 7
    for label in range(7):
        assert np.array_equal(few.x_train[few.y_train == label], whole.x_train[whole.y_train == label][:5])
    assert np.array_equal(few.x_test, whole.x_test)


@needs_watch
def test_a_cached_part_is_read_without_the_data_set_and_within_an_instant(cache, monkeypatch) -> None:
    first = data.load(DataConfig(part=2), cache)
    monkeypatch.setattr(watch, "find", lambda: pytest.fail("read again"))

    started_s = time.perf_counter()
    again = data.load(DataConfig(part=2), cache)

    assert time.perf_counter() - started_s < 0.15  # measured: 1 ms
    assert all(np.array_equal(getattr(first, f.name), getattr(again, f.name)) for f in dataclasses.fields(first))


def test_fashion_mnist_parts_are_scaled_and_differ_by_seed_and_partition(tiny_fashion, tmp_path) -> None:
    config = DataConfig("fashion-mnist", part=1, parts=4)
    split = data.load(config, tmp_path)
    by_classes = data.load(dataclasses.replace(config, partition="classes", classes_per_device=2), tmp_path)
    other = data.load(dataclasses.replace(config, seed=1), tmp_path)

    assert split.x_train.shape == (100, 1, 28, 28)
    assert split.x_train.dtype == np.float32
    expected = (split.y_train / 255 - fashion_mnist.MEAN) / fashion_mnist.DEVIATION
    np.testing.assert_allclose(split.x_train[:, 0, 0, 0], expected, rtol=1e-5)  # float32
    assert len(np.unique(by_classes.y_train)) == len(np.unique(by_classes.y_test)) == 2
    assert split.y_train.tolist() != other.y_train.tolist()


def test_the_cached_part_is_the_part_as_made(tiny_fashion, tmp_path) -> None:
    config = DataConfig("fashion-mnist", part=2, parts=4)

    made, cached = data.load(config, tmp_path), data.load(config, tmp_path)
    anew = data.load(config, tmp_path / "other")

    for split in (cached, anew):
        for field in ("x_train", "y_train", "x_test", "y_test"):
            assert getattr(split, field).tobytes() == getattr(made, field).tobytes()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a zip"])
def test_a_damaged_cache_is_made_anew(tiny_fashion, tmp_path, damage) -> None:
    config = DataConfig("fashion-mnist", parts=4)
    good = data.load(config, tmp_path)
    (file,) = tmp_path.glob("*/00000.npz")
    file.write_bytes(damage)

    assert np.array_equal(data.load(config, tmp_path).x_train, good.x_train)
    assert file.stat().st_size > 1000


def _load_slowly(tmp_path, calls) -> None:
    def make() -> list[data.Arrays]:
        with calls.get_lock():
            calls.value += 1
        time.sleep(0.2)
        return [(np.zeros(1), np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64))]

    data._cached(tmp_path, {"name": "slow"}, 0, make)


def test_processes_that_start_together_make_the_cache_once(tmp_path) -> None:
    fork = multiprocessing.get_context("fork")
    calls = fork.Value("i", 0)
    children = [fork.Process(target=_load_slowly, args=(tmp_path, calls)) for _ in range(4)]

    for child in children:
        child.start()
    for child in children:
        child.join(20)

    assert calls.value == 1
    assert [child.exitcode for child in children] == [0] * 4


def test_a_cache_that_cannot_be_made_is_said(tiny_fashion, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(DeviceError, match="the data cache cannot be written"):
        data.load(DataConfig("fashion-mnist", parts=4), tmp_path / "file")


def test_a_folder_of_ones_own_is_loaded(tmp_path) -> None:
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((6, 2)), y=[0, 1, 0, 1, 0, 1])

    split = data.load(DataConfig(str(tmp_path), labels_per_class=1), tmp_path / "cache")

    assert data.device_names(DataConfig(str(tmp_path))) == ["device-000"]
    assert sorted(split.y_train.tolist()) == [0, 1]
    assert (len(split.y_test), split.classes) == (6, 2)


def test_an_unknown_data_set_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'fashion_mnist' is neither .*; did you mean 'fashion-mnist'\?"):
        data.device_names(DataConfig("fashion_mnist"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"part": 20}, "part must be from 0 to 19"),
        ({"part": -1, "name": "x"}, "part must be"),
        ({"parts": 21}, "watch has data of 20 devices"),
        ({"parts": 0}, "parts must be from 1"),
        ({"labels_per_class": -1}, "labels-per-class"),
        ({"partition": "iid"}, "partition must be one of dirichlet, classes, rotations, not 'iid'"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"classes_per_device": 11}, "classes-per-device"),
        ({"seed": -1}, "seed must be"),
        ({"domains": 0}, "domains and test-samples must be 1 or more"),
        ({"degrees": float("nan")}, "degrees must be from -360 to 360"),
        ({"test": "some"}, "test must be one of own, all, not 'some'"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(wrong, message) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**wrong)


def test_device_names_are_those_of_the_parts() -> None:
    assert data.device_names(DataConfig(parts=2)) == ["person-01-left", "person-01-right"]
    assert data.device_names(DataConfig("fashion-mnist", parts=3)) == ["device-000", "device-001", "device-002"]


def _batches(seed) -> SeededBatches:
    return SeededBatches(np.arange(10)[:, None], np.arange(10) * 2, seed)


def test_an_epoch_goes_once_through_all_samples_in_an_order_of_its_own() -> None:
    batches = _batches([1, 2])

    first, second = list(batches.epoch(4)), list(batches.epoch(4))

    assert len(batches) == 10
    assert [len(batch.y) for batch in first] == [4, 4, 2]
    orders = [np.concatenate([batch.y for batch in epoch]).tolist() for epoch in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(0, 20, 2))
    assert orders[0] != orders[1]
    assert all((batch.x[:, 0] * 2 == batch.y).all() for batch in first)


def test_a_sample_holds_different_samples_and_at_most_all() -> None:
    assert len(set(_batches(0).sample(7).y.tolist())) == 7
    assert sorted(_batches(0).sample(64).y.tolist()) == list(range(0, 20, 2))


def test_a_repeated_round_is_the_same_round() -> None:
    rounds = []
    for seed in ([5, 1], [5, 1], [5, 2]):
        batches = _batches(seed)
        drawn = [batch.y.tolist() for batch in batches.epoch(3)], batches.sample(4).y.tolist(), batches.rng.random()
        rounds.append(drawn)

    assert rounds[0] == rounds[1] != rounds[2]


def test_rotations_are_dealt_and_tested_as_asked(tiny_fashion, tmp_path) -> None:
    config = DataConfig("fashion-mnist", part=1, parts=4, partition="rotations", domains=2, samples=50, test_samples=7)

    own, every = data.load(config, tmp_path), data.load(dataclasses.replace(config, test="all"), tmp_path)

    assert own.x_train.shape == (50, 1, 28, 28)
    assert (len(own.y_test), len(every.y_test)) == (7, 14)
    assert np.array_equal(own.x_train, every.x_train)
    assert np.array_equal(own.x_test, every.x_test[7:])


def test_every_data_set_names_its_classes(tiny_fashion, tmp_path) -> None:
    named, plain = tmp_path / "named", tmp_path / "plain"
    for folder, more in ((named, {"class_names": ["cat", "dog"]}), (plain, {})):
        folder.mkdir()
        for name in ("train", "test"):
            np.savez(folder / f"{name}.npz", x=np.ones((4, 2)), y=[0, 1, 0, 1], **more)

    assert data.load(DataConfig(str(named)), tmp_path).class_names == ("cat", "dog")
    assert data.load(DataConfig(str(plain)), tmp_path).class_names == ("0", "1")
    assert data.load(DataConfig("fashion-mnist", parts=4), tmp_path).class_names[3] == "Dress"
    assert len(watch.CLASS_NAMES) == watch.CLASSES == 7


@needs_watch
def test_the_exercises_are_called_as_in_the_recordings() -> None:
    record = np.load(watch.find(), allow_pickle=True).item()

    assert tuple(record["y_labels"]) == watch.CLASS_NAMES


def test_a_seed_set_has_equally_many_samples_of_every_part_and_of_every_class(tiny_fashion, tmp_path) -> None:
    config = DataConfig("fashion-mnist", parts=4, alpha=1e6)

    seeds = data.seed_set(config, 83, tmp_path)

    assert len(seeds.y) == 80
    assert np.bincount(seeds.y).tolist() == [8] * 10
    for part in range(4):
        split = data.load(dataclasses.replace(config, part=part), tmp_path)
        rows = {row.tobytes() for row in split.x_train}
        assert all(row.tobytes() in rows for row in seeds.x[20 * part : 20 * part + 20])
    assert seeds.identity == data.seed_set(dataclasses.replace(config, part=3), 83, tmp_path).identity
    with pytest.raises(ConfigError, match="less than one of each of 4 parts"):
        data.seed_set(config, 3, tmp_path)


def test_a_seed_set_of_devices_with_different_classes_is_refused(tmp_path) -> None:
    for device, names in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        (tmp_path / device).mkdir()
        for name in ("train", "test"):
            np.savez(tmp_path / device / f"{name}.npz", x=np.ones((4, 2)), y=[0, 1, 0, 1], class_names=names)

    with pytest.raises(ConfigError, match="have different classes"):
        data.seed_set(DataConfig(str(tmp_path)), 4, tmp_path / "cache")
