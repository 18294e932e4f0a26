import dataclasses
from pathlib import Path

import pytest

from edge_runtime.coordinator import broker as brokers
from tests.chaos import seals
from tests.chaos.scorecard import Scale


@pytest.mark.parametrize("row", seals.ROWS, ids=lambda row: row.name)
def test_a_row_is_met_at_a_small_scale(row: seals.Row, tmp_path: Path) -> None:
    figure = row.measure(Scale(0.1, folder=tmp_path))
    assert figure.met, figure.text


def test_an_attack_that_is_not_counted_and_a_state_that_is_another_are_told(tmp_path: Path) -> None:
    quiet = dataclasses.replace(seals.ATTACKS[0], strike=lambda *_: None)
    terms = seals.Terms(2, pause_s=0.0)
    wrong, _ = seals.under((quiet,), "amqtt", tmp_path / "quiet", terms)
    assert wrong.startswith("nothing was counted as forged")
    with brokers.start("amqtt", folder=tmp_path / "broker") as broker, seals.Fleet(broker, tmp_path, terms) as fleet:
        fleet.wait()
        assert fleet.differs() == ""
        fleet.terms = dataclasses.replace(terms, rounds=3)
        assert fleet.differs() == "the model is another"
