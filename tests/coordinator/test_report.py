import dataclasses
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edge_runtime.coordinator import plots, report, report_html, summary
from edge_runtime.coordinator.report import Report, Row, RunInfo
from edge_runtime.message import Profile

DOCS = Path(__file__).parents[2] / "docs/report.md"
ROW = Row(
    round=0,
    device="a",
    phase="train",
    payload_bytes_up=100,
    payload_bytes_down=200,
    socket_bytes_up=110,
    socket_bytes_down=220,
    idle_rss_bytes=40,
    agent_peak_rss_bytes=50,
    trainer_peak_rss_bytes=100,
    cpu_s=1.0,
    wall_s=2.0,
    accuracy_shared=None,
    accuracy_personal_before=0.5,
    accuracy_personal=0.6,
    loss=1.5,
    train_samples=30,
    test_samples=10,
)
INFO = RunInfo(
    "run-1", "fedspa", 2, "watch-cnn", 1000, 7, {"run": {"rounds": 2}}, "mosquitto", "2026-01-01T00:00:00Z", 9.0
)


def row(**changes: Any) -> Row:
    return dataclasses.replace(ROW, **changes)


def only(made: Report) -> dict[str, Any]:
    (device,) = made["devices"]
    return dict(device)


def fleet(values: list[float | None]) -> Report:
    return report.build(INFO, [row(device=f"d{i}", accuracy_personal=value) for i, value in enumerate(values)])


def with_baseline() -> Report:
    rows = [row(device=device, round=number) for device in "ab" for number in (0, 1)]
    rows += [row(device=device, round=2, phase="evaluate", accuracy_shared=0.7) for device in "ab"]
    dense = [dataclasses.replace(item, socket_bytes_up=220, payload_bytes_up=200, accuracy_shared=0.5) for item in rows]
    other = report.build(dataclasses.replace(INFO, algorithm="fedavg"), dense)
    return report.build(INFO, rows, [other])


def test_quantiles_are_interpolated_linearly_between_neighbours() -> None:
    # Five sorted values lie at 0, .25, .5, .75, 1: p10 is 40 % of the way from the first to the second.
    stats = fleet([0.5, 0.1, 0.3, 0.9, 0.2])["summary"]["accuracy_personal"]
    assert stats == {"mean": 0.4, "p10": 0.14, "p50": 0.3, "p90": 0.74}


def test_statistics_skip_devices_without_the_figure_and_figures_that_are_not_finite() -> None:
    stats = fleet([None, 0.2, math.nan, 0.4, math.inf])["summary"]["accuracy_personal"]
    assert (stats["mean"], stats["p50"]) == (0.3, 0.3)


def test_a_figure_that_no_device_has_keeps_its_shape() -> None:
    assert fleet([0.5])["summary"]["accuracy_shared"] == {"mean": None, "p10": None, "p50": None, "p90": None}


def test_bytes_of_a_device_are_means_over_its_training_rounds_and_the_evaluation_stands_apart() -> None:
    rows = [
        row(round=0, payload_bytes_up=100, socket_bytes_up=110),
        row(round=1, payload_bytes_up=300, socket_bytes_up=None),
        row(
            round=2,
            phase="evaluate",
            payload_bytes_up=7,
            payload_bytes_down=9000,
            socket_bytes_up=None,
            socket_bytes_down=9500,
        ),
    ]
    device = only(report.build(INFO, rows))
    assert (device["training_rounds"], device["payload_bytes_up"], device["socket_bytes_up"]) == (2, 200, 110)
    assert device["payload_bytes_down"] == 200
    assert (device["evaluation_payload_bytes_up"], device["evaluation_payload_bytes_down"]) == (7, 9000)
    assert (device["evaluation_bytes_up"], device["evaluation_bytes_down"]) == (None, 9500)


def test_peak_memory_is_agent_and_trainer_in_the_same_round() -> None:
    rows = [
        row(round=0, agent_peak_rss_bytes=50, trainer_peak_rss_bytes=100),
        row(round=1, agent_peak_rss_bytes=60, trainer_peak_rss_bytes=80),
        row(round=2, phase="evaluate", agent_peak_rss_bytes=60, trainer_peak_rss_bytes=None),
    ]
    device = only(report.build(INFO, rows))
    assert (device["peak_rss_bytes"], device["agent_peak_rss_bytes"], device["trainer_peak_rss_bytes"]) == (
        150,
        60,
        100,
    )


