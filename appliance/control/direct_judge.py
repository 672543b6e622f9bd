"""What the proxy says of direct flows: it has the policy, the counters and the kill switch in one place."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.direct_flow import EXHAUSTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.appliance.control.direct_flow import DirectFlow, Terms
    from exeat.ledger.ipc import Message
    from exeat.policy.model import Address

ANSWER_S: Final = 3.0
SILENT: Final = "gateway.stopped"  # nobody judges, so nothing passes


@dataclass(frozen=True)
class Said:
    """`reason`: the code why not, "" for yes. `reserved`: bytes that the flow may move, all in all."""

    reason: str
    reserved: int = 0
    generation: int = 0
    policy: str = ""
    posture: str = ""
    spent: str = ""  # the reason code once `reserved` has passed

    def applied_to(self, terms: Terms, number: int, target: Address) -> Terms:
        return replace(
            terms,
            number=number,
            quota=self.reserved,
            target=target.packed().hex(),
            generation=self.generation,
            policy=self.policy,
            posture=self.posture,
            spent=self.spent or EXHAUSTED,
        )


class DirectJudge:
    """`tell` says something to the proxy, False if it is not there."""

    def __init__(self, tell: Callable[[Message], bool]) -> None:
        self._tell = tell
        self._unsaid: deque[Message] = deque()  # flows that are over, to a proxy that was not there
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Said]] = {}

    async def begin(self, flow: DirectFlow, share: int) -> Said:
        """May it be opened, and with how much: what is left, divided by `share`. It counts from now on."""
        return await self._question(flow, opens=True, share=share)

    async def ask(self, flow: DirectFlow) -> Said:
        """May it go on? Tells what it has moved."""
        return await self._question(flow)

    def over(self, flow: DirectFlow) -> None:
        """It is over: its counts are final, and nothing is held for it any more.

        Said again until the proxy is there: what it still holds for this flow, no other can have.
        """
        self._unsaid.append(_message(flow, 0, over=True))
        self._say()

    def _say(self) -> bool:
        while self._unsaid and self._tell(self._unsaid[0]):
            self._unsaid.popleft()
        return not self._unsaid

    async def _question(self, flow: DirectFlow, **more: Any) -> Said:
        number = next(self._numbers)
        answer: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if not (self._say() and self._tell(_message(flow, number, **more))):
                return Said(SILENT)
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            return Said(SILENT)
        finally:
            del self._waiting[number]

    def heard(self, message: Message) -> None:
        """The proxy's `direct.said`."""
        answer = self._waiting.get(message.get("request", 0))
        if answer is not None and not answer.done():
            answer.set_result(
                Said(
                    str(message["reason"]),
                    int(message["reserved"]),
                    int(message["generation"]),
                    str(message["policy"]),
                    str(message["posture"]),
                    str(message["spent"]),
                )
            )


def _message(flow: DirectFlow, number: int, **more: Any) -> Message:
    terms = flow.terms
    return {
        "t": "direct",
        "request": number,
        "flow": terms.flow,
        "subject": flow.subject,
        "lease": terms.lease,
        "host": terms.host,
        "port": terms.port,
        "proto": terms.proto,
        "addresses": [[address.family, str(address.value)] for address in flow.addresses],
        "out": flow.out,
        "in": flow.into,
        **more,
    }
