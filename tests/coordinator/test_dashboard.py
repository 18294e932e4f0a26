"""The dashboard without a browser: what it reads, what it answers, and to whom."""

import contextlib
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.coordinator import archive, runs
from edge_runtime.coordinator.actions import Progress
from edge_runtime.coordinator.dashboard import charts, density, downloadable
from edge_runtime.coordinator.dashboard.beside import showing
from edge_runtime.coordinator.dashboard.charts import Chart, Line
from edge_runtime.coordinator.dashboard.guard import Door
from edge_runtime.coordinator.dashboard.picture import RunReader, accepted
from edge_runtime.coordinator.dashboard.reading import JournalReader
from edge_runtime.coordinator.journal import Journal
from edge_runtime.errors import RunError
from edge_runtime.message import Blob, Offer
from tests.coordinator.dashboards import Served, command, dashboard

DEVICES = ("a", "b")


def offer_of(round_: int, device: str, loss: float) -> tuple[Offer, bytes]:
    data = f"{round_} {device}".encode()
    blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
    return Offer("run", round_, "train", blob, {"loss": loss, "train-samples": 7.0}), data


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its baseline, on two devices."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--parts", "2", "--rounds", "3", "--labels-per-class", "3", "--runs", str(folder)]
    done = subprocess.run(command("simulate", *flags), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def shown(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with dashboard(simulated, tmp_path_factory.mktemp("state"), "--read-only") as served:
        yield served


@pytest.fixture(scope="module")
def acting(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with dashboard(simulated, tmp_path_factory.mktemp("state")) as served:
        yield served


def main_run(simulated: Path) -> Path:
    return next(folder for folder in runs.folders(simulated) if folder.name == "fedspa")


def test_what_is_shown_of_a_run_is_its_report(simulated: Path) -> None:
    folder = main_run(simulated)
    report = json.loads((folder.parent / "report.json").read_text())
    assert json.loads(json.dumps(RunReader(folder).picture().report)) == report


def test_before_the_report_is_written_all_figures_are_there_already(simulated: Path) -> None:
    folder = main_run(simulated)
    report = json.loads((folder.parent / "report.json").read_text())
    (folder.parent / "report.json").rename(folder.parent / "later.json")
    try:
        now = RunReader(folder).picture()
    finally:
        (folder.parent / "later.json").rename(folder.parent / "report.json")
    assert not now.finished_report
    for key in ("run", "algorithm", "rounds", "model", "seed", "devices", "summary", "rounds_detail", "rejected"):
        assert json.loads(json.dumps(now.report[key])) == report[key], key
    assert now.report["baselines"]["fedavg"]["comparison"] == report["baselines"]["fedavg"]["comparison"]


def test_a_journal_that_grows_and_packs_is_read_step_by_step_as_at_once(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path, durable=False)) as journal:
        for device in DEVICES:
            journal.devices.register(device)
        reader, seen = JournalReader(tmp_path), set()
        for number in range(2 * archive.KEPT_ROUNDS + 10):
            journal.open_round(number, "train", DEVICES)
            journal.accept("a", *offer_of(number, "a", number + 1 / 3), number, "held")
            if number % 7 == 0:
                reader.read()
            journal.reject("b", offer_of(number, "b", 0.5)[0], "nonsense", number)
            journal.close_round(Progress(number, "train", DEVICES), b"state", Progress(number + 1, "train"))
            if number % 5 == 0 or number > 2 * archive.KEPT_ROUNDS:
                held = reader.read()
                assert accepted(held) == journal.accepted(), number
                assert held.judged == JournalReader(tmp_path).read().judged
                seen.add(len(held.cohorts))
    assert max(seen) > archive.KEPT_ROUNDS


def test_looking_changes_nothing_and_keeps_no_coordinator_out(simulated: Path) -> None:
    folder = main_run(simulated)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and "-" not in path.name}
    RunReader(folder).picture()
    assert {name: (folder / name).read_bytes() for name in before} == before
    with contextlib.closing(Journal(folder, durable=False)) as journal:
        assert RunReader(folder).picture().standing.process > 0
        journal.set("looked", "at")


def test_a_journal_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"nonsense" * 100)
    with pytest.raises(RunError, match="cannot be read"):
        RunReader(tmp_path).picture()


def test_the_masks_of_a_sparse_run_are_known_layer_by_layer(simulated: Path) -> None:
    picture = RunReader(main_run(simulated)).picture()
    found = density.layers(picture, picture.known[0])
    assert sum(layer.size for layer in found) == picture.report["model"]["parameters"]
    kept, masked = sum(layer.kept for layer in found), [layer for layer in found if layer.name.endswith("weight")]
    assert 0.45 < sum(layer.kept for layer in masked) / sum(layer.size for layer in masked) < 0.55
    assert kept < picture.report["model"]["parameters"]
    dense = RunReader(main_run(simulated).parent / "fedavg").picture()
    assert density.layers(dense, dense.known[0]) == []


