import dataclasses
import json
from pathlib import Path

from edge_runtime.devices.profile import profile


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_board_with_a_device_tree_names_itself(tmp_path: Path) -> None:
    root = put(tmp_path, {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
    assert profile(root).board == "Raspberry Pi 4 Model B Rev 1.4"


def test_a_pc_is_named_by_its_dmi_tables(tmp_path: Path) -> None:
    root = put(tmp_path, {"sys/class/dmi/id/sys_vendor": "LENOVO\n", "sys/class/dmi/id/product_name": "20XW\n"})
    assert profile(root).board == "LENOVO 20XW"


def test_a_makers_placeholder_is_not_a_name(tmp_path: Path) -> None:
    dmi = {"sys_vendor": "Default string\n", "product_name": "To Be Filled By O.E.M.\n"}
    root = put(tmp_path, {f"sys/class/dmi/id/{name}": text for name, text in dmi.items()})
    assert profile(root).board is None


def test_memory_is_told_in_bytes(tmp_path: Path) -> None:
    root = put(tmp_path, {"proc/meminfo": "MemTotal:        1000 kB\nMemFree:  1 kB\nMemAvailable:     250 kB\n"})
    found = profile(root)
    assert (found.ram_bytes, found.free_ram_bytes) == (1_024_000, 256_000)


def test_the_limit_of_a_container_is_seen_and_no_limit_is_none(tmp_path: Path) -> None:
    limited = put(tmp_path / "a", {"sys/fs/cgroup/memory.max": "536870912\n"})
    free = put(tmp_path / "b", {"sys/fs/cgroup/memory.max": "max\n"})
    old = put(tmp_path / "c", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert profile(limited).ram_limit_bytes == 536_870_912
    assert profile(free).ram_limit_bytes is None
    assert profile(old).ram_limit_bytes is None


def test_gpus_are_found_and_other_nvidia_files_are_not_gpus(tmp_path: Path) -> None:
    root = put(tmp_path, {"dev/nvidia1": "", "dev/nvidia0": "", "dev/nvidiactl": "", "dev/nvme0": ""})
    assert profile(root).accelerators == ("nvidia0", "nvidia1")


def test_a_jetsons_gpu_is_found(tmp_path: Path) -> None:
    assert profile(put(tmp_path, {"dev/nvhost-gpu": "", "dev/nvmap": ""})).accelerators == ("nvhost-gpu",)


def test_processor_and_system_are_read(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Cortex-A72\n",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    }
    found = profile(put(tmp_path, files))
    assert (found.cpu, found.os) == ("Cortex-A72", "Debian GNU/Linux 12 (bookworm)")


def test_what_the_machine_does_not_tell_is_none(tmp_path: Path) -> None:
    found = profile(tmp_path)
    unknown = (found.board, found.cpu, found.ram_bytes, found.free_ram_bytes, found.ram_limit_bytes, found.os)
    assert unknown == (None,) * 6
    assert found.accelerators == ()


def test_this_machine_has_cores_and_memory_and_fits_into_json() -> None:
    record = json.loads(json.dumps(dataclasses.asdict(profile())))
    assert record["cores"] >= 1
    assert 0 < record["free_ram_bytes"] <= record["ram_bytes"]
    assert record["python"].startswith("3.")
