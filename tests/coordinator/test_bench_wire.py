"""`edge-coordinator bench wire`: what is trained once, what is coded, and what the rows say of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.coordinator import bench_wire, wire_codings, wire_material, wire_report
from edge_runtime.coordinator.wire_material import Recipe
from edge_runtime.coordinator.wire_subjects import BARS, Coding, Subject, entropy_bytes, general
from edge_runtime.coordinator.wire_train import Sample
from edge_runtime.errors import RunError

TRAINED = {"model", "kind", "density", "bits", "epochs", "backend", "accuracy"}
ROW = {"model", "what", "setting", "coding", "role", "count", "bytes", "plain_bytes", "dense_over_bytes"}
ROW |= {"bytes_over_entropy"}
CODED = ROW | {"encode_ms", "decode_ms", "encode_mb_s", "decode_mb_s", "peak_bytes", "took"}
SENT = CODED | {"bar_bytes", "within_bar", "within_general"}
FLAGS = ("--model", "linear", "--density", "0.2", "--bits", "2", "--epochs", "0.02")


def coordinator(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "bench", "wire", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wire")


@pytest.fixture(scope="module")
def first(home: Path) -> subprocess.CompletedProcess[str]:
    """Train a tiny model, and code what comes of it."""
    return coordinator(*FLAGS, "--cache", str(home), "--markdown", str(home / "docs" / "tables.md"), "--json")


@pytest.fixture(scope="module")
def record(first: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert first.returncode == 0, first.stderr
    return json.loads(first.stdout)  # type: ignore[no-any-return]


def test_everything_that_is_sent_has_a_row_for_each_coding(record: dict[str, Any]) -> None:
    assert {"kind", "version", "profile", "trained", "rows"} == set(record)
    assert [set(one) for one in record["trained"]] == [TRAINED] * 3
    values = [f"density 0.2, {how}" for how in ("lossless", "bfloat16", "step 0.25", "step 0.5", "step 1")]
    expected = [("posteriors", f"{bits} bits") for bits in (5, 6, 8)]
    kinds = ("mask", "random mask", "mask change", "mask change, grown from a seed")
    expected += [(what, "density 0.2") for what in kinds]
    expected += [*(("values", how) for how in values), ("codes", "2 bits")]
    assert [(row["what"], row["setting"]) for row in record["rows"] if row["role"] == "sent"] == expected
    for row in record["rows"]:
        lossy = {"relative_error"} & set(row) | {"kl", "agreement"} & set(row)
        keys = {"bound": ROW, "ours": CODED, "general": CODED, "sent": SENT}[row["role"]]
        assert set(row) - lossy == keys
        assert row["bytes"] > 0


def test_every_subject_stands_beside_dense_values_and_general_compressors(record: dict[str, Any]) -> None:
    for what in {(row["what"], row["setting"]) for row in record["rows"]}:
        rows = [row for row in record["rows"] if (row["what"], row["setting"]) == what]
        assert {"dense float32", "zstd-19", "xz-9e"} <= {row["coding"] for row in rows}
        (sent,) = (row for row in rows if row["role"] == "sent")
        best = min(row["bytes"] for row in rows if row["role"] == "general")
        assert sent["within_general"] == (sent["bytes"] <= best)
        assert sent["bytes"] < sent["plain_bytes"]


def test_what_was_trained_is_not_trained_again(
    record: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(wire_material, "write", refuse)
    wanted = wire_material.recipes(["linear"], [0.2], [2], 0.02)

    found = list(wire_material.samples(wanted, home, 1, refuse))

    assert [recipe for recipe, _ in found] == wanted
    assert [float(sample["accuracy"]) for _, sample in found] == [one["accuracy"] for one in record["trained"]]


def test_another_setting_is_another_sample(home: Path) -> None:
    recipe = Recipe("linear", "sparse", density=0.2, epochs=0.02)
    others = [Recipe("linear", "sparse", density=0.1, epochs=0.02), Recipe("linear", "sparse", density=0.2, epochs=1)]
    assert len({one.path(home) for one in (recipe, *others)}) == 3


def test_a_damaged_sample_counts_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "sample.npz"
    wire_material.write(path, {"mask": np.ones(9, np.bool_)})
    whole = path.read_bytes()
    sample = wire_material.read(path)
    assert sample is not None
    assert sample["mask"].all()

    path.write_bytes(whole[: len(whole) // 2])

    assert wire_material.read(path) is None
    assert wire_material.read(tmp_path / "absent.npz") is None


def test_the_same_training_gives_the_same_sample(tmp_path: Path, home: Path, record: dict[str, Any]) -> None:
    wanted = wire_material.recipes(["linear"], [0.2], [2], 0.02)

    again = [sample for _, sample in wire_material.samples(wanted, tmp_path, 1, lambda said: None)]

    for (_, old), new in zip(wire_material.samples(wanted, home, 1, lambda said: None), again, strict=True):
        assert set(old) == set(new)
        assert all(np.array_equal(old[name], new[name]) for name in old)


def test_a_sparse_sample_is_an_update_on_its_mask_and_the_mask_moves_within_its_counts(
    record: dict[str, Any], home: Path
) -> None:
    wanted = [one for one in wire_material.recipes(["linear"], [0.2], [2], 0.02) if one.kind == "sparse"]

    ((_, sample),) = wire_material.samples(wanted, home, 1, lambda said: None)

    assert wire_material.shapes(sample) == ((10, 784), (10,))
    assert len(sample["update"]) == np.count_nonzero(sample["mask"]) == np.count_nonzero(sample["next"]) == 1568 + 10
    dropped = np.count_nonzero(sample["mask"] & ~sample["next"])
    assert 0 < dropped <= 0.05 * 1568


def test_entropy_is_that_of_each_tensors_own_frequencies() -> None:
    halves = np.array([0, 1] * 8)
    assert entropy_bytes(halves, [16]) == 2
    assert entropy_bytes(np.sort(halves), [8, 8]) == 0
    assert entropy_bytes(np.array([0, 0, 0, 1, 2, 3, 2, 3]), [4, 0, 4]) == pytest.approx(
        (4 * (0.75 * np.log2(4 / 3) + 0.25 * 2) + 4) / 8
    )


def subject(codings: tuple[Coding, ...]) -> Subject:
    return Subject(
        "cnn-wide", "random mask", "density 0.1", 4, 400, 8, 2.0, lambda back: bool(back.sum() == 10), codings
    )


def coding(name: str, role: str, size: int, value: int = 10) -> Coding:
    return Coding(name, role, lambda: bytes(size), lambda data: np.array([value]))


def rows_of(*codings: Coding, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    sample: Sample = {"accuracy": np.array(0.5)}
    recipe = Recipe("linear", "dense")
    monkeypatch.setattr(wire_material, "samples", lambda *_: iter([(recipe, sample)]))
    monkeypatch.setattr(wire_codings, "subjects", lambda *_: iter([subject(codings)]))
    rows: list[dict[str, Any]] = bench_wire.measure([recipe], Path(), 1, lambda said: None)["rows"]
    return rows


@pytest.mark.parametrize(("size", "bar", "best"), [(16, True, True), (32, True, False), (33, False, False)])
def test_what_is_sent_is_held_against_the_bar_and_the_best_compressor(
    size: int, bar: bool, best: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    codings = (coding("seed", "sent", size), coding("a", "general", 20), coding("b", "general", 90))

    rows = rows_of(*codings, monkeypatch=monkeypatch)

    assert BARS["cnn-wide", "random mask", "density 0.1"] == 32
    assert [(row["coding"], row["bytes"]) for row in rows[:2]] == [("dense float32", 400), ("order-0 entropy", 2.0)]
    sent = rows[2]
    assert (sent["bar_bytes"], sent["within_bar"], sent["within_general"]) == (32, bar, best)
    assert (sent["dense_over_bytes"], sent["bytes_over_entropy"]) == (400 / size, size / 2)


def test_a_coding_that_gives_back_something_else_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="wrong does not give back what it was given"):
        rows_of(coding("seed", "sent", 16), coding("wrong", "ours", 16, value=11), monkeypatch=monkeypatch)


def test_general_compressors_give_back_what_they_were_given() -> None:
    plain = np.arange(1000, dtype="<i2")

    for one in general(plain.tobytes(), lambda data: np.frombuffer(data, "<i2")):
        data = one.encode()
        assert len(data) < plain.nbytes
        assert np.array_equal(one.decode(data), plain)


def test_the_markdown_says_the_command_and_every_byte(first: subprocess.CompletedProcess[str], home: Path) -> None:
    text = (home / "docs" / "tables.md").read_text()
    assert "bench wire --model linear" in text.splitlines()[0]
    for row in json.loads(first.stdout)["rows"]:
        assert f"| {row['bytes']:,.0f} |" in text


def test_the_table_says_where_a_bar_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(coding("seed", "sent", 33), coding("zstd-19", "general", 40), monkeypatch=monkeypatch)
    text = wire_report.to_markdown({"rows": rows, "version": "1", "profile": {"cpu": "a CPU"}}, "bench wire")
    assert "; bar 32 bytes" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| sent: seed"))
    assert line.endswith("| NO |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "linaer"), "did you mean 'linear'"),
        (("--model", "watch-cnn"), "does not take images of fashion-mnist"),
        (("--model", "linear", "--density", "1.5"), "density must be above 0 and at most 1"),
        (("--model", "linear", "--bits", "0"), "--bits must be from 1 to 8, not 0"),
        (("--model", "linear", "--bits", "9"), "bits must be at least 0 and at most 8"),
        (("--model", "linear", "--epochs", "0"), "--epochs must be above 0, not 0"),
        (("--bars",), "unknown flag '--bars'"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = coordinator(*arguments, "--cache", str(tmp_path))

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