def test_pages_are_there_and_say_what_the_report_says(shown: Served, simulated: Path) -> None:
    folder = main_run(simulated)
    report = json.loads((folder.parent / "report.json").read_text())
    name = f"{folder.parent.name}~{folder.name}"
    assert name in shown.ask("/").text
    page = shown.ask(f"/runs/{name}").text
    figures = dict(re.findall(r'<data value="([^"]+)" data-figure="([^"]+)">', page))
    told = {path: float(value) for value, path in figures.items()}
    assert told["summary.accuracy_personal.mean"] == report["summary"]["accuracy_personal"]["mean"]
    device = report["devices"][0]["id"]
    assert device in page
    assert device in shown.ask("/fleet").text
    assert "What its model keeps" in shown.ask(f"/runs/{name}/devices/{device}").text


def test_only_parts_that_have_changed_travel_again(shown: Served, simulated: Path) -> None:
    folder = main_run(simulated)
    address = f"/runs/{folder.parent.name}~{folder.name}?live="
    first = json.loads(shown.ask(address + "-").text)["parts"]
    assert {"live_head", "live_tiles", "live_charts", "live_devices"} <= first.keys()
    again = json.loads(shown.ask(address + ",".join(part["tag"] for part in first.values())).text)["parts"]
    assert again == {}


def test_what_a_run_has_left_can_be_downloaded_and_nothing_else(shown: Served, simulated: Path) -> None:
    folder = main_run(simulated)
    place = f"/runs/{folder.parent.name}~{folder.name}/files/"
    assert json.loads(shown.ask(place + "report.json").text)["algorithm"] == "fedspa"
    page = shown.ask(place + "report.html")
    assert page.status == 200
    assert "sandbox" in page.headers["content-security-policy"]
    for name in ("journal.sqlite", "..%2ffedavg%2fmodel.bin", "../../report.json", "lock", "%2fetc%2fpasswd", "seal"):
        assert shown.ask(place + name).status == 404
    assert [one.name for one in downloadable.files(folder)] == ["report.html", "report.json", "model.bin"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/runs/none", 404), ("/runs/..%2f..%2fetc", 404), ("/nothing", 404), ("/static/../app.py", 404), ("/start", 403)],
)
def test_what_is_not_there_is_said_so(shown: Served, path: str, status: int) -> None:
    assert shown.ask(path).status == status


def test_every_answer_tells_the_browser_to_fetch_nothing_from_elsewhere(shown: Served) -> None:
    for path in ("/", "/fleet", "/nothing", "/static/dashboard.js"):
        told = shown.ask(path).headers
        assert "default-src 'none'" in told["content-security-policy"]
        assert "frame-ancestors 'none'" in told["content-security-policy"]
        assert told["x-content-type-options"] == "nosniff"


def test_names_that_are_not_this_machines_are_not_answered(shown: Served) -> None:
    for host in ("evil.example", "evil.example:8642", "127.0.0.1.evil.example"):
        assert shown.ask("/", Host=host).status == 421
    for host in ("localhost", f"localhost:{shown.port}", "127.0.0.1", f"[::1]:{shown.port}", "LOCALHOST"):
        assert shown.ask("/", Host=host).status == 200


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("a", True),
        ("A:1", True),
        ("b", False),
        ("1.2.3.4:5", True),
        ("[fe80::1]", True),
        ("[fe80::1]:5", True),
        ("", False),
    ],
)
def test_a_door_knows_its_names_and_addresses(host: str, known: bool) -> None:
    assert Door(frozenset({"a"})).knows(host) is known


def test_where_something_can_be_done_nobody_comes_in_without_the_token(acting: Served) -> None:
    assert len(acting.token) == 32
    assert acting.ask("/").status == 403
    assert acting.ask("/?token=nonsense").status == 403
    assert acting.ask("/", Cookie=f"edge-dashboard-{acting.port}=nonsense").status == 403
    let = acting.ask(f"/fleet?sort=a&token={acting.token}")
    assert (let.status, let.headers["location"]) == (303, "/fleet?sort=a")
    assert let.headers["set-cookie"].startswith(f"edge-dashboard-{acting.port}={acting.token};")
    assert "HttpOnly; SameSite=Lax" in let.headers["set-cookie"]
    assert acting.ask("/", **acting.cookie()).status == 200


def test_the_token_stays_the_same_and_is_for_this_user_alone(simulated: Path, tmp_path: Path) -> None:
    with dashboard(simulated, tmp_path) as first:
        pass
    with dashboard(simulated, tmp_path) as second:
        assert second.token == first.token
    assert (tmp_path / "edge-runtime" / "dashboard-token").stat().st_mode & 0o777 == 0o600


