"""Trees as kernels lay them out, by the documents that `devices/sensors.py` names, under a temporary folder."""

from pathlib import Path

import pytest

from edge_runtime.devices.sensors import Sensors

THERMAL, HWMON = "sys/class/thermal", "sys/class/hwmon"
RAPL = {
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "500000\n",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:1/name": "dram\n",
    "sys/class/powercap/intel-rapl:0:1/energy_uj": "200000\n",
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": "65712999613\n",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "7000000\n",
    "sys/class/powercap/intel-rapl-mmio:0/max_energy_range_uj": "262143328850\n",
}
PMIC = """\
   3V7_WL_SW_A current(0)=0.10000000A
     VDD_CORE_A current(7)=2.00000000A
   3V7_WL_SW_V volt(8)=3.70000000V
     VDD_CORE_V volt(15)=0.80000000V
       EXT5V_V volt(24)=5.13150000V
        BATT_V volt(25)=0.00000000V
"""


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def vcgencmd(root: Path, throttled: str = "", pmic: str = "") -> Path:
    """Put a program there that answers as a Raspberry Pi's does; other words end it with an error, as there."""
    put(root, {"answers/get_throttled": throttled, "answers/pmic_read_adc": pmic})
    program = f'#!/bin/sh\n[ -s "{root}/answers/$1" ] || exit 255\ncat "{root}/answers/$1"\n'
    path = put(root, {"usr/bin/vcgencmd": program}) / "usr/bin/vcgencmd"
    path.chmod(0o755)
    return root


def power(root: Path) -> tuple[str, float | None, float | None]:
    found = Sensors(root).power
    assert found is not None
    return found.name, *found.look()


def test_rapl_counts_packages_and_their_memory_and_nothing_twice(tmp_path: Path) -> None:
    sensors = Sensors(put(tmp_path, RAPL))
    put(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "3500000\n"})
    put(tmp_path, {"sys/class/powercap/intel-rapl:0:0/energy_uj": "900000\n"})
    put(tmp_path, {"sys/class/powercap/intel-rapl:0:1/energy_uj": "300000\n"})
    put(tmp_path, {"sys/class/powercap/intel-rapl-mmio:0/energy_uj": "9900000\n"})
    assert sensors.power is not None
    assert sensors.power.name == "rapl: package-0, dram"
    assert sensors.power.look() == (2.6, None)
    assert sensors.power.look() == (0.0, None)


def test_a_counter_that_went_round_is_counted_on(tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    put(tmp_path, {f"{zone}/name": "package-0\n", f"{zone}/max_energy_range_uj": "1000000\n"})
    sensors = Sensors(put(tmp_path, {f"{zone}/energy_uj": "900000\n"}))
    put(tmp_path, {f"{zone}/energy_uj": "150000\n"})
    assert sensors.power is not None
    assert sensors.power.look() == (0.25, None)


def test_a_counter_that_only_root_may_read_is_none(tmp_path: Path) -> None:
    root = put(tmp_path, RAPL)
    for path in (root / "sys/class/powercap").glob("*/energy_uj"):
        path.unlink()
        path.mkdir()  # root reads what has mode 0400 too; what cannot be read at all is an error to everybody
    assert Sensors(root).power is None


def test_of_a_jetsons_rails_the_input_is_the_whole_board(tmp_path: Path) -> None:
    chip = f"{HWMON}/hwmon3"
    root = put(tmp_path, {f"{chip}/name": "ina3221\n", f"{HWMON}/hwmon0/name": "tmp451\n"})
    rails = {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 400), 3: ("VDD_SOC", 4984, 200)}
    for number, (label, millivolts, milliamperes) in rails.items():
        put(root, {f"{chip}/in{number}_label": f"{label}\n", f"{chip}/in{number}_input": f"{millivolts}\n"})
        put(root, {f"{chip}/curr{number}_input": f"{milliamperes}\n"})
    put(root, {f"{chip}/in7_label": "sum of shunt voltages\n", f"{chip}/in7_input": "1234\n"})
    assert power(root) == ("ina3221: VDD_IN", None, 6.0)


def test_rails_without_an_input_are_added_up(tmp_path: Path) -> None:
    for number, (label, milliamperes) in {1: ("VDD_GPU_SOC", 100), 2: ("VDD_CPU_CV", 300), 3: ("NC", 7)}.items():
        put(tmp_path, {f"{HWMON}/hwmon1/in{number}_label": f"{label}\n", f"{HWMON}/hwmon1/in{number}_input": "10000\n"})
        put(tmp_path, {f"{HWMON}/hwmon1/curr{number}_input": f"{milliamperes}\n"})
    put(tmp_path, {f"{HWMON}/hwmon1/name": "ina3221\n"})
    assert power(tmp_path) == ("ina3221: VDD_GPU_SOC, VDD_CPU_CV", None, 4.0)


def test_an_old_jetson_tells_milliwatts(tmp_path: Path) -> None:
    chip = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    put(tmp_path, {f"{chip}/rail_name_0": "POM_5V_IN\n", f"{chip}/in_power0_input": "3250\n"})
    put(tmp_path, {f"{chip}/rail_name_1": "POM_5V_GPU\n", f"{chip}/in_power1_input": "250\n"})
    assert power(tmp_path) == ("ina3221: POM_5V_IN", None, 3.25)


def test_a_raspberry_pi_5_tells_amperes_and_volts_of_its_rails(tmp_path: Path) -> None:
    name, joules, watts = power(vcgencmd(tmp_path, pmic=PMIC))
    assert (name, joules) == ("pmic: all rails", None)
    assert watts == pytest.approx(0.1 * 3.7 + 2.0 * 0.8)


