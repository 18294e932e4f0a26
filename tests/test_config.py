from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import config
from edge_runtime.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 0.1
    rounds: int = 3
    mode: str = "dst"
    fast: bool = False


def test_a_table_with_kebab_case_keys_becomes_a_dataclass_and_back() -> None:
    table = {"learning-rate": 0.5, "rounds": 4, "mode": "rsm", "fast": True}
    settings = config.build(Settings, table, "algorithm")
    assert settings == Settings(0.5, 4, "rsm", True)
    assert config.table(settings) == table


def test_a_whole_number_will_do_where_a_number_is_wanted() -> None:
    assert config.build(Settings, {"learning-rate": 1}, "algorithm").learning_rate == 1.0


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"algorithm: unknown key 'lerning-rate'; did you mean 'learning-rate'\?"):
        config.build(Settings, {"lerning-rate": 0.5}, "algorithm")


@pytest.mark.parametrize("table", [{"rounds": 1.5}, {"rounds": True}, {"rounds": "3"}, {"mode": 1}, {"fast": 1}])
def test_a_value_of_another_type_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        config.build(Settings, table, "run")


def test_settings_of_the_command_line_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nrounds = 5\n[algorithm]\nmode = "rsm"\n')
    tables = config.read(path, ("run", "algorithm"))
    config.override(tables, ["algorithm.density=0.2", "run.rounds=7", "algorithm.mode=dst"])
    assert tables == {"run": {"rounds": 7}, "algorithm": {"mode": "dst", "density": 0.2}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("[rum]\n", "did you mean 'run'"), ("run = 1\n", "must be a table"), ("[run\n", "not TOML"), ("", None)],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, complaint: str | None, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    if complaint is None:
        assert config.read(path, ("run",)) == {"run": {}}
        return
    with pytest.raises(ConfigError, match=complaint) as caught:
        config.read(path, ("run",))
    assert str(path) in str(caught.value)


def test_a_setting_with_dots_lies_in_a_table_within_the_table() -> None:
    tables: dict[str, dict[str, Any]] = {"variant": {"small": {"bits": 4}}}
    config.override(tables, ["variant.small.bits=2", "variant.large.model=mlp"])
    assert tables == {"variant": {"small": {"bits": 2}, "large": {"model": "mlp"}}}


@pytest.mark.parametrize("setting", ["density=0.5", "algorithm.density", "algoritm.density=1", "algorithm.lr.x=1"])
def test_a_malformed_setting_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        config.override({"algorithm": {"lr": 0.1}}, [setting])
