"""One step of training by a backend, compared with numpy's: `python -m edge_runtime.selftest`.

Reads a table of `compute.Compute` as a line of JSON, and answers with one: `{"difference", "step_ms"}`, or
`{"error"}`. The difference is the largest of any parameter after a step, as a part of the largest change. A process of
its own, because a backend that is broken may take its process along.
"""

import json
import sys
import time
from typing import Any

import numpy as np

from edge_runtime import backends, models, sgd
from edge_runtime.compute import Compute
from edge_runtime.config import build
from edge_runtime.data import SeededBatches
from edge_runtime.errors import EdgeError
from edge_runtime.tree import Flat

_MODEL = "watch-cnn-small"
_BATCH = 8
_STEP = sgd.Sgd(lr=0.1, weight_decay=0.0, local_steps=1, batch_size=_BATCH)


def answer(line: str) -> dict[str, Any]:
    """Make the step that a line asks for; an error of ours becomes a record too."""
    try:
        compute = build(Compute, json.loads(line), "compute")
        start = models.initial(models.find(_MODEL), 0)
        expected, _ = _train(Compute("numpy"), start)
        found, step_ms = _train(compute, start)
    except EdgeError as error:
        return {"error": str(error)}
    return {"difference": float(np.abs(found - expected).max() / np.abs(expected - start).max()), "step_ms": step_ms}


def _train(compute: Compute, start: Flat) -> tuple[Flat, float]:
    """Make the step twice, and say how long the second took: the first may put off part of loading to itself."""
    model, took_ms = backends.load(compute, _MODEL), 0.0
    spec, trained = models.find(_MODEL), start
    for _ in range(2):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(_BATCH, *spec.input_shape)).astype(np.float32)
        batches = SeededBatches(x, rng.integers(0, spec.classes, _BATCH), 0)
        started_s = time.perf_counter()
        trained = sgd.descend(model, start, batches, _STEP, 0)
        took_ms = 1000 * (time.perf_counter() - started_s)
    return trained, took_ms


def main() -> None:
    """Answer one line on stdin with one on stdout."""
    sys.stdout.write(json.dumps(answer(sys.stdin.readline())) + "\n")


if __name__ == "__main__":
    main()
