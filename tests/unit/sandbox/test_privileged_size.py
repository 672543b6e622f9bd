"""The code that decides with root's power stays small enough to be read in one sitting.

Counted are lines of code: not blank, not a comment, not a docstring. The warden's own modules
count, and so does the request server its socket is made of; the pure builders (spec, oci, seccomp,
launcher, cgroup, names, limits, redirect) do not: they compute values and touch nothing, which
tests/test_architecture.py and the first test here see to.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WARDEN = (
    "sandbox/warden.py",
    "sandbox/jobs.py",
    "sandbox/netns.py",
    "ledger/service.py",
)
BUILDERS = (
    "spec",
    "oci",
    "seccomp",
    "launcher",
    "device",
    "cgroup",
    "names",
    "limits",
    "env",
    "forwarder",
    "landlock",
    "podman",
    "redirect",
    "rules",
    "routing",
    "steps",
)
# Run by `exeat unpack` and `exeat image` and inside their jail, never by the warden.
NOT_THE_WARDENS = ("archive_folder", "archive_frames", "archive_inside", "image_layers", "image_layout")
LIMIT = 500
ACTS = {"os", "subprocess", "ctypes", "fcntl", "shutil", "signal", "time", "threading", "resource", "logging"}
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            first = node.body[0]
            lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def test_the_counter_counts() -> None:
    assert (
        code_lines(
            '"""Doc\nstring."""\n\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    """D."""\n    return x  # y\n'
        )
        == 5
    )


def test_the_warden_stays_small() -> None:
    counts = {name: code_lines((ROOT / name).read_text()) for name in WARDEN}
    assert sum(counts.values()) < LIMIT, counts


def test_everything_in_the_area_is_counted_or_pure() -> None:
    counted = {Path(name).stem for name in WARDEN if name.startswith("sandbox/")}
    known = counted | set(BUILDERS) | set(NOT_THE_WARDENS)
    assert {path.stem for path in (ROOT / "sandbox").glob("*.py")} == known


def test_the_warden_does_not_load_what_is_neither() -> None:
    loaded = "import exeat.sandbox.warden, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert not {f"exeat.sandbox.{name}" for name in NOT_THE_WARDENS} & set(done.stdout.split())


@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_not_counted_acts_on_nothing(name: str) -> None:
    tree = ast.parse((ROOT / "sandbox" / f"{name}.py").read_text())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        (node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert not imported & ACTS
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "exec", "eval", "print", "input", "__import__"}
