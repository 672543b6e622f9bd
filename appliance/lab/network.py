"""The lab's namespaces and links, by `ip` in batches. Nothing outside the prefix is touched."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from exeat.appliance.lab.plan import NODES, SWITCH, Lab, Node

if TYPE_CHECKING:
    from pathlib import Path


class NetworkError(Exception):
    """`ip` refused; the message is its first line."""


def create(lab: Lab) -> None:
    """Make the bridge's namespace and one per node, all links up. Raises NetworkError.

    A failure half way leaves what was made: the caller takes it down by `destroy`.
    """
    names = [SWITCH, *(node.name for node in NODES)]
    _ip([f"netns add {lab.namespace(name)}" for name in names])
    switch = ["link set lo up", "link add lan type bridge stp_state 0 forward_delay 0", "link set lan up"]
    for node in NODES:
        # Made inside the bridge's namespace: the host's own never holds one of these links.
        peer = f"peer name eth0 netns {lab.namespace(node.name)}"
        switch += [f"link add {node.name} type veth {peer}", f"link set {node.name} master lan up"]
    _ip(switch, lab.namespace(SWITCH))
    for node in NODES:
        _ip(_node_commands(node), lab.namespace(node.name))


def _node_commands(node: Node) -> list[str]:
    lines = ["link set lo up", "link set eth0 up"]
    # Without duplicate address detection an IPv6 address can be used at once.
    lines += [f"address add {cidr} dev eth0" + (" nodad" if ":" in cidr else "") for cidr in node.addresses]
    return lines + list(node.commands)


def namespaces(lab: Lab) -> list[str]:
    """The lab's namespaces that exist now."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    names = (line.split()[0] for line in listed.splitlines() if line.strip())
    return [name for name in names if name.startswith(lab.prefix)]


def destroy(lab: Lab) -> None:
    """Remove every namespace of the prefix; links and rules go with them."""
    _ip([f"netns delete {name}" for name in namespaces(lab)])


def processes(namespace: Path) -> list[int]:
    """The processes whose network namespace this is, by inode. Empty when it does not exist."""
    try:
        wanted = namespace.stat()
    except OSError:
        return []
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            here = os.stat(f"/proc/{entry.name}/ns/net")
        except OSError:  # ended meanwhile
            continue
        if (here.st_dev, here.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(int(entry.name))
    return found


def _ip(lines: list[str], namespace: str = "") -> None:
    if not lines:
        return
    where = ["-netns", namespace] if namespace else []
    # One batch holds lines of both families; `-6` stands inside a line only for route and rule.
    for family in ("", "-6"):
        batch = [line.removeprefix("-6 ") for line in lines if line.startswith("-6 ") == (family == "-6")]
        if not batch:
            continue
        command = ["ip", *([family] if family else []), *where, "-batch", "-"]
        done = subprocess.run(command, input="\n".join(batch), capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["failed"])[0]
            raise NetworkError(f"{' '.join(command)}: {reason}")
