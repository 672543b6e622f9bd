"""What each node may do in the fleet's Redis (Redis ACL rules, redis.io/docs: ACL).

A worker reads what Home says, adds to its own events, and takes work and budgets by the scripts. A
script runs with its caller's rights, so a worker could also write the keys of work and budgets by
hand: it can spoil those, and neither makes it anything that Home has signed.
"""

from __future__ import annotations

import hashlib
from typing import Final

from exeat.appliance.fleet.engine import PREFIX

# What Home says to everybody, and the newest of each for who comes later.
STREAMS: Final = ("trust", "policy", "lease", "beat")

# Nobody can sign in as it. But the append-only file is read back with its rights: without them Redis
# (7.0.15) drops each transaction, and so each script, and starts empty with no more than a line in its log.
DEFAULT: Final = "user default off resetpass ~* &* +@all"

_ALWAYS: Final = "+ping +hello +client|setname +multi +exec"
_SCRIPTS: Final = "+evalsha +eval +script|load +time"


def stream(name: str) -> str:
    return f"{PREFIX}:s:{name}"


def events(node: str) -> str:
    return f"{PREFIX}:ev:{node}"


def worker_rule(node: str, password: str) -> str:
    """The line of an ACL file. `node` is a name of the fleet: a-z, 0-9 and `-`."""
    writes = f"%RW~{PREFIX}:q:* %RW~{PREFIX}:q %RW~{PREFIX}:bud:*"
    work = (
        "+hget +hset +hmget +hincrby +zadd +zrem +zscore +zrange +zrangebyscore +zincrby +incr +exists +del"
        " +sismember +rpush +lrem +expire"
    )
    return (
        f"user {node} on #{_hash(password)} resetkeys resetchannels -@all {_ALWAYS} {_SCRIPTS} {work}"
        f" {writes} (%R~{PREFIX}:s:* +xread +xrange +xrevrange +xlen)"
        f" (%W~{events(node)} +xadd) (%R~{events(node)} +xlen)"
    )


def home_rule(name: str, password: str) -> str:
    """Home may everything below the prefix, and nothing to the server itself."""
    return f"user {name} on #{_hash(password)} resetkeys resetchannels ~{PREFIX}:* +@all -@admin -@dangerous"


def _hash(password: str) -> str:
    """As Redis keeps it; the password has 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(password.encode()).hexdigest()
