from edge_runtime.fit import Fit


def life(fit: Fit, sent: int, lived_s: float) -> bool:
    """Connect, send up to `sent` chunks in all, and lose the connection."""
    fit.changed(True, 100.0)
    fit.watch(sent, 101.0)
    fit.watch(sent, 101.5)
    return fit.changed(False, 101.0 + lived_s)


def test_a_broker_that_hangs_up_twice_on_the_first_chunk_finds_it_too_large() -> None:
    fit = Fit()
    assert [life(fit, sent, 0.5) for sent in (1, 2, 3, 4)] == [False, True, False, True]


def test_a_connection_that_carried_chunks_for_a_while_was_not_lost_for_their_size() -> None:
    fit = Fit()
    assert [life(fit, 1, 0.5), life(fit, 90, 60.0), life(fit, 91, 0.5)] == [False] * 3


def test_a_connection_that_is_lost_without_a_chunk_says_nothing_of_them() -> None:
    fit = Fit()
    assert [life(fit, 0, 0.5) for _ in range(5)] == [False] * 5
