"""The checks for algorithms of one's own: the template's passes them all, and each finds what is broken on purpose."""

import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import testing
from edge_runtime.coordinator import new
from edge_runtime.errors import DecodeError

FEDMINE = (new.TEMPLATE / "package" / "fedmine.py.in").read_text()
UP = "return Up(down.round, len(batches), start - self._trained)"
ADD = "self.total.add(device, up.values, up.samples)"
BROKEN = [
    (
        testing.its_settings_go_through_a_table,
        'sgd.require("proximal", self.proximal, low=0.0)',
        'object.__setattr__(self, "proximal", 2 * self.proximal)',
    ),
    (testing.messages_come_through_their_bytes, UP, UP.replace("len(batches)", "float(len(batches))")),
    (
        testing.coded_updates_are_taken,
        ADD,
        f'{ADD}\n        if (up.values == 0).any():\n            raise DecodeError("Up: a value is zero")',
    ),
    (testing.a_down_is_the_same_within_a_round, ADD, "self._model -= up.values"),
    (testing.a_reader_cannot_change_the_model, "Down(self.round, self._model.copy())", "Down(self.round, self._model)"),
    (testing.a_reader_cannot_change_the_model, "        return self._model.copy()", "        return self._model"),
    (
        testing.a_round_done_again_gives_the_same_bytes,
        UP,
        UP.replace("start -", "np.float32(np.random.random()) * start -"),
    ),
    (
        testing.the_order_of_arrival_changes_no_bit,
        ADD,
        "self._sum = getattr(self, '_sum', 0) + up.values",
    ),
    (testing.a_server_resumes_from_its_state, '"model": self._model.copy()', '"model": 0 * self._model'),
    (testing.a_server_resumes_from_its_state, '{"round": self.round,', '{"round": 0,'),
    (
        testing.updates_absorbed_again_count_once,
        ADD,
        f'{ADD}\n        self._devices[device] = self._devices.get(device, b"") + b"."',
    ),
    (
        testing.a_device_that_lost_its_state_starts_over,
        "        return {}",
        '        return {"held": 1}',
    ),
    (testing.a_client_shows_its_model, UP, f"self._trained = start\n        {UP}"),
    (testing.an_unfit_update_is_refused, "if up.round != self.round:", "if up.round > self.round:"),
    (
        testing.an_unfit_update_is_refused,
        'raise DecodeError(f"Up: it is of round',
        'self.total.add(device, 2 * up.values)\n            raise DecodeError(f"Up: it is of round',
    ),
    (testing.an_unfit_down_is_refused, "down.round < 0 or ", ""),
    (testing.a_round_that_nobody_answered_leaves_the_model, "self.total.clear()", "self._model += 1"),
    (testing.a_round_that_nobody_answered_leaves_the_model, "self.round += 1", "self.round = max(1, self.round)"),
]
EXTRA = {
    "self._sum": ("self.total.step(self._model)", "self._model -= self._sum / 4\n        self._sum = 0"),
    "self._devices": ("        self.round = 0\n", "        self.round = 0\n        self._devices = devices\n"),
    '"held"': (
        "        start, mu =",
        '        if self._state is None and down.round:\n            raise DecodeError("?")\n        start, mu =',
    ),
}
"""What else must change where one of these words is in what is broken."""
MORE = {'"held"': ("        self._trained: Flat", "        self._state = state\n        self._trained: Flat")}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write an algorithm: module(text) gives its name."""
    (tmp_path / "own_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def write(text: str) -> str:
        made.append(f"broken_{len(made)}")
        (tmp_path / "own_package" / f"{made[-1]}.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"own_package.{made[-1]}", raising=False)
        monkeypatch.delitem(sys.modules, "own_package", raising=False)
        return f"own_package.{made[-1]}"

    return write


def replaced(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new)


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_the_templates_algorithm_passes(check: Any, module: Any) -> None:
    check(testing.Subject(module(FEDMINE), {"proximal": 0.5}))


@pytest.mark.parametrize(
    ("check", "old", "new"), BROKEN, ids=[f"{one[0].__name__}-{i}" for i, one in enumerate(BROKEN)]
)
def test_a_check_finds_what_is_broken(check: Any, old: str, new: str, module: Any) -> None:
    text = replaced(FEDMINE, old, new)
    for table in (EXTRA, MORE):
        for word, change in table.items():
            text = replaced(text, *change) if word in new else text
    with pytest.raises((AssertionError, DecodeError)):
        check(testing.Subject(module(text)))


def test_every_check_is_tried_on_something_broken() -> None:
    assert {check for check, *_ in BROKEN} == set(testing.CHECKS)


def test_what_a_check_says_names_what_to_do(module: Any) -> None:
    broken = module(replaced(FEDMINE, ADD, "self._model -= up.values"))
    with pytest.raises(AssertionError, match=r"the Down of device-\d changed .* leave that to close"):
        testing.a_down_is_the_same_within_a_round(testing.Subject(broken))
