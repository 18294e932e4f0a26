"""Finished runs in MLflow and TensorBoard: written by the real libraries, and read back.

MLflow takes too much to stand beside the other tests: `make mlflow` runs those here in an environment with it.
"""

import struct
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.coordinator import report, tracking
from edge_runtime.coordinator.report import Row, RunInfo

SETTINGS = {"run": {"model": "watch-cnn", "rounds": 2}, "algorithm": {"density": 0.5}}


def made() -> report.Report:
    rows = [
        Row(number, device, "train", 100, 200, 110, 220, 40, 50, 100, 1.0, 2.0, None, 0.5, accuracy, 1.5, 30, 10)
        for number in (0, 1)
        for device, accuracy in (("a", 0.6), ("b", 0.8 + 0.1 * number))
    ]
    info = RunInfo("0123456789abcdef", "fedspa", 2, "watch-cnn", 1000, 7, SETTINGS, "mosquitto", wall_s=9.0)
    return report.build(info, rows)


def test_what_is_told_of_a_run_has_one_name_for_both() -> None:
    steps = dict(tracking.rounds(made()))
    assert sorted(steps) == [0, 1]
    assert steps[1]["accuracy_personal/mean"] == pytest.approx(0.75)
    assert steps[0]["payload_bytes_up"] == 100
    assert "accuracy_shared/mean" not in steps[0]
    assert tracking.summary(made())["summary/run_wall_s"] == 9.0
    assert tracking.settings(made())["algorithm.density"] == "0.5"


def events(path: Path) -> list[Any]:
    """Read a file of TensorBoard's events: records of a length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        event = Event()
        event.ParseFromString(data[12 : 12 + size])
        found.append(event)
        data = data[16 + size :]
    return found


def test_tensorboard_finds_every_round(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    assert tracking.to_tensorboard(made(), tmp_path) == f"tensorboard --logdir {tmp_path}"
    (path,) = tmp_path.glob("0123456789ab/events*")
    values = [(event.step, value) for event in events(path) for value in event.summary.value]
    scalars = {(step, value.tag): value.simple_value for step, value in values}
    assert scalars[0, "accuracy_personal/mean"] == pytest.approx(0.7)
    assert scalars[1, "accuracy_personal/mean"] == pytest.approx(0.75)
    assert scalars[2, "summary/socket_bytes_down"] == 220
    assert any(b"algorithm.density = 0.5" in value.SerializeToString() for _, value in values)


@pytest.mark.filterwarnings("ignore")  # what MLflow uses of its libraries is its own affair
def test_mlflow_finds_every_round_and_runs_share_a_folder(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="`make mlflow` runs this")
    for _ in range(2):
        told = tracking.to_mlflow(made(), tmp_path)
    client = mlflow.MlflowClient(told.split()[-1])
    found = client.get_experiment_by_name("edge-runtime")
    first, _second = client.search_runs([found.experiment_id])
    assert first.data.params["algorithm.density"] == "0.5"
    assert first.data.tags["edge-runtime.run"] == "0123456789abcdef"
    assert first.info.status == "FINISHED"
    history = client.get_metric_history(first.info.run_id, "accuracy_personal/mean")
    assert [(one.step, pytest.approx(one.value)) for one in history] == [(0, 0.7), (1, 0.75)]
