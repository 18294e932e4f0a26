"""A service put onto a system and taken off it: what is written, what is kept, and what nobody may lose unasked."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from edge_runtime import install, service
from edge_runtime.coordinator import pki
from edge_runtime.errors import ConfigError
from edge_runtime.install import Place

UNIT = "[Service]\nExecStart=/opt/edge-runtime/bin/edge-agent start\n"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A system that does not run, in a folder."""
    return Place("edge-agent", tmp_path / "root")


@pytest.fixture
def sensors(tmp_path: Path) -> Path:
    folder = tmp_path / "sensors"
    folder.mkdir()
    for name in ("train.npz", "test.npz"):
        np.savez(folder / name, x=np.zeros((4, 6, 100), np.float32), y=np.arange(4))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    fleet = pki.create(tmp_path / "fleet", "default", ["broker.lan"])
    path = tmp_path / "gateway-7.edge"
    path.write_bytes(fleet.enroll("gateway-7"))
    return path


def put(place: Place, unit: str = UNIT, force: bool = False) -> None:
    install.carry_out(install.installing(place, unit, {"gateway-7.edge": b"identity"}, force), place)


def learn(place: Place) -> Path:
    """Leave what a service leaves with a user of its own: a folder, and a link to it."""
    private, link = place.root / "var/lib/private/edge-agent", place.root / "var/lib/edge-agent"
    private.mkdir(parents=True)
    link.symlink_to("private/edge-agent")
    (private / "model").write_bytes(b"learnt")
    return link / "model"


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file())


