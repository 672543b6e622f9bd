"""The environment block of a job: how clients that know about proxies find the gateway (pure).

Both spellings of each variable, because clients differ (curl reads only the lower-case
`http_proxy`, many libraries only the upper-case one). No ALL_PROXY at all: a socks URL there makes
httpx and the SDKs built on it fail at construction. No credentials: the socket says who asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.sandbox.spec import GATEWAY, WORK

if TYPE_CHECKING:
    from collections.abc import Mapping

PROXY_URL: Final = "http://127.0.0.1:3128"
NO_PROXY: Final = "localhost,127.0.0.1,::1"
_JAVA: Final = " ".join(
    (
        "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=3128",
        "-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=3128",
        "-Dhttp.nonProxyHosts=localhost|127.*|[::1]",
    )
)

_BASE: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": WORK,
    "TMPDIR": "/tmp",  # noqa: S108 - the container's own
    "LANG": "C.UTF-8",
}

_NETWORK: Final = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), PROXY_URL),
    **dict.fromkeys(("grpc_proxy", "GRPC_PROXY"), PROXY_URL),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), NO_PROXY),
    "NODE_USE_ENV_PROXY": "1",
    "JAVA_TOOL_OPTIONS": _JAVA,
}

# A refusal is final: clients that retry a 403 for ten seconds only hide the reason.
_PATIENCE: Final = {
    "PIP_RETRIES": "1",
    "UV_HTTP_RETRIES": "1",
    "CARGO_NET_RETRY": "1",
    "NPM_CONFIG_FETCH_RETRIES": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "GIT_TERMINAL_PROMPT": "0",
}

# Would send clients round the gateway's port, into a refused connection or an import error.
_NEVER: Final = frozenset({"all_proxy", "ALL_PROXY", "socks_proxy", "SOCKS_PROXY", "ftp_proxy", "FTP_PROXY"})


def job_environment(*, job: str, project: str = "", extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a job's first process.

    `extra` (the person's own variables) may change the base and the patience, never the network
    block; ALL_PROXY and its kin are dropped from it.
    """
    own = {name: value for name, value in (extra or {}).items() if name not in _NEVER}
    marks = {"EXEAT_JOB": job, "EXEAT_PROJECT": project, "EXEAT_PROXY_SOCKET": f"{GATEWAY}/proxy.sock"}
    return {**_BASE, **_PATIENCE, **own, **_NETWORK, **marks}
