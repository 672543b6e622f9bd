"""Lookups of ordinary machines, made by rule: what the guard must never take for a tunnel."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SEARCH = "corp.vendor.io"  # where names are tried before they are tried as they are
SEARCHED = 0.3
MISTYPED = 0.02


def ordinary(seed: int, *, hours: float) -> Iterator[tuple[float, str, bool]]:
    """(seconds, host, whether it exists): what an ordinary machine asks, a name every two seconds.

    Zipf over a few hundred sites with the usual first labels; package mirrors with host numbers; an
    object store and a CDN with hashed names at a build's pace; mail with selectors and exchangers;
    load balancers with their long names; telemetry with a host id. A search list is tried before a third of
    the names, and some are mistyped. Every third name is a repeat.
    """
    source = random.Random(seed)
    sites = [f"site{i}.{source.choice(['com', 'org', 'net', 'co.uk', 'de', 'io'])}" for i in range(400)]
    firsts = ["www", "api", "cdn", "static", "img", "assets", "m", "login", "docs", "eu-west-1.api"]
    balancers = [
        f"internal-app-{source.getrandbits(64):016x}-{n}.eu-west-1.elb.amazonaws.com" for n in range(9)
    ]
    now, last = 0.0, "www.site0.com"
    while now < hours * 3600:
        now += source.expovariate(0.5)
        kind = source.random()
        if kind < 0.34:
            pass
        elif kind < 0.90:
            last = f"{source.choice(firsts)}.{sites[min(399, int(source.paretovariate(0.7)) - 1)]}"
        elif kind < 0.94:
            last = f"{source.choice(['ftp', 'mirror', 'deb', 'cdn-fastly'])}{source.randrange(9)}.debian.org"
        elif kind < 0.96:
            last = f"{source.getrandbits(32):08x}.artifacts.build.com"  # a hundred an hour or less
        elif kind < 0.97:
            last = f"d{source.getrandbits(52):013x}.cloudfront.net"
        elif kind < 0.98:
            last = f"{source.choice(['mx1', 'selector1._domainkey', '_dmarc'])}.{source.choice(sites)}"
        elif kind < 0.99:
            last = source.choice(balancers)
        else:
            last = f"host-{source.randrange(20)}.telemetry.vendor.io"
        if source.random() < SEARCHED:
            yield now, f"{last}.{SEARCH}", False
        yield now, last, source.random() >= MISTYPED
