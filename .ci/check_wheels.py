"""Does the device install, as pinned, have a wheel on every platform and Python that we name?

Asks pip to resolve `edge-runtime[onnx]` within constraints.txt for each of them, from wheels alone and without
installing anything. pip judges `python_version` and the like by the named Python, but `platform_machine` by this one.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# What runs on glibc 2.28 (Debian 10, RHEL 8; a Jetson's Ubuntu 20.04 has 2.31); pip takes a named platform literally.
TAGS = (*(f"manylinux_2_{minor}" for minor in range(28, 16, -1)), "manylinux2014")


def requirements() -> list[str]:
    """Read what a device installs: the dependencies and the extra `onnx`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["onnx"]]


def resolve(machine: str, python: str) -> tuple[dict[str, str], str]:
    """Give the versions that pip chooses by name, or why there are none."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--only-binary=:all:", "--constraint", str(ROOT / "constraints.txt")]
    command += ["--python-version", python]
    for tag in TAGS:
        command += ["--platform", f"{tag}_{machine}"]
    with tempfile.TemporaryDirectory() as folder:  # pip wants a target for a foreign platform, and leaves it empty
        report = Path(folder) / "report.json"
        command += ["--target", folder, "--report", str(report), *requirements()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            return {}, " ".join(errors or done.stderr.splitlines()[-1:] or ["pip gave no reason"])
        chosen = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {one["name"]: one["version"] for one in chosen}, ""


def main() -> None:
    """Check all of them; exit with 1 if one has no wheels."""
    failed = False
    for machine in MACHINES:
        for python in PYTHONS:
            versions, reason = resolve(machine, python)
            failed |= bool(reason)
            said = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
            print(f"{'FAIL' if reason else 'ok  '}  {machine:<7}  Python {python}  {reason or said}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
