"""`edge-coordinator bench wire`: the bytes of every coding of what a run sends, and what coding it costs.

A row is plain values. Its bytes are compared with dense float32 (`dense_over_bytes`: how many times smaller it is) and
with the order-0 entropy (`bytes_over_entropy`), which a coder that looks at one symbol at a time cannot go below.
Times are medians; MB/s are of what was given, in its plain form (`plain_bytes`). Memory is what Python and numpy had at
their peak over what they had before, with the result but not what was given. C libraries' own buffers are not in it: it
is null for general compressors.
"""

import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from edge_runtime import __version__
from edge_runtime.coordinator import wire_codings, wire_material
from edge_runtime.coordinator.wire_material import Recipe
from edge_runtime.coordinator.wire_subjects import Coding, Subject
from edge_runtime.devices.profile import profile
from edge_runtime.errors import RunError

Record = dict[str, Any]
T = TypeVar("T")
_RUNS, _LONGEST_S = 5, 1.0


def measure(recipes: Sequence[Recipe], cache: Path, threads: int, tell: Callable[[str], None]) -> Record:
    """Code what the recipes give, and read it back.

    Raises:
        EdgeError: as `wire_material.samples`.
        RunError: a coding does not give back what it was given.
    """
    rows, trained = [], []
    for recipe, sample in wire_material.samples(recipes, cache, threads, tell):
        trained.append({**asdict(recipe), "accuracy": float(sample["accuracy"])})
        for subject in wire_codings.subjects(recipe, sample):
            tell(f"{subject.title} ...")
            rows += _rows(subject)
    return {"kind": "wire", "version": __version__, "profile": asdict(profile()), "trained": trained, "rows": rows}


def _rows(subject: Subject) -> list[Record]:
    bounds = {"dense float32": subject.dense_bytes, "order-0 entropy": subject.entropy_bytes}
    rows = [_row(subject, name, "bound", size) for name, size in bounds.items() if size is not None]
    rows += [_coded(subject, coding) for coding in subject.codings]
    general = min((row["bytes"] for row in rows if row["role"] == "general"), default=None)
    for row in rows:
        if row["role"] == "sent":
            row["within_general"] = None if general is None else row["bytes"] <= general
            row["bar_bytes"] = subject.bar_bytes
            row["within_bar"] = None if subject.bar_bytes is None else row["bytes"] <= subject.bar_bytes
    return rows


def _coded(subject: Subject, coding: Coding) -> Record:
    data, encode_s = _timed(coding.encode)
    back, decode_s = _timed(lambda: coding.decode(data))
    if not subject.same(back):
        raise RunError(f"{subject.title}: {coding.name} does not give back what it was given")
    seen = coding.role != "general"  # what the libraries of the others hold is for the most part not numpy's
    peaks = [_peak_bytes(coding.encode), _peak_bytes(lambda: coding.decode(data))] if seen else []
    return {
        **_row(subject, coding.name, coding.role, len(data)),
        "encode_ms": 1000 * encode_s,
        "decode_ms": 1000 * decode_s,
        "encode_mb_s": subject.plain_bytes / encode_s / 1e6,
        "decode_mb_s": subject.plain_bytes / decode_s / 1e6,
        "peak_bytes": max(peaks, default=None),
        "took": coding.took(data),
        **subject.quality(back),
    }


def _row(subject: Subject, coding: str, role: str, size_bytes: float) -> Record:
    entropy = subject.entropy_bytes
    return {
        "model": subject.model,
        "what": subject.what,
        "setting": subject.setting,
        "coding": coding,
        "role": role,
        "count": subject.count,
        "bytes": size_bytes,
        "plain_bytes": subject.plain_bytes,
        "dense_over_bytes": subject.dense_bytes / size_bytes if size_bytes else None,
        "bytes_over_entropy": size_bytes / entropy if entropy else None,
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Give what the work gives, and the median of its seconds over a few runs; one is enough for what takes long."""
    times_s: list[float] = []
    while len(times_s) < _RUNS and sum(times_s) < _LONGEST_S:
        started_s = time.perf_counter()
        result = work()
        times_s.append(time.perf_counter() - started_s)
    return result, statistics.median(times_s)


def _peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
