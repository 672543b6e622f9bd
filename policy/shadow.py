"""What a shadow policy says instead, as the `detail` of a ledger record, and back again.

A shadow is judged beside the policy in force and never enforced. Only where its verdict or its
reason differs does the record of the decision say so: `shadow: VERDICT REASON RULE`.
"""

from __future__ import annotations

from exeat.policy.model import Decision, Verdict

_MARK = "shadow: "


def note(decided: Decision, shadow: Decision) -> str:
    """The words for a record; "" where both say the same."""
    if decided.verdict is shadow.verdict and decided.reason == shadow.reason:
        return ""
    return f"{_MARK}{shadow.verdict} {shadow.reason} {shadow.rule}".rstrip()


def parse_note(detail: str) -> Decision | None:
    """The shadow's decision that `note` wrote down; None for any other text."""
    words = detail.removeprefix(_MARK).split(" ", 2)
    if not detail.startswith(_MARK) or len(words) < 2 or words[0] not in tuple(Verdict):
        return None
    return Decision(Verdict(words[0]), words[1], words[2] if len(words) > 2 else "")
