"""What a mutant of the policy core is held against, in a fork that has everything else imported.

The mutated module is put in place, and whatever was made from the original (every module that imports
it, directly or not) is imported again. Policies, requests and right answers are made once, before the
first fork, by code that is not mutated.
"""

from __future__ import annotations

import ast
import gc
import importlib
import sys
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis
import pytest
from tests.support.policy_questions import Setting, setting_of

from exeat.appliance.public_suffixes import bundled_suffixes

if TYPE_CHECKING:
    from types import CodeType

    from tests.support.reference_policy import Answer

    from exeat.policy.model import Request

VECTORS = Path(__file__).parents[1] / "tests" / "vectors"
SETTINGS = 120
QUESTIONS = 150
LOOKUPS = 3
_PROPERTIES = "tests/property/policy/test_policy_decide_properties.py"
TESTS = (
    "tests/unit/policy/test_policy_snapshot.py",
    "tests/unit/policy/test_policy_snapshot_changes.py",
    "tests/unit/policy/test_policy_usage.py",
    "tests/unit/policy/test_policy_decide.py",
    "tests/property/policy/test_policy_budget_properties.py",
    f"{_PROPERTIES}::test_decide_is_total",
    f"{_PROPERTIES}::test_garbage_in_the_overlay_is_a_deny",
)
# Much is imported already, so asserts cannot be rewritten; and nothing is shown, so they need not be.
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:exeat", "--assert=plain", "--hypothesis-profile=mutants")


class _World(NamedTuple):
    """A random policy with what is around it, questions, and the answers of the reference."""

    setting: Setting
    questions: list[tuple[Request, int, Answer]]
    lookups: list[tuple[Request, int, set[Answer]]]

    @classmethod
    def of(cls, setting: Setting) -> _World:
        return cls(setting, list(setting.questions(QUESTIONS)), list(setting.lookups(LOOKUPS)))

    def answers_are_right(self) -> bool:
        from tests.support.policy_answers import answer, compiled, lookup  # again, after each replacement

        made = compiled(self.setting)
        return all(
            answer(*made, request, now_ms) == expected for request, now_ms, expected in self.questions
        ) and all(lookup(*made, request, now_ms) in right for request, now_ms, right in self.lookups)


class Killers:
    """Everything prepared. Only `killer` needs a fork, for it leaves the process changed."""

    def __init__(self) -> None:
        importlib.import_module("exeat.policy.snapshot")
        self._worlds = [_World.of(setting_of(seed)) for seed in range(SETTINGS)]
        self._suffixes = bundled_suffixes()
        cases = importlib.import_module("exeat.policy.cases")
        normative, *others, baseline, speech = (
            cases.read_cases((VECTORS / f"policy-{name}.yaml").read_text(encoding="utf-8"))
            for name in ("cases", "neighbours", "boundaries", "baseline", "speech")
        )
        self._normative = normative
        neighbours = {**normative, "cases": [case for file in others for case in file["cases"]]}
        self._others = [neighbours, baseline, speech]
        self._importers = self._who_imports()
        gc.collect()
        gc.freeze()  # else every fork copies all of this, to look for garbage in it

    @staticmethod
    def _who_imports() -> dict[str, set[str]]:
        """For each module of ours that is loaded, those that import it."""
        found: dict[str, set[str]] = {}
        for name, module in sys.modules.items():
            if name.startswith(("exeat.", "tests.")) and getattr(module, "__file__", None):
                for node in ast.walk(ast.parse(Path(str(module.__file__)).read_bytes())):
                    if isinstance(node, ast.ImportFrom) and node.module:
                        for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                            found.setdefault(target, set()).add(name)
        return found

    def killer(self, name: str, code: CodeType) -> str:
        """Who notices that module `name` is now `code`; "" if nobody does."""
        try:
            self._replace(name, code)
        except Exception:
            return "import"
        if not self._cases_pass(self._normative):
            return "cases"
        if not all(map(self._cases_pass, self._others)):
            return "neighbours"
        if not self._answers_are_right():
            return "reference"
        return "" if self._tests_pass() else "tests"

    def _replace(self, name: str, code: CodeType) -> None:
        spec = sys.modules[name].__spec__
        assert spec is not None
        stale, found = {name}, [name]
        while found:
            found = [other for other in self._importers.get(found.pop(), ()) if other not in stale] + found
            stale |= set(found)
        for other in stale:
            sys.modules.pop(other, None)
        module = module_from_spec(spec)
        sys.modules[name] = module
        package, _, short = name.rpartition(".")
        setattr(sys.modules[package], short, module)
        exec(code, module.__dict__)  # noqa: S102 - our own source, with one change

    def _cases_pass(self, data: Any) -> bool:
        try:
            results = importlib.import_module("exeat.policy.cases").run_read_cases(data, self._suffixes)
        except Exception:
            return False
        return all(result.status == "passed" for result in results)

    def _answers_are_right(self) -> bool:
        try:
            return all(world.answers_are_right() for world in self._worlds)
        except Exception:
            return False

    def _tests_pass(self) -> bool:
        # A mutant needs one failure, found the same way each time, and neither shrunk nor remembered.
        hypothesis.settings.register_profile(
            "mutants", database=None, derandomize=True, phases=[hypothesis.Phase.generate], deadline=None
        )
        return pytest.main(["-qx", *OPTIONS, *TESTS]) == 0
