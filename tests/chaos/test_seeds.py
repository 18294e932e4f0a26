from tests.chaos.scorecard import Scale
from tests.chaos.seeds import ROWS


def test_a_few_hundred_seeds_end_as_the_undisturbed_run_and_planted_bugs_are_found() -> None:
    (row,) = ROWS
    figure = row.measure(Scale(part=0.002))
    assert figure.met, figure.text
    assert figure.details["seeds"] == 200
