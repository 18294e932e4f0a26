"""What the README's second section tells a new user to type, typed."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_COMMANDS = 6


def first_block(section: int) -> str:
    """Give the first block of code of a section, counted from 1."""
    text = (ROOT / "README.md").read_text("utf-8").split("\n## ")[section]
    return text.split("```bash\n")[1].split("```")[0]


def commands() -> list[str]:
    return [
        command for line in first_block(2).splitlines() for command in re.split(r"&&|;|\|", line) if command.strip()
    ]


def test_at_most_six_commands_lead_from_nothing_to_a_trained_device() -> None:
    assert 0 < len(commands()) <= MOST_COMMANDS


def alone() -> list[str]:
    """Give what starts a program where nobody else has a port: a network of its own, with a loopback alone."""
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    works = shutil.which("unshare") and shutil.which("ip")
    return (
        command
        if works and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
        else []
    )


def test_the_second_sections_commands_train_a_device_over_tls_with_mosquitto(tmp_path: Path) -> None:
    """Those that install are tried in a clean system, by `make try-install`; here that is there already."""
    if not (shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists()):
        pytest.skip("mosquitto is not here: apt install mosquitto")
    if not alone():
        with contextlib.closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", 8883)) == 0:
                pytest.skip("somebody listens on port 8883, and this user may not have a network of its own")
    typed = [line for line in commands() if line.startswith(".venv/")]
    assert len(typed) == len(commands()) - 3
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment["HOME"] = str(tmp_path)
    with subprocess.Popen(
        [*alone(), "bash", "-ec", "\n".join(typed)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            # The device in the background holds the pipe: what ends is the shell, with its last command.
            code = shell.wait(300)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
        said = shell.stdout.read() if shell.stdout else ""
    assert code == 0, said
    report = json.loads((tmp_path / "runs/latest/report.json").read_text())
    assert report["broker"] == "mosquitto"
    assert [device["id"] for device in report["devices"]] == ["gateway-7"]
    assert len(report["rounds_detail"]) == report["rounds"] == 5
    assert report["configuration"]["run"]["fleet"] == "default"
    assert {reason for why in report["dropped"].values() for reason in why} <= {"stale"}  # of before they had met
    assert report["devices"][0]["accuracy_personal"] > 0.5
    assert "report.html" in said
