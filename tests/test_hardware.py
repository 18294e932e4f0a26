"""What a device's sensors say on its way: from a tree of files through a real trainer process into a task's figures."""

import dataclasses
import queue
import time
from pathlib import Path

from edge_runtime import config, measure_process, models, setup, wire
from edge_runtime.algorithms import fedavg
from edge_runtime.config import build
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.devices.sensors import Sensors
from edge_runtime.measure_process import Measurement
from edge_runtime.message import Task
from edge_runtime.store import FileStore
from edge_runtime.trainer_process import Job, Outcome, ProcessTrainer
from tests.devices.test_sensors import RAPL, THERMAL, put
from tests.test_published import MEASURED

JOB: Job = {
    "device": "left",
    "data": {"labels-per-class": 1},
    "cache": str(config.cache_folder()),
    "compute": {"backend": "numpy"},
    "factories": [],
    "algorithms": [],
    "up": "",
}


def figures(folder: Path, root: Path) -> dict[str, float]:
    """Let a trainer process do a task on a device with that tree; a counter of the tree goes on meanwhile."""
    store = FileStore(folder)
    run = prepare(RunConfig("fedavg"), {"local-steps": 1, "batch-size": 4})
    down = wire.encode(fedavg.Down(0, models.initial(models.find("watch-cnn"), 0)))
    task = Task("run", 1, 0, "train", "", store.write(setup.encode(run.description)), store.write(down))
    trainer = ProcessTrainer(JOB, folder, sensors=Sensors(root))
    done: queue.Queue[Outcome] = queue.Queue()
    trainer.attach(lambda task, outcome: done.put(outcome))
    trainer.start(task)
    time.sleep(0.2)
    put(root, {"sys/class/powercap/intel-rapl:0/energy_uj": "5000000\n"})
    outcome = done.get(timeout=120)
    store.close()
    assert outcome.reason == ""
    assert outcome.metrics["wall-s"] > 0
    return outcome.metrics


def test_joules_and_heat_of_a_task_go_along_with_its_figures(tmp_path: Path) -> None:
    zone = f"{THERMAL}/thermal_zone0"
    root = put(tmp_path / "root", {**RAPL, f"{zone}/type": "x86_pkg_temp\n", f"{zone}/temp": "63000\n"})
    found = figures(tmp_path / "store", root)
    assert (found["energy-j"], found["temperature-c"]) == (4.0, 63.0)
    assert "throttled" not in found
    assert "battery" not in found


def test_a_device_without_sensors_sends_no_such_figures(tmp_path: Path) -> None:
    found = figures(tmp_path / "store", tmp_path / "nothing")
    assert not {"energy-j", "temperature-c", "throttled", "battery"} & found.keys()


def test_what_a_measurement_does_not_know_is_none_on_both_sides_of_its_process() -> None:
    bare = dataclasses.replace(MEASURED, step_energy_j=None, power=None)
    record = dataclasses.asdict(bare)
    assert record["temperature_c"] is record["throttled"] is None
    assert build(Measurement, record, "measurement") == bare
    hot = dataclasses.replace(MEASURED, temperature_c=71.0, throttled=True)
    assert build(Measurement, dataclasses.asdict(hot), "measurement") == hot


def test_the_table_has_columns_for_what_some_backend_knows() -> None:
    bare = dataclasses.replace(MEASURED, step_energy_j=None)
    assert "step J" not in measure_process.table([bare])
    header, *rows = measure_process.table([bare, MEASURED]).splitlines()
    assert header.endswith("  step J")
    assert [row.split()[-1] for row in rows] == ["-", "0.0125"]
    hot = dataclasses.replace(bare, temperature_c=71.4, throttled=False)
    assert measure_process.table([hot]).splitlines()[1].split()[-2:] == ["71", "no"]
