"""The personal model at work: what it answers, when another takes over, and what it does not take for a request."""

import io
import json
import logging
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_runtime import inference, models, personal, serving
from edge_runtime.algorithm import Fitted, Model
from edge_runtime.backends import load
from edge_runtime.compute import Compute
from edge_runtime.coordinator import broker as brokers
from edge_runtime.device import Device
from edge_runtime.errors import ConfigError
from edge_runtime.link import Link
from edge_runtime.message import Hello, Task
from edge_runtime.mqtt import Mqtt
from edge_runtime.personal import Origin
from edge_runtime.places import personal_path, served_path
from edge_runtime.setup import ModelCard
from edge_runtime.store import FileStore
from edge_runtime.trainer_process import Outcome

SPEC = models.find("watch-cnn")
CARD = ModelCard(SPEC.name, SPEC.layout)
NUMPY = Compute("numpy")
NAMES = tuple("ABCDEFG")
X = np.random.default_rng(0).standard_normal((40, *SPEC.input_shape)).astype(np.float32)


def model() -> Model:
    return load(NUMPY, "watch-cnn")


def made(round_: int, names: tuple[str, ...] = NAMES) -> bytes:
    origin = Origin("run", round_, "gateway-7", "fedspa", names, 0.5, 10, "data")
    return personal.encode(origin, CARD, Fitted(model(), models.initial(SPEC, round_)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = FileStore(tmp_path / "store")
    store.keep_personal("run", made(1), serve=True)
    yield store
    store.close()


@pytest.fixture
def served(store: FileStore) -> serving.Served:
    return serving.Served(served_path(store.folder), NUMPY)


def scores(round_: int) -> np.ndarray:
    return inference.outputs(Fitted(model(), models.initial(SPEC, round_)), X)


def test_every_sample_gets_its_likeliest_class_by_name(served: serving.Served) -> None:
    answers = served.current().answer(X)
    found = scores(1)
    likely = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    assert [answer.index for answer in answers] == found.argmax(axis=1).tolist()
    assert [answer.name for answer in answers] == [NAMES[i] for i in found.argmax(axis=1)]
    np.testing.assert_allclose([answer.probability for answer in answers], likely.max(axis=1), rtol=1e-5)


def test_a_class_without_a_name_is_called_by_its_number(store: FileStore) -> None:
    store.keep_personal("run", made(1, ()), serve=True)
    answers = serving.Served(served_path(store.folder), NUMPY).current().answer(X)
    assert [answer.name for answer in answers] == [str(answer.index) for answer in answers]


def test_another_model_takes_over_between_two_answers(served: serving.Served, store: FileStore) -> None:
    assert served.current().origin.round == 1
    store.keep_personal("run", made(2), serve=True)
    assert served.current().origin.round == 2
    assert [answer.index for answer in served.current().answer(X)] == scores(2).argmax(axis=1).tolist()


def test_a_model_that_is_kept_but_not_served_changes_no_answer(served: serving.Served, store: FileStore) -> None:
    store.keep_personal("run", made(2), serve=False)
    assert served.current().origin.round == 1


def test_a_damaged_file_is_reported_once_and_the_model_before_goes_on(
    served: serving.Served, store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    before = served.current()
    served_path(store.folder).write_bytes(made(2)[:-1])
    assert served.current() is before
    assert served.current() is before
    assert ["its SHA-256 is another" in record.getMessage() for record in caplog.records] == [True]


def test_a_device_that_has_not_trained_yet_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no personal model yet; it comes with this device's first round"):
        serving.Served(served_path(tmp_path), NUMPY)


def finish(store: FileStore, round_: int, data: bytes, figures: dict[str, float]) -> None:
    """Let a device be told that a task is done."""
    trainer: Any = SimpleNamespace(start=lambda task: None)
    device = Device(store, trainer, lambda message: True, Hello("boot"), lambda run: {})
    setup, down = store.write(b"setup"), store.write(b"down")
    device.handle(task := Task("run", 1, round_, "train", "", setup, down))
    device.finished(task, Outcome(b"update", b"state", figures, personal=data))


def test_a_round_is_served_only_if_it_is_as_good_as_what_is_served(
    served: serving.Served, store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    finish(store, 2, made(2), {"accuracy-personal": 0.49, "accuracy-served": 0.5})
    assert served.current().origin.round == 1
    assert personal_path(store.folder, "run").read_bytes() == made(2)
    finish(store, 3, made(3), {"accuracy-personal": 0.5, "accuracy-served": 0.5})
    assert served.current().origin.round == 3
    said = [record.getMessage() for record in caplog.records if "own data" in record.getMessage()]
    assert [line.rsplit(": ", 1)[1] for line in said] == ["going on with the one that is served", "serving it"]


def test_what_is_served_outlives_the_run_and_the_store_keeps_the_last_runs_only(store: FileStore) -> None:
    for number in range(4):
        finish(store, number, made(number + 2), {"accuracy-personal": 0.1, "accuracy-served": 0.5})
        store.keep_personal(f"run {number}", made(9), serve=False)
    kept = [path.name for path in (store.folder / "personal").glob("*.bin")]
    assert len(kept) == 2
    assert personal_path(store.folder, "run 3").name in kept
    assert personal.origin(store.served()).round == 1


def npy(x: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, x, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        (json.dumps({"x": X[0].tolist()}).encode(), 1),
        (json.dumps({"x": X[0].ravel().tolist()}).encode(), 1),
        (json.dumps({"x": X[:3].tolist(), "id": {"any": 1}}).encode(), 3),
        (npy(X[:5]), 5),
        (npy(X[:5].reshape(5, -1).astype(np.float64)), 5),
    ],
    ids=["sample", "row", "list", "npy", "rows of doubles"],
)
def test_a_request_is_answered_whichever_way_its_samples_are_written(
    served: serving.Served, request_: bytes, count: int
) -> None:
    said = json.loads(serving.reply(request_, served.current()))
    assert [one["class"] for one in said["classes"]] == scores(1).argmax(axis=1)[:count].tolist()
    assert said["round"] == 1
    assert said.get("id") == ({"any": 1} if count == 3 else None)


HEAD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
HUGE = b"\x93NUMPY\x01\x00v\x00" + HEAD.ljust(117) + b"\n"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (b"", "neither JSON nor NPY"),
        (b"\xff\xfe", "neither JSON nor NPY"),
        (b"[" * 100_000, "neither JSON nor NPY"),
        (b"[1]", "a request is"),
        (b'{"y": 1}', "a request is"),
        (b'{"x": "text"}', "of numbers"),
        (b'{"x": [[1], [2, 3]]}', "of one shape"),
        (b'{"x": [1, 2, 3]}', "are expected"),
        (b'{"x": []}', "are expected"),
        (b'{"x": 7}', "are expected"),
        (json.dumps({"x": [float("nan")] * 600}).encode(), "not finite"),
        (json.dumps({"x": [1e300] * 600}).encode(), "not finite"),
        (HUGE, "NPY"),
        (npy(X)[:-1], "NPY"),
        (npy(np.array([{}]), allow_pickle=True), "NPY"),
        (npy(np.array(["a"])), "numbers are expected"),
        (b"\x93NUMPY\x07", "NPY"),
        (b" " * ((1 << 20) + 1), "at most"),
        (b"\x93NUMPY\x01\x00" + (5001).to_bytes(2, "little") + b"-" * 5000 + b"1", "NPY"),
        (b"\x93NUMPY\x01\x00" + (900).to_bytes(2, "little") + b"1" + b"+1" * 449 + b"\n", "NPY"),
        (json.dumps({"x": [3e38, -3e38] * 300}).encode(), "no finite numbers"),
    ],
)
def test_what_is_no_request_is_answered_with_what_is_wrong(served: serving.Served, request_: bytes, said: str) -> None:
    assert said in json.loads(serving.reply(request_, served.current()))["error"]


def test_an_error_comes_back_with_the_id_of_its_request(served: serving.Served) -> None:
    said = json.loads(serving.reply(b'{"x": [1], "id": 7}', served.current()))
    assert said["id"] == 7
    assert "error" in said


@pytest.mark.parametrize("kind", ["npz", "npy", "csv"])
def test_samples_are_read_from_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"samples.{kind}"
    if kind == "npz":
        np.savez(path, x=X, y=np.arange(40))
    elif kind == "npy":
        np.save(path, X)
    else:
        np.savetxt(path, X.reshape(40, -1), delimiter=",")
    x, y = serving.read(path)
    np.testing.assert_array_equal(x.reshape(X.shape), X)
    assert (y is not None) == (kind == "npz")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"1" * 200_000),
        ("a.npy", b"PK\x05\x06" + bytes(18)),
        ("a.npz", b"no"),
        ("a.npy", b""),
        ("a.csv", b"walk,run\n"),
        ("a.csv", b"1,2\n3\n"),
        ("a.npz", npy(X)),
    ],
)
def test_a_file_without_samples_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}: holds no samples"):
        serving.read(tmp_path / name)


