"""What somebody meets first: the units that are to be installed (R20), and the demo after `pip install` (R24)."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.chaos.scorecard import Figure, Row, Scale

ROOT = Path(__file__).parents[2]
FOLDERS = ("edge_runtime", "coordinator", "compression", "export", "devices")
MAX_EXPOSURE = 2.0
MAX_S = 10.0
MAX_LEFT_S = 5.0
LOOPBACK = re.compile(r"^(127\.|::1$|::ffff:127\.)")


def exposure(program: str, folder: Path) -> float:
    """Let systemd judge the unit that a program prints."""
    module = {"edge-agent": "edge_runtime.cli", "edge-coordinator": "edge_runtime.coordinator.cli"}[program]
    start = ["--id", "device"] if program == "edge-agent" else ["--rounds", "3"]
    unit = subprocess.run([sys.executable, "-m", module, "unit", "--", *start], capture_output=True, check=True).stdout
    path = folder / f"{program}.service"
    path.write_bytes(unit)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    path.unlink()
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    if found is None:
        raise AssertionError(f"systemd-analyze did not judge: {said[-300:]}")
    return float(found[1])


def units(scale: Scale) -> Figure:
    """Judge both units."""
    if shutil.which("systemd-analyze") is None:
        return Figure("systemd-analyze is not here: apt install systemd", met=False)
    found = {program: exposure(program, scale.folder) for program in ("edge-agent", "edge-coordinator")}
    text = ", ".join(f"{program} {value}" for program, value in found.items())
    return Figure(text, max(found.values()) <= MAX_EXPOSURE, found)


def wheel(folder: Path) -> Path:
    """Build a wheel of what is written, without what was built here before."""
    source = folder / "source"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, env=_plain())
    shutil.rmtree(source)
    (built,) = folder.glob("*.whl")
    return built


def environment(folder: Path) -> Path:
    """Make an environment that has the dependencies, and not the project; give its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _plain() -> dict[str, str]:
    """Give this process's environment without what leads Python to this tree."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


@contextlib.contextmanager
def watching(process: "subprocess.Popen[str]") -> Iterator[dict[str, int]]:
    """Note every address that the process or any below it listens on, and how often it was seen."""
    seen: dict[str, int] = {}
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            with contextlib.suppress(psutil.Error):
                top = psutil.Process(process.pid)
                for one in (top, *top.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        for connection in one.net_connections("inet"):
                            if connection.status == psutil.CONN_LISTEN:
                                seen[connection.laddr.ip] = seen.get(connection.laddr.ip, 0) + 1
            stop.wait(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def quickstart(scale: Scale) -> Figure:
    """Install a wheel, and run the demo, small, by one command."""
    folder = scale.folder / "first-try"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    built, python = wheel(folder), environment(folder / "environment")
    rounds = scale.of(5, 1)
    started = time.monotonic()
    install = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(python),
        "install",
        "--quiet",
    ]
    subprocess.run([*install, "--no-deps", "--no-index", str(built)], check=True, env=_plain())
    installed = time.monotonic()
    command = [str(python.with_name("edge-coordinator")), "demo", "--parts", "3", "--rounds", str(rounds)]
    command += ["--warm", "--no-baseline", "--broker", "amqtt", "--json"]
    before = os.times()
    with (
        subprocess.Popen(
            command, cwd=folder, env=_plain(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as demo,
        watching(demo) as seen,
    ):
        said, _ = demo.communicate()
    after = os.times()
    ended = time.monotonic()
    shutil.rmtree(folder)
    if demo.returncode:
        raise AssertionError(f"the demo ended with {demo.returncode}")
    if '"devices"' not in said or not seen:
        raise AssertionError("the demo left no report, or nothing was seen to listen")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    off = sorted(address for address in seen if not LOOPBACK.match(address))
    text = f"{ended - started:.1f} s ({installed - started:.1f} s of it pip), {cpu_s:.1f} s of CPU; "
    text += f"off loopback: {', '.join(off) or 'nothing'}"
    details = {"seconds": ended - started, "cpu_s": cpu_s, "listens": sorted(seen), "rounds": rounds}
    return Figure(text, ended - started <= MAX_S and not off, details)


ROWS = [
    Row("R20", "exposure of the units of agent and coordinator, as systemd-analyze judges", "<= 2.0", units),
    Row(
        "R24",
        "pip install of a wheel, then 3 agents x 5 rounds with the embedded broker by one command",
        "<= 10 s; nothing listens off loopback",
        quickstart,
        must=False,
    ),
]
