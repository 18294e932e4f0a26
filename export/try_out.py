"""Runs ONNX files as a device does that has numpy and stock onnxruntime, and nothing of ours: a program of its own.

    python -P try_out.py FOLDER FILE.onnx ...

Answers with a line of JSON, for each file: how long it took to load, and the median of single samples (the files take
turns, there and back, so that a busy machine is to the loss of all); and the version of onnxruntime. The outputs for
the inputs in FOLDER/x.npy are written to FOLDER/0.npy for the first file, and so on.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_LOADS = 3
_BATCH = 64
_ROUNDS, _WARM_UP = 200, 10
_MOST_S = 5.0
"""After that long no more rounds begin."""


def load(data: bytes) -> tuple[Any, float]:
    """Load a file; gives the session, and how long it took in seconds."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what goes wrong is raised as well
    started_s = time.perf_counter()
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    return session, time.perf_counter() - started_s


def seconds(session: Any, x: Any) -> float:
    """Say how long one run takes."""
    started_s = time.perf_counter()
    session.run(["outputs"], {"x": x})
    return time.perf_counter() - started_s


def main(folder: Path, files: list[Path]) -> None:
    """Run the program."""
    x = np.load(folder / "x.npy", allow_pickle=False)
    contents = [file.read_bytes() for file in files]
    load(contents[0])  # the first of a process also loads the libraries
    loaded = [[load(data) for data in contents] for _ in range(_LOADS)]
    sessions = [session for session, _ in loaded[-1]]
    for number, session in enumerate(sessions):
        batches = [x[start : start + _BATCH] for start in range(0, len(x), _BATCH)]
        np.save(folder / f"{number}.npy", np.concatenate([session.run(["outputs"], {"x": one})[0] for one in batches]))
    taken: list[list[float]] = []
    started_s = time.perf_counter()
    while len(taken) < _WARM_UP + 1 or (len(taken) < _ROUNDS and time.perf_counter() - started_s < _MOST_S):
        way = -1 if len(taken) % 2 else 1
        taken.append([seconds(session, x[:1]) for session in sessions[::way]][::way])
    record = {
        "load_ms": [1e3 * min(times) for times in zip(*([s for _, s in row] for row in loaded), strict=True)],
        "latency_ms": [1e3 * statistics.median(times) for times in zip(*taken[_WARM_UP:], strict=True)],
        "onnxruntime": onnxruntime.__version__,
    }
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
