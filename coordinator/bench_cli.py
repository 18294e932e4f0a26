"""`edge-coordinator bench`: what is measured and compared, as a person asks for it."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from edge_runtime import config
from edge_runtime.command_line import add_command, add_group, subcommands
from edge_runtime.errors import ConfigError, RunError

_BENCH_EXAMPLES = """examples:
  edge-coordinator bench step --model watch-cnn
  edge-coordinator bench algorithms --quick
"""
_STEP_EXAMPLES = """examples:
  edge-coordinator bench step
  edge-coordinator bench step --model cnn --model watch-cnn --batch 16 --batch 32 --repeats 5
  edge-coordinator bench step --backend onnx --backend torch --threads 2 --json

The backends take turns (A B A B ...), so that a machine that slows down slows all of them. The ratio is that of the
medians of one turn; shown is its median over the turns.

"""
_MEMORY_EXAMPLES = """examples:
  edge-coordinator bench memory
  edge-coordinator bench memory --model cnn --model cnn-large
  edge-coordinator bench memory --model cnn-large --density 1 --density 0.1
  edge-coordinator bench memory --model bundles/net --backend onnx --json

baseline: with the backend imported; peak: the most that the process ever had; over: the peak of training over the
baseline; floor: parameters, gradients and momentum of what is active, which training cannot do without. Where a model's
costs are known (`bench costs`), a second table says how far off estimates are.

"""
_COSTS_EXAMPLES = """examples:
  edge-coordinator bench costs --model bundles/net --model bundles/net/parts/0.5
  edge-coordinator bench costs --model cnn --backend onnx --backend torch

Measures each model at a few batch sizes and densities, and writes costs.json into its bundle's folder. Estimates of
memory and time for any other batch size and density are made of it (docs/budgets.md). A minute or two for a model and
backend.

"""
_ALGORITHMS_EXAMPLES = """examples:
  edge-coordinator bench algorithms --quick
  edge-coordinator bench algorithms --out runs/study --plots runs/study --markdown runs/study/table.md
  edge-coordinator bench algorithms --scenario watch --case fedavg --case ditto --seeds 5 --json

Every finished run is a file in --out: the same command again goes on where it was stopped, and a wider one adds what is
missing. Mean and standard error are over the seeds; virtual time is what the devices' delays add up to.

"""
_WIRE_EXAMPLES = """examples:
  edge-coordinator bench wire
  edge-coordinator bench wire --model cnn-wide --density 0.1 --bits 2 --json
  edge-coordinator bench wire --threads 2 --markdown docs/wire/tables.md

The first time it trains: both models take about ten minutes of one core, fewer with --threads 2. What is trained is
kept in --cache, and a later command trains only what is missing. docs/wire.md says how to read the tables.

