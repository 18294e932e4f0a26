import numpy as np
import pytest

from edge_runtime import backends, losses, models, sgd
from edge_runtime.algorithm import Batch
from edge_runtime.compute import Compute
from edge_runtime.errors import ConfigError, DeviceError

torch = pytest.importorskip("torch")

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.out = torch.nn.Linear(4, 2)
        self.unused = torch.nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.out(self.drop(self.norm(self.dense(x))))

made = []
def net():
    made.append(Net())
    return made[-1]

def words():
    return torch.nn.Sequential(torch.nn.EmbeddingBag(5, 2))

def double():
    return torch.nn.Linear(2, 2).double()

def number():
    return 3

def broken():
    raise RuntimeError("no weights\\nhere")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Put a user's module on the path; gives its name."""
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def _params(model):
    flat = np.random.default_rng(0).normal(size=model.layout.size).astype(np.float32)
    return model.layout.views(flat)


def test_a_users_module_has_its_parameters_without_its_buffers(own) -> None:
    model = backends.load(Compute("auto"), f"{own}:net")

    assert model.layout.names == (
        *("dense.weight", "dense.bias", "norm.weight", "norm.bias", "out.weight", "out.bias", "unused.weight"),
    )


def test_gradients_of_a_users_module_are_those_of_plain_torch(own) -> None:
    model = backends.load(Compute("torch"), f"{own}:net")
    params = _params(model)
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)

    outputs, pullback = model.oracle.vjp(params, x)
    grads = pullback(np.ones((5, 2), np.float32))

    w = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    hidden = torch.from_numpy(x) @ w["dense.weight"].T + w["dense.bias"]
    centred = hidden - hidden.mean(0)
    normal = centred / torch.sqrt((centred**2).mean(0) + 1e-5) * w["norm.weight"] + w["norm.bias"]
    expected = normal @ w["out.weight"].T + w["out.bias"]
    expected.sum().backward()
    np.testing.assert_allclose(outputs, expected.detach().numpy(), rtol=1e-5, atol=1e-5)  # float32 sums of 5
    for name in ("norm.weight", "out.weight", "out.bias"):
        np.testing.assert_allclose(grads[name], w[name].grad.numpy(), rtol=1e-4, atol=1e-5)
    assert (grads["unused.weight"] == 0).all()


def test_nothing_in_a_users_module_changes_and_the_same_input_gives_the_same_bits(own) -> None:
    import importlib

    model = backends.load(Compute("torch"), f"{own}:net")
    module = importlib.import_module(own).made[-1]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    params, x = _params(model), np.ones((4, 3), np.float32) * np.arange(4, dtype=np.float32)[:, None]

    runs = []
    for _ in range(2):
        outputs, pullback = model.oracle.vjp(params, x)
        runs.append((outputs.tobytes(), model.layout.join(pullback(np.ones((4, 2), np.float32))).tobytes()))

    assert runs[0] == runs[1]
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_whole_numbers_reach_a_users_module_as_whole_numbers(own) -> None:
    model = backends.load(Compute("torch"), f"{own}:words")
    params = _params(model)

    outputs, _ = model.oracle.vjp(params, np.array([[1, 1], [4, 4]], np.int64))

    np.testing.assert_allclose(outputs, params["0.weight"][[1, 4]], rtol=1e-6)


def test_read_only_parameters_and_inputs_are_taken_without_a_warning() -> None:
    spec = models.find("linear")
    flat, x = models.initial(spec, 0), np.ones((2, 1, 28, 28), np.float32)
    flat.flags.writeable = x.flags.writeable = False

    outputs, pullback = backends.load(Compute("torch"), "linear").oracle.vjp(spec.layout.views(flat), x)

    assert pullback(np.ones_like(outputs))["linear1.bias"].tolist() == [2.0] * 10


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("double", r"float32 parameters, found torch\.float64"),
        ("number", "gives a int"),
        ("broken", "RuntimeError: no weights here"),
        ("absent", "AttributeError"),
    ],
)
def test_a_factory_that_makes_no_fit_module_is_refused(own, factory, message) -> None:
    with pytest.raises(ConfigError, match=message):
        backends.load(Compute("torch"), f"{own}:{factory}")


def test_a_module_that_cannot_be_imported_is_refused() -> None:
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        backends.load(Compute("torch"), "no_such_package.models:net")


def test_a_missing_cuda_device_is_said_and_an_unknown_device_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(DeviceError, match="no CUDA device"):
        backends.load(Compute("torch", "cuda"), "linear")
    with pytest.raises(ConfigError, match="'tpu' is unknown"):
        backends.load(Compute("torch", "tpu"), "linear")


def _gradient_in_double(model, x, batch):
    outputs, pullback = model.oracle.vjp(model.layout.views(x), batch.x)
    grads = pullback(losses.cross_entropy(outputs, batch.y)[1])
    return np.concatenate([grads[name].ravel() for name in model.layout.names])


@pytest.mark.parametrize("name", ["linear", "mlp", "lenet", "watch-cnn"])
def test_the_hessian_times_a_vector_is_the_change_of_the_gradient_along_it(name: str) -> None:
    spec, rng = models.find(name), np.random.default_rng(0)
    x = models.initial(spec, 0)
    v = rng.normal(0, 1, len(x)).astype(np.float32)
    batch = Batch(rng.normal(size=(5, *spec.input_shape)).astype(np.float32), rng.integers(0, spec.classes, 5))

    product = sgd.curvature(backends.load(Compute("torch"), name), x, batch, v)

    # In float64, so near that no ReLU and no maximum turns on the way.
    double, start, step = backends.load(Compute("numpy"), name), x.astype(np.float64), 1e-7 * v.astype(np.float64)
    ends = [_gradient_in_double(double, start + sign * step, batch) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / 2e-7
    assert np.linalg.norm(product - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_parameter_that_a_module_does_not_use_has_no_curvature(own) -> None:
    model = backends.load(Compute("torch"), f"{own}:net")
    batch = Batch(np.eye(4, 3, dtype=np.float32), np.array([0, 1, 0, 1]))
    v = np.where(np.arange(model.layout.size) == model.layout.size - 1, 1, 0).astype(np.float32)

    product = sgd.curvature(model, np.ones(model.layout.size, np.float32), batch, v)

    assert (product == 0).all()  # v is along the unused one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", models.names())
def test_cuda_gives_the_numbers_of_the_cpu(name: str) -> None:
    spec = models.find(name)
    params = spec.layout.views(models.initial(spec, 0))
    x = np.random.default_rng(1).normal(size=(9, *spec.input_shape)).astype(np.float32)

    runs = []
    for device in ("cpu", "cuda"):
        outputs, pullback = backends.load(Compute("torch", device), name).oracle.vjp(params, x)
        runs.append((outputs, spec.layout.join(pullback(np.ones_like(outputs)))))

    # float32 sums in another order; TF32 would be off by 1e-3
    for cpu, cuda in zip(*runs, strict=True):
        np.testing.assert_allclose(cuda, cpu, rtol=1e-4, atol=1e-4 * np.abs(cpu).max())
