"""POST to where the configuration says and nowhere else: no redirect, no proxy of the environment."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from exeat.ledger.records import printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PATIENCE_S: Final = 10.0
_ANSWER: Final = 65536


class SinkError(Exception):
    """What was sent did not arrive, or nobody knows; it is sent again."""


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or later, with the system's roots or those of a PEM file."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Poster:
    """For one https:// URL, or an http:// one to this machine; `proxy` is http://ADDRESS:PORT or "".

    `said` stands for the URL in errors where that is itself a secret.
    """

    def __init__(self, url: str, proxy: str, ca: Path | None, said: str = "") -> None:
        self._url, self._said = url, said or url
        handlers: list[urllib.request.BaseHandler] = [
            urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else {}),
            _NoRedirect(),
        ]
        if urlsplit(url).scheme == "https":
            handlers.append(urllib.request.HTTPSHandler(context=tls_context(ca)))
        self._opener = urllib.request.build_opener(*handlers)

    def post(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The beginning of a 2xx answer. Raises SinkError for any other, and for none."""
        request = urllib.request.Request(self._url, body, dict(headers), method="POST")  # noqa: S310 - checked when read
        try:
            with self._opener.open(request, timeout=PATIENCE_S) as answer:
                return bytes(answer.read(_ANSWER))
        except urllib.error.HTTPError as error:
            error.close()
            raise SinkError(f"{self._said}: answered {error.code}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            # What is no HTTP stands in the error as it came.
            reason = printable(str(getattr(error, "reason", error)) or type(error).__name__, 300)
            raise SinkError(f"{self._said}: {reason}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
