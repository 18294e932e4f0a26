"""A narrower model computes what the whole one does without the channels that are gone."""

import numpy as np
import pytest

from edge_runtime import models, narrow
from edge_runtime.backends import numpy as backend
from edge_runtime.compression import submodel
from edge_runtime.errors import DecodeError
from edge_runtime.models import Conv, Flatten, GroupNorm, Linear, MaxPool, ModelSpec, Relu

SMALL = ModelSpec(
    "small",
    (
        *(Conv(2, 4, (3, 3), padding=1), GroupNorm(2, 4), Relu(), MaxPool(2)),
        *(Conv(4, 6, (3, 3), padding=1), Relu(), Flatten()),
        *(Linear(96, 8), Relu(), Linear(8, 3)),
    ),
    (2, 8, 8),
    3,
)
SPECS = [SMALL, *(models.find(name) for name in ("watch-cnn", "watch-cnn-small", "watch-mlp", "lenet", "mlp"))]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("how", ["first", "drawn"])
def test_a_part_computes_what_the_whole_does_where_all_else_is_zero(spec: ModelSpec, how: str) -> None:
    rng = np.random.default_rng(0)
    structure, size = narrow.structure(spec), spec.layout.size
    first = submodel.nested(structure, 0.5)
    cut = first if how == "first" else submodel.chosen(structure, 0.4, rng.random(size))
    part = narrow.narrow(spec, cut)
    flat = rng.normal(0, 0.3, size).astype(np.float32)
    x = rng.normal(size=(5, *spec.input_shape)).astype(np.float32)
    whole, _ = backend.from_spec(spec).oracle.vjp(spec.layout.views(flat * cut.bits), x)
    model = backend.from_spec(part)
    found, _ = model.oracle.vjp(model.layout.views(flat[cut.bits]), x)
    assert model.layout == narrow.layout(spec.layout, cut)
    assert model.layout.size < size
    assert np.allclose(found, whole, atol=1e-4)


@pytest.mark.parametrize("name", models.names())
def test_the_whole_of_a_model_is_that_model(name: str) -> None:
    spec = models.find(name)
    assert narrow.narrow(spec, submodel.nested(narrow.structure(spec), 1.0)) == spec


def test_normalisation_groups_stay_whole() -> None:
    spec = models.find("watch-cnn")
    part = narrow.narrow(spec, submodel.nested(narrow.structure(spec), 0.25))
    norms = [layer for layer in part.layers if isinstance(layer, GroupNorm)]
    assert [(norm.groups, norm.channels) for norm in norms] == [(2, 8), (2, 16), (2, 16)]


def test_a_device_finds_the_part_that_the_coordinator_cut() -> None:
    spec = models.find("cnn")
    cut = submodel.nested(narrow.structure(spec), 0.5)
    assert narrow.find("cnn", submodel.encode(cut)).layout.size == 417_482
    with pytest.raises(DecodeError, match="cut out of another model"):
        narrow.find("lenet", submodel.encode(cut))
