"""Mutants of the decision core, and whether the tests notice: `python -m bench.mutate [FILE...]`.

One change at a time in a copy of the tree: comparisons, and/or, not, constants, min/max, set and
arithmetic operators, arguments of returns. A mutant is killed when the quick tests fail; survivors
are printed with file, line and change. Run it before a release; docs/policy.md lists the survivors.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
FILES = ("policy/decide.py", "policy/meta.py", "policy/index.py", "policy/verdicts.py", "policy/usage.py")
_PROPERTIES = "tests/property/policy/test_policy_decide_properties.py::test_"
TESTS = (
    "tests/unit/policy/test_policy_snapshot.py",
    "tests/unit/policy/test_policy_usage.py",
    "tests/property/policy/test_policy_many_requests.py",
    "tests/unit/policy/test_policy_cases.py",
    "tests/property/policy/test_policy_budget_properties.py",
    _PROPERTIES + "a_lookup_is_the_best_over_ports",
    _PROPERTIES + "the_named_rules_exist_and_the_attributed_one_is_among_them",
    _PROPERTIES + "decide_is_total",
    _PROPERTIES + "garbage_in_the_overlay_is_a_deny",
)
REQUESTS = "30000"  # of test_policy_many_requests
LIMIT_S = 120

_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Mult: ast.Add,
    ast.Mod: ast.Mult,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


def mutations(node: ast.AST) -> Iterator[ast.AST]:
    """Every changed copy of this one node."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in _COMPARE[type(node.ops[0])]:
            yield _changed(node, ops=[other()])
    elif isinstance(node, ast.BoolOp):
        yield _changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for n in range(len(node.values)):
            yield _changed(node, values=node.values[:n] + node.values[n + 1 :])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield _changed(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        yield _changed(node, op=_BINARY[type(node.op)]())
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        yield _changed(node, func=ast.Name(_CALLS[node.func.id], ast.Load()))
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.Continue):
        yield ast.Break()


def _constants(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node.value, str) and node.value:
        yield ast.Constant(node.value + "x")


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, what changed, and the whole mutated source."""
    tree = ast.parse(source)
    for parent, field, at, node in list(_places(tree)):
        for made in mutations(node):
            _put(parent, field, at, made)
            try:
                changed = ast.unparse(ast.fix_missing_locations(tree))
                words = f"{ast.unparse(node)[:60]!r} -> {ast.unparse(made)[:60]!r}"
            finally:
                _put(parent, field, at, node)
            yield getattr(node, "lineno", 0), " ".join(words.split()), changed


def _put(parent: ast.AST, field: str, at: int | None, node: ast.AST) -> None:
    if at is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[at] = node


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    unread = {id(inner) for node in ast.walk(tree) for top in _not_run(node) for inner in ast.walk(top)}
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            for at, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.AST) and id(node) not in unread:
                    yield parent, field, at, node


def _not_run(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of this node that change nothing: docstrings, annotations, what only type checkers read."""
    for field in ("annotation", "returns"):
        if isinstance(part := getattr(node, field, None), ast.AST):
            yield part
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield node
    named = (
        node.test if isinstance(node, ast.If) else node.targets[0] if isinstance(node, ast.Assign) else None
    )
    if isinstance(named, ast.Name) and named.id in ("TYPE_CHECKING", "__all__"):
        yield node


def _survives(tree: Path, file: str, text: str) -> bool:
    path = tree / file
    original = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    environment = os.environ | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(tree),
        "EXEAT_REQUESTS": REQUESTS,
    }
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *TESTS]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(original, encoding="utf-8")
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.mutate", description=__doc__)
    parser.add_argument("files", nargs="*", default=FILES)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="take only every n-th mutant")
    args = parser.parse_args()
    work = [(f, *m) for f in args.files for m in mutants((ROOT / f).read_text(encoding="utf-8"))]
    work = work[:: args.every]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / str(n) for n in range(args.jobs)]
        for tree in trees:
            skip = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".hypothesis")
            shutil.copytree(ROOT, tree, symlinks=True, ignore=skip)

        def run(number: int) -> list[str]:
            found = []
            for file, line, words, text in work[number :: args.jobs]:
                if _survives(trees[number], file, text):
                    found.append(f"{file}:{line}: {words}")
                    print(found[-1], flush=True)
            return found

        with ThreadPoolExecutor(args.jobs) as pool:
            for found in pool.map(run, range(args.jobs)):
                survivors += found
    killed = len(work) - len(survivors)
    print(f"{killed} of {len(work)} mutants killed ({100 * killed / len(work):.1f} %)")
    return 0 if killed >= 0.95 * len(work) else 1


if __name__ == "__main__":
    sys.exit(main())
