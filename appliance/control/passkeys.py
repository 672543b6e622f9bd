"""Decisions that need a passkey: what a person signed is what is done, whoever carried it here.

The challenge that an authenticator signs is the SHA-256 of the decision itself: the verb, for whom, and every
argument; and of a number that control draws at its start, so that no signature outlives the memory of its
use. The console only carries it, so one that was taken over can neither make up a decision nor change one.
Who has which passkey is control's to know; a new one takes a code that root made.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from base64 import urlsafe_b64encode
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.verbs import Verbs, person
from exeat.appliance.errors import RefusedError
from exeat.ledger.records import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exeat.appliance.control.evidence import Evidence
    from exeat.appliance.control.store import Store
    from exeat.appliance.passkey_config import PasskeySection
    from exeat.ledger.ipc import Message

# What opens something. What closes or narrows never waits for an authenticator.
PROTECTED: Final = frozenset({"lease.approve", "policy.agree", "kill.off"})
DECISION_MS: Final = 300_000  # how long a challenge can be answered
CODE_MS: Final = 900_000
MOST_OF_PERSON: Final = 16
_ASIDE: Final = frozenset({"id", "assertion", "role", "local"})  # what is no part of a decision
_MISSING: Final = "passkeys are set up and cannot be checked: install exeat[passkey]"


@dataclass(frozen=True)
class Passkey:
    """A public key in COSE form, in hex; `count` is the authenticator's, as far as it counts."""

    id: str
    person: str
    name: str
    key: str
    count: int
    made_ms: int
    used_ms: int = 0


@dataclass(frozen=True)
class _Code:
    """What lets a person register one passkey. Kept as a digest, and in memory only."""

    person: str
    ends_ms: int
    challenge: bytes = b""


