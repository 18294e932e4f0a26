"""Who may look on while a run goes on: the flags for it, and `edge-coordinator grafana`."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any

from edge_runtime.command_line import add_command

if TYPE_CHECKING:
    from edge_runtime.coordinator.demo import Look

_GRAFANA_EXAMPLES = """examples:
  edge-coordinator grafana > edge-runtime.json

Import the file in Grafana (Dashboards, New, Import) and choose the Prometheus that asks the coordinator; it shows what
`edge-coordinator start --metrics 9464` tells.

"""


def add_grafana(commands: Any) -> None:
    """Add the command."""
    add_command(commands, "grafana", "Print a dashboard for Grafana", _GRAFANA_EXAMPLES, _grafana)


def _grafana(_options: argparse.Namespace) -> None:
    sys.stdout.write(resources.files("edge_runtime.coordinator").joinpath("grafana.json").read_text("utf-8"))


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