def agent(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "XDG_STATE_HOME": str(cwd / "state"), "XDG_CACHE_HOME": str(cwd / "cache")}
    command = [sys.executable, "-m", "edge_runtime.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_an_installed_unit_starts_with_the_system_and_its_identity_is_roots_alone(place: Place) -> None:
    put(place)
    key = place.keys / "gateway-7.edge"
    assert place.unit.read_text().partition("\n")[2] == UNIT
    assert place.wanted.resolve() == place.unit
    assert (key.read_bytes(), key.stat().st_mode & 0o777) == (b"identity", 0o600)


def test_uninstalling_leaves_nothing(place: Place) -> None:
    put(place)
    learn(place)
    left = install.carry_out(install.uninstalling(place, keep_state=False), place)
    assert (files(place.root), left) == ([], [])
    assert install.uninstalling(place, keep_state=False) == []


def test_uninstalling_keeps_identity_state_and_changes_only_when_asked(place: Place) -> None:
    put(place)
    model = learn(place)
    place.changes.mkdir()
    (place.changes / "override.conf").write_text("[Service]\nCPUWeight=1\n")
    install.carry_out(install.uninstalling(place, keep_state=True), place)
    assert model.read_bytes() == b"learnt"
    assert not place.unit.exists()
    assert not place.wanted.is_symlink()
    put(place)
    assert model.read_bytes() == b"learnt"
    assert (place.changes / "override.conf").exists()


def test_installing_a_newer_unit_leaves_state_alone(place: Place) -> None:
    put(place)
    model = learn(place)
    put(place, UNIT + "MemoryMax=1G\n")
    assert "MemoryMax=1G" in place.unit.read_text()
    assert model.read_bytes() == b"learnt"


@pytest.mark.parametrize("edit", [lambda text: text + "Nice=5\n", lambda text: UNIT, lambda text: ""])
def test_a_unit_that_somebody_edited_is_replaced_only_by_force_and_kept_beside(place: Place, edit) -> None:  # type: ignore[no-untyped-def]
    put(place)
    edited = edit(place.unit.read_text())
    place.unit.write_text(edited)
    with pytest.raises(ConfigError, match=r"was edited.*--force"):
        put(place)
    assert place.unit.read_text() == edited
    put(place, force=True)
    assert install.edited(place) == []
    assert place.unit.with_name("edge-agent.service.old").read_text() == edited


def test_an_edited_unit_is_told_before_it_goes_and_kept_with_the_state(place: Place) -> None:
    put(place)
    place.unit.write_text("mine")
    assert install.edited(place) == [place.unit]
    install.carry_out(install.uninstalling(place, keep_state=True), place)
    assert place.unit.with_name("edge-agent.service.old").read_text() == "mine"
    install.carry_out(install.uninstalling(place, keep_state=False), place)
    assert files(place.root) == []


def test_what_others_keep_beside_the_identity_is_left_and_told(place: Place) -> None:
    put(place)
    (place.keys / "mine.toml").write_text("x = 1")
    left = install.carry_out(install.uninstalling(place, keep_state=False), place)
    assert left == [place.keys]
    assert files(place.root) == ["etc/edge-agent/mine.toml"]


def test_a_dry_run_shows_everything_but_the_key_and_writes_nothing(tmp_path: Path, bundle: Path, sensors: Path) -> None:
    start = ["--identity", bundle.name, "--data", sensors.name, "--threads", "2"]
    done = agent("install", "--dry-run", "--user", "daemon", "--memory-mb", "400", "--", *start, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "write /etc/edge-agent/gateway-7.edge (mode 0600)",
        "write /etc/systemd/system/edge-agent.service (mode 0644)",
        "    Description=edge-runtime: agent gateway-7",
        "    LoadCredential=identity:/etc/edge-agent/gateway-7.edge",
        "    MemoryMax=464M",
        "    CPUQuota=200%",
        "    User=daemon",
        "link /etc/systemd/system/multi-user.target.wants/edge-agent.service -> ../edge-agent.service",
    ):
        assert line in done.stdout.splitlines()
    assert f" --data {sensors} " in done.stdout  # from wherever the service stands
    assert "PRIVATE KEY" not in done.stdout
    assert not list(tmp_path.glob("state/**/*.pem"))


def test_who_was_enrolled_here_needs_no_identity_again(tmp_path: Path, bundle: Path, sensors: Path) -> None:
    assert agent("enroll", str(bundle), cwd=tmp_path).returncode == 0
    done = agent("install", "--dry-run", "--user", "daemon", "--", "--data", str(sensors), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--identity ${CREDENTIALS_DIRECTORY}/identity" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "who is this device?"),
        (["--id", "gateway-7", "--data", "watsh"], "did you mean 'watch'?"),
        (["--identity", "nowhere.edge"], "nowhere.edge: is not there"),
        (["--id", "gateway-7", "--no-such-flag"], "--no-such-flag"),
    ],
)
def test_what_could_not_run_is_not_installed(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = agent("install", "--dry-run", "--", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert said in done.stderr


def test_data_that_a_stranger_may_not_read_is_found() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # pytest's own folders are shut to strangers
        data = Path(folder) / "data"
        data.mkdir()
        (data / "train.npz").touch()
        assert service.closed(data) == Path(folder)
        Path(folder).chmod(0o711)
        assert service.closed(data) is None
        (data / "train.npz").chmod(0o640)
        assert service.closed(data) == data / "train.npz"
        data.chmod(0o750)
        assert service.closed(data) == data


def test_data_that_the_service_cannot_see_is_told_in_a_dry_run(tmp_path: Path, sensors: Path) -> None:
    done = agent("install", "--dry-run", "--", "--id", "gateway-7", "--data", str(sensors), cwd=tmp_path)
    assert done.returncode == 0
    assert "it would be refused: " in done.stderr


def test_uninstalling_what_is_not_there_says_so(tmp_path: Path) -> None:
    if Place("edge-agent").unit.exists() or Path("/var/lib/edge-agent").exists():
        pytest.skip("an agent is installed on this machine")
    done = agent("uninstall", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "no edge-agent.service is installed here\n")


def test_only_root_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="sudo"):
        install.carry_out([], Place("edge-agent"))
