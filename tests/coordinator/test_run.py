"""What a person may ask of a run, and what is refused before its first message."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, config
from edge_runtime.coordinator import session
from edge_runtime.coordinator.run import RunConfig, describe, prepare
from edge_runtime.errors import ConfigError
from edge_runtime.seed_set import SeedSet


def test_an_algorithm_runs_in_its_usual_way_unless_it_is_told() -> None:
    assert not prepare(RunConfig("fedavg"), {}).plan("run", 1).asynchronous
    assert prepare(RunConfig("persafl"), {}).plan("run", 1).asynchronous
    assert not prepare(RunConfig("persafl", habit="synchronous"), {}).plan("run", 1).asynchronous


def test_a_habit_that_an_algorithm_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="fedavg runs synchronous, not 'asynchronous'"):
        prepare(RunConfig("fedavg", habit="asynchronous"), {})


def test_the_fewest_updates_of_a_round_decide_how_many_liars_it_can_stand() -> None:
    settings: dict[str, Any] = {"aggregator": "median", "byzantine": 4}
    prepare(RunConfig("fedavg", devices=10, quorum=0.9), settings)
    with pytest.raises(ConfigError, match="median with byzantine 4 needs 9 inputs; 8 updates"):
        prepare(RunConfig("fedavg", devices=10, quorum=0.8), settings)
    with pytest.raises(ConfigError, match="needs 9 inputs; 5 updates"):
        prepare(RunConfig("persafl", devices=10, buffer=5), settings)


def test_nothing_is_dropped_where_there_are_no_parts() -> None:
    with pytest.raises(ConfigError, match="ordered-dropout: all devices have the whole model"):
        prepare(RunConfig("fedavg"), {"ordered-dropout": 0.5})


def test_variants_give_devices_settings_and_a_model_of_their_own() -> None:
    variants = {
        "one": {"devices": "left-*", "bits": 1},
        "two": {"devices": "*", "bits": 4, "model": "watch-mlp"},
    }
    run = prepare(RunConfig("quped"), {"bits": 2, "lr": 0.05}, variants)
    assert [one.devices for one in run.variants] == ["left-*", "*"]
    one, two = (variant.setup for variant in run.variants)
    assert (one.config["bits"], one.own) == (1, None)
    assert two.config["bits"] == 4
    assert two.own is not None
    assert (two.own.name, two.model) == ("watch-mlp", run.description.model)
    assert {variant.setup.config["lr"] for variant in run.variants} == {0.05}
    assert run.description.config["bits"] == 2


@pytest.mark.parametrize(
    ("name", "variant", "words"),
    [
        ("quped", {"bits": 1}, "variant.small: devices must be a pattern"),
        ("quped", {"devices": "*", "bit": 1}, "did you mean 'bits'"),
        ("quped", {"devices": "*", "bits": 99}, "bits"),
        ("quped", {"devices": "*", "model": "watch-ml"}, "did you mean 'watch-mlp'"),
        ("fedavg", {"devices": "*", "model": "watch-mlp"}, "with fedavg all devices have the model 'watch-cnn'"),
        ("ffgg", {"devices": "*", "private": "conv1.*"}, "all devices keep the same tensors private"),
        ("quped", 3, "variant: small must be a table"),
        ("fedavg", {"devices": "*", "width": 0}, "variant.small: width must be above 0 and at most 1, not 0"),
        ("fedavg", {"devices": "*", "width": "half"}, "variant.small: width must be above 0 and at most 1, not 'half'"),
        ("fedavg", {"devices": "*", "width": True}, "width must be above 0 and at most 1, not True"),
        ("ffgg", {"devices": "*", "width": 0.5}, "variant.small: width: with ffgg all devices have the whole model"),
        ("fedasync", {"devices": "*", "width": 0.5}, "width: with fedasync all devices have the whole model"),
    ],
    ids=str,
)
def test_a_wrong_variant_is_refused_in_one_line(name: str, variant: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        prepare(RunConfig(name), {}, {"small": variant})


def test_a_model_without_channels_to_take_away_is_refused() -> None:
    with pytest.raises(ConfigError, match="width: 'linear' has no channels"):
        prepare(RunConfig("fedavg", "linear"), {}, {"small": {"devices": "*", "width": 0.5}})


def test_a_part_too_small_for_its_density_is_refused_before_the_run() -> None:
    run, small = RunConfig("fedspa", "cnn"), {"tiny": {"devices": "*", "width": 0.01}}
    with pytest.raises(ConfigError, match=r"density 0\.01 leaves 'conv1.weight' no active weight; raise it"):
        prepare(run, {"density": 0.01}, small)


def test_a_run_is_described_with_its_parts_in_the_order_in_which_they_count() -> None:
    variants = {"all": {"devices": "*", "width": 0.5}, "a": {"devices": "a-*", "width": 0.25}}
    told = [
        describe(prepare(RunConfig("fedavg", "mlp"), {}, dict(some)))["variants"]
        for some in (variants.items(), reversed(variants.items()))
    ]
    assert told[0] == told[1][::-1] != told[1]
    assert [one["parameters"] for one in told[0]] == [12_730, 6_370]
    assert told[0][0]["part"] != told[0][1]["part"]


def test_an_aggregator_that_withstands_liars_takes_a_part_for_a_row_of_zeros_elsewhere() -> None:
    half = {"half": {"devices": "*", "width": 0.5}}
    assert prepare(RunConfig("fedavg", "mlp"), {}, half).settings.aggregate == "owners"
    assert prepare(RunConfig("fedavg", "mlp"), {"aggregate": "cohort"}, half).settings.aggregate == "cohort"
    assert prepare(RunConfig("fedavg", "mlp"), {"aggregator": "median"}, half).settings.aggregate == "cohort"


def test_the_readmes_example_is_a_run(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "run.toml").write_text(example)
    tables = config.read(tmp_path / "run.toml", ("run", "algorithm", "data", "variant"))
    run = prepare(RunConfig(**tables["run"], devices=20), tables["algorithm"], tables["variant"])
    (variant,) = run.variants
    seen = variant.setup
    assert variant.devices == "wrist-*"
    assert seen.own is not None
    assert (seen.own.name, seen.config["bits"], run.settings.bits) == ("watch-cnn-small", 1, 2)


@pytest.mark.parametrize("name", sorted(set(algorithm.names()) - {"fedavg"}))
def test_every_algorithm_can_be_held_against_fedavg_on_the_same_work(name: str) -> None:
    seeds = SeedSet(np.zeros((8, 6, 100), np.float32), np.zeros(8, np.int64), tuple("abcdefg"))
    run = prepare(RunConfig(name, rounds=3, buffer=2), {"lr": 0.25}, seeds=seeds)
    baseline = session.baseline_of(run, {"lr": 0.05, "local-steps": 7})
    assert (baseline.config.algorithm, baseline.config.rounds, baseline.settings.lr) == ("fedavg", 3, 0.05)
    assert (baseline.settings.local_steps, baseline.config.habit) == (7, "synchronous")


def test_a_model_has_no_coding_of_so_many_bits_and_posteriors_have() -> None:
    with pytest.raises(ConfigError, match="run: down: 'bits:4' is for posteriors: a model takes lossless"):
        prepare(RunConfig("fedavg", down="bits:4"), {})
    prepare(RunConfig("fedavg", up="bits:4"), {})
