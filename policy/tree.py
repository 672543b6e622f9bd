"""Policy text to a tree of nodes that know their line: strict YAML for people, JSON for machines.

Every scalar stays the text that was written: YAML 1.1 would read `off` as False, `0443` as 291,
`22:30` as 1350, and keep the last of two equal keys without a word.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import yaml

from exeat.policy.errors import PolicyError, ScopeError, UnitError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 12
MAX_TEXT = 64 * 1024 * 1024  # characters


@dataclass(slots=True)
class Node:
    """A scalar (`text`), a list (`items`) or a mapping (`entries`: key -> (key node, value))."""

    file: str
    line: int
    column: int
    text: str | None = None
    items: Sequence[Node] | None = None
    entries: dict[str, tuple[Node, Node]] | None = None

    def error(self, code: str, message: str) -> PolicyError:
        return PolicyError(code, message, self.file, self.line, self.column)

    def translate(self, error: ScopeError | UnitError) -> PolicyError:
        return self.error(error.code, str(error))

    def scalar(self) -> str:
        if self.text is None:
            raise self.error("doc.type", "expected one value here, not a list or mapping")
        if not self.text:
            raise self.error("doc.type", "expected a value here, found nothing")
        return self.text

    def sequence(self) -> Sequence[Node]:
        if self.items is None:
            raise self.error("doc.type", "expected a list here")
        return self.items

    def one_or_more(self) -> Sequence[Node]:
        return [self] if self.items is None else self.items

    def mapping(self, allowed: frozenset[str] | None = None) -> dict[str, Node]:
        """The entries as key -> value; keys outside `allowed` are errors."""
        if self.entries is None:
            raise self.error("doc.type", "expected a mapping here")
        for key, (key_node, _) in self.entries.items():
            if allowed is not None and key not in allowed:
                known = ", ".join(sorted(allowed))
                raise key_node.error("doc.unknown_key", f"unknown key `{key}`; known here: {known}")
        return {key: value for key, (_, value) in self.entries.items()}


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been read yet."""

    node: Node
    items: list[Node]
    key: Node | None = None


def parse_yaml(text: str, file: str) -> Node:
    """The one document of `text`. Raises PolicyError `doc.{yaml,alias,tag,duplicate_key,empty}`."""
    if len(text) > MAX_TEXT:
        raise PolicyError("doc.size", f"more than {MAX_TEXT} characters", file, 1, 1)
    try:
        roots = list(_documents(text, file))
    except yaml.MarkedYAMLError as error:
        line, column = (1, 1)
        mark = error.problem_mark
        if mark is not None:
            line, column = mark.line + 1, mark.column + 1
        raise PolicyError("doc.yaml", f"not YAML: {_one_line(error)}", file, line, column) from None
    except yaml.YAMLError as error:
        raise PolicyError("doc.yaml", f"not YAML: {_one_line(error)}", file, 1, 1) from None
    if not roots or roots[0].entries is None:
        raise PolicyError("doc.empty", "a policy is a mapping that begins with `egress: v1`", file, 1, 1)
    if len(roots) > 1:
        raise roots[1].error("doc.yaml", "one file holds one policy: remove the second document")
    return roots[0]


def _one_line(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error)
    hint = "; quote a scope that begins with `*`" if "alias" in str(error) else ""
    return " ".join(str(problem).split()) + hint


def _documents(text: str, file: str) -> Iterator[Node]:
    stack: list[_Open] = []
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        if not isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            continue
        done = _step(event, stack, file)
        if done is not None and stack:
            _attach(stack[-1], done)
        elif done is not None:
            yield done


def _step(event: yaml.Event, stack: list[_Open], file: str) -> Node | None:
    """Open a collection, or hand back the node that this event completes."""
    if isinstance(event, yaml.CollectionEndEvent):
        return stack.pop().node
    mark = event.start_mark
    node = Node(file, 1, 1) if mark is None else Node(file, mark.line + 1, mark.column + 1)
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise node.error("doc.alias", "anchors and aliases are not part of the language: write it out")
    if getattr(event, "tag", None) is not None:
        raise node.error("doc.tag", "tags are not part of the language")
    if isinstance(event, yaml.ScalarEvent):
        node.text = event.value
        return node
    if len(stack) >= MAX_DEPTH:
        raise node.error("doc.type", "nested too deeply")
    items: list[Node] = []
    if isinstance(event, yaml.SequenceStartEvent):
        node.items = items
    else:
        node.entries = {}
    stack.append(_Open(node, items))
    return None


def _attach(parent: _Open, child: Node) -> None:
    if parent.node.items is not None:
        parent.items.append(child)
        return
    entries = parent.node.entries
    if parent.key is None:
        if child.text is None:
            raise child.error("doc.type", "a key must be a plain word")
        if entries is not None and child.text in entries:
            raise child.error("doc.duplicate_key", f"`{child.text}` is already set above")
        parent.key = child
    elif entries is not None and parent.key.text is not None:
        entries[parent.key.text] = (parent.key, child)
        parent.key = None


class _Values(Sequence["Node"]):
    """A JSON list that becomes nodes one by one: the nodes of a large policy weigh more than it does."""

    def __init__(self, values: list[Any], file: str, depth: int) -> None:
        self._values = values
        self._file = file
        self._depth = depth

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> list[Node]: ...
    def __getitem__(self, index: int | slice) -> Node | list[Node]:
        if isinstance(index, slice):
            return [_from_value(value, self._file, self._depth) for value in self._values[index]]
        return _from_value(self._values[index], self._file, self._depth)


def parse_json(text: str, file: str) -> Node:
    """The same tree from canonical JSON. Raises PolicyError `doc.json`, also when an item is taken."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _not_canonical(str(error), file) from None
    return _from_value(value, file, 0)


def _not_canonical(why: str, file: str) -> PolicyError:
    return PolicyError("doc.json", f"not canonical JSON: {why}", file, 1, 1)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key is set twice")
    return out


def _from_value(value: object, file: str, depth: int) -> Node:
    node = Node(file, 1, 1)
    if depth > MAX_DEPTH:
        raise _not_canonical("nested too deeply", file)
    if isinstance(value, dict):
        place = Node(file, 1, 1)  # not `node`: a cycle would wait for the garbage collector
        node.entries = {key: (place, _from_value(item, file, depth + 1)) for key, item in value.items()}
    elif isinstance(value, list):
        node.items = _Values(value, file, depth + 1)
    elif isinstance(value, bool):
        node.text = "true" if value else "false"
    elif isinstance(value, str | int):
        node.text = str(value)
    else:
        raise _not_canonical(f"a {type(value).__name__} is not part of the language", file)
    return node
