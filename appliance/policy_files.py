"""Policy files named on a command line: read, loaded, and refused with one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from exeat.appliance.errors import UsageError
from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.baseline import under
from exeat.policy.document import Document, PolicyError, load_policy

if TYPE_CHECKING:
    import argparse


def read_text(path: Path) -> str:
    """The file's text, or standard input for `-`. Raises UsageError."""
    try:
        return sys.stdin.read() if path == Path("-") else path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None


def load_file(path: Path, baseline: Path | None = None) -> Document:
    """The policy, under the baseline where one is named. Raises UsageError with FILE:LINE:COL."""
    try:
        document = load_policy(read_text(path), file=str(path), suffixes=bundled_suffixes())
    except PolicyError as error:
        raise UsageError(str(error)) from None
    return document if baseline is None else under(document, load_file(baseline))


def add_baseline(parser: argparse.ArgumentParser) -> None:
    """The option `--baseline FILE`."""
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="the organisation's baseline that holds over it"
    )
