"""The normative cases about proofs and admission: widens, reach, admit_lease, admit_bundle, admit_local.

Signatures in a case are words; here they become real ones, by keys made from the signers' names.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exeat.policy.baseline import under
from exeat.policy.bundles import BundleTrust, admit_bundle, admit_local, sign_bundle
from exeat.policy.envelope import canonical_json, parse_envelope
from exeat.policy.errors import PolicyError
from exeat.policy.reach import reach
from exeat.policy.tokens import Link, Trust, admit_token, digest_of, sign_link
from exeat.policy.units import parse_time
from exeat.policy.widens import widens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exeat.policy.document import Document, PublicSuffixes
    from exeat.policy.leases import Lease

HOME = "home"
NODE = "w1"  # the node that judges, unless a case says otherwise
_FAR_FUTURE = "2100-01-01T00:00:00Z"
_LINK_ONLY = ("delegate", "broad")


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


class ProofCases:
    """`document` loads the name of a policy in the file, or the text of one; `lease` reads a lease."""

    def __init__(
        self,
        document: Callable[[str], Document],
        lease: Callable[[Mapping[str, Any]], Lease],
        suffixes: PublicSuffixes,
        now: str,
    ) -> None:
        self._document = document
        self._lease = lease
        self._suffixes = suffixes
        self._now = now

    def kinds(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        return {
            "widens": self._widens,
            "reach": self._reach,
            "admit_lease": self._admit_lease,
            "admit_bundle": self._admit_bundle,
            "admit_local": self._admit_local,
        }

    def _at(self, case: Mapping[str, Any]) -> int:
        return parse_time(case.get("now", self._now))

    def _under(self, case: Mapping[str, Any], policy: str, baseline: str = "baseline") -> Document:
        """The case's policy, under its baseline if it names one."""
        over = self._document(case[baseline]) if baseline in case else None
        return under(self._document(case[policy]), over)

    def _widens(self, case: Mapping[str, Any]) -> dict[str, Any]:
        a = self._under(case, "a", "baseline")
        b = self._under(case, "b", "new_baseline" if "new_baseline" in case else "baseline")
        witness = widens(a, b, now_ms=self._at(case))
        return {"widens": False} if witness is None else {"widens": True, **witness.to_json()}

    def _reach(self, case: Mapping[str, Any]) -> dict[str, Any]:
        scope = self._lease({"id": "x", **case["x"]})
        found = reach(self._under(case, "policy"), scope, now_ms=self._at(case))
        return {"reachable": found.reachable, "via": None if found.via is None else str(found.via)}

    def _admit_lease(self, case: Mapping[str, Any]) -> dict[str, Any]:
        state = case.get("state", {})
        seen = state.get("seen", {})
        trust = Trust(
            home=key_of(HOME).public_key(),
            node=case.get("node", NODE),
            seen=seen,
            min_epoch=state.get("min_epoch", 0),
            revoked=frozenset(state.get("revoked", ())),
        )
        policy = self._under({"policy": "egress: v1\nproject: p", **case}, "policy")
        chain = self._chain(case["env"], seen)
        admission = admit_token(chain, trust, policy, self._suffixes, self._at(case))
        return {"verdict": "accept" if admission.accepted else "reject", "reason": admission.reason}

    def _chain(self, env: Mapping[str, Any], seen: Mapping[str, int]) -> list[bytes]:
        before = self._chain(env["parent"], seen) if "parent" in env else []
        fields = dict(env["lease"])
        name = fields.get("delegate", "")
        delegate = key_of(name).public_key().public_bytes_raw().hex() if name else ""
        seq = env.get("seq", seen.get(fields["id"], 0))
        lease = self._lease({key: value for key, value in fields.items() if key not in _LINK_ONLY})
        link = Link(replace(lease, seq=seq), digest_of(before[-1]) if before else "", delegate)
        return [*before, _signed_as(env, sign_link(link, key_of(env["signer"])))]

    def _admit_bundle(self, case: Mapping[str, Any]) -> dict[str, Any]:
        env = case["env"]
        if "policy_ref" in env:
            document = self._document(env["policy_ref"])
            project, text = document.project, document.to_canonical_json()
        else:
            tree = yaml.load(env["policy"], Loader=yaml.BaseLoader)  # noqa: S506 - text only
            project, text = str(tree.get("project")), canonical_json(tree).decode()
        expires_ms = parse_time(env.get("expires", _FAR_FUTURE))
        data = sign_bundle(
            env["version"], expires_ms, {project: text}, key_of(env["signer"]), env.get("nodes", ())
        )
        trust = BundleTrust(
            key_of(HOME).public_key(), case.get("node", NODE), case.get("state", {}).get("version", 0)
        )
        admission = admit_bundle(_signed_as(env, data), trust, self._at(case))
        return {"verdict": "accept" if admission.accepted else "reject", "reason": admission.reason}

    def _admit_local(self, case: Mapping[str, Any]) -> dict[str, Any]:
        try:
            local = self._document(case["local"])
        except PolicyError as error:
            return {"verdict": "reject", "reason": error.code}
        admission = admit_local(self._document(case["home"]), local, self._at(case))
        return {"verdict": "accept" if admission.accepted else "reject", "reason": admission.reason}


def _signed_as(env: Mapping[str, Any], data: bytes) -> bytes:
    """`sig: valid` as it is; with any other word the signature does not fit what was signed."""
    if env.get("sig", "valid") == "valid":
        return data
    envelope = parse_envelope(data)
    broken = bytes((envelope.signature[0] ^ 1, *envelope.signature[1:]))
    return envelope._replace(signature=broken).to_bytes()
