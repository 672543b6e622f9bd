"""A connection to the fleet's Redis: TLS 1.3 with the node's certificate, and no retries of its own.

redis-py tries again by itself after a timeout, while the server may have done what was asked: a
charge would be made twice. So nothing is retried here; what may be repeated carries an id.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable

PREFIX: Final = "{exeat}"  # one hash slot, so that scripts may use all keys
TIMEOUT_S: Final = 2.0
CONNECTIONS: Final = 8
LUA: Final = Path(__file__).parent / "lua"


@dataclass(frozen=True, slots=True)
class Access:
    """Where Redis is and who we are there; `ca`, `certificate` and `key` are PEM files."""

    host: str
    port: int
    user: str
    password: str
    ca: Path
    certificate: Path
    key: Path


def connect(access: Access) -> Redis:
    """Connects when first used. The server's certificate must name `access.host`."""
    pool = BlockingConnectionPool(
        connection_class=SSLConnection,
        host=access.host,
        port=access.port,
        username=access.user,
        password=access.password,
        max_connections=CONNECTIONS,
        timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        ssl_ca_certs=str(access.ca),
        ssl_certfile=str(access.certificate),
        ssl_keyfile=str(access.key),
        ssl_cert_reqs="required",
        ssl_check_hostname=True,
        ssl_min_version=ssl.TLSVersion.TLSv1_3,
        protocol=3,
    )
    return Redis.from_pool(pool)


async def answer(asked: Awaitable[Any]) -> Any:
    """What Redis says. Raises RefusedError `fleet.unavailable` for whatever goes wrong on the way."""
    try:
        return await asked
    except (RedisError, OSError, TimeoutError) as error:
        raise RefusedError("fleet.unavailable", f"Redis: {type(error).__name__}: {error}") from None


def script(name: str) -> str:
    """The text of a Lua script of ours."""
    return (LUA / f"{name}.lua").read_text(encoding="utf-8")
