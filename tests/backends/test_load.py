import importlib.util
import subprocess
import sys

import pytest

from edge_runtime import backends
from edge_runtime.backends.numpy import NumpyOracle
from edge_runtime.errors import ConfigError, DeviceError


def test_auto_takes_numpy_for_a_built_in_model() -> None:
    assert isinstance(backends.load("auto", "watch-cnn").oracle, NumpyOracle)


def test_an_unknown_backend_model_or_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tensorflow' is unknown"):
        backends.load("tensorflow", "cnn")
    with pytest.raises(ConfigError, match="did you mean 'lenet'"):
        backends.load("numpy", "lenett")
    with pytest.raises(DeviceError, match="only on the CPU"):
        backends.load("numpy", "cnn", "cuda")
    with pytest.raises(ConfigError, match="only built-in models"):
        backends.load("numpy", "package.module:factory")


def test_without_torch_the_command_that_installs_it_is_named(monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))

    with pytest.raises(DeviceError, match="pip install"):
        backends.load("auto", "package.module:factory")


def test_the_numpy_backend_does_not_load_torch() -> None:
    program = (
        "import sys; from edge_runtime import backends; backends.load('auto', 'cnn'); print('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
