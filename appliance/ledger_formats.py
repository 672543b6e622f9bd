"""What `exeat ledger query` found, as a table, JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any, TextIO

from exeat.appliance.errors import NotReachableError, UsageError
from exeat.appliance.ledger_text import cell
from exeat.ledger.questions import SUMS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FORMATS = ("table", "json", "csv", "parquet")
SHOWN = SUMS[:4]  # in a table whether there is any or not
_NUMBERS = {"seq", "port", "count", *SUMS}


def write(form: str, columns: Sequence[str], rows: list[tuple[Any, ...]], path: Path | None) -> None:
    """Rows to `path`, or to stdout. Raises UsageError, NotReachableError."""
    try:
        if form == "parquet":
            _parquet(columns, rows, path)
        elif path is None:
            _print(form, columns, rows, sys.stdout)
        else:
            with path.open("w", encoding="utf-8") as out:
                _print(form, columns, rows, out)
    except OSError as error:
        if path is None:
            raise
        raise NotReachableError(f"{path}: {error.strerror}") from None


def _print(form: str, columns: Sequence[str], rows: list[tuple[Any, ...]], out: TextIO) -> None:
    if form == "json":
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows]), file=out)
    elif form == "csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[cell(value) for value in row] for row in rows])
    else:
        _table(columns, rows, out)


def _parquet(columns: Sequence[str], rows: list[tuple[Any, ...]], path: Path | None) -> None:
    """Integers stay integers, everything else is text; zstd."""
    if path is None:
        raise UsageError("--format parquet: name a file with --out")
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError("pyarrow is not installed: pip install 'exeat[parquet]'") from None
    kinds = [arrow.int64() if name in _NUMBERS else arrow.string() for name in columns]
    fields = [arrow.field(name, kind) for name, kind in zip(columns, kinds, strict=True)]
    values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    arrays = [arrow.array(each, field.type) for each, field in zip(values, fields, strict=True)]
    table = arrow.Table.from_arrays(arrays, schema=arrow.schema(fields))
    parquet.write_table(table, path, compression="zstd")


def _table(columns: Sequence[str], rows: list[tuple[Any, ...]], out: TextIO) -> None:
    # A column in which nobody has anything only takes room.
    shown = [
        at for at, name in enumerate(columns) if name in SHOWN or any(row[at] not in ("", 0) for row in rows)
    ]
    texts = [[str(row[at]) or "-" for at in shown] for row in rows]
    heads = [columns[at] for at in shown]
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
    right = [bool(rows) and isinstance(rows[0][at], int) for at in shown]
    for line in (heads, *texts):
        cells = zip(line, widths, right, strict=True)
        print("  ".join(text.rjust(w) if r else text.ljust(w) for text, w, r in cells).rstrip(), file=out)
