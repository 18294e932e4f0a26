"""Who may look on while a run goes on: the flags for it."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.coordinator.demo import Look


def add_watching(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    what = "answer Prometheus under /metrics; on this machine alone unless a HOST is given (needs the extra metrics)"
    parser.add_argument("--metrics", metavar="[HOST:]PORT", help=what)


@contextlib.contextmanager
def watching(options: argparse.Namespace) -> Iterator["Look"]:
    """Let those look who were asked for.

    Raises:
        ConfigError: one of them cannot be.
    """
    if options.metrics is None:
        yield lambda run, coordinator: None
        return
    from edge_runtime.coordinator import metrics

    with metrics.serving(options.metrics) as found:
        yield found.look