def test_nothing_is_done_but_by_a_form_of_ours(acting: Served, simulated: Path) -> None:
    folder = main_run(simulated)
    place = f"/runs/{folder.parent.name}~{folder.name}/stop"
    ours = f"http://127.0.0.1:{acting.port}"
    (word,) = re.findall(r'name="word" value="([0-9a-f]{64})"', acting.ask(place, **acting.cookie()).text)
    form = f"word={word}"
    allowed: dict[str, Any] = {"Origin": ours, **acting.cookie()}
    assert acting.ask(place, "POST", form, **{**allowed, "Origin": "http://evil.example"}).status == 403
    assert acting.ask(place, "POST", form, **{**allowed, "Origin": "null"}).status == 403
    assert acting.ask(place, "POST", form, **acting.cookie()).status == 403
    assert acting.ask(place, "POST", form, Origin=ours).status == 403
    assert acting.ask(place, "POST", "word=other", **allowed).status == 403
    assert acting.ask(place, "POST", form + "x" * 5000, **allowed).status == 413
    assert acting.ask(f"/runs/{folder.parent.name}~{folder.name}/erase", "POST", form, **allowed).status == 404
    refused = acting.ask(place, "POST", form, **allowed)
    assert refused.status == 409
    assert "no coordinator is at this run" in refused.text


def test_a_dashboard_that_only_shows_takes_no_form(shown: Served, simulated: Path) -> None:
    folder = main_run(simulated)
    place, ours = f"/runs/{folder.parent.name}~{folder.name}/stop", f"http://127.0.0.1:{shown.port}"
    assert shown.ask(place).status == 403
    assert shown.ask(place, "POST", "word=", Origin=ours).status == 403


def test_what_devices_and_folders_are_called_is_text(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "<b>&" / "fedspa"
    flags = ["--parts", "2", "--rounds", "1", "--labels-per-class", "3", "--no-baseline"]
    done = subprocess.run(
        command("simulate", *flags, "--runs", str(tmp_path / "made")), capture_output=True, check=False
    )
    assert done.returncode == 0
    (made,) = runs.folders(tmp_path / "made")
    folder.parent.parent.mkdir()
    made.parent.rename(folder.parent)
    with contextlib.closing(Journal(folder, durable=False)) as journal:
        journal.reject("person-01-left", offer_of(9, "x", 0.0)[0], "<script>alert(1)</script>", 9)
        journal.devices.admit("person-01-right", '"><img src=x onerror=alert(1)>')
    (folder / "presence.json").write_text(
        json.dumps(
            {
                "written": 1.0,
                "devices": {"<i>x": {"state": "<i>y", "seen": 1.0, "profile": {"backend": "<script>2"}}},
                "dropped": {"<u>": {"<s>": 1}},
            }
        )
    )
    with dashboard(tmp_path / "runs", tmp_path, "--read-only") as served:
        pages = [served.ask("/"), served.ask("/fleet"), served.ask("/runs/%3Cb%3E%26~fedspa")]
        pages.append(served.ask("/runs/%3Cb%3E%26~fedspa/devices/%3Ci%3Ex"))
    assert [page.status for page in pages] == [200] * 4
    text = "".join(page.text for page in pages)
    assert "&lt;script&gt;alert(1)" in text
    for bad in ("<script>", "<img", "<i>", "<b>", "<u>", "<s>"):
        assert bad not in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-h", "0.0.0.0"], "other machines could read along"),
        (["--cert", "x.pem"], "--cert and --key go together"),
        (["--read-only", "--config", "x.toml"], "nothing can be started"),
        (["--config", "x.toml"], "x.toml: cannot be read"),
        (["--runs", "/etc/passwd"], "no folder"),
        (["--", "--nonsense"], "unknown flag '--nonsense'"),
    ],
)
def test_what_cannot_be_is_one_line_at_the_start(tmp_path: Path, flags: list[str], said: str) -> None:
    done = subprocess.run(
        command("dashboard", *flags), capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_beside_a_command_it_shows_and_ends_with_it(simulated: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with showing(simulated) as address:
        served = Served(address, 0)
        assert served.ask("/").status == 200
        assert served.ask("/start").status == 403
    assert f"dashboard: {address}" in capfd.readouterr().err
    with pytest.raises(ConnectionRefusedError):
        served.ask("/")


def test_a_chart_places_its_points_between_its_axes() -> None:
    drawn = charts.draw(Chart("t", "round", [Line("l", [(1, 0.0), (2, None), (3, 1.0)])], written=lambda v: f"{v:g}"))
    assert '<circle class="own" cx="68.0" cy="226.0"' in drawn.svg
    assert '<circle class="own" cx="506.0" cy="12.0"' in drawn.svg
    assert drawn.svg.count("<circle") == 2
    assert drawn.legend == [("own", "l")]


def test_a_chart_of_nothing_says_so_and_a_long_one_is_thinned_but_for_its_end() -> None:
    assert "nothing yet" in charts.draw(Chart("t", "round", [Line("l", [(1, None)])])).svg
    long = charts.draw(Chart("t", "round", [Line("l", [(n, float(n)) for n in range(10_000)])])).svg
    assert len(long) < 8000
    assert "L506.0 12.0" in long


@pytest.mark.parametrize(
    ("span", "count", "step"), [(1.0, 4, 0.25), (0.3, 4, 0.1), (19, 6, 5), (1e6, 4, 2.5e5), (0, 4, 1.0)]
)
def test_steps_of_an_axis_are_round_numbers(span: float, count: int, step: float) -> None:
    assert charts.nice(span, count) == pytest.approx(step)
