"""Code of the user's own: found and checked in one line, and never imported for a name that came from elsewhere."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import algorithm, config, message, own, setup, trainer
from edge_runtime.coordinator import new
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.session import in_memory
from edge_runtime.coordinator.simulate import Scene
from edge_runtime.data import DataConfig, device_names
from edge_runtime.errors import ConfigError, DecodeError, RunError
from edge_runtime.message import Hello, Task
from edge_runtime.store import MemoryStore

FEW = DataConfig(labels_per_class=2)
NAMES = device_names(FEW)[:3]
FEDMINE = (new.TEMPLATE / "package" / "fedmine.py.in").read_text()
MARK = """
from pathlib import Path
Path({mark!r}).touch()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a package: package(name, text of each module...)."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, **modules: str) -> None:
        (tmp_path / name).mkdir()
        for module, text in modules.items():
            (tmp_path / name / f"{module}.py").write_text(text)

    yield write
    for name in [name for name in sys.modules if name.startswith("own_of_")]:
        del sys.modules[name]


def task_for(run: Run, store: MemoryStore) -> Task:
    return Task("run", 1, 0, "train", "", store.write(setup.encode(run.description)), store.write(b"anything"))


def play(run: Run, folder: Path, **scene: Any) -> Any:
    return in_memory(run, Scene(FEW, NAMES, config.cache_folder(), **scene), folder, lambda coordinator: None)


def a_run(name: str, **settings: Any) -> Run:
    how = {"rounds": 2, "devices": 3, "evaluate": False, "quorum": 0.5, **settings}
    return prepare(RunConfig(algorithm=name, **how), {"local-epochs": 1, "lr": 0.05})


# What a device imports


