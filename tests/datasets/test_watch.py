import importlib.util

import numpy as np
import pytest

from edge_runtime.datasets import watch
from edge_runtime.errors import ConfigError


def _clock(length: int) -> np.ndarray:
    """Make a recording whose first channel is the time, and whose second stands still."""
    return np.stack([np.arange(length), np.full(length, 3.0)], 1)


def test_windows_are_all_whole_ones_fifty_samples_apart() -> None:
    cut = watch.windows(_clock(249).astype(np.float32))

    assert cut.shape == (3, 2, 100)  # the fourth would need 250 samples
    assert cut[:, 0, 0].tolist() == [0, 50, 100]
    assert cut[1, 0].tolist() == list(range(50, 150))


def test_a_stretch_shorter_than_a_window_gives_none() -> None:
    assert watch.windows(_clock(99).astype(np.float32)).shape == (0, 2, 100)


@pytest.mark.parametrize("length", [947, 1000, 2618])
def test_between_the_last_training_sample_and_the_first_test_sample_lies_the_gap(length: int) -> None:
    x_train, _, x_test, _ = watch.device([_clock(length)], [4])

    seen = _clock(length)[: int(0.7 * length), 0]
    trained, tested = (x[:, 0] * seen.std() + seen.mean() for x in (x_train, x_test))  # times again
    assert round(float(tested.min() - trained.max())) > watch.GAP
    assert tested.max() < length


def test_statistics_come_from_the_training_stretch_only() -> None:
    recording = np.random.default_rng(0).normal(2.0, 3.0, (1000, 6))
    disturbed = recording.copy()
    disturbed[700:] = 1e6

    clean, dirty = watch.device([recording], [0]), watch.device([disturbed], [0])

    assert np.array_equal(clean[0], dirty[0])
    # 12 windows cover 650 of the 700 samples that the statistics are of, so theirs are a little off 0 and 1.
    assert np.abs(clean[0].mean((0, 2))).max() < 0.05
    assert np.abs(clean[0].std((0, 2)) - 1).max() < 0.05


def test_a_channel_that_stands_still_becomes_zero() -> None:
    assert (watch.device([_clock(1000)], [0])[0][:, 1] == 0).all()


def test_each_window_has_the_label_of_its_recording() -> None:
    recordings = [np.random.default_rng(i).normal(size=(length, 6)) for i, length in enumerate((947, 2000))]

    x_train, y_train, x_test, y_test = watch.device(recordings, [5, 2])

    assert len(x_train) == len(y_train)
    assert len(x_test) == len(y_test)
    assert y_train.tolist() == [5] * 12 + [2] * 27
    assert set(y_test.tolist()) == {5, 2}


def test_the_twenty_devices_are_named_by_person_and_side() -> None:
    assert watch.names()[:3] == ["person-01-left", "person-01-right", "person-02-left"]
    assert len(set(watch.names())) == 20


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install --no-deps seglearn==1\.2\.5"):
        watch.find()


def test_a_file_that_is_not_the_one_we_know_is_not_unpickled(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.save(tmp_path / "watch_dataset.npy", np.array(Bomb(), dtype=object), allow_pickle=True)

    with pytest.raises(ConfigError, match=r"not the file of seglearn"):
        watch.parts(tmp_path / "watch_dataset.npy")
    assert not (tmp_path / "exploded").exists()