def test_final_accuracies_come_from_the_evaluation() -> None:
    rows = [
        row(
            round=2,
            phase="evaluate",
            accuracy_shared=0.7,
            accuracy_personal_before=0.8,
            accuracy_personal=0.9,
            loss=None,
        ),
        row(round=1, loss=0.25),
        row(round=0),
    ]
    device = only(report.build(INFO, rows))
    found = [device[name] for name in ("accuracy_shared", "accuracy_personal_before", "accuracy_personal", "loss")]
    assert found == [0.7, 0.8, 0.9, 0.25]


def test_final_accuracies_come_from_the_last_training_round_where_there_was_no_evaluation() -> None:
    device = only(report.build(INFO, [row(round=1, accuracy_personal=0.75), row(round=0, accuracy_personal=0.6)]))
    assert device["accuracy_personal"] == 0.75


def test_a_device_that_never_answered_is_listed_without_figures() -> None:
    made = report.build(dataclasses.replace(INFO, devices=("a", "b")), [row()])
    silent = made["devices"][1]
    assert (silent["id"], silent["training_rounds"]) == ("b", 0)
    assert {silent[name] for name in report.METRICS} == {None}
    assert made["summary"]["accuracy_personal"]["mean"] == 0.6


def test_a_round_counts_those_who_took_part_and_the_running_total_counts_the_fleet() -> None:
    rows = [
        row(device="a", round=0),
        row(device="b", round=0, socket_bytes_up=130),
        row(device="b", round=1, socket_bytes_down=None),
    ]
    first, second = report.build(INFO, rows)["rounds_detail"]
    assert (first["round"], first["devices"], first["socket_bytes_up"]) == (0, 2, 120)
    assert first["cumulative_payload_bytes"] == 300
    assert first["cumulative_socket_bytes"] == 340
    assert second["cumulative_payload_bytes"] == 450  # one of two devices moved another 300
    assert second["cumulative_socket_bytes"] is None


def test_a_baseline_is_compared_by_ratios_and_points() -> None:
    made = with_baseline()
    compared = made["baselines"]["fedavg"]["comparison"]
    assert (compared["socket_bytes_up_ratio"], compared["socket_bytes_down_ratio"]) == (0.5, 1.0)
    assert compared["accuracy_personal_points"] == 0.0
    assert compared["accuracy_shared_points"] == 20.0
    assert compared["accuracy_personal_over_shared_points"] == 10.0
    assert made["baselines"]["fedavg"]["summary"].keys() == made["summary"].keys()


def test_what_cannot_be_compared_is_none() -> None:
    rows = [row(socket_bytes_up=None, payload_bytes_up=0)]
    other = report.build(dataclasses.replace(INFO, algorithm="local"), rows)
    compared = report.build(INFO, [row()], [other])["baselines"]["local"]["comparison"]
    assert (compared["socket_bytes_up_ratio"], compared["payload_bytes_up_ratio"]) == (None, None)
    assert compared["accuracy_personal_over_shared_points"] is None


def keys_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys_in(inner)}
    return {key for inner in value for key in keys_in(inner)} if isinstance(value, list) else set()


def test_every_key_is_documented() -> None:
    made = with_baseline()
    for part in (made, made["baselines"]["fedavg"]):
        part["configuration"] = part["versions"] = {}
    ratios = {key for key in made["baselines"]["fedavg"]["comparison"] if key.endswith("_ratio")}
    documented = set(re.findall(r"[a-z0-9_]+", " ".join(re.findall(r"`([^`]+)`", DOCS.read_text()))))
    assert {key.removesuffix("_ratio") if key in ratios else key for key in keys_in(made)} <= documented


def test_the_schema_of_version_one_has_these_keys_and_types() -> None:
    made = json.loads(report.to_json(with_baseline()))
    top = {
        "schema": str, "run": str, "algorithm": str, "rounds": int, "model": dict, "seed": int, "broker": str,
        "configuration": dict, "versions": dict, "times": dict, "devices": list, "summary": dict,
        "rounds_detail": list, "rejected": list, "privacy": type(None), "dropped": dict, "baselines": dict,
    }  # fmt: skip
    assert {key: type(value) for key, value in made.items()} == top
    assert made["schema"] == "edge-runtime/report/1"
    assert made["model"] == {"name": "watch-cnn", "parameters": 1000}
    assert set(made["devices"][0]) == {
        "id",
        "choice",
        "profile",
        "training_rounds",
        "rejected",
        "times",
        *report.METRICS,
    }
    assert set(made["summary"]) == {"times", *report.METRICS}
    every = [*(made["summary"][name] for name in report.METRICS), *made["summary"]["times"].values()]
    assert all(set(stats) == {"mean", "p10", "p50", "p90"} for stats in every)
    needed = "id payload_bytes_up payload_bytes_down socket_bytes_up socket_bytes_down idle_rss_bytes peak_rss_bytes"
    needed += " accuracy_shared accuracy_personal_before accuracy_personal"
    assert set(needed.split()) <= set(made["devices"][0])


