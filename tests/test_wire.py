"""Messages as bytes: every coding of every kind of vector, what is owed, and what hostile bytes may do."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime import accounts, coding, grid, wire
from edge_runtime.accounts import Account, Debt
from edge_runtime.algorithms import fedavg, fedh2l, ffgg
from edge_runtime.errors import DecodeError, DeviceError
from edge_runtime.tree import Flat, Layout, Part
from edge_runtime.wire import Uplink

LAYOUT = Layout(("w", "b", "v"), ((20, 30), (30,), (40, 5)))
CODINGS = ["lossless", "bf16", "step:0.25", "step:1", *(f"bits:{bits}" for bits in range(1, 9))]


def values(seed: int, size: int = LAYOUT.size) -> Flat:
    return np.random.default_rng(seed).normal(0, 0.1, size).astype(np.float32)


def some(seed: int, density: float = 0.3) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(LAYOUT.size) < density


def uplink(text: str, **how: Any) -> Uplink:
    return Uplink(coding.parse(text, "up"), **how)


def rms(vector: Any) -> float:
    return float(np.sqrt(np.mean(np.square(vector))))


@pytest.mark.parametrize("text", CODINGS)
def test_what_an_update_loses_is_what_is_owed(text: str) -> None:
    up = fedavg.Up(3, 7, values(0))
    data, debt = wire.encode_up(up, LAYOUT, (), uplink(text))
    read = wire.decode_up(data, fedavg.Up, LAYOUT, ())
    assert (read.round, read.samples) == (3, 7)
    assert np.allclose(read.values + (debt.values if debt else 0), up.values, atol=1e-7)
    assert (debt is None) == (text == "lossless")


def test_fewer_bits_take_fewer_bytes_and_lose_more() -> None:
    up = fedavg.Up(0, 1, values(0))
    coded = {text: wire.encode_up(up, LAYOUT, (), uplink(text)) for text in ("bf16", "step:0.25", "step:1", "bits:1")}
    sizes = [len(data) for data, _ in coded.values()]
    losses = [rms(debt.values) for _, debt in coded.values() if debt]
    assert sizes == sorted(sizes, reverse=True)
    assert losses == sorted(losses)


def test_what_is_owed_is_paid_with_the_next_update() -> None:
    sent, owed, wanted = np.zeros(LAYOUT.size), None, np.zeros(LAYOUT.size)
    for seed in range(20):
        up = fedavg.Up(0, 1, values(seed))
        data, owed = wire.encode_up(up, LAYOUT, (), uplink("bits:1"), None, owed)
        sent += wire.decode_up(data, fedavg.Up, LAYOUT, ()).values
        wanted += up.values
    assert owed is not None
    assert np.allclose(sent + owed.values, wanted, atol=1e-5)
    assert rms(sent - wanted) < 0.5 * rms(wanted)


def test_without_error_feedback_nothing_is_owed() -> None:
    assert wire.encode_up(fedavg.Up(0, 1, values(0)), LAYOUT, (), uplink("bits:1", feedback=False))[1] is None


def test_rounding_at_random_is_right_in_the_mean() -> None:
    up = fedavg.Up(0, 1, values(0))
    rng = np.random.default_rng(0)
    read = [
        wire.decode_up(wire.encode_up(up, LAYOUT, (), uplink("step:2", rng=rng))[0], fedavg.Up, LAYOUT, ()).values
        for _ in range(400)
    ]
    step = 2 * 0.1
    assert rms(np.mean(read, axis=0) - up.values) < 2 * step / np.sqrt(12 * 400) * 1.5


def test_what_is_owed_follows_the_values_that_are_still_held() -> None:
    old, new = some(0), some(1)
    debt = Debt(values(0, int(old.sum())), old)
    dense = np.zeros(LAYOUT.size, np.float32)
    dense[old] = debt.values
    assert np.array_equal(debt.at(new), dense[new])
    assert np.array_equal(debt.at(old.copy()), debt.values)
    assert np.array_equal(debt.at(None), dense)


@pytest.mark.parametrize("text", CODINGS)
def test_a_sparse_update_is_read_where_it_lies(text: str) -> None:
    held = some(2)
    up = fedavg.Up(0, 1, values(0, int(held.sum())))
    data, debt = wire.encode_up(up, LAYOUT, (), uplink(text), held)
    read = wire.decode_up(data, fedavg.Up, LAYOUT, (), 0, lambda message: held)
    assert np.allclose(read.values + (debt.values if debt else 0), up.values, atol=1e-7)


@pytest.mark.parametrize("text", CODINGS)
def test_a_part_of_the_tensors_is_coded_and_private_ones_are_found_in_it(text: str) -> None:
    part = LAYOUT.cut(values(0), ("w", "v"))
    data, debt = wire.encode_up(ffgg.Up(0, 1, part), LAYOUT, ("b",), uplink(text))
    read = wire.decode_up(data, ffgg.Up, LAYOUT, ("b",))
    assert read.values.tensors == part.tensors
    assert np.allclose(read.values.values + (debt.values if debt else 0), part.values, atol=1e-7)
    with pytest.raises(DeviceError, match=r"Up\.values holds v, which this run keeps private; nothing was sent"):
        wire.encode_up(ffgg.Up(0, 1, part), LAYOUT, ("v",), uplink(text))
    with pytest.raises(DecodeError, match=r"Up\.values holds v, which this run keeps private"):
        wire.decode_up(data, ffgg.Up, LAYOUT, ("v",))


def test_a_coded_part_whose_tensors_there_are_not_is_refused() -> None:
    part = LAYOUT.cut(values(0), ("w",))
    data, _ = wire.encode_up(ffgg.Up(0, 1, part), LAYOUT, (), uplink("step:1"))
    broken = data.replace(b"b\x01\x00\x00\x00" + part.tensors, b"b\x01\x00\x00\x00\xff")
    assert broken != data
    with pytest.raises(DecodeError, match="which of 3 tensors"):
        wire.decode_up(broken, ffgg.Up, LAYOUT, ())


@pytest.mark.parametrize("bits", [5, 8])
def test_posteriors_keep_the_most_likely_class_and_are_smaller(bits: int) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (200, 10))
    rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    up = fedh2l.Up(0, b"x" * 32, rows.astype(np.float32).ravel())
    plain, _ = wire.encode_up(up, LAYOUT, ())
    data, debt = wire.encode_up(up, LAYOUT, (), uplink(f"bits:{bits}", columns=10))
    read = wire.decode_up(data, fedh2l.Up, LAYOUT, (), 2000).posteriors.reshape(200, 10)
    assert debt is None
    assert len(data) < len(plain) / 3
    assert np.array_equal(read.argmax(1), rows.argmax(1))
    assert np.abs(read - rows).max() < 2.0 ** (1 - bits)
    with pytest.raises(DecodeError, match="200 x 10 posteriors, at most 1999 are expected"):
        wire.decode_up(data, fedh2l.Up, Layout(("w",), ((1,),)), (), 1999)


def test_posteriors_that_nobody_gave_travel_as_they_are() -> None:
    down = fedh2l.Down(0, b"x" * 32, 0, np.zeros(20, np.float32))
    data = wire.encode_down(down, coding.parse("bits:5", "down"), LAYOUT.sizes, None, 10)
    assert not wire.decode(data, fedh2l.Down, LAYOUT, 20).posteriors.any()


def test_a_model_on_its_grid_is_told_whole_and_then_by_what_changed() -> None:
    steps = grid.exponents(None, values(0), LAYOUT, None)
    old, new = (grid.snap(values(0) + t * values(1) / 9, LAYOUT, t, steps, 0) for t in (0, 1))
    down = fedavg.Down(1, values(0))
    step = coding.parse("step:1", "down")
    data = wire.encode_down(down, step, LAYOUT.sizes, grid.encode(new, LAYOUT, old), 0)
    read, told = wire.decode_down(data, fedavg.Down, LAYOUT, 0, lambda message: None, old)
    assert told is not None
    assert np.array_equal(told.values, new.values)
    assert np.array_equal(read.values, new.floats(LAYOUT))


def test_what_a_device_keeps_is_read_as_it_was_written() -> None:
    held = some(0)
    whole = grid.snap(values(0), LAYOUT, 4, grid.exponents(None, values(0), LAYOUT, None), 0)
    account = Account(grid.part(whole, held), Debt(values(1, int(held.sum())), held))
    read, rest = accounts.decode({**accounts.encode(account), "mask": b"mine"}, LAYOUT)
    assert rest == {"mask": b"mine"}
    assert read.held is not None
    assert read.debt is not None
    assert read.held.round == 4
    assert np.array_equal(read.held.floats(LAYOUT), grid.part(whole, held).floats(LAYOUT))
    assert np.array_equal(read.debt.at(None), account.debt.at(None) if account.debt else None)
    assert accounts.decode({}, LAYOUT) == (Account(), {})


def test_an_evaluation_brings_the_whole_model_on_its_grid() -> None:
    whole = grid.snap(values(0), LAYOUT, 4, grid.exponents(None, values(0), LAYOUT, None), 0)
    down, shared = wire.decode_evaluation(wire.encode_evaluation(b"down", whole, LAYOUT), LAYOUT)
    assert down == b"down"
    assert shared is not None
    assert np.array_equal(shared, whole.floats(LAYOUT))
    assert wire.decode_evaluation(wire.encode_evaluation(b"down", None, LAYOUT), LAYOUT) == (b"down", None)


@dataclass(frozen=True)
class Two:
    """A message with a vector that has no coding, and a Part that has none either."""

    plain: Flat
    part: Part


def test_a_vector_that_says_not_what_it_holds_travels_bit_for_bit() -> None:
    sent = Two(values(0), LAYOUT.cut(values(1), ("b",)))
    read = wire.decode(wire.encode_up(sent, LAYOUT, (), uplink("bits:1"))[0], Two, LAYOUT)
    assert np.array_equal(read.plain, sent.plain)
    assert np.array_equal(read.part.values, sent.part.values)


@settings(max_examples=300)
@given(data=st.data(), text=st.sampled_from(CODINGS))
def test_hostile_bytes_are_refused_or_read(data: st.DataObject, text: str) -> None:
    sent = bytearray(wire.encode_up(fedavg.Up(0, 1, values(0)), LAYOUT, (), uplink(text))[0])
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = wire.decode_up(bytes(sent[: data.draw(st.integers(0, len(sent)))]), fedavg.Up, LAYOUT, ())
    except DecodeError:
        return
    assert np.isfinite(read.values).all()


@pytest.mark.parametrize("kind", [b"g", b"p", b"?", b""])
def test_a_coding_that_does_not_belong_to_a_field_is_refused(kind: bytes) -> None:
    data = wire.encode(fedavg.Up(0, 1, values(0)), lambda what, value: kind + bytes(8))
    with pytest.raises(DecodeError, match="change is not coded as"):
        wire.decode(data, fedavg.Up, LAYOUT)


def test_messages_have_at_most_one_vector_that_is_owed() -> None:
    from edge_runtime import algorithm

    for name in algorithm.names():
        parts = algorithm.load(name)
        for kind, what in ((parts.Up, "change"), (parts.Down, "shared")):
            marks = [mark for _, mark, _ in wire._fields(kind) if mark == what]
            assert len(marks) <= 1, f"{name}: {dataclasses.fields(kind)}"
