"""Fill in the scorecard: `python -m tests.chaos`, or `make chaos`.

make chaos                          # everything, about an hour of two cores
make chaos ARGS="R2 R7 --part 0.1"  # some rows, a tenth of each
make chaos ARGS="--json"            # for scripts; exit code 1 where a row that must be met is not
"""

import argparse
import json
import logging
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.scorecard import Figure, Row, Scale, rows


def main() -> int:
    """Measure, print, and give the exit code."""
    options = _options()
    wanted = [row for row in rows() if not options.rows or row.name in options.rows]
    if unknown := sorted(set(options.rows) - {row.name for row in wanted}):
        known = ", ".join(row.name for row in rows())
        sys.stderr.write(f"no row {', '.join(unknown)}; there are {known}\n")
        return 2
    scale = Scale(options.part, options.seed, options.folder)
    scale.folder.mkdir(parents=True, exist_ok=True)
    # Hundreds of lines of a row are what is to be said of forged messages and full disks.
    logging.basicConfig(filename=scale.folder / "log", format="%(asctime)s %(name)s: %(message)s")
    records = []
    for row in wanted:
        sys.stderr.write(f"{row.name:6} {row.what} ...\n")
        started_s = time.monotonic()
        figure = _measure(row, scale)
        spent_s = round(time.monotonic() - started_s, 1)
        sys.stderr.write(f"{'':6} {'met' if figure.met else 'NOT MET'}: {figure.text} ({spent_s} s)\n")
        facts = {"row": row.name, "what": row.what, "target": row.target, "must": row.must, **asdict(figure)}
        records.append({**facts, "part": scale.part, "seed": scale.seed, "spent_s": spent_s})
        (scale.folder / "scorecard.json").write_text(json.dumps(records, indent=1) + "\n")
    if options.json:
        sys.stdout.write(json.dumps(records, indent=1) + "\n")
    else:
        _print(records)
    return int(any(record["must"] and not record["met"] for record in records))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="R1, R2, ... (default: all)")
    parser.add_argument("--part", type=float, default=1.0, help="how much of each row (default 1: all that is asked)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/chaos"), help="for what rows write, and scorecard.json"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser.parse_args()


def _measure(row: Row, scale: Scale) -> Figure:
    """Measure a row; what breaks its measurement is an answer too."""
    try:
        return row.measure(scale)
    except Exception as error:  # noqa: BLE001  # one row must not cost the others
        traceback.print_exc()
        return Figure(f"could not be measured: {type(error).__name__}: {error}", False)


def _print(records: list[dict[str, object]]) -> None:
    table = Table("row", "what", "target", "figure", "met")
    for record in records:
        met = "yes" if record["met"] else ("NO" if record["must"] else "no")
        table.add_row(*(str(record[key]) for key in ("row", "what", "target", "text")), met)
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
