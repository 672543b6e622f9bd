"""Mutants of a Python module: one small change at a time, each with a name that stays when lines move.

Changes: comparisons, and/or, not, the tests of if, while and comprehensions, set and arithmetic
operators, min/max/any/all, constants, elements of displays, loops that do not run, break/continue,
statements left out. Not changed: what only type checkers read, and the words of errors.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    ast.LShift: ast.RShift,
    ast.Mult: ast.Add,
    ast.Mod: ast.Mult,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_DISPLAYS = (ast.Tuple, ast.List, ast.Set)


class Mutant(NamedTuple):
    """One change. `key` is `FILE FUNCTION: 'before' -> 'after'`, with `#2` and so on where it repeats."""

    file: str
    line: int
    key: str
    tree: ast.Module


class _Place(NamedTuple):
    parent: ast.AST
    field: str
    at: int | None
    node: ast.AST
    function: str

    def put(self, node: ast.AST) -> None:
        if self.at is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.at] = node


def mutants(file: str, source: str, only: tuple[str, ...] = ()) -> Iterator[Mutant]:
    """Every mutant of a module, or of the functions `only`. The tree holds the change only until the
    next one is asked for."""
    tree = ast.parse(source)
    seen: Counter[str] = Counter()
    for place in [*_places(tree, "")]:
        if only and place.function not in only:
            continue
        for made in _changes(place):
            key = f"{file} {place.function}: {_words(place.node)} -> {_words(made)}"
            seen[key] += 1
            if seen[key] > 1:
                key += f" #{seen[key]}"
            place.put(ast.copy_location(made, place.node))
            try:
                yield Mutant(file, _line(place.node), key, ast.fix_missing_locations(tree))
            finally:
                place.put(place.node)


def _line(node: ast.AST) -> int:
    return int(getattr(node.target if isinstance(node, ast.comprehension) else node, "lineno", 0))


def _words(node: ast.AST) -> str:
    if isinstance(node, ast.comprehension):
        node = _all_of(node.ifs)
    if isinstance(node, ast.If | ast.While):
        node = node.test
    if isinstance(node, ast.For):
        return repr(f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}")
    return repr(" ".join(ast.unparse(node).split())[:100])


def _all_of(tests: list[ast.expr]) -> ast.expr:
    return ast.BoolOp(ast.And(), tests) if len(tests) > 1 else [*tests, ast.Constant(True)][0]


def _places(parent: ast.AST, function: str, unread: frozenset[int] = frozenset()) -> Iterator[_Place]:
    unread |= {id(node) for node in _not_run(parent)}
    for field, value in ast.iter_fields(parent):
        for at, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or id(node) in unread:
                continue
            yield _Place(parent, field, at, node, function or "module")
            inner = function
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                inner = f"{function}.{node.name}".removeprefix(".")
            yield from _places(node, inner, unread)


def _not_run(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of this node that change nothing: docstrings, annotations, aliases of types, words of errors."""
    for field in ("annotation", "returns"):
        if isinstance(part := getattr(node, field, None), ast.AST):
            yield part
    if isinstance(node, ast.ClassDef):
        yield from node.bases
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield node.value
    if isinstance(node, ast.Module):
        yield from (part for part in node.body if isinstance(part, ast.If))  # `if TYPE_CHECKING`
    if isinstance(node, ast.Assign) and _is_for_type_checkers(node):
        yield node.value
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        # Which error and which code counts; how it is put into words does not.
        yield from (part for part in node.exc.args if not _is_code(part))


def _is_for_type_checkers(node: ast.Assign) -> bool:
    value = node.value
    typevar = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar"
    exported = isinstance(node.targets[0], ast.Name) and node.targets[0].id in ("__all__", "__slots__")
    alias = isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name)
    return typevar or exported or (alias and value.value.id in ("dict", "tuple", "list"))  # type: ignore[attr-defined]


def _is_code(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value


def _changes(place: _Place) -> Iterator[ast.AST]:
    node = place.node
    if isinstance(node, ast.stmt):
        yield from _of_statement(node)
    elif isinstance(node, ast.comprehension) and node.ifs:
        for n in range(len(node.ifs)):
            yield _changed(node, ifs=node.ifs[:n] + node.ifs[n + 1 :])
        yield _changed(node, ifs=[ast.UnaryOp(ast.Not(), _all_of(node.ifs))])
    elif isinstance(node, ast.expr):
        yield from _of_expression(node)


def _of_statement(node: ast.stmt) -> Iterator[ast.AST]:
    if isinstance(node, ast.If | ast.While):
        yield from _negated(node)
    elif isinstance(node, ast.AugAssign):
        if type(node.op) in _BINARY:
            yield _changed(node, op=_BINARY[type(node.op)]())
        yield ast.Pass()
    elif isinstance(node, ast.For):
        yield _changed(node, iter=ast.Tuple([], ast.Load()))
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Raise) or (
        isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom)
    ):
        yield ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield ast.Return(ast.Constant(None))


def _negated(node: ast.If | ast.While | ast.IfExp) -> Iterator[ast.AST]:
    """With the test the other way round, unless a change inside the test comes to the same."""
    test = node.test.operand if isinstance(node.test, ast.UnaryOp) else node.test
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1) and test is node.test:
        yield _changed(node, test=ast.UnaryOp(ast.Not(), node.test))


def _of_expression(node: ast.expr) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for n, op in enumerate(node.ops):
            for other in _COMPARE[type(op)]:
                yield _changed(node, ops=[*node.ops[:n], other(), *node.ops[n + 1 :]])
    elif isinstance(node, ast.BoolOp):
        yield _changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for n in range(len(node.values)):
            left = node.values[:n] + node.values[n + 1 :]
            yield _changed(node, values=left) if len(left) > 1 else left[0]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield from _negated(node)
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        yield _changed(node, op=_BINARY[type(node.op)]())
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        yield _changed(node, func=ast.Name(_CALLS[node.func.id], ast.Load()))
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, _DISPLAYS) and len(node.elts) > 1 and not _is_target(node):
        for n in range(len(node.elts)):
            yield _changed(node, elts=node.elts[:n] + node.elts[n + 1 :])


def _is_target(node: ast.expr) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store)


def _constants(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(node.value - 1)
    elif isinstance(node.value, str) and node.value:
        yield ast.Constant(node.value + "x")


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made
