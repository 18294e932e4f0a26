import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime import backends, bundle, models, narrow
from edge_runtime.backends import ort_training
from edge_runtime.backends.numpy import NumpyOracle
from edge_runtime.backends.onnx import OnnxOracle
from edge_runtime.compression import submodel
from edge_runtime.compute import Compute
from edge_runtime.errors import ConfigError, DeviceError


@pytest.fixture
def without(monkeypatch):
    """Pretend that a package is not installed."""
    find = importlib.util.find_spec

    def pretend(missing: str) -> None:
        hide = lambda name, *rest: None if name == missing else find(name, *rest)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", hide)

    return pretend


def test_auto_takes_onnx_and_without_it_numpy_for_a_built_in_model(without) -> None:
    assert isinstance(backends.load(Compute(), "watch-cnn").oracle, OnnxOracle)
    without("onnxruntime")
    assert isinstance(backends.load(Compute(), "watch-cnn").oracle, NumpyOracle)


def test_a_part_of_a_built_in_model_needs_no_onnxruntime_although_its_graphs_came_along(without) -> None:
    spec = models.find("watch-cnn")
    cut = submodel.encode(submodel.nested(narrow.structure(spec), 0.5))
    without("onnxruntime")
    model = backends.load(Compute(), "watch-cnn", bundle.built_in("watch-cnn"), cut)
    assert isinstance(model.oracle, NumpyOracle)
    assert model.layout == narrow.find("watch-cnn", cut).layout != spec.layout


def test_an_unknown_backend_model_or_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tensorflow' is unknown"):
        backends.load(Compute("tensorflow"), "cnn")
    with pytest.raises(ConfigError, match="did you mean 'lenet'"):
        backends.load(Compute("numpy"), "lenett")
    with pytest.raises(DeviceError, match="only on the CPU"):
        backends.load(Compute("numpy", "cuda"), "cnn")
    with pytest.raises(ConfigError, match="numpy cannot compute"):
        backends.load(Compute("numpy"), "package.module:factory")


@pytest.mark.parametrize(("package", "model"), [("torch", "package.module:factory"), ("onnxruntime", "cnn")])
def test_without_a_package_the_command_that_installs_it_is_named(without, package: str, model: str) -> None:
    without(package)
    with pytest.raises(DeviceError, match="pip install 'edge-runtime"):
        backends.load(Compute("torch" if package == "torch" else "onnx"), model)


@pytest.mark.parametrize("backend", ["onnx", "numpy"])
def test_only_the_torch_backend_loads_torch(backend: str) -> None:
    program = f"""
import sys
import numpy as np
from edge_runtime import backends
from edge_runtime.compression import submodel
from edge_runtime.compute import Compute
model = backends.load(Compute("{backend}"), "linear")
params = model.layout.views(np.zeros(model.layout.size, np.float32))
outputs, pullback = model.oracle.vjp(params, np.zeros((2, 1, 28, 28)))
pullback(outputs)
print({{"torch", "onnx"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_training_by_a_stock_onnxruntime_is_refused_with_the_command_that_installs_the_other(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot train; in an environment of its own"):
        ort_training.from_bundle(bundle.built_in("linear"), tmp_path)
