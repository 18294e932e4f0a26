"""Does a known vulnerability concern what `constraints.txt` pins? Asks pip-audit, in an environment of its own.

Exits with 1 where one does. Without its database, which is on the network, it says so and exits with 0: that a machine
cannot look is no fault of what it would look for.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOL = "pip-audit==2.10.1"
_MINUTES_S = 300


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a program; one that takes too long has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_MINUTES_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "it took too long")


def main() -> int:
    """Look, say what was found, and give the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False)
        python = str(Path(folder) / "bin" / "python")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
        installed = run(*pip, "install", "--quiet", TOOL)
        if installed.returncode:
            print(f"note  not audited: {TOOL} cannot be installed here: {_last(installed.stderr)}")
            return 0
        flags = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        audited = run(python, "-m", "pip_audit", *flags, "--requirement", str(ROOT / "constraints.txt"))
    try:
        packages = json.loads(audited.stdout)["dependencies"]
    except ValueError:
        print(f"note  not audited: its database does not answer: {_last(audited.stderr)}")
        return 0
    return report(packages)


def report(packages: list[dict[str, object]]) -> int:
    """Say how many packages were looked at, and what is wrong with which."""
    looked = [package for package in packages if "skip_reason" not in package]
    bad = {f"{package['name']} {package['version']}": package["vulns"] for package in looked if package.get("vulns")}
    for name, faults in bad.items():
        for fault in faults:  # type: ignore[attr-defined]
            fixed = ", ".join(fault["fix_versions"]) or "no version yet"
            print(f"FAIL  {name}: {fault['id']}, mended by {fixed}")
    if not looked:
        print(f"note  not audited: the database here knows none of {len(packages)} packages")
    elif not bad:
        print(f"ok    {len(looked)} of {len(packages)} packages were looked up, and nothing is known against them")
    return int(bool(bad))


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1][:300]


if __name__ == "__main__":
    sys.exit(main())