def test_a_raspberry_pi_without_such_a_chip_tells_none(tmp_path: Path) -> None:
    assert Sensors(vcgencmd(tmp_path, throttled="throttled=0x0\n")).power is None


@pytest.mark.parametrize(
    "files",
    [{"power_now": "7500000\n"}, {"voltage_now": "12000000\n", "current_now": "-625000\n"}],
    ids=["microwatts", "volts and amperes"],
)
def test_a_battery_tells_while_it_feeds_the_device(files: dict[str, str], tmp_path: Path) -> None:
    supply = "sys/class/power_supply"
    mouse = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "3", "power_now": "1"}
    put(tmp_path, {f"{supply}/A_mouse/{name}": f"{text}\n" for name, text in mouse.items()})
    put(tmp_path, {f"{supply}/AC/type": "Mains\n", f"{supply}/BAT0/type": "Battery\n"})
    put(tmp_path, {f"{supply}/BAT0/{name}": text for name, text in files.items()})
    put(tmp_path, {f"{supply}/BAT0/status": "Discharging\n", f"{supply}/BAT0/capacity": "83\n"})
    assert power(tmp_path) == ("battery: BAT0", None, 7.5)
    assert Sensors(tmp_path).battery() == 0.83
    put(tmp_path, {f"{supply}/BAT0/status": "Charging\n"})
    assert power(tmp_path) == ("battery: BAT0", None, None)


def test_of_the_zones_that_are_the_processors_the_hottest_counts(tmp_path: Path) -> None:
    zones = {"cpu-thermal": "51000", "gpu-thermal": "77000", "soc0-thermal": "54500", "cv1-thermal": "-256000"}
    for number, (kind, temperature) in enumerate(zones.items()):
        put(tmp_path, {f"{THERMAL}/thermal_zone{number}/type": f"{kind}\n"})
        put(tmp_path, {f"{THERMAL}/thermal_zone{number}/temp": f"{temperature}\n"})
    assert Sensors(tmp_path).temperature_c() == 54.5


def test_a_processor_without_a_zone_is_known_by_its_chip(tmp_path: Path) -> None:
    put(tmp_path, {f"{THERMAL}/thermal_zone0/type": "acpitz\n", f"{THERMAL}/thermal_zone0/temp": "27800\n"})
    put(tmp_path, {f"{HWMON}/hwmon0/name": "nvme\n", f"{HWMON}/hwmon0/temp1_input": "80000\n"})
    assert Sensors(tmp_path).temperature_c() == 27.8
    put(tmp_path, {f"{HWMON}/hwmon1/name": "k10temp\n", f"{HWMON}/hwmon1/temp1_input": "44125\n"})
    assert Sensors(tmp_path).temperature_c() == 44.125


@pytest.mark.parametrize(
    ("said", "now"),
    [("throttled=0x0\n", False), ("throttled=0x50000\n", False), ("throttled=0x50005\n", True)],
    ids=["never", "once", "now"],
)
def test_a_raspberry_pi_says_whether_it_is_throttled_now(said: str, now: bool, tmp_path: Path) -> None:
    assert Sensors(vcgencmd(tmp_path, throttled=said)).throttled() is now


def test_a_cooling_device_that_holds_the_frequency_back_is_throttling(tmp_path: Path) -> None:
    fan = {f"{THERMAL}/cooling_device0/type": "pwm-fan\n", f"{THERMAL}/cooling_device0/cur_state": "4\n"}
    assert Sensors(put(tmp_path, fan)).throttled() is None
    cpu = f"{THERMAL}/cooling_device1"
    sensors = Sensors(put(tmp_path, {f"{cpu}/type": "cpufreq-cpu0\n", f"{cpu}/cur_state": "0\n"}))
    assert sensors.throttled() is False
    put(tmp_path, {f"{cpu}/cur_state": "2\n"})
    assert sensors.throttled() is True


def test_a_count_that_has_risen_since_is_throttling(tmp_path: Path) -> None:
    count = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    sensors = Sensors(put(tmp_path, {count: "5\n"}))
    assert sensors.throttled() is False
    put(tmp_path, {count: "6\n"})
    assert [sensors.throttled(), sensors.throttled()] == [True, False]


def test_what_is_no_number_is_none(tmp_path: Path) -> None:
    zone = f"{THERMAL}/thermal_zone0"
    assert Sensors(put(tmp_path, {f"{zone}/type": "cpu\n", f"{zone}/temp": "hot\n"})).temperature_c() is None


def test_a_program_that_hangs_or_lies_costs_seconds_and_nothing_more(tmp_path: Path) -> None:
    path = put(tmp_path, {"usr/bin/vcgencmd": "#!/bin/sh\nexec sleep 30\n"}) / "usr/bin/vcgencmd"
    path.chmod(0o755)
    assert Sensors(tmp_path).throttled() is None
    path.write_text("#!/bin/sh\necho throttled=0xwhat\n")
    assert Sensors(tmp_path).throttled() is None


def test_a_device_without_sensors_says_none_of_it(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    assert not sensors.any
    assert (sensors.power, sensors.temperature_c(), sensors.throttled(), sensors.battery()) == (None, None, None, None)


def test_this_machine_says_what_is_possible_or_nothing() -> None:
    sensors = Sensors()
    heat_c = sensors.temperature_c()
    assert heat_c is None or 0 < heat_c < 150
    assert sensors.throttled() in (None, False, True)
    if sensors.power is not None:
        joules, watts = sensors.power.look()
        assert joules is None or joules >= 0
        assert watts is None or watts >= 0
