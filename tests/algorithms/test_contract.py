"""What every algorithm in the package must do, whichever it is."""

from typing import Any

import pytest

from edge_runtime import algorithm, config, testing
from edge_runtime.errors import ConfigError

pytestmark = pytest.mark.parametrize("name", algorithm.names())


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(check: Any, name: str) -> None:
    check(testing.Subject(name))


def test_its_form_is_what_is_asked_of_a_users_own(name: str) -> None:
    parts = algorithm.load(name)
    algorithm.check_module(name, parts)


def test_its_default_settings_stand(name: str) -> None:
    parts = algorithm.load(name)
    assert config.build(parts.Config, {}, "algorithm") == parts.Config()


def test_an_unknown_key_is_refused_with_the_nearest_one(name: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'batch-size'"):
        config.build(algorithm.load(name).Config, {"batchsize": 3}, "algorithm")
