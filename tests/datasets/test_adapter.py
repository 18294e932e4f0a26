import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import config, data
from edge_runtime.data import DataConfig
from edge_runtime.errors import ConfigError

GOOD = """
import numpy as np

class Sensor:
    class_names = ["off", "on"]

    def __init__(self, source):
        self.source = source

    def devices(self):
        return ["left", "right"]

    def read(self, part):
        x = np.full((4, 3), part, np.float64)
        return x, [0, 1, 0, 1], x[:2], np.array([1, 1], np.uint8)
"""
NAME = "adapter_of_a_test:Sensor"


@pytest.fixture
def sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a class: sensor(what is there, what is to be instead)."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(old: str = "", new: str = "") -> None:
        assert old in GOOD
        (tmp_path / "adapter_of_a_test.py").write_text(GOOD.replace(old, new) if old else GOOD)

    yield write
    sys.modules.pop("adapter_of_a_test", None)


def load(**settings: Any) -> data.Split:
    return data.load(DataConfig(NAME, **settings), Path("/nowhere"))


def test_a_class_of_ones_own_reads_what_a_device_has(sensor: Any) -> None:
    sensor()
    split = load(part=1)
    assert data.device_names(DataConfig(NAME)) == ["left", "right"]
    assert (split.x_train.dtype, split.x_train.tolist()) == (np.float32, [[1, 1, 1]] * 4)
    assert (split.y_train.dtype, split.y_train.tolist()) == (np.int64, [0, 1, 0, 1])
    assert (split.y_test.dtype, split.y_test.tolist()) == (np.int64, [1, 1])
    assert (split.classes, split.class_names) == (2, ("off", "on"))


def test_few_labels_are_kept_of_it_as_of_any_data(sensor: Any) -> None:
    sensor()
    assert load(labels_per_class=1).y_train.tolist() == [0, 1]


def test_the_source_is_what_was_said(sensor: Any) -> None:
    sensor('["left", "right"]', "[self.source]")
    assert data.device_names(DataConfig(NAME, source="here")) == ["here"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("class Sensor", "class Censor", r"has no 'Sensor'; mend the name"),
        ("import numpy as np", "import no_such_thing", r"No module named 'no_such_thing'; install it here"),
        ("def read", "def reed", r"lacks the method read"),
        ("def devices", "def names", r"lacks the method devices"),
        ("self.source = source", "1 / 0", r"\('here'\) failed: ZeroDivisionError: division by zero; mend that class"),
        ('return ["left", "right"]', "return []", r"devices\(\) must give one or more different texts"),
        ('return ["left", "right"]', "return [1, 2]", r"devices\(\) must give one or more different texts"),
        ('return ["left", "right"]', 'return ["left", "left"]', r"different texts"),
        ('return ["left", "right"]', 'return ["le/ft"]', r"'le/ft' is not 1 to 64 letters"),
        ('return ["left", "right"]', 'return ["left"]', r"has data of 1 device\(s\), so there is no part 1"),
        ('["off", "on"]', '["off", "off"]', r"class_names must be different texts"),
        ('["off", "on"]', '"off"', r"class_names must be different texts"),
        ('["off", "on"]', '["off"]', r"read\(1\), train: y holds the label 1, and class_names name 0 to 0"),
        ("x = np.full", "raise OSError('no such\\ndisk') #", r"read\(1\) failed: OSError: no such disk"),
        ("return x, [0", "return [0", r"must give x_train, y_train, x_test, y_test"),
        ("[0, 1, 0, 1], x", "[0, 1], x", r"train: y has 2 labels for the 4 samples in x"),
        ("[0, 1, 0, 1], x", "[0, 1, 0, -1], x", r"y holds the label -1"),
        ("[0, 1, 0, 1], x", "[.5] * 4, x", r"y must be whole numbers"),
        ("(4, 3), part", "(4, 3), np.nan", r"x holds a NaN or infinity in sample 0"),
        ("(4, 3), part", "(4,), part", r"x must be numbers \[samples, \.\.\.\]"),
        ("x[:2], np", "x[:2, :2], np", r"samples have shapes \(3,\) to train and \(2,\) to test; make them alike"),
        ("x[:2], np", "x[:0], np", r"test: x must be numbers"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(old: str, new: str, words: str, sensor: Any) -> None:
    sensor(old, new)
    with pytest.raises(ConfigError, match=words) as caught:
        load(part=1, source="here")
    assert "\n" not in str(caught.value)
    assert "adapter_of_a_test" in str(caught.value) or "le/ft" in str(caught.value)


def test_a_source_without_a_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"source goes with a class of your own, package\.module:Class, not 'watch'"):
        DataConfig(source="x")


def test_a_folder_with_a_colon_in_its_name_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    for name in ("train", "test"):
        np.savez(folder / f"{name}.npz", x=np.zeros((2, 3), np.float32), y=np.array([0, 1]))
    assert data.load(DataConfig(str(folder)), config.cache_folder()).classes == 2
