import itertools
import threading
import time
from pathlib import Path

import pytest

from edge_runtime.devices.energy import Recorder
from edge_runtime.devices.sensors import Sensors
from tests.devices.test_sensors import RAPL, THERMAL, put, vcgencmd

BATTERY = "sys/class/power_supply/BAT0"
FEEDING = {f"{BATTERY}/type": "Battery\n", f"{BATTERY}/status": "Discharging\n", f"{BATTERY}/capacity": "50\n"}
ZONE, CPU = f"{THERMAL}/thermal_zone0", f"{THERMAL}/cooling_device0"


def test_a_counter_tells_exactly_what_was_taken(tmp_path: Path) -> None:
    sensors = Sensors(put(tmp_path, RAPL))
    put(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "2000000\n"})  # before the work: not its own
    with Recorder(sensors) as recorder:
        put(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "9000000\n"})
        put(tmp_path, {"sys/class/powercap/intel-rapl:0:1/energy_uj": "700000\n"})
    assert recorder.figures() == {"energy-j": 7.5}


def test_power_is_added_up_under_straight_lines(tmp_path: Path) -> None:
    times_s = itertools.count(100.0, 2.0)
    root = put(tmp_path, {**FEEDING, f"{BATTERY}/power_now": "4000000\n"})
    with Recorder(Sensors(root), every_s=60.0, clock=lambda: next(times_s)) as recorder:
        put(tmp_path, {f"{BATTERY}/power_now": "6000000\n", f"{BATTERY}/capacity": "49\n"})
    assert recorder.figures() == {"energy-j": 2 * (4 + 6) / 2, "battery": 0.49}


def test_looks_in_between_see_what_beginning_and_end_do_not(tmp_path: Path) -> None:
    root = put(tmp_path, {f"{ZONE}/type": "cpu\n", f"{ZONE}/temp": "40000\n"})
    put(root, {f"{CPU}/type": "cpufreq-cpu0\n", f"{CPU}/cur_state": "0\n"})
    with Recorder(Sensors(root), every_s=0.01) as recorder:
        put(root, {f"{ZONE}/temp": "81000\n", f"{CPU}/cur_state": "1\n"})
        time.sleep(0.3)
        put(root, {f"{ZONE}/temp": "45000\n", f"{CPU}/cur_state": "0\n"})
    assert recorder.figures() == {"temperature-c": 81.0, "throttled": 1.0}


def test_a_device_that_was_never_slowed_down_says_so(tmp_path: Path) -> None:
    with Recorder(Sensors(vcgencmd(tmp_path, throttled="throttled=0x20002\n"))) as recorder:
        vcgencmd(tmp_path, throttled="throttled=0x20000\n")
    assert recorder.figures() == {"throttled": 0.0}


def test_a_sensor_that_stops_answering_leaves_no_half_sum(tmp_path: Path) -> None:
    root = put(tmp_path, {**FEEDING, f"{BATTERY}/power_now": "4000000\n"})
    with Recorder(Sensors(root)) as recorder:
        put(root, {f"{BATTERY}/status": "Charging\n"})
    assert recorder.figures() == {"battery": 0.5}


def test_without_sensors_nothing_is_started(tmp_path: Path) -> None:
    before = threading.active_count()
    with Recorder(Sensors(tmp_path)) as recorder:
        assert threading.active_count() == before
    assert recorder.figures() == {}


def test_an_exception_passes_through_and_ends_the_looking(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), Recorder(Sensors(put(tmp_path, RAPL))):
        raise ZeroDivisionError
    assert threading.active_count() == before
