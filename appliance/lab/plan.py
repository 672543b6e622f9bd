"""What the lab is made of: namespaces, addresses, folders, and the appliance's configuration there.

Pure data. All nodes sit on one bridge. The gateway's default route leads to the hostile host,
so a packet sent to an address that nobody in the lab owns is caught and logged, not lost.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PREFIX = "exl-"
DEFAULT_RUN_DIR = Path("/run/exeat-lab")
DEFAULT_STATE_DIR = Path("/var/lib/exeat-lab")

PUBLIC_NETWORKS = ("203.0.113.0/24", "198.51.100.0/24", "2001:db8::/32")
GATEWAY4, GATEWAY4_SECOND, GATEWAY6 = "203.0.113.2", "198.51.100.2", "2001:db8:0:1::2"
NORTH4, NORTH6 = "203.0.113.10", "2001:db8:0:1::10"
SOUTH4, SOUTH6 = "198.51.100.20", "2001:db8:0:1::20"
MANY4 = "203.0.113.128/25"  # a crowd of addresses for one name: its answer does not fit in UDP
DNS4, DNS6 = "203.0.113.53", "2001:db8:0:1::53"
EVIL4, EVIL6 = "198.51.100.66", "2001:db8:0:1::66"
METADATA4 = "169.254.169.254"
PROJECT = "crawler"


@dataclass(frozen=True)
class Node:
    """One namespace on the bridge. `commands` are `ip` batch lines after the link is up."""

    name: str
    addresses: tuple[str, ...]
    commands: tuple[str, ...] = ()
    service: str = ""  # module in exeat.appliance.lab that runs in it


_CATCH_ALL = (
    # Only what arrives is taken for local; what this host sends still follows the main table.
    "route add local default dev lo table 100",
    "rule add iif eth0 lookup 100",
    "-6 route add local default dev lo table 100",
    "-6 rule add iif eth0 lookup 100",
)

NODES = (
    Node(
        "gw",
        (f"{GATEWAY4}/24", f"{GATEWAY4_SECOND}/24", f"{GATEWAY6}/64"),
        (
            f"route add {METADATA4}/32 dev eth0",
            f"route add default via {EVIL4} dev eth0",
            f"-6 route add default via {EVIL6} dev eth0",
        ),
    ),
    Node(
        "www",
        (f"{NORTH4}/24", f"{SOUTH4}/24", f"{NORTH6}/64", f"{SOUTH6}/64"),
        (f"route add local {MANY4} dev lo",),
        "origin",
    ),
    Node("dns", (f"{DNS4}/24", f"{DNS6}/64"), (), "nameserver"),
    Node(
        "evil",
        (f"{EVIL4}/24", f"{EVIL6}/64", f"{METADATA4}/32"),
        ("route add 203.0.113.0/24 dev eth0", *_CATCH_ALL),
        "hostile",
    ),
)
SWITCH = "net"


@dataclass(frozen=True)
class Lab:
    """Where one lab lives. Two labs with different prefixes and folders do not meet."""

    prefix: str = DEFAULT_PREFIX
    run_dir: Path = DEFAULT_RUN_DIR
    state_dir: Path = DEFAULT_STATE_DIR

    @classmethod
    def named(cls, prefix: str, run_dir: Path, state_dir: Path) -> Lab:
        """A lab from words of the command line. Raises ValueError with one clear line."""
        if not re.fullmatch(r"exl[a-z0-9]{0,6}-", prefix):
            raise ValueError(f"`{prefix}` is no lab prefix: use exl- or exlNAME- (letters, digits)")
        for folder in (run_dir, state_dir):
            # `down` removes these folders whole, so none of them may be anyone else's.
            if not folder.is_absolute() or ".." in folder.parts or "exeat-lab" not in folder.name:
                raise ValueError(f"`{folder}` must be an absolute path whose last part contains exeat-lab")
        return cls(prefix, run_dir, state_dir)

    def namespace(self, node: str) -> str:
        return f"{self.prefix}{node}"

    def namespace_path(self, node: str) -> Path:
        return Path("/run/netns") / self.namespace(node)

    @property
    def config(self) -> Path:
        return self.run_dir / "lab.toml"

    @property
    def policies(self) -> Path:
        return self.run_dir / "policies"

    @property
    def pki(self) -> Path:
        return self.run_dir / "pki"

    @property
    def www(self) -> Path:
        return self.run_dir / "www"

    @property
    def job(self) -> Path:
        """What the demonstration's job may read: its script and the lab's CA, nothing else."""
        return self.run_dir / "job"

    @property
    def ca(self) -> Path:
        return self.pki / "ca.pem"

    @property
    def appliance_run(self) -> Path:
        return self.run_dir / "appliance"

    @property
    def failed(self) -> Path:
        """Where the logs of a failed start or demonstration outlive it, until the next `up` or `down`."""
        return self.run_dir.with_name(self.run_dir.name + "-failed")

    def log(self, service: str) -> Path:
        return self.run_dir / "log" / f"{service}.log"

    def events(self, service: str) -> Path:
        """The JSON lines a service writes: one per connection, query or packet."""
        return self.run_dir / "log" / f"{service}.jsonl"

    def pid_file(self, service: str) -> Path:
        return self.run_dir / "pid" / service


def configuration(lab: Lab) -> str:
    """The appliance's TOML for its node in the lab."""
    networks = json.dumps(list(PUBLIC_NETWORKS))
    return f"""\
# Written by `exeat lab up`: the appliance on the lab's gateway node.
[node]
name = "lab-gw"

[paths]
run_dir = {json.dumps(str(lab.appliance_run))}
state_dir = {json.dumps(str(lab.state_dir))}

# A lab is driven from the command line.
[console]
listen = ""

[dns]
upstream = ["{DNS4}:53"]

[policy]
dir = {json.dumps(str(lab.policies))}

[sandbox]
roots = [{json.dumps(str(lab.job))}]

# Documentation addresses are not public; in the lab they play the Internet.
[lab]
treat_as_public = {networks}
"""
