"""The training behind `bench wire`: one device goes through the client half of an algorithm, as in a run.

dense    FedAvg: the weights, and what the model says of the device's test images
sparse   FedSpa: 9 rounds of a run of 10. The last one's mask, its update on that mask, and the mask that it moves
to: 4.8 % of the active weights are dropped then (alpha_8 of `fedspa.py`), of which some grow again
codes    QuPeD without collaboration, since there is nobody to learn from, from the weights of `dense` on: codes and
centres of each layer
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses
from edge_runtime.algorithm import Fitted, Model, OwnModel, Server, State
from edge_runtime.algorithms import quped
from edge_runtime.coordinator.run import Run
from edge_runtime.data import SeededBatches, Split
from edge_runtime.mask import Mask
from edge_runtime.tree import Flat, Layout

Sample = dict[str, NDArray[Any]]

ROUNDS = {"dense": 1, "sparse": 9, "codes": 3}
"""How many rounds each training is cut into."""
_DEVICE = "device"
_BATCH = 500


def dense(run: Run, model: Model, split: Split) -> Sample:
    """Train all weights."""
    client = run.parts.Client(run.settings, model, None)
    client.round(_server(run).down(_DEVICE, first=True), _batches(split, 0))
    trained = client.personal(None)
    return {"weights": trained.values, **_measured(trained, split)}


def sparse(run: Run, model: Model, split: Split) -> Sample:
    """Train within a mask that moves."""
    server, state = _server(run), None
    for round_ in range(ROUNDS["sparse"]):
        client = run.parts.Client(run.settings, model, state)
        up = client.round(server.down(_DEVICE, first=state is None), _batches(split, round_))
        state = client.state()
        server.absorb(_DEVICE, up)
        server.close()
    trained = client.personal(None)
    moved = run.parts.Client(run.settings, model, state).personal(server.down(_DEVICE, first=False))
    bits = {name: _mask(fitted).bits() for name, fitted in (("mask", trained), ("next", moved))}
    return {**bits, "update": up.values, **_measured(trained, split), **_tensors(model.layout)}


def _mask(fitted: Fitted) -> Mask:
    if fitted.mask is None:
        raise TypeError("a sparse model has a mask")
    return fitted.mask


def codes(run: Run, model: Model, split: Split, weights: Flat) -> Sample:
    """Train weights [size] of a few values, from `weights` [size] on."""
    server = _server(run)
    state: State = {}
    own = OwnModel(model.layout, model.oracle, model, weights)
    for round_ in range(ROUNDS["codes"]):
        client = run.parts.Client(run.settings, own, state or None)
        client.round(server.down(_DEVICE, first=not state), _batches(split, round_))
        server.close()
        state = client.state()
    parts = quped.layers(model.layout, run.settings)
    centres = np.reshape(state["centres"], (len(parts.slices), -1))
    codes = np.concatenate(parts.codes(np.asarray(state["x"]), centres))
    kept = {model.layout.names[model.layout.slices.index(where)] for where in parts.slices}
    return {
        "codes": codes,
        "centres": centres,
        **_measured(client.personal(None), split),
        **_tensors(model.layout.only(kept)),
    }


def _server(run: Run) -> Server:
    return run.parts.Server(run.settings, run.description.model.layout, run.initial, {}, run.config.seed)


def _batches(split: Split, round_: int) -> SeededBatches:
    return SeededBatches(split.x_train, split.y_train, [0, round_], split.class_names)


def _measured(fitted: Fitted, split: Split) -> Sample:
    """Give a model's outputs [samples, classes], and how many of them are right."""
    views, vjp = fitted.model.layout.views(fitted.values), fitted.model.oracle.vjp
    starts = range(0, len(split.y_test), _BATCH)
    outputs = np.concatenate([vjp(views, split.x_test[start : start + _BATCH])[0] for start in starts])
    return {"outputs": outputs, "accuracy": np.array(losses.accuracy(outputs, split.y_test))}


def _tensors(layout: Layout) -> Sample:
    """Write a layout as an array, so that it may stand beside the others."""
    return {"tensors": np.array(json.dumps(layout.shapes))}
