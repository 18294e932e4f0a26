import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.devices import meter

MIB = 1 << 20


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def waited(code: str) -> meter.ChildUsage:
    child = start(code)
    usage = meter.wait(child.pid)
    child.returncode = usage.exit_code
    return usage


def test_the_lines_of_proc_status_are_read_as_kibibytes(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text("Name:\tagent\nVmHWM:\t   40 kB\nVmRSS:\t   30 kB\nThreads:\t3\n")
    assert meter.memory(7, tmp_path) == meter.Memory(rss_bytes=30 * 1024, peak_rss_bytes=40 * 1024)


def test_a_process_without_memory_is_an_error_and_not_a_zero(tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    (tmp_path / "2/status").write_text("Name:\tkthreadd\nThreads:\t1\n")
    with pytest.raises(ValueError, match="VmRSS"):
        meter.memory(2, tmp_path)


def test_where_the_kernel_keeps_no_peak_the_own_one_comes_from_getrusage(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("VmRSS:\t   30 kB\n")
    found = meter.memory(None, tmp_path)
    assert found.rss_bytes == 30 * 1024
    assert found.peak_rss_bytes > MIB


def test_the_peak_remembers_memory_that_was_given_back() -> None:
    code = (
        "from edge_runtime.devices import meter\n"
        "block = b'x' * (64 << 20); during = meter.rss_bytes(); del block\n"
        "print(during, meter.rss_bytes(), meter.peak_rss_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    during, after, peak = map(int, done.stdout.split())
    assert after < during - 60 * MIB
    assert peak >= during - 4 * MIB  # the kernel sums its counters per core, and the peak may miss their last updates


def test_a_finished_child_tells_its_peak_its_cpu_time_and_its_exit_code() -> None:
    small = waited("raise SystemExit(3)")
    big = waited("import time\nblock = b'x' * (200 << 20)\nwhile time.process_time() < 0.3: pass")
    assert (small.exit_code, big.exit_code) == (3, 0)
    assert big.peak_rss_bytes >= 200 * MIB
    assert big.cpu_s >= 0.3
    assert small.cpu_s < big.cpu_s


def test_a_killed_child_has_the_negative_signal_as_its_exit_code() -> None:
    assert waited("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").exit_code == -9


def test_the_meter_loads_neither_numpy_nor_anything_else_of_ours() -> None:
    code = (
        "import sys, edge_runtime; before = set(sys.modules)\n"
        "from edge_runtime.devices import meter, profile\n"
        "print([name for name in sys.modules if name.startswith(('numpy', 'edge_runtime.')) and 'devices' not in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
