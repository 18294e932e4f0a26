"""A finished run for the tools that people keep experiments with: MLflow and TensorBoard.

Both get the settings, the figures of every round under the same names, and the summary at the end. They write into a
folder of this machine; nothing is sent anywhere.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_runtime.coordinator.report import METRICS, PAYLOAD, SOCKET, SPREAD, Report
from edge_runtime.errors import ConfigError

_PLAIN = (*PAYLOAD, *SOCKET, "cumulative_payload_bytes", "cumulative_socket_bytes", "devices")
_STATISTICS = ("mean", "p10", "p90")
_EXPERIMENT = "edge-runtime"
_MAX_PARAM, _MAX_PARAMS, _MAX_METRICS = 500, 100, 1000
"""What MLflow takes: characters of a parameter, and how many parameters and metrics in one call."""


def rounds(report: Report) -> Iterator[tuple[int, dict[str, float]]]:
    """Give each round with what is known of it, as `accuracy_personal/mean` and so on."""
    for entry in report["rounds_detail"]:
        found = {name: entry[name] for name in _PLAIN}
        for name in SPREAD:
            found |= {f"{name}/{which}": entry[name][which] for which in _STATISTICS}
        found |= {f"{name}/mean": entry["times"][name]["mean"] for name in ("cpu_s", "wall_s")}
        yield entry["round"], {name: float(value) for name, value in found.items() if value is not None}


def summary(report: Report) -> dict[str, float]:
    """Give the figures of the whole run, as `summary/peak_rss_bytes`: means over the devices."""
    means = {f"summary/{name}": report["summary"][name]["mean"] for name in METRICS}
    means["summary/run_wall_s"] = report["times"]["wall_s"]
    return {name: float(value) for name, value in means.items() if value is not None}


def settings(report: Report) -> dict[str, str]:
    """Give the settings as dotted names and texts."""

    def flat(table: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
        for key, value in table.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{above}{key}.")
            else:
                yield f"{above}{key}", str(value)

    known = {"algorithm": report["algorithm"], "seed": report["seed"], "versions": report["versions"]}
    return dict(flat({**known, **report["configuration"]}, ""))


def to_tensorboard(report: Report, folder: Path) -> str:
    """Write event files; say how to look at them.

    Raises:
        ConfigError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(_missing("tensorboardX", "tensorboard")) from error
    place = folder / report["run"][:12]
    with SummaryWriter(str(place)) as writer:
        for step, figures in rounds(report):
            for name, value in figures.items():
                writer.add_scalar(name, value, step)
        for name, value in summary(report).items():
            writer.add_scalar(name, value, report["rounds"])
        lines = [f"    {key} = {value}" for key, value in sorted(settings(report).items())]
        writer.add_text("settings", "\n".join(lines))
    return f"tensorboard --logdir {folder}"


def to_mlflow(report: Report, folder: Path) -> str:
    """Write a run of MLflow into a database in the folder; say how to look at it.

    Raises:
        ConfigError: mlflow is not installed.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag
    except ImportError as error:
        raise ConfigError(_missing("mlflow-skinny", "mlflow")) from error
    folder.mkdir(parents=True, exist_ok=True)
    place = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    client = MlflowClient(place)
    found = client.get_experiment_by_name(_EXPERIMENT)
    artifacts = (folder.absolute() / "artifacts").as_uri()
    experiment = found.experiment_id if found else client.create_experiment(_EXPERIMENT, artifact_location=artifacts)
    run = client.create_run(experiment, run_name=f"{report['algorithm']}-{report['run'][:8]}").info.run_id
    now_ms = int(1000 * time.time())
    metrics = [
        Metric(name, value, now_ms, step)
        for step, figures in (*rounds(report), (report["rounds"], summary(report)))
        for name, value in figures.items()
    ]
    params = [Param(key, value[:_MAX_PARAM]) for key, value in settings(report).items()]
    client.log_batch(run, params=params[:_MAX_PARAMS], tags=[RunTag("edge-runtime.run", report["run"])])
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run, metrics=metrics[start : start + _MAX_METRICS])
    client.set_terminated(run)
    return f"mlflow ui --backend-store-uri {place}"


def _missing(package: str, extra: str) -> str:
    return f"--to {extra} needs {package}; run: pip install 'edge-runtime[{extra}]'"


WRITERS: dict[str, Callable[[Report, Path], str]] = {"mlflow": to_mlflow, "tensorboard": to_tensorboard}
