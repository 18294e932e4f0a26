"""What somebody may try who does not belong to a fleet: each attempt of the scorecard by itself, on every broker."""

from pathlib import Path

import pytest

from edge_runtime.coordinator import broker as brokers
from tests.chaos import security
from tests.chaos.scorecard import Scale

KINDS = [
    "amqtt",
    pytest.param(
        "mosquitto", marks=pytest.mark.skipif(brokers.find_mosquitto() is None, reason="mosquitto is not installed")
    ),
]


@pytest.mark.parametrize("check", security.CHECKS, ids=lambda check: check.what.replace(" ", "-"))
@pytest.mark.parametrize("kind", KINDS)
def test_an_attempt_comes_to_nothing(kind: str, check: security.Check, tmp_path: Path) -> None:
    with security.ground(kind, tmp_path / "ground") as on:
        check.try_it(on)


def test_an_attempt_that_succeeds_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def let_in(on: security.Ground) -> None:
        on.refused(security.VICTIM)

    monkeypatch.setattr(security, "CHECKS", (security.Check("T1", "belonging", let_in),))
    figure = security.measure(Scale(folder=tmp_path))
    assert not figure.met
    assert len(figure.details["failed"]) == len(security.kinds())  # type: ignore[arg-type]


def test_the_row_of_the_scorecard_tries_a_part_of_everything(tmp_path: Path) -> None:
    figure = security.measure(Scale(part=0.05, folder=tmp_path))
    assert figure.met, figure
    assert list(tmp_path.iterdir()) == []