"""


def add_bench(commands: Any) -> None:
    """Add `bench` and its commands."""
    summary = "Compare backends, algorithms or codings on this machine"
    kinds = subcommands(add_group(commands, "bench", summary, _BENCH_EXAMPLES))
    step = add_command(kinds, "step", "Time steps of training", _STEP_EXAMPLES, _step)
    step.add_argument("--repeats", type=int, default=3, metavar="N", help="turns of each backend (default 3)")
    memory = add_command(kinds, "memory", "Weigh processes that train", _MEMORY_EXAMPLES, _memory)
    _add_costs(kinds)
    _add_algorithms(kinds)
    _add_wire(kinds)
    for parser in (step, memory):
        parser.add_argument(
            "--model", action="append", metavar="NAME|DIR", help="built-in name or folder of a bundle (default cnn)"
        )
        parser.add_argument("--backend", action="append", metavar="NAME", help="onnx, torch or numpy (default all)")
        parser.add_argument("--batch", action="append", type=int, metavar="N", help="samples in a step (default 32)")
        parser.add_argument(
            "--density", action="append", type=float, metavar="D", help="part of the parameters trained (default 1)"
        )
        parser.add_argument(
            "--steps", type=int, default=0, metavar="N", help="steps that are timed (default 20, and more for a second)"
        )
        parser.add_argument(
            "--no-arena", action="store_true", help="let onnx give memory back after every operator: slower"
        )
        parser.add_argument("--json", action="store_true", help="for scripts")


def _add_costs(kinds: Any) -> None:
    summary = "Measure what models cost, for estimates"
    parser = add_command(kinds, "costs", summary, _COSTS_EXAMPLES, _costs)
    parser.add_argument(
        "--model", action="append", metavar="NAME|DIR", help="built-in name or bundle's folder (default all built-in)"
    )
    parser.add_argument("--backend", action="append", metavar="NAME", help="onnx, torch or numpy (default onnx)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measurements of each point (default 3)")
    parser.add_argument("--json", action="store_true", help="print what was found")


def _costs(options: argparse.Namespace) -> None:
    from edge_runtime import costs, models
    from edge_runtime.coordinator import bench_costs

    if options.repeats < 1:
        raise ConfigError(f"--repeats must be 1 or more, not {options.repeats}")
    grid = costs.Grid(tuple(options.backend or costs.Grid.backends), repeats=options.repeats)
    names = options.model or models.names()
    found = bench_costs.measure(names, grid, config.environment(options.threads))
    if options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")


def _add_algorithms(kinds: Any) -> None:
    summary = "Compare all algorithms, with attackers and delays, in simulations"
    parser = add_command(kinds, "algorithms", summary, _ALGORITHMS_EXAMPLES, _algorithms)
    parser.add_argument(
        "--quick", action="store_true", help="every scenario but slow ones, so small that no number means anything"
    )
    parser.add_argument("--scenario", action="append", metavar="NAME", help="one table of the study (default all)")
    parser.add_argument("--case", action="append", metavar="NAME", help="one line of the tables (default all)")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of every case (default 3, with --quick 1)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, a core each (default 2)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="one file per run (default runs/study, with --quick runs/study-quick)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the tables as CSV")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw accuracy against bytes and time")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _algorithms(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import study, study_grid, study_live, study_plots, study_report, study_run

    scenarios = study.select(study_grid.SCENARIOS, options.scenario, options.case)
    scenarios = study.quick(scenarios) if options.quick else scenarios
    if not scenarios:
        raise ConfigError("--quick: this scenario is slow even when it is small; leave the flag out")
    cells = study.cells(scenarios, (1 if options.quick else 3) if options.seeds is None else options.seeds)
    out = options.out or Path("runs/study-quick" if options.quick else "runs/study")
    there = [cell for cell in cells if study_run.read(cell, out) is not None]
    with study_live.Live(len(cells), len(there)) as live:
        failed = study_run.run(cells, out, options.jobs, live.tell)
    records = [record for record in (study_run.read(cell, out) for cell in cells) if record is not None]
    record = study_report.build(scenarios, records, shlex.join(["edge-coordinator", *sys.argv[1:]]))
    for path, write in ((options.csv, study_report.to_csv), (options.markdown, study_report.to_markdown)):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(write(record))
    if options.plots:
        study_plots.write(record, options.plots)
    _show_study(options, record, out)
    if failed:
        raise RunError(f"{len(failed)} of {len(cells)} runs failed, as {failed[0]}")


def _show_study(options: argparse.Namespace, record: dict[str, Any], out: Path) -> None:
    from edge_runtime.coordinator import study_report

    if options.json:
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
        return
    from rich.console import Console

    console = Console()
    for table in study_report.tables(record):
        console.print(table)
    console.print(f"runs: {out}", highlight=False)


def _add_wire(kinds: Any) -> None:
    summary = "Count the bytes of everything that is sent, in every coding"
    parser = add_command(kinds, "wire", summary, _WIRE_EXAMPLES, _wire)
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="trained on fashion-mnist (default cnn-wide and resnet20)"
    )
    parser.add_argument("--density", action="append", type=float, metavar="D", help="of masks (default .5 .2 .1 .05)")
    parser.add_argument("--bits", action="append", type=int, metavar="B", help="of codes (default 1 2 3 4)")
    parser.add_argument("--epochs", type=float, default=1.0, metavar="N", help="how long each is trained (default 1)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="what was trained (default ~/.cache/edge-runtime)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--json", action="store_true", help="for scripts")


def _wire(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import bench_wire, wire_material, wire_report

    recipes = wire_material.recipes(options.model, options.density, options.bits, options.epochs)
    cache = options.cache or config.cache_folder()
    record = bench_wire.measure(recipes, cache, options.threads, lambda said: print(said, file=sys.stderr))
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(wire_report.to_markdown(record, shlex.join(["edge-coordinator", *sys.argv[1:]])))
    if options.json:
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
        return
    from rich.console import Console

    console = Console()
    for table in wire_report.tables(record):
        console.print(table)


def _step(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import bench

    if options.repeats < 1:
        raise ConfigError(f"--repeats must be 1 or more, not {options.repeats}")
    _show_bench(options, bench.step(*_asked(options), options.repeats))


def _memory(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import bench

    _show_bench(options, bench.memory(*_asked(options)))


def _asked(options: argparse.Namespace) -> tuple[Any, dict[str, str]]:
    from edge_runtime.coordinator import bench

    grid = bench.Grid(
        tuple(options.model or ["cnn"]),
        tuple(options.backend or ["all"]),
        tuple(options.batch or [32]),
        tuple(options.density or [1.0]),
        options.steps,
        options.threads,
        not options.no_arena,
    )
    return bench.plans(grid), config.environment(options.threads)


def _show_bench(options: argparse.Namespace, record: dict[str, Any]) -> None:
    if options.json:
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
        return
    from rich.console import Console

    from edge_runtime.coordinator import bench, bench_costs

    console = Console()
    console.print(bench.table(record))
    if record["kind"] == "memory" and (estimates := bench_costs.table(record)):
        console.print(estimates)