class Passkeys:
    def __init__(
        self, section: PasskeySection, store: Store, evidence: Evidence, now_ms: Callable[[], int]
    ) -> None:
        self._section, self._store, self._evidence, self._now_ms = section, store, evidence, now_ms
        self._all = {name: Passkey(**json.loads(body)) for name, body in store.load_passkeys()}
        self._codes: dict[str, _Code] = {}
        self._used: dict[bytes, int] = {}  # challenges that were answered, until they end
        self._run = secrets.token_hex(16)  # that memory is this process's, and so are the challenges

    @property
    def on(self) -> bool:
        return bool(self._section.rp_id)

    def verbs(self) -> Verbs:
        return {
            "passkey.invite": self._invite,
            "passkey.begin": self._begin,
            "passkey.register": self._register,
            "passkey.challenge": self._challenge,
            "passkey.ls": self._ls,
            "passkey.remove": self._remove,
        }

    # -- decisions

    def checked(self, message: Message) -> Message:
        """The console's message, without its assertion. Raises RefusedError unless the person signed just
        this where that is needed."""
        assertion = message.get("assertion")
        message = {key: value for key, value in message.items() if key != "assertion"}
        if self.on and message.get("verb") in PROTECTED:
            self._verify(message, assertion)
        return message

    def _verify(self, message: Message, assertion: object) -> None:
        if not isinstance(assertion, dict):
            raise RefusedError("passkey.needed", "this decision needs your passkey")
        ends, credential = assertion.get("expires_ms"), assertion.get("credential")
        now = self._now_ms()
        if type(ends) is not int or not now <= ends <= now + DECISION_MS or not isinstance(credential, dict):
            raise RefusedError("passkey.late", "the passkey was asked for too long ago: decide again")
        challenge = challenge_of(message, ends, self._run)
        known = self._all.get(str(credential.get("id")))
        if known is None or known.person != person(message):
            raise RefusedError("passkey.unknown", "this is not a passkey of yours")
        self._used = {each: until for each, until in self._used.items() if until >= now}
        if challenge in self._used:
            raise RefusedError("passkey.used", "this was decided with that signature already")
        count = _authenticated(self._section, known, credential, challenge)
        self._used[challenge] = ends
        self._keep(replace(known, count=count, used_ms=now))

    async def _challenge(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """What `as` has to sign for `decision`, the message that is going to be sent."""
        decision = message.get("decision")
        if not isinstance(decision, dict) or decision.get("verb") not in PROTECTED:
            raise RefusedError("passkey.decision", "this is nothing that a passkey is for")
        ends = self._now_ms() + DECISION_MS
        mine = [each.id for each in self._all.values() if each.person == person(message)]
        if self.on and not mine:
            raise RefusedError("passkey.none", "you have no passkey: root runs `exeat passkey invite NAME`")
        challenge = challenge_of({**decision, "as": person(message)}, ends, self._run)
        return {"challenge": _b64(challenge), "expires_ms": ends, "rp_id": self._section.rp_id, "allow": mine}

    # -- registering

    async def _invite(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """By root: a code with which `person` may register one passkey."""
        self._need_on()
        code, now = secrets.token_hex(16), self._now_ms()
        self._codes = {key: each for key, each in self._codes.items() if each.ends_ms >= now}
        self._codes[_digest(code)] = _Code(str(message.get("person") or ""), now + CODE_MS)
        return {"code": code, "ends_ms": now + CODE_MS}

    async def _begin(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """Options for the browser's `navigator.credentials.create`."""
        self._need_on()
        who, key = person(message), _digest(str(message.get("code")))
        code = self._code(key, who)
        self._codes[key] = replace(code, challenge=secrets.token_bytes(32))
        known = [bytes.fromhex(_hex(each.id)) for each in self._all.values() if each.person == who]
        return {"options": _options(self._section, who, self._codes[key].challenge, known)}

    async def _register(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """The browser's answer to `begin`. The code is over then, however it ends."""
        self._need_on()
        who, key = person(message), _digest(str(message.get("code")))
        code = self._code(key, who)
        del self._codes[key]
        if not code.challenge or sum(each.person == who for each in self._all.values()) >= MOST_OF_PERSON:
            raise RefusedError("passkey.code", f"begin first; and at most {MOST_OF_PERSON} passkeys a person")
        name, public, count = _registered(self._section, message.get("credential"), code.challenge)
        if name in self._all:
            raise RefusedError("passkey.known", "this passkey is registered already")
        label = printable(str(message.get("name") or ""), 64)
        made = Passkey(name, who, label, public, count, self._now_ms())
        await self._record(made, "passkey.added", who)
        self._keep(made)
        return {"passkey": _shown(made)}

    def _code(self, key: str, who: str) -> _Code:
        code = self._codes.get(key)
        if code is None or code.person != who or code.ends_ms < self._now_ms():
            raise RefusedError("passkey.code", "the code is wrong or too old: `exeat passkey invite NAME`")
        return code

    async def _ls(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """One's own; with `all`, by root, everybody's."""
        everybody = message.get("all") is True and message.get("local") is True
        rows = [_shown(each) for each in self._all.values() if everybody or each.person == person(message)]
        return {"passkeys": rows, "on": self.on}

    async def _remove(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """One's own; by root, anybody's."""
        known = self._all.get(str(message.get("passkey")))
        if known is None or (known.person != person(message) and message.get("local") is not True):
            raise RefusedError("passkey.not_there", "you have no such passkey")
        await self._record(known, "passkey.removed", person(message))
        self._store.delete_passkey(known.id)
        del self._all[known.id]
        return {}

    async def _record(self, passkey: Passkey, what: str, who: str) -> None:
        about = f"passkey {passkey.name or passkey.id[:12]} of {passkey.person}"
        await self._evidence.write(
            self._evidence.policy(project="", digest="", actor=who, verdict=what, detail=about)
        )

    def _keep(self, passkey: Passkey) -> None:
        self._store.save_passkey(passkey.id, json.dumps(asdict(passkey)))
        self._all[passkey.id] = passkey

    def _need_on(self) -> None:
        if not self.on:
            raise RefusedError("passkey.off", "no `[passkeys]` in the configuration")


def challenge_of(decision: Mapping[str, Any], ends_ms: int, run: str) -> bytes:
    """SHA-256 over the decision as canonical JSON (sorted keys, no blanks, ASCII), with when it ends and the
    `run` of control that takes it."""
    said = {key: value for key, value in decision.items() if key not in _ASIDE}
    text = json.dumps({**said, "expires_ms": ends_ms, "run": run}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _shown(passkey: Passkey) -> dict[str, Any]:
    names = ("id", "person", "name", "made_ms", "used_ms")
    return {name: getattr(passkey, name) for name in names}


def _b64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _hex(name: str) -> str:
    from webauthn import base64url_to_bytes

    return base64url_to_bytes(name).hex()


# -- WebAuthn. The library is an extra, and is loaded by the first who needs it.


def _options(section: PasskeySection, who: str, challenge: bytes, known: list[bytes]) -> Any:
    try:
        import webauthn
        from webauthn.helpers import structs
    except ImportError:
        raise RefusedError("passkey.not_installed", _MISSING) from None
    options = webauthn.generate_registration_options(
        rp_id=section.rp_id,
        rp_name="exeat",
        user_name=who,
        user_id=hashlib.sha256(f"{section.rp_id}/{who}".encode()).digest(),
        challenge=challenge,
        exclude_credentials=[structs.PublicKeyCredentialDescriptor(id=each) for each in known],
        authenticator_selection=structs.AuthenticatorSelectionCriteria(
            user_verification=structs.UserVerificationRequirement.REQUIRED
        ),
    )
    return json.loads(webauthn.options_to_json(options))


def _registered(section: PasskeySection, credential: object, challenge: bytes) -> tuple[str, str, int]:
    """The passkey's id, its public key in hex, and its count. Raises RefusedError."""
    try:
        import webauthn
    except ImportError:
        raise RefusedError("passkey.not_installed", _MISSING) from None
    try:
        found = webauthn.verify_registration_response(
            credential=credential,  # type: ignore[arg-type] # it is checked there
            expected_challenge=challenge,
            expected_rp_id=section.rp_id,
            expected_origin=list(section.origins),
            require_user_verification=True,
        )
    except Exception as error:  # the library raises what its parsers raise, too
        raise RefusedError(
            "passkey.wrong", f"the authenticator's answer does not hold: {_why(error)}"
        ) from None
    return _b64(found.credential_id), found.credential_public_key.hex(), found.sign_count


def _authenticated(
    section: PasskeySection, known: Passkey, credential: dict[str, Any], challenge: bytes
) -> int:
    """The authenticator's new count. Raises RefusedError."""
    try:
        import webauthn
    except ImportError:
        raise RefusedError("passkey.not_installed", _MISSING) from None
    try:
        found = webauthn.verify_authentication_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=section.rp_id,
            expected_origin=list(section.origins),
            credential_public_key=bytes.fromhex(known.key),
            credential_current_sign_count=known.count,
            require_user_verification=True,
        )
    except Exception as error:  # the library raises what its parsers raise, too
        raise RefusedError("passkey.wrong", f"the signature is not of this decision: {_why(error)}") from None
    return found.new_sign_count


def _why(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}", 200)