def test_without_times_nothing_is_left_that_tells_the_time() -> None:
    slow = [row(cpu_s=50.0, wall_s=60.0)]
    late = dataclasses.replace(INFO, started="2027-01-01T00:00:00Z", wall_s=99.0)
    stripped = report.without_times(report.build(INFO, [row()]))
    assert report.to_json(stripped) == report.to_json(report.without_times(report.build(late, slow)))
    assert "times" not in keys_in(stripped)


def test_the_order_of_rows_changes_no_byte() -> None:
    rows = [row(device=device, round=number, loss=0.1 * number + 0.7) for device in "cab" for number in (2, 0, 1)]
    assert report.to_json(report.build(INFO, rows)) == report.to_json(report.build(INFO, rows[::-1]))


def test_a_loss_that_blew_up_is_null_and_not_the_word_nan() -> None:
    assert b"NaN" not in report.to_json(report.build(INFO, [row(loss=math.nan)]))


def test_a_report_is_written_and_latest_points_at_the_newest(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        report.write(tmp_path / name, with_baseline())
        report.publish(tmp_path / name)
    assert (tmp_path / "latest").readlink() == Path("2")
    assert json.loads((tmp_path / "latest/report.json").read_text()) == with_baseline()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "latest"]


def test_a_folder_of_somebodys_own_named_latest_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "1").mkdir()
    with pytest.raises(OSError, match="latest"):
        report.publish(tmp_path / "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "latest"]


class Page(HTMLParser):
    """Counts tags and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_anywhere() -> None:
    text = report_html.page(with_baseline())
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"https?:|//[a-z]|<script|<link|<img|@import|url\((?!#)", without_names)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert (page.count["svg"], page.count["figure"]) == (4, 4)


def test_the_page_can_be_repainted_for_a_dark_screen() -> None:
    text = report_html.page(with_baseline())
    style, body = text.split("</style>", 1)
    for name, colour in plots.COLOURS.items():
        assert len(re.findall(rf"--{name}: ", style)) == 2
        assert f"--{name}: {colour}" in style
        assert colour not in body


def test_the_page_of_one_report_is_the_same_bytes_each_time() -> None:
    assert report_html.page(with_baseline()) == report_html.page(with_baseline())


def test_a_hostile_name_is_text_on_the_page_and_in_the_plots() -> None:
    name = "<script>alert(1)</script>$x^2$"
    info = dataclasses.replace(INFO, algorithm=name, model=name, configuration={name: name})
    text = report_html.page(report.build(info, [row(device=name)]))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x^2$" in text


@pytest.mark.parametrize("rows", [[], [row()], [row(device=f"d{i}") for i in range(60)]], ids=["none", "one", "sixty"])
def test_a_fleet_of_any_size_makes_a_page(rows: list[Row]) -> None:
    assert report_html.page(report.build(INFO, rows)).endswith("</html>\n")


def test_a_run_without_socket_and_memory_shows_payloads_and_says_what_is_missing() -> None:
    bare = row(
        socket_bytes_up=None, socket_bytes_down=None, idle_rss_bytes=None, agent_peak_rss_bytes=None,
        trainer_peak_rss_bytes=None,
    )  # fmt: skip
    text = report_html.page(report.build(INFO, [bare]))
    assert "payload per device and round (kB)" in text
    assert "memory was not metered" in text


def test_the_picture_is_a_png_of_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        plots.picture(with_baseline(), tmp_path / name)
    first = (tmp_path / "1.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "2.png").read_bytes()


def test_the_summary_shows_the_run_beside_the_baseline_and_what_it_saves() -> None:
    console = Console(width=140, color_system=None)
    with console.capture() as shown:
        console.print(summary.summary_table(with_baseline()))
    lines = shown.get().splitlines()
    (socket,) = (line for line in lines if "socket up per round" in line)
    assert re.findall(r"[\w.]+ B|[\d.]+ x less", socket) == [
        "110 B",
        "110 B",
        "110 B",
        "220 B",
        "220 B",
        "220 B",
        "2.00 x less",
    ]
    assert "+10.0 points over the shared model of fedavg" in shown.get()


def test_the_report_loads_no_plotting_library_until_it_draws() -> None:
    code = "import sys, edge_runtime.coordinator.report_html; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_rejected_update_is_counted_for_its_device_and_told_in_the_summary() -> None:
    info = dataclasses.replace(
        INFO, rejected=((0, "liar", "Up.values: holds a value that is not finite"), (1, "liar", "again"))
    )
    made = report.build(info, [])
    assert {entry["id"]: entry["rejected"] for entry in made["devices"]} == {"liar": 2}
    assert made["rejected"][1] == {"round": 1, "device": "liar", "reason": "again"}
    told = str(summary.summary_table(made).caption)
    assert "2 updates of 1 device rejected (liar: Up.values: holds a value that is not finite)" in told


def test_the_page_says_what_was_thrown_out_refused_and_promised() -> None:
    info = dataclasses.replace(
        INFO,
        rejected=((0, "liar", "norm <9>"),),
        dropped={"a": {"forged": 7, "stale": 2}},
        privacy="epsilon 3 for a delta of 1e-5",
    )
    text = report_html.page(report.build(info, []))
    for said in ("Updates thrown out: 1", "norm &lt;9&gt;", "Messages refused: 7", "forged", "epsilon 3"):
        assert said in text
    quiet = report_html.page(report.build(INFO, []))
    for said in ("thrown out", "refused", "Privacy"):
        assert said not in quiet


def test_messages_that_no_honest_device_sends_are_reported_by_device_and_told_in_the_summary() -> None:
    dropped = {"(strangers)": {"unknown": 2}, "a": {"stale": 1, "forged": 7}}
    made = report.build(dataclasses.replace(INFO, dropped=dropped), [])
    assert made["dropped"] == dropped
    assert "9 messages refused (a: forged)" in str(summary.summary_table(made).caption)
    quiet = report.build(dataclasses.replace(INFO, dropped={"a": {"stale": 1, "repeated": 3}}), [])
    assert summary.summary_table(quiet).caption is None


def test_energy_is_a_mean_of_rounds_heat_the_highest_and_throttling_a_part_of_the_rounds() -> None:
    told = [
        row(round=0, energy_j=10.0, temperature_c=50.0, throttled=0.0, battery=0.9),
        row(round=1, energy_j=14.0, temperature_c=71.5, throttled=1.0, battery=0.8),
        row(round=2, phase="evaluate", energy_j=1.0, temperature_c=60.0, throttled=0.0, battery=0.7),
    ]
    made = only(report.build(INFO, told))
    assert [made[name] for name in ("energy_j", "temperature_c", "throttled", "battery")] == [12.0, 71.5, 0.5, 0.7]
    detail = report.build(INFO, told)["rounds_detail"]
    assert [entry["energy_j"]["mean"] for entry in detail] == [10.0, 14.0]
    assert [entry["throttled"]["mean"] for entry in detail] == [0.0, 1.0]


def test_hardware_is_shown_where_a_device_tells_it_and_nowhere_else() -> None:
    bare, told = (
        report.build(INFO, [row()]),
        report.build(INFO, [row(energy_j=1234.0, temperature_c=71.5, throttled=1.0)]),
    )
    assert [name for _, name in summary.lines(bare) if name in ("energy_j", "temperature_c", "throttled")] == []
    shown = {name: summary.cells(told, name)[0] for _, name in summary.lines(told)}
    assert (shown["energy_j"], shown["temperature_c"], shown["throttled"]) == ("1.23 kJ", "72 °C", "100.0 %")
    assert "energy per round" not in report_html.page(bare)
    assert "<td>1.23 kJ</td>" in report_html.page(told)
    assert "battery" not in report_html.page(told)


def test_a_run_is_compared_with_its_baseline_in_joules() -> None:
    other = report.build(dataclasses.replace(INFO, algorithm="fedavg"), [row(energy_j=20.0)])
    compared = report.build(INFO, [row(energy_j=5.0)], [other])["baselines"]["fedavg"]["comparison"]
    assert compared["energy_j_ratio"] == 0.25


def test_what_a_device_said_it_is_stands_with_its_figures_and_on_the_page() -> None:
    said = dict.fromkeys(vars(Profile("0" * 64))) | {"cpu": "Cortex-A76 <b>", "cores": 4}
    made = report.build(dataclasses.replace(INFO, profiles={"a": said}), [row(), row(device="b")])
    assert [device["profile"] for device in made["devices"]] == [said, None]
    assert "<td>Cortex-A76 &lt;b&gt;, 4 cores</td>" in report_html.page(made)
    assert "what it is" not in report_html.page(report.build(INFO, [row()]))