@pytest.mark.parametrize(
    "name", ["own_of_others.payload", "own_of_others", "edge_runtime.algorithms.fedavg", "a.b:c", "..x"]
)
def test_a_device_imports_no_algorithm_that_its_owner_has_not_named(name: str, package: Any, tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    package("own_of_others", __init__=MARK.format(mark=str(mark)), payload=MARK.format(mark=str(mark)))
    run = prepare(RunConfig(algorithm="fedavg"), {})
    asked = dataclasses.replace(run, description=dataclasses.replace(run.description, algorithm=name))
    store = MemoryStore()
    job = trainer.Job("device", FEW, str(config.cache_folder()), algorithms=("own_of_mine.fedmine",))
    outcome = trainer.work(job, task_for(asked, store), store)
    wanted = f"algorithm {name!r} is code that this device does not allow" if "." in name else "is unknown"
    assert wanted in outcome.reason
    assert not mark.exists()


def test_an_algorithm_that_is_allowed_is_trained(package: Any, tmp_path: Path) -> None:
    package("own_of_mine", fedmine=FEDMINE)
    outcome = play(a_run("own_of_mine.fedmine"), tmp_path / "run")
    assert len(outcome.rows) == 2 * len(NAMES)
    assert (tmp_path / "run" / "model.bin").exists()


def test_an_agent_that_cannot_load_what_it_allows_says_so_before_it_connects(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_runtime.cli", "start", "--id", "device", "--store", str(tmp_path), "-p", "1"]
    command += ["--labels-per-class", "2", "--allow-algorithm", "own_of_nobody.fedmine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line == (
        "edge-agent: algorithm: 'own_of_nobody.fedmine' cannot be loaded: ModuleNotFoundError: "
        "No module named 'own_of_nobody'; install it here, or mend it"
    )


@pytest.mark.parametrize("text", ["my_project.fedmine:FedMine", "", "a..b", "x" * 200])
def test_an_agent_allows_modules_alone(text: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_runtime.cli", "start", "--id", "device", "--allow-algorithm", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "is not the name of a module" in done.stderr.strip().splitlines()[-1]


# What the coordinator makes of it


def test_a_device_that_does_not_allow_the_algorithm_gets_no_task_and_the_report_says_why(
    package: Any, tmp_path: Path
) -> None:
    package("own_of_mine", fedmine=FEDMINE)
    hellos = {NAMES[1]: Hello("boot")}
    outcome = play(a_run("own_of_mine.fedmine"), tmp_path / "run", hellos=hellos)
    assert {row.device for row in outcome.rows} == {NAMES[0], NAMES[2]}
    assert outcome.choices == {
        NAMES[1]: "no task: it does not allow the algorithm own_of_mine.fedmine: install it there, and add "
        "--allow-algorithm own_of_mine.fedmine"
    }


def test_a_run_whose_algorithm_nobody_allows_ends_and_says_why(package: Any, tmp_path: Path) -> None:
    package("own_of_mine", fedmine=FEDMINE)
    with pytest.raises(RunError, match=r"none of 3 devices gets a task \(.*--allow-algorithm own_of_mine\.fedmine\)"):
        play(a_run("own_of_mine.fedmine"), tmp_path / "run", hellos={name: Hello("boot") for name in NAMES})


def test_a_device_need_not_allow_what_is_built_in(tmp_path: Path) -> None:
    assert len(play(a_run("fedavg"), tmp_path, hellos={name: Hello("boot") for name in NAMES}).rows) == 6


def test_what_a_hello_allows_comes_through_its_bytes() -> None:
    said = Hello("boot", algorithms=("my_project.fedmine", "other.one"))
    assert message.decode(message.encode(said)) == said


@pytest.mark.parametrize(
    "algorithms", [None, "a.b", {"a": 1}, [1], ["a b"], ["../x"], [""], ["x" * 129], ["a.b"] * 9], ids=repr
)
def test_a_hello_that_allows_nonsense_is_refused(algorithms: Any) -> None:
    record = json.loads(message.encode(Hello("boot")))
    with pytest.raises(DecodeError):
        message.decode(json.dumps({**record, "algorithms": algorithms}).encode())


def test_the_largest_hello_fits_a_control_message() -> None:
    long = "x" * message.MAX_ALGORITHM
    said = Hello("b" * 16, "step:0.5", algorithms=(long,) * message.MAX_ALGORITHMS, room=2**52, step_ms=2**52)
    assert len(message.encode(said)) < message.MAX_CONTROL_BYTES // 2


# What is wrong with an algorithm


def changed(old: str, new: str) -> str:
    assert old in FEDMINE
    return FEDMINE.replace(old, new)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise RuntimeError('two\\nlines')", r"cannot be loaded: RuntimeError: two lines"),
        ("import no_such_thing", r"No module named 'no_such_thing'"),
        ("", r"lacks the class Config; it must have Config, Down, Up, Client, Server"),
        (changed("class Up:", "class Upward:"), r"lacks the class Up;|cannot be loaded: NameError"),
        (changed("    own_model = False\n", ""), r"Client lacks own_model; write own_model = False"),
        (changed('    habits = ("synchronous",)\n', ""), r"Server lacks habits; write habits = \('synchronous',\)"),
        (changed('("synchronous",)', '("sometimes",)'), r"Server lacks habits"),
        (changed("def absorb", "def take"), r"Server lacks the method absorb"),
        (changed("    samples: int", "    samples: list"), r"Up\.samples is a list; it may be int, float, bytes"),
        (
            changed("    proximal: float", "    proximal: dict"),
            r"Config\.proximal is a dict; it may be int, float, bool, str",
        ),
        (changed("    samples: int", "    samples: Change"), r"Up: of its vectors only one may be"),
        (changed("@dataclass(frozen=True)\nclass Down", "class Down"), r"Down is not a dataclass"),
    ],
)
def test_an_algorithm_of_another_form_is_refused_in_one_line(text: str, words: str, package: Any) -> None:
    package("own_of_mine", fedmine=text)
    with pytest.raises(ConfigError, match=words) as caught:
        algorithm.load("own_of_mine.fedmine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fedmine", r"'fedmine' is unknown.*package\.module of yours"),
        ("my_project.fedmine:FedMine", r"an algorithm is a whole module; write 'my_project\.fedmine'"),
        ("..fedmine", r"is not the name of a module; write package\.module"),
        ("my project.fedmine", r"is not the name of a module"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        algorithm.load(name)


def test_what_is_found_is_what_was_named(package: Any) -> None:
    package("own_of_mine", things="net = 3")
    assert own.find("own_of_mine.things:net", "model") == 3
    with pytest.raises(ConfigError, match=r"^data: 'own_of_mine\.things:nett' .* has no 'nett'; mend the name$"):
        own.find("own_of_mine.things:nett", "data")


# What holds for an algorithm of one's own as for those of the package


def test_private_tensors_of_an_algorithm_of_ones_own_are_not_sent(package: Any, tmp_path: Path) -> None:
    text = re.sub(r"(    proximal: float = 0.1\n)", r'    private: str = "auto"\n\1', FEDMINE)
    package("own_of_mine", leaky=text)
    run = prepare(RunConfig(algorithm="own_of_mine.leaky", rounds=1, devices=3), {"local-epochs": 1})
    assert run.description.private == ("linear1.weight", "linear1.bias")
    with pytest.raises(RunError, match=r"Up\.values does not name its tensors, and this run keeps linear1\.weight"):
        play(run, tmp_path / "run")


def test_its_devices_are_given_by_their_budgets(package: Any, tmp_path: Path) -> None:
    package("own_of_mine", fedmine=FEDMINE)
    settings = RunConfig(algorithm="own_of_mine.fedmine", rounds=1, devices=3, widths="1", quorum=0.5)
    run = prepare(settings, {"local-epochs": 1})
    hellos = {NAMES[0]: Hello("boot", room=1, algorithms=("own_of_mine.fedmine",))}
    outcome = play(run, tmp_path / "run", hellos=hellos)
    assert NAMES[0] not in {row.device for row in outcome.rows}
    assert "nothing fits" in outcome.choices[NAMES[0]]


def test_updates_of_an_algorithm_of_ones_own_are_journalled_and_replayed(package: Any, tmp_path: Path) -> None:
    package("own_of_mine", fedmine=FEDMINE)
    outcome = play(a_run("own_of_mine.fedmine", keep_updates=True), tmp_path / "run")
    journal = Journal(tmp_path / "run")
    try:
        assert len(journal.accepted()) == len(outcome.rows)
        assert json.loads(journal.get("asked") or "")["run"]["algorithm"] == "own_of_mine.fedmine"
    finally:
        journal.close()
