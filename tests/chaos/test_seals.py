import dataclasses
from pathlib import Path

import pytest

from tests.chaos import seals
from tests.chaos.scorecard import Scale


@pytest.mark.parametrize("row", seals.ROWS, ids=lambda row: row.name)
def test_a_row_is_met_at_a_small_scale(row: seals.Row, tmp_path: Path) -> None:
    figure = row.measure(Scale(0.1, folder=tmp_path))
    assert figure.met, figure.text


def test_an_attack_that_gets_through_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without counts and tags a replay is taken; the counts say so."""
    quiet = dataclasses.replace(seals.ATTACKS[0], strike=lambda *_: None)
    terms = seals.Terms(1, pause_s=0.0)
    digest = seals.undisturbed("amqtt", tmp_path / "peace", terms)
    wrong, _ = seals.under((quiet,), "amqtt", tmp_path / "quiet", terms, digest)
    assert wrong.startswith("nothing was counted as forged")
    wrong, _ = seals.under((), "amqtt", tmp_path / "other", terms, "another digest")
    assert wrong == "another state"
