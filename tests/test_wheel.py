"""What is built is what was written: sdist, wheel, and an installation in an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("coordinator", "compression", "export", "devices")
SHIPPED = {".in", ".service", ".py", ".md", ".html", ".css", ".js", ".svg", ".typed", ".json", ".onnx"}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program without this shell's Python settings and give what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def written_files(root: Path) -> list[str]:
    """List the files that must be shipped, by the path that they are imported by."""
    folders = {"edge_runtime": root / "edge_runtime"} | {f"edge_runtime/{name}": root / name for name in LINKED}
    found = []
    for prefix, folder in folders.items():
        for directory, inner, names in os.walk(folder):  # does not follow the links
            inner[:] = [name for name in inner if name != "__pycache__"]
            place = PurePosixPath(prefix, Path(directory).relative_to(folder).as_posix())
            found += [str(place / name) for name in names if Path(name).suffix in SHIPPED]
    return sorted(found)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what is written, without what was built here before, which setuptools would read."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("edge_runtime", *LINKED):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist, and from that a wheel, with the tools of this environment; give the folder that holds both."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=source)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new environment that borrows our dependencies; give its folder of programs.

    The dependencies come by a path entry, so that no index is asked; import hooks of an editable installation do not
    come with them.
    """
    home = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_the_wheel_holds_one_top_level_name(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edge_runtime"}
    assert len(tops) == 2


def test_every_written_file_is_in_the_wheel_once_with_its_bytes(source: Path, wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    shipped = Counter(name for name in archive.namelist() if name.startswith("edge_runtime/"))
    written = written_files(source)
    assert shipped == Counter(written)
    assert [name for name in written if archive.read(name) != (source / name).read_bytes()] == []


def test_the_sdist_holds_every_written_file(source: Path, built: Path) -> None:
    (found,) = built.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    assert set(written_files(source)) - names == set()


def test_the_installed_agent_is_the_wheels_own_and_loads_no_torch(installed: Path) -> None:
    program = "import sys, edge_runtime.agent as agent; print('torch' in sys.modules, agent.__file__)"
    loaded, file = run(installed / "python", "-c", program, cwd=installed).split(maxsplit=1)
    assert loaded == "False"
    assert Path(file.strip()).is_relative_to(installed.parent)


@pytest.mark.parametrize("name", ["edge-agent", "edge-coordinator"])
def test_an_installed_program_explains_itself(installed: Path, name: str) -> None:
    assert name in run(installed / name, "--help", cwd=installed)
