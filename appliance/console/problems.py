"""What went wrong, as RFC 9457 says it (application/problem+json), with the reason code beside it."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exeat.appliance.errors import RefusedError

CONTENT_TYPE: Final = "application/problem+json"


class Problem(Exception):
    """An answer that is no: HTTP status, stable reason code, one sentence with what to do next."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more

    def body(self) -> dict[str, Any]:
        """`type` is left out: about:blank, so that the title is the status's own phrase (section 4.2.1)."""
        return {
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "reason_code": self.code,
            **self.more,
        }

    def response(self) -> web.Response:
        body = json.dumps(self.body()).encode()
        return web.Response(status=self.status, body=body, content_type=CONTENT_TYPE, headers=self.headers)


# What control refuses, by the code itself or else by what stands before its first dot.
_BY_CODE: Final = {
    "unavailable": 503,
    "gateway.unavailable": 503,
    "ledger.unavailable": 503,
    "clock.untrusted": 503,
    "lease.unknown": 404,
    "flow.unknown": 404,
    "project.unknown": 404,
    "job.unknown": 404,
    "job.ended": 409,
    "device.unknown": 404,
    "task.unknown": 404,
    "ledger.no_record": 404,
    "ledger.dropped": 404,
    "ledger.not_cosigned": 404,
    "ledger.not_covered": 409,
    "ledger.unreadable": 503,
    "ledger.unproved": 503,
    "query.timeout": 503,
    "query.failed": 503,
    "query.busy": 429,
    "queue.full": 429,
    "passkey.not_there": 404,
    "policy.no_version": 404,
    "policy.no_proposal": 404,
    "policy.elsewhere": 409,
    "policy.not_kept": 503,
    "review.stale": 412,
    "ask.limit": 429,
    "kill.not_on": 409,
    "kill.changed": 409,
    "kill.not_kept": 500,
    "auth.oidc": 403,
    "verb.unknown": 500,
    "verb.forbidden": 500,
}
_BY_FAMILY: Final = {"passkey": 403, "meta": 403, "state": 409}


def of_refusal(error: RefusedError) -> Problem:
    """What control, or another process of the appliance, refused."""
    status = _BY_CODE.get(error.code) or _BY_FAMILY.get(error.code.partition(".")[0], 422)
    return Problem(status, error.code, str(error))


def of_http(error: web.HTTPException) -> Problem:
    """What aiohttp refused before there was a route: 404, 405, 413."""
    words = {
        404: "nothing is at this address: /spec/openapi.json says what there is",
        405: "this address does not take that method",
        413: "the body is too large",
    }
    allow = error.headers.get("Allow")
    detail = words.get(error.status, error.reason)
    return Problem(error.status, f"http.{error.status}", detail, {"Allow": allow} if allow else None)
