"""Flags that several commands have: how a device computes, and which data it has."""

import argparse
from typing import Any

from edge_runtime.compute import DEVICES, NAMES


def limit(text: str) -> int:
    """Read a whole number from 0, which stands for no limit."""
    if not text.isdecimal() or not 0 <= int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 (no limit)")
    return int(text)


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how a device computes."""
    group = parser.add_argument_group("computing")
    group.add_argument("--backend", default="auto", choices=NAMES, help="what computes (default auto)")
    group.add_argument("--accelerator", default="cpu", choices=DEVICES, help="cuda: for onnx and torch (default cpu)")
    group.add_argument(
        "--memory-mb", type=int, default=0, metavar="N", help="memory that tasks may take (default: what is free)"
    )
    group.add_argument("--artifacts", default="", metavar="DIR", help="for ort_training: what its export made")
    group.add_argument("--no-arena", action="store_true", help="let onnx give memory back after every operator: slower")


def compute_table(options: argparse.Namespace) -> dict[str, Any]:
    """Read the computing flags as a table of `compute.Compute`."""
    table = {"backend": options.backend, "device": options.accelerator}
    table |= {"threads": options.threads, "arena": not options.no_arena}
    return {**table, "memory-mb": options.memory_mb, "artifacts": options.artifacts}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which data a device has."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        default="watch",
        metavar="NAME|DIR|CLASS",
        help="watch, fashion-mnist, a folder of NPZ files, or package.module:Class of your own",
    )
    group.add_argument("--source", metavar="TEXT", help="what that class is made with: a folder, an address")
    group.add_argument("--part", type=int, default=0, metavar="K", help="which device's part of a built-in data set")
    group.add_argument("--parts", type=int, metavar="N", help="parts of fashion-mnist")
    group.add_argument("--labels-per-class", type=int, metavar="N", help="keep only N labelled samples per class")
    group.add_argument(
        "--partition", choices=("dirichlet", "classes", "rotations"), help="how fashion-mnist is dealt out"
    )
    group.add_argument("--alpha", type=float, help="of the Dirichlet partition: small is uneven")
    group.add_argument("--classes-per-device", type=int, metavar="N", help="of the classes partition")
    group.add_argument("--domains", type=int, metavar="N", help="angles of the rotations partition")
    group.add_argument("--degrees", type=float, help="... the largest of them")
    group.add_argument("--samples", type=int, metavar="N", help="... training samples of a device")
    group.add_argument("--test", choices=("own", "all"), help="... the domains that a device is tested on")
    group.add_argument("--test-samples", type=int, metavar="N", help="... test samples of a domain")
    group.add_argument("--data-seed", type=int, metavar="N", help="seed of the partition")


def data_table(options: argparse.Namespace) -> dict[str, Any]:
    """Read the data flags as a table of `data.DataConfig`; flags that were not given are left out."""
    names = ["source", "parts", "labels_per_class", "partition", "alpha", "classes_per_device"]
    names += ["domains", "degrees", "samples", "test", "test_samples"]
    table = {"name": options.data, "part": options.part, "seed": options.data_seed}
    table |= {name.replace("_", "-"): getattr(options, name) for name in names}
    return {name: value for name, value in table.items() if value is not None}
