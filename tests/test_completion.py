"""Shells complete commands, flags and values: asked as a shell asks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete")

MODULES = {"edge-agent": "edge_runtime.cli", "edge-coordinator": "edge_runtime.coordinator.cli"}


def offers(line: str) -> set[str]:
    """Ask what may stand where a line ends, by argcomplete's protocol."""
    program = [sys.executable, "-m", MODULES[line.split(maxsplit=1)[0]]]
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
    }
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    read, write = os.pipe()
    command = f"{' '.join(program)} 8>&{write} 9>/dev/null"
    subprocess.run(
        ["bash", "-c", command], env={**os.environ, **asked}, pass_fds=[write], check=True, stdout=subprocess.DEVNULL
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        return set(pipe.read().split("\n"))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("edge-agent ", {"start", "enroll", "infer", "measure"}),
        ("edge-agent st", {"start"}),
        ("edge-coordinator run ", {"list", "show", "compare"}),
        ("edge-coordinator start --ro", {"--rounds"}),
        ("edge-agent start --backend o", {"onnx", "ort_training"}),
        ("edge-coordinator start --algorithm feds", {"fedspa"}),
        ("edge-coordinator start --model watch-cnn-", {"watch-cnn-small"}),
    ],
)
def test_what_may_come_next_is_offered(line: str, wanted: set[str]) -> None:
    found = offers(line)
    assert wanted <= found
    if not line.endswith(" "):
        assert found == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", MODULES)
def test_what_a_shell_is_given_it_can_read(program: str, shell: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", MODULES[program], "completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert program in done.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(done.stdout)
    subprocess.run([shell, "-n", str(script)], check=True)
