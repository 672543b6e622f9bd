"""What the compiled core says to the questions of `policy_questions`, in the reference's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.policy_questions import Counted
from tests.support.policy_strategies import NOW_MS
from tests.support.reference_policy import Answer

from exeat.policy.baseline import under
from exeat.policy.decide import CompiledPolicy, compile_policy, decide, decide_lookup
from exeat.policy.usage import Overlay, Usage

if TYPE_CHECKING:
    from tests.support.policy_questions import Setting

    from exeat.policy.document import Document
    from exeat.policy.model import Decision, Request


def compiled(setting: Setting) -> tuple[CompiledPolicy, Overlay]:
    around = setting.around
    policy = compile_policy(
        under(setting.document, around.baseline),
        treat_as_public=around.treat_as_public,
        control=around.control,
        host_local=around.host_local,
    )
    usage = _charged(setting, policy.document) if setting.honest else Counted(around)
    return policy, Overlay.of(around.leases, usage=usage, revoked=around.revoked, min_epoch=around.min_epoch)


def _charged(setting: Setting, document: Document) -> Usage:
    """Real counters that hold what the surroundings say. The defaults count the bytes of `hard`."""
    usage, used = Usage(), setting.around.used
    usage.define("p", document.budgets)
    bytes_up = used["hard", "bytes_up"]
    usage.charge("p", ["hard", "default", "baseline/default"], now_ms=NOW_MS, bytes_up=bytes_up)
    usage.charge("p", ["soft"], now_ms=NOW_MS, connections=used["soft", "connections"])
    for lease in setting.around.leases:
        uses, amount = setting.around.lease_uses[lease.id], setting.around.lease_bytes[lease.id]
        usage.charge_lease(lease.id, uses=uses, bytes=amount)
    return usage


def in_words(decision: Decision) -> Answer:
    return Answer(
        str(decision.verdict),
        decision.reason,
        decision.rule,
        decision.matched,
        decision.budgets,
        decision.lease,
        decision.raw,
        decision.ech,
        decision.direct,
        decision.records,
    )


def answer(policy: CompiledPolicy, overlay: Overlay, request: Request, now_ms: int) -> Answer:
    return in_words(decide(policy, request, now_ms, overlay))


def lookup(policy: CompiledPolicy, overlay: Overlay, request: Request, now_ms: int) -> Answer:
    """The answer for the name and the addresses of the request, whatever its port."""
    host = request.host
    assert isinstance(host, str)
    return in_words(decide_lookup(policy, request.subject, host, now_ms, overlay, request.resolved))
