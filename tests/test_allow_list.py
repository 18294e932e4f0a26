"""What a run keeps private does not leave a device, whatever its algorithm does: the wire refuses it on both sides."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, bundle, config, setup, trainer, wire
from edge_runtime.algorithms import ffgg
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.session import in_memory
from edge_runtime.coordinator.simulate import Scene
from edge_runtime.data import DataConfig, device_names
from edge_runtime.errors import ConfigError, DecodeError, DeviceError, RunError
from edge_runtime.message import Blob, Chunk, Fate, Hello, Offer, Task
from edge_runtime.store import MemoryStore
from edge_runtime.tree import Flat, Layout, Part

LAYOUT = Layout(tuple(f"layer{i}.{kind}" for i in range(1, 6) for kind in ("weight", "bias")), ((2, 3), (2,)) * 5)
FLAT = np.arange(40, dtype=np.float32)
PRIVATE = ("layer5.weight", "layer5.bias")
BUNDLES = Path(bundle.__file__).parent / "bundles"
FEW = DataConfig(labels_per_class=2)
ROGUE = """
from edge_runtime.algorithms import ffgg
from edge_runtime.algorithms.ffgg import Config, Down, Server, Up

class Client(ffgg.Client):
    def round(self, down, batches):
        up, layout = super().round(down, batches), self._model.layout
        return Up(up.round, up.samples, layout.cut(self.personal(None).dense(), layout.names))
