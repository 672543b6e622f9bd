"""The mutants themselves, and what a run makes of them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
from bench.mutants import Mutant, mutants
from bench.mutate import FILES, ROOT, Fate, every_mutant, listed, report

SOURCE = '''
"""Words."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import os
Key = tuple[str, int]
class Box:
    __slots__ = ("lid", "side")
    def size(self, width: int = 2) -> "int":
        """More words."""
        if 1 <= width < 9 and not self.lid:
            raise ValueError("too small")
        for lid in self.lids:
            width += 1
        return [lid for lid in self.lids if lid]
'''
EXPECTED = {
    "Box.size: '2' -> '3'",
    "Box.size: '2' -> '1'",
    "Box.size: '1 <= width < 9 and (not self.lid)' -> '1 <= width < 9 or not self.lid'",
    "Box.size: '1 <= width < 9 and (not self.lid)' -> '1 <= width < 9'",
    "Box.size: '1 <= width < 9 and (not self.lid)' -> 'not self.lid'",
    "Box.size: '1 <= width < 9 and (not self.lid)' -> 'not (1 <= width < 9 and (not self.lid))'",
    "Box.size: '1 <= width < 9' -> '1 < width < 9'",
    "Box.size: '1 <= width < 9' -> '1 > width < 9'",
    "Box.size: '1 <= width < 9' -> '1 <= width <= 9'",
    "Box.size: '1 <= width < 9' -> '1 <= width >= 9'",
    "Box.size: '1' -> '2'",
    "Box.size: '1' -> '0'",
    "Box.size: '9' -> '10'",
    "Box.size: '9' -> '8'",
    "Box.size: 'not self.lid' -> 'self.lid'",
    "Box.size: \"raise ValueError('too small')\" -> 'pass'",
    "Box.size: 'for lid in self.lids' -> 'for lid in ()'",
    "Box.size: 'width += 1' -> 'width -= 1'",
    "Box.size: 'width += 1' -> 'pass'",
    "Box.size: '1' -> '2' #2",
    "Box.size: '1' -> '0' #2",
    "Box.size: 'return [lid for lid in self.lids if lid]' -> 'return None'",
    "Box.size: 'lid' -> 'True'",
    "Box.size: 'lid' -> 'not lid'",
}


def test_every_change_is_made_once_and_nothing_else() -> None:
    found = [mutant.key.removeprefix("box.py ") for mutant in mutants("box.py", SOURCE)]
    assert sorted(found) == sorted(EXPECTED)


def test_each_mutant_is_one_program_that_differs() -> None:
    original = ast.unparse(ast.parse(SOURCE))
    texts = []
    for mutant in mutants("box.py", SOURCE):
        compile(mutant.tree, "box.py", "exec")
        texts.append(ast.unparse(mutant.tree))
    assert original not in texts
    assert len(set(texts)) == len(texts)


def test_only_the_functions_asked_for() -> None:
    assert {m.key for m in mutants("box.py", SOURCE, ("Box.size",))} == {
        m.key for m in mutants("box.py", SOURCE)
    }
    assert not list(mutants("box.py", SOURCE, ("Box",)))


def fate(key: str, killer: str) -> Fate:
    return Fate(Mutant("f.py", 3, f"f.py {key}", ast.Module([], [])), killer)


@pytest.mark.parametrize(
    ("found", "whole", "code", "said"),
    [
        ([fate("a", "cases")], True, 1, "gone: f.py b"),
        ([fate("a", "cases"), fate("b", "")], True, 0, "raw: 1 of 2 mutants killed (50.0 %)"),
        ([fate("a", "cases"), fate("b", "")], True, 0, "net of the listed ones: 1 of 1 (100.0 %)"),
        (
            [fate("a", ""), fate("b", ""), fate("c", "time")],
            True,
            1,
            "net of the listed ones: 1 of 2 (50.0 %)",
        ),
        ([fate("a", "cases"), fate("b", "tests")], False, 1, "listed as equal, but killed or gone: f.py b"),
        ([fate("a", "cases")], False, 0, "killed by cases 1"),
    ],
)
def test_what_a_run_says(found: list[Fate], whole: bool, code: int, said: str) -> None:
    lines: list[str] = []
    assert report(found, frozenset({"f.py b"}), whole, lines.append) == code
    assert any(said in line for line in lines), lines


def test_what_is_listed_as_equal_is_a_mutant() -> None:
    assert listed() <= {mutant.key for mutant in every_mutant(FILES)}


@pytest.mark.slow
def test_a_sample_of_the_mutants_is_killed() -> None:
    """The same ones each time, and none that is listed. Their limit is one of processor time."""
    command = [sys.executable, "-m", "bench.mutate", "--sample", "30"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # the tests may be run without the current folder
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 of 30 mutants killed" in done.stdout
