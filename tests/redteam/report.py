"""The score, for people and for machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.redteam.cases import Case
    from tests.redteam.score import Score


def table(score: Score) -> list[tuple[str, int, int, int]]:
    """(class, passed, played, skipped), in the corpus's order."""
    played = [case.group for case, _ in score.verdicts]
    groups = dict.fromkeys([*played, *(case.group for case in score.skipped)])
    rows = []
    for group in groups:
        mine = [verdict for case, verdict in score.verdicts if case.group == group]
        skipped = sum(case.group == group for case in score.skipped)
        rows.append((group, sum(verdict.passed for verdict in mine), len(mine), skipped))
    return rows


def show(score: Score, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_document(score), indent=2))
        return
    for failure in score.failures:
        print(f"FAIL {failure}")
    print(f"{'class':<10} {'passed':>7} {'of':>5} {'skipped':>8}")
    for group, passed, played, skipped in table(score):
        print(f"{group:<10} {passed:>7} {played:>5} {skipped or '':>8}")
    passed, played = sum(row[1] for row in table(score)), len(score.verdicts)
    print(f"{passed} of {played} cases passed in {score.seconds:.1f} s, {len(score.skipped)} skipped")


def _document(score: Score) -> dict[str, object]:
    return {
        "ok": score.passed,
        "seconds": round(score.seconds, 1),
        "classes": {
            group: {"passed": passed, "played": played, "skipped": skipped}
            for group, passed, played, skipped in table(score)
        },
        "late": list(score.late),
        "cases": [
            {
                "id": case.id, "title": case.title, "source": case.source, "expect": case.expect,
                "passed": verdict.passed, "problems": list(verdict.problems), "client": verdict.stopped,
            }
            for case, verdict in score.verdicts
        ],
    }  # fmt: skip


def listing(corpus: Sequence[Case]) -> None:
    for case in corpus:
        print(f"{case.id:<36} {case.expect:<10} {case.title}")
    print(f"{len(corpus)} cases")
