import numpy as np
import pytest

from edge_runtime import partition
from edge_runtime.errors import ConfigError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))


def _all_different(dealt) -> bool:
    together = np.concatenate(dealt)
    return len(np.unique(together)) == len(together)


@pytest.mark.parametrize("alpha", [0.001, 0.3, 1e6])
@pytest.mark.parametrize("parts", [1, 7, 20, 1000])
def test_dirichlet_deals_equal_sizes_and_no_sample_twice_even_when_labels_run_out(alpha: float, parts: int) -> None:
    dealt = partition.dirichlet(LABELS, parts, np.random.default_rng(1), alpha=alpha)

    assert [len(mine) for mine in dealt] == [1000 // parts] * parts
    assert _all_different(dealt)


def test_a_small_alpha_gives_devices_few_labels_and_a_large_one_the_same_mix() -> None:
    labels = np.tile(LABELS, 20)
    shares = {}
    for alpha in (0.1, 1000.0):
        dealt = partition.dirichlet(labels, 20, np.random.default_rng(1), alpha=alpha)
        shares[alpha] = np.mean([np.bincount(labels[mine]).max() / len(mine) for mine in dealt])

    assert shares[0.1] > 0.4
    assert shares[1000.0] < 0.15  # 0.1 and the deviation of the largest of ten counts in 1,000 samples


def test_dealing_follows_the_priors_until_a_label_runs_out_and_goes_on_with_the_others() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1, 2, 2])

    dealt = partition.dirichlet(labels, 2, np.random.default_rng(0), alpha=0.001)

    assert sorted(np.concatenate(dealt).tolist()) == list(range(8))


@pytest.mark.parametrize(("parts", "classes"), [(20, 2), (7, 2), (3, 10), (13, 3), (1, 1)])
def test_by_classes_deals_so_many_labels_equally_often_and_no_sample_twice(parts: int, classes: int) -> None:
    dealt = partition.by_classes(LABELS, parts, np.random.default_rng(1), classes=classes)

    assert len({len(mine) for mine in dealt}) == 1
    assert _all_different(dealt)
    for mine in dealt:
        counts = np.bincount(LABELS[mine], minlength=10)
        assert sorted(counts)[-classes:] == [len(mine) // classes] * classes
        assert (counts > 0).sum() == classes


def test_by_classes_gives_every_class_to_equally_many_devices() -> None:
    dealt = partition.by_classes(LABELS, 20, np.random.default_rng(1), classes=2)

    owners = sum((np.bincount(LABELS[mine], minlength=10) > 0).astype(int) for mine in dealt)
    assert owners.tolist() == [4] * 10
    assert sum(len(mine) for mine in dealt) == 1000


def test_more_devices_or_classes_than_there_are_samples_or_classes_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="too few samples"):
        partition.dirichlet(LABELS, 1001, rng, alpha=1.0)
    with pytest.raises(ConfigError, match="too few samples"):
        partition.by_classes(LABELS, 501, rng, classes=2)
    with pytest.raises(ConfigError, match="from 1 to 10, not 11"):
        partition.by_classes(LABELS, 2, rng, classes=11)


def test_a_test_set_has_the_mix_of_its_device_rounded_up() -> None:
    mix = np.array([0.5, 0, 0, 0.251, 0.249, 0, 0, 0, 0, 0])

    mine = partition.like(LABELS, mix, 20, np.random.default_rng(0))

    assert np.bincount(LABELS[mine], minlength=10).tolist() == [10, 0, 0, 6, 5, 0, 0, 0, 0, 0]
    assert len(np.unique(mine)) == len(mine)


def test_a_cold_start_keeps_the_first_of_each_label_and_all_of_a_rarer_one() -> None:
    labels = np.array([0, 2, 0, 0, 2, 3, 2, 2])

    assert partition.few(labels, 2).tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize(
    "deal",
    [
        lambda rng: partition.dirichlet(LABELS, 7, rng, alpha=0.3),
        lambda rng: partition.by_classes(LABELS, 7, rng, classes=3),
    ],
)
def test_the_same_seed_deals_the_same_and_another_seed_another(deal) -> None:
    first, again, other = (np.stack(deal(np.random.default_rng(seed))) for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