"""


@dataclass(frozen=True)
class Parts:
    round: int
    share: float
    values: Part


@dataclass(frozen=True)
class Whole:
    round: int
    values: Flat


@dataclass(frozen=True)
class Opaque:
    round: int
    what: bytes


# Parts


@pytest.mark.parametrize("names", [(), ("layer1.bias",), ("layer5.bias", "layer1.weight"), LAYOUT.names])
def test_a_part_is_cut_and_pasted_back(names: tuple[str, ...]) -> None:
    part = LAYOUT.cut(FLAT, names)
    pasted = np.full(40, -1, np.float32)
    LAYOUT.paste(pasted, part)
    expected = [name in names for name, size in zip(LAYOUT.names, LAYOUT.sizes, strict=True) for _ in range(size)]
    assert set(LAYOUT.names_of(part)) == set(names)
    assert pasted.tolist() == np.where(expected, FLAT, -1).tolist()
    assert LAYOUT.only(names).size == len(part.values)


def test_a_part_has_one_bit_per_tensor_from_the_lowest_on() -> None:
    part = LAYOUT.cut(FLAT, ("layer1.bias", "layer5.weight"))
    assert part.tensors == bytes([0b10, 0b1])
    assert part.values.tolist() == [6, 7, 32, 33, 34, 35, 36, 37]


def test_a_part_comes_through_its_bytes_unchanged() -> None:
    sent = Parts(3, 0.5, LAYOUT.cut(FLAT, ("layer2.bias", "layer3.weight")))
    got = wire.decode(wire.encode(sent), Parts, LAYOUT)
    assert (got.round, got.share, got.values.tensors) == (3, 0.5, sent.values.tensors)
    assert got.values.values.tolist() == sent.values.values.tolist()


@pytest.mark.parametrize(
    "part",
    [
        Part(b"", FLAT[:0]),
        Part(b"\x01", FLAT[:6]),
        Part(b"\x01\x00\x00", FLAT[:6]),
        Part(b"\x01\x04", FLAT[:6]),
        Part(b"\x01\x00", FLAT[:5]),
        Part(b"\x01\x00", FLAT[:8]),
        Part(b"\x01\x00", np.full(6, np.nan, np.float32)),
    ],
    ids=["no bits", "few bits", "many bits", "a tensor too many", "few values", "many values", "nan"],
)
def test_a_malformed_part_is_refused(part: Part) -> None:
    with pytest.raises(DecodeError):
        wire.decode(wire.encode(Parts(0, 0.5, part)), Parts, LAYOUT)


# Which tensors are private


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("", ()),
        ("auto", PRIVATE),
        ("layer5.*", PRIVATE),
        ("layer5.bias, layer1.*", ("layer1.weight", "layer1.bias", "layer5.bias")),
        ("*", LAYOUT.names),
    ],
)
def test_private_tensors_are_named_by_patterns(patterns: str, names: tuple[str, ...]) -> None:
    assert algorithm.private_names(ffgg.Config(private=patterns), LAYOUT) == names


def test_a_pattern_that_fits_no_tensor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'head\.\*' fits no tensor"):
        algorithm.private_names(ffgg.Config(private="layer1.*,head.*"), LAYOUT)


def test_an_algorithm_without_the_key_keeps_nothing_private() -> None:
    assert prepare(RunConfig(algorithm="fedavg"), {}).description.private == ()


def test_the_last_layer_of_a_built_in_model_is_private() -> None:
    assert prepare(RunConfig(algorithm="ffgg"), {}).description.private == ("linear1.weight", "linear1.bias")


def test_a_bundle_says_what_is_private(tmp_path: Path) -> None:
    made = bundle.read(BUNDLES / "linear")
    named = dataclasses.replace(made, private=("linear1.bias",), initial=np.zeros(made.layout.size, np.float32))
    for name, data in bundle.files(named).items():
        (tmp_path / name).write_bytes(data)
    run = prepare(RunConfig(algorithm="ffgg", model=str(tmp_path)), {})
    assert run.description.private == ("linear1.bias",)
    assert run.description.config["private"] == run.settings.private == "linear1.bias"


def test_a_variant_that_keeps_something_else_private_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"variant\.small: all devices keep the same tensors private"):
        prepare(RunConfig(algorithm="ffgg"), {}, {"small": {"devices": "*", "private": "linear1.bias"}})


# Uploads


def test_an_up_of_shared_tensors_passes_both_sides() -> None:
    up = Parts(0, 0.5, LAYOUT.cut(FLAT, LAYOUT.names[:-2]))
    data, _ = wire.encode_up(up, LAYOUT, PRIVATE)
    assert wire.decode_up(data, Parts, LAYOUT, PRIVATE).values.values.tolist() == up.values.values.tolist()


@pytest.mark.parametrize(
    ("up", "words"),
    [
        (Parts(0, 0.5, LAYOUT.cut(FLAT, ("layer1.bias", "layer5.bias"))), r"Up\.values holds layer5\.bias"),
        (Parts(0, 0.5, LAYOUT.cut(FLAT, LAYOUT.names)), r"holds layer5\.weight, layer5\.bias"),
        (Whole(0, FLAT), r"Up\.values does not name its tensors.*layer5\.weight, layer5\.bias private"),
        (Whole(0, FLAT[:1]), r"Up\.values does not name its tensors"),
        (Opaque(0, b"anything"), r"Up\.what does not name its tensors"),
    ],
    ids=["one", "all", "a whole vector", "a short vector", "bytes"],
)
def test_what_is_or_may_be_private_is_refused_by_both_sides_and_named(up: Any, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        wire.encode_up(up, LAYOUT, PRIVATE)
    data = wire.encode(up)
    with pytest.raises(DecodeError, match=words):
        wire.decode_up(data, type(up), LAYOUT, PRIVATE)
    assert wire.encode_up(up, LAYOUT, ())[0] == data


# A whole run


def play(run: Run, folder: Path) -> Any:
    return in_memory(run, Scene(FEW, device_names(FEW)[:2], config.cache_folder()), folder, lambda coordinator: None)


def a_run(name: str = "ffgg", habit: str = "synchronous") -> Run:
    return prepare(RunConfig(algorithm=name, rounds=2, devices=2, habit=habit), {})


@pytest.fixture
def rogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make an algorithm that sends everything."""
    (tmp_path / "rogue_package").mkdir()
    (tmp_path / "rogue_package" / "leaky.py").write_text(ROGUE)
    monkeypatch.syspath_prepend(tmp_path)
    return "rogue_package.leaky"