def agent(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "edge_runtime.cli", "infer", "--backend", "numpy", *arguments]


def test_the_command_names_the_classes_of_a_file_and_counts_what_is_right(store: FileStore, tmp_path: Path) -> None:
    expected = scores(1).argmax(axis=1)
    np.savez(tmp_path / "in.npz", x=X, y=np.where(np.arange(40) < 10, (expected + 1) % 7, expected))
    at = ["--store", str(store.folder), "--in", str(tmp_path / "in.npz")]
    done = subprocess.run(agent(*at), capture_output=True, text=True, check=True)
    head, *rows = done.stdout.splitlines()
    assert head == "class,name,probability"
    assert [int(row.split(",")[0]) for row in rows] == expected.tolist()
    assert "40 samples, 30 of them named rightly; model of fedspa after round 1, 50.0 %" in done.stderr
    record = json.loads(subprocess.run(agent(*at, "--json"), capture_output=True, check=True).stdout)
    assert record["right"] == 30
    subprocess.run(agent(*at, "--out", str(tmp_path / "out.csv")), check=True)
    assert (tmp_path / "out.csv").read_text() == done.stdout


def until(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def test_a_sensor_is_answered_over_a_real_broker_by_the_model_of_the_moment(store: FileStore, tmp_path: Path) -> None:
    kind = "mosquitto" if brokers.find_mosquitto() else "amqtt"
    with brokers.start(kind, folder=tmp_path / "broker") as broker:
        answers: queue.Queue[dict[str, Any]] = queue.Queue()
        sensor = Mqtt(Link(broker.host, broker.port, "sensor"))
        sensor.start(
            ["edge/default/infer/gateway-7/out"], lambda topic, data: answers.put(json.loads(data)), lambda up: None
        )
        command = agent("--store", str(store.folder), "--listen", "-h", broker.host, "-p", str(broker.port))
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
            try:

                def ask(number: int) -> dict[str, Any]:
                    def asked() -> dict[str, Any] | None:
                        request = json.dumps({"x": X[0].tolist(), "id": number}).encode()
                        sensor.send("edge/default/infer/gateway-7/in", request)
                        try:
                            return answers.get(timeout=0.3)
                        except queue.Empty:
                            return None

                    return dict(until(asked))

                first = ask(1)
                assert (first["id"], first["round"]) == (1, 1)
                assert first["classes"][0]["class"] == scores(1).argmax(axis=1)[0]
                store.keep_personal("run", made(2), serve=True)
                second = until(lambda: (found := ask(2))["round"] == 2 and found)
                assert second["classes"][0]["class"] == scores(2).argmax(axis=1)[0]
            finally:
                process.terminate()
                said = process.communicate(timeout=20)[1]
        sensor.close()
    assert process.returncode == 0
    assert said.startswith(
        "answering on edge/default/infer/gateway-7/out what comes on edge/default/infer/gateway-7/in"
    )
