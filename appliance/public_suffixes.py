"""The public suffix list as bundled with tldextract, private section included.

No network and no cache: the snapshot that was installed is the one that judges. Used when a policy
is loaded, never on the flow path.
"""

from __future__ import annotations

from functools import cache

import tldextract


class BundledSuffixes:
    """`exeat.policy.document.PublicSuffixes` over the installed snapshot."""

    def __init__(self) -> None:
        extract = tldextract.TLDExtract(
            suffix_list_urls=(), cache_dir=None, fallback_to_snapshot=True, include_psl_private_domains=True
        )
        rules = [_ascii(rule) for rule in extract.tlds]
        self._exceptions = frozenset(rule[1:] for rule in rules if rule.startswith("!"))
        self._rules = frozenset(rule for rule in rules if not rule.startswith("!"))
        self._ancestors = frozenset(parent for rule in rules for parent in _parents(rule.lstrip("!")))

    def is_broad(self, name: str) -> bool:
        """Whether `name` is a public suffix, or an ancestor of one. One label always is."""
        if name in self._rules or name in self._ancestors or "." not in name:
            return True
        parent = name.partition(".")[2]
        return f"*.{parent}" in self._rules and name not in self._exceptions

    def registrable(self, host: str) -> str:
        """The domain under which `host` was registered: its public suffix and one label more.

        A public suffix is its own. A canonical host; what no rule knows ends in one label.
        """
        labels = host.split(".")
        for start in range(len(labels)):
            suffix = ".".join(labels[start:])
            if suffix in self._exceptions:
                return suffix
            wild = f"*.{suffix.partition('.')[2]}"
            if suffix in self._rules or wild in self._rules or start == len(labels) - 1:
                return ".".join(labels[max(0, start - 1) :])
        return host


def _ascii(rule: str) -> str:
    return rule if rule.isascii() else rule.encode("idna").decode("ascii")


def _parents(rule: str) -> list[str]:
    labels = rule.split(".")
    return [".".join(labels[start:]) for start in range(1, len(labels))]


@cache
def bundled_suffixes() -> BundledSuffixes:
    return BundledSuffixes()