def test_the_task_of_an_algorithm_that_sends_private_tensors_fails_and_says_which(rogue: str, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"Up\.values holds linear1\.weight, linear1\.bias, which this run keeps private"
    ):
        play(a_run(rogue), tmp_path)


def test_a_device_refuses_a_run_whose_set_up_keeps_less_private_than_its_settings(tmp_path: Path) -> None:
    run = a_run()
    weaker = dataclasses.replace(run, description=dataclasses.replace(run.description, private=("linear1.weight",)))
    with pytest.raises(RunError, match=r"differ in whether linear1\.bias is private"):
        play(weaker, tmp_path)


def test_a_device_hands_over_no_personal_model_of_a_run_that_keeps_some_of_it_private(tmp_path: Path) -> None:
    run = a_run()
    asking = dataclasses.replace(run, description=dataclasses.replace(run.description, collect=True))
    with pytest.raises(RunError, match=r"keeps linear1\.weight private and asks for the personal model"):
        play(asking, tmp_path)
    assert not list((tmp_path / "personal").glob("*"))


def test_a_device_does_not_say_how_large_gradients_of_what_is_private_are(tmp_path: Path) -> None:
    run = a_run()
    described = setup.encode(run.description)
    down = b"anything"
    store = MemoryStore()
    task = Task("run", 1, 0, "score", "", store.write(described), store.write(down))
    job = trainer.Job("device", FEW, str(config.cache_folder()))
    outcome = trainer.work(job, task, store)
    assert (outcome.payload, outcome.state) == (b"", b"")
    assert "keeps linear1.weight private and asks for its gradients' size" in outcome.reason


def test_figures_that_go_along_are_the_trainers_and_none_of_the_algorithms(tmp_path: Path) -> None:
    rows = play(a_run(), tmp_path)
    journal = Journal(tmp_path)
    sent = {name for item in journal.accepted() for name in item.metrics}
    journal.close()
    assert len(rows.rows) == 6
    assert sent == {
        "accuracy-personal", "accuracy-personal-before", "cpu-s", "message-bytes-down", "message-bytes-up",
        "payload-bytes-down", "payload-bytes-up", "test-samples", "train-samples", "virtual-s", "wall-s",
    }  # fmt: skip


@pytest.mark.parametrize("habit", ["synchronous", "asynchronous"])
def test_the_evaluation_sends_no_whole_model(habit: str, tmp_path: Path) -> None:
    rows = play(a_run(habit=habit), tmp_path).rows
    assert [row.accuracy_shared for row in rows if row.phase == "evaluate"] == [None, None]
    assert all(row.accuracy_personal is not None for row in rows)


def offered(data: bytes, run: Run, folder: Path) -> Fate:
    """Let a device offer an update; gives what became of it."""
    journal, sent = Journal(folder), []
    post: Any = SimpleNamespace(send=lambda device, message: bool(sent.append(message)) or True)
    plan = dataclasses.replace(run.plan("run", 1), devices=1)
    coordinator = Coordinator(plan, run, journal, post)
    coordinator.handle("device-1", Hello("boot"))
    blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
    coordinator.handle("device-1", Offer("run", 0, "train", blob, {}))
    for chunk in range(blob.chunks):
        start, end = blob.span(chunk)
        coordinator.handle("device-1", Chunk(blob.digest, chunk, data[start:end]))
    journal.close()
    return next(message for message in sent if isinstance(message, Fate))


def test_the_coordinator_rejects_an_update_that_holds_private_tensors(tmp_path: Path) -> None:
    run = a_run()
    layout = run.description.model.layout
    shared = [name for name in layout.names if name not in run.description.private]
    fates = [
        offered(wire.encode(ffgg.Up(0, 1, layout.cut(run.initial, names))), run, tmp_path / str(len(names)))
        for names in (shared, layout.names)
    ]
    assert [fate.fate for fate in fates] == ["applied", "rejected"]
    assert fates[1].reason == "Up.values holds linear1.weight, linear1.bias, which this run keeps private"
