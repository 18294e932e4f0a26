"""What a device is: board, processor, memory, accelerators. None where the machine does not tell.

Boards with a device tree (Raspberry Pi, Jetson) name themselves in `/proc/device-tree/model`, PCs in the DMI tables
that the kernel shows under `/sys/class/dmi/id`. Standard library only: the idle agent imports this.
"""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

_NO_NAME = {"", "default string", "none", "not applicable", "not specified", "o.e.m.", "system manufacturer"}
_NO_NAME |= {"system product name", "to be filled by o.e.m.", "unknown"}
"""What makers of boards write where they should write a name."""
_NO_LIMIT_BYTES = 1 << 60
"""A control group of version 1 without a limit shows a number near 2^63."""


@dataclass(frozen=True)
class DeviceProfile:
    """A device as it describes itself; None: it does not tell."""

    board: str | None
    """As its maker names it: `Raspberry Pi 4 Model B Rev 1.4`."""
    cpu: str | None
    arch: str
    """As the kernel names it: `x86_64`, `aarch64`."""
    cores: int
    """Cores that this process may run on."""
    ram_bytes: int | None
    free_ram_bytes: int | None
    """What new programs can have without swapping (MemAvailable)."""
    ram_limit_bytes: int | None
    """What the control group of this process allows, where it sets a limit (a container)."""
    accelerators: tuple[str, ...]
    """Device files of NVIDIA GPUs: `nvidia0`, on a Jetson `nvhost-gpu`. Empty: none was found."""
    os: str | None
    kernel: str
    python: str


def profile(root: Path = Path("/")) -> DeviceProfile:
    """Describe this device; its files are looked for under `root`."""
    memory = _memory(_read(root / "proc/meminfo") or "")
    return DeviceProfile(
        board=_board(root),
        cpu=_cpu(_read(root / "proc/cpuinfo") or ""),
        arch=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        ram_bytes=memory.get("MemTotal"),
        free_ram_bytes=memory.get("MemAvailable"),
        ram_limit_bytes=_limit(root),
        accelerators=_accelerators(root / "dev"),
        os=_os(_read(root / "etc/os-release") or ""),
        kernel=platform.release(),
        python=platform.python_version(),
    )


def _read(path: Path) -> str | None:
    """Read a small file of the kernel's; None if there is none, or it is not for us."""
    try:
        return path.read_text("utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def _board(root: Path) -> str | None:
    tree = _read(root / "proc/device-tree/model")
    if tree:
        return tree
    dmi = root / "sys/class/dmi/id"
    parts = [_read(dmi / name) or "" for name in ("sys_vendor", "product_name")]
    named = [part for part in parts if part.lower() not in _NO_NAME]
    return " ".join(named) or None


def _cpu(text: str) -> str | None:
    """Find the processor's name: `model name` on x86 and some ARM kernels, `Hardware` on older ARM ones."""
    for key in ("model name", "Hardware"):
        found = re.search(rf"^{key}\s*:\s*(\S.*)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    return None


def _memory(text: str) -> dict[str, int]:
    """Read the lines `MemTotal:  1234 kB` (KiB, whatever they say) into bytes."""
    return {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _limit(root: Path) -> int | None:
    """Read the limit of the control group at the root of what this process sees, version 2 or 1."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(root / "sys/fs/cgroup" / name) or ""
        if text.isdecimal() and int(text) < _NO_LIMIT_BYTES:
            return int(text)
    return None


def _accelerators(dev: Path) -> tuple[str, ...]:
    names = [path.name for path in dev.glob("nv*")]
    return tuple(sorted(name for name in names if re.fullmatch(r"nvidia\d+|nvhost-gpu", name)))


def _os(text: str) -> str | None:
    found = re.search(r"^PRETTY_NAME=\"?([^\"\n]+)\"?$", text, re.MULTILINE)
    return found[1] if found else None
