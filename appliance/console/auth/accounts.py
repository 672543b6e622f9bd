"""Accounts, tokens, sessions and sign-in links: `STATE/console/accounts.db`.

Secrets are never kept: of a token, session or link there is a BLAKE2b digest keyed with
`STATE/console/key`, of a password an argon2id hash. The console and the command line of root write here,
each with the rights of the console's user. What changes who may do what is noted for the ledger with it
(`deeds`); only root changes accounts, tokens and links.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from exeat.appliance.console.auth.deeds import SCHEMA as DEEDS
from exeat.appliance.console.auth.deeds import Deeds
from exeat.appliance.errors import RefusedError
from exeat.policy.admin import ACCOUNTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}", re.ASCII)
TOKEN_PREFIX: Final = "exeat_"  # noqa: S105 - what scanners for leaked secrets can look for
_SECRET_BYTES: Final = 32
LINK_MS: Final = 15 * 60_000
DAY_MS: Final = 86_400_000
MOST_ANSWERS: Final = 5000  # of one person, for an Idempotency-Key: the newest
_ROOT: Final = "root"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS account (
  name TEXT PRIMARY KEY, role TEXT NOT NULL, projects TEXT NOT NULL, password TEXT NOT NULL,
  made_ms INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS token (
  id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, account TEXT NOT NULL, scopes TEXT NOT NULL,
  note TEXT NOT NULL, made_ms INTEGER NOT NULL, ends_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS session (
  digest BLOB PRIMARY KEY, account TEXT NOT NULL, csrf TEXT NOT NULL, made_ms INTEGER NOT NULL,
  seen_ms INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS link (
  digest BLOB PRIMARY KEY, account TEXT NOT NULL, ends_ms INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS answer (
  who TEXT NOT NULL, key TEXT NOT NULL, digest BLOB NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL,
  at_ms INTEGER NOT NULL, PRIMARY KEY (who, key)) STRICT;
"""


_OLD_ANSWERS: Final = """
DELETE FROM answer WHERE rowid IN (SELECT rowid FROM (
  SELECT rowid, row_number() OVER (PARTITION BY who ORDER BY at_ms DESC, rowid DESC) AS number FROM answer
) WHERE number > ?)
"""


@dataclass(frozen=True, slots=True)
class Account:
    """A person. No projects: all of them. An empty `password` opens nothing."""

    name: str
    role: str
    projects: tuple[str, ...]
    password: str


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token. Times in ms since 1970; `used_ms` 0: never."""

    id: str
    account: str
    scopes: tuple[str, ...]
    note: str
    made_ms: int
    ends_ms: int
    used_ms: int


@dataclass(frozen=True, slots=True)
class Session:
    digest: bytes
    account: str
    csrf: str
    made_ms: int
    seen_ms: int


class Accounts:
    """The database in `folder`, made where it is missing. Raises sqlite3.Error and OSError."""

    def __init__(self, folder: Path) -> None:
        self._key = _key(folder / "key")
        self._db = sqlite3.connect(folder / "accounts.db", isolation_level=None, timeout=5.0)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA + DEEDS)
        self.deeds = Deeds(self._db)

    def close(self) -> None:
        self._db.close()

    def digest(self, kind: str, secret: str) -> bytes:
        """What is kept of a secret. `kind` keeps a session's from being taken for a token's."""
        person = kind.encode().ljust(16, b"\0")
        return hashlib.blake2b(
            secret.encode(errors="surrogateescape"), digest_size=32, key=self._key, person=person
        ).digest()

    # -- accounts

    def add(self, name: str, role: str, projects: Sequence[str], now_ms: int) -> None:
        """Raises RefusedError where the name cannot be one, or is there already."""
        if not NAME.fullmatch(name) or name == "root":
            raise RefusedError("account.name", f"`{name}` is no name: a letter, then letters, digits, . _ -")
        if role not in ACCOUNTS:
            raise RefusedError("account.role", f"`{role}` is no role: {', '.join(ACCOUNTS)}")
        row = (name, role, json.dumps([*projects]), now_ms)
        try:
            with self._noted("user.add", _account_said(name, role, projects)):
                self._db.execute("INSERT INTO account VALUES (?, ?, ?, '', ?)", row)
        except sqlite3.IntegrityError:
            raise RefusedError("account.exists", f"there is an account {name} already") from None

    def change(self, name: str, role: str, projects: Sequence[str]) -> None:
        """From the next request on."""
        self.get(name)
        if role not in ACCOUNTS:
            raise RefusedError("account.role", f"`{role}` is no role: {', '.join(ACCOUNTS)}")
        row = (role, json.dumps([*projects]), name)
        with self._noted("user.set", _account_said(name, role, projects)):
            self._db.execute("UPDATE account SET role = ?, projects = ? WHERE name = ?", row)

    def remove(self, name: str) -> None:
        """With all that opens by it, at once."""
        self.get(name)
        with self._noted("user.remove", name):
            for table in ("token", "session", "link"):
                self._db.execute(f"DELETE FROM {table} WHERE account = ?", (name,))  # noqa: S608 - ours
            self._db.execute("DELETE FROM account WHERE name = ?", (name,))

    def set_password(self, name: str, hashed: str) -> None:
        """A new password ends the sessions that the old one opened."""
        self.get(name)
        with self._noted("user.password", name):
            self._db.execute("UPDATE account SET password = ? WHERE name = ?", (hashed, name))
            self._db.execute("DELETE FROM session WHERE account = ?", (name,))

    def get(self, name: str) -> Account:
        found = self.find(name)
        if found is None:
            raise RefusedError("account.unknown", f"there is no account {name}: see `exeat user ls`")
        return found

    def find(self, name: str) -> Account | None:
        query = "SELECT name, role, projects, password FROM account WHERE name = ?"
        row = self._db.execute(query, (name,)).fetchone()
        return _account(row) if row else None

    def all(self) -> list[Account]:
        rows = self._db.execute("SELECT name, role, projects, password FROM account ORDER BY name")
        return [_account(row) for row in rows]

    # -- tokens

    def add_token(
        self, account: str, scopes: Sequence[str], note: str, now_ms: int, ends_ms: int
    ) -> tuple[str, str]:
        """(id, the token itself: it is shown once and kept nowhere)."""
        self.get(account)
        name, secret = secrets.token_hex(4), secrets.token_urlsafe(_SECRET_BYTES)
        token = f"{TOKEN_PREFIX}{name}_{secret}"
        row = (name, self.digest("token", token), account, json.dumps([*scopes]), note, now_ms, ends_ms)
        ends = datetime.fromtimestamp(ends_ms / 1000, UTC).isoformat(timespec="seconds")
        with self._noted("token.add", f"{name} of {account}: {','.join(scopes)} until {ends}"):
            self._db.execute("INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, ?, 0)", row)
        return name, token

    def token(self, secret: str, now_ms: int) -> Token | None:
        """The token that is in force, None for any other."""
        query = "SELECT id, account, scopes, note, made_ms, ends_ms, used_ms FROM token WHERE digest = ?"
        row = self._db.execute(query, (self.digest("token", secret),)).fetchone()
        token = _token(row) if row else None
        if token is None or now_ms >= token.ends_ms:
            return None
        if now_ms - token.used_ms > 60_000:
            self._db.execute("UPDATE token SET used_ms = ? WHERE id = ?", (now_ms, token.id))
        return token

    def tokens(self, account: str | None = None) -> list[Token]:
        query = "SELECT id, account, scopes, note, made_ms, ends_ms, used_ms FROM token"
        rows = self._db.execute(f"{query} WHERE ?1 IS NULL OR account = ?1 ORDER BY made_ms", (account,))
        return [_token(row) for row in rows]

    def revoke_token(self, name: str) -> None:
        with self._noted("token.remove", name):
            if not self._db.execute("DELETE FROM token WHERE id = ?", (name,)).rowcount:
                raise RefusedError("token.unknown", f"there is no token {name}: see `exeat token ls`")

    # -- sessions and links

    def open_session(self, account: str, now_ms: int, by: str = "") -> tuple[str, Session]:
        """(the cookie's value, the session). `by` says what opened it."""
        cookie, csrf = secrets.token_urlsafe(_SECRET_BYTES), secrets.token_urlsafe(24)
        session = Session(self.digest("session", cookie), account, csrf, now_ms, now_ms)
        row = (session.digest, account, csrf, now_ms, now_ms)
        with self._noted("session.open", by, account):
            self._db.execute("INSERT INTO session VALUES (?, ?, ?, ?, ?)", row)
        return cookie, session

    def session(self, cookie: str, now_ms: int, idle_ms: int, longest_ms: int) -> Session | None:
        """The session that is in force, None for any other."""
        digest = self.digest("session", cookie)
        row = self._db.execute("SELECT * FROM session WHERE digest = ?", (digest,)).fetchone()
        session = Session(*row) if row else None
        if session is None:
            return None
        if now_ms >= min(session.seen_ms + idle_ms, session.made_ms + longest_ms) or now_ms < session.made_ms:
            self.close_session(digest)
            return None
        if now_ms - session.seen_ms > 10_000:
            self._db.execute("UPDATE session SET seen_ms = ? WHERE digest = ?", (now_ms, digest))
        return session

    def sign_out(self, session: Session) -> None:
        with self._noted("session.close", "", session.account):
            self.close_session(session.digest)

    def close_session(self, digest: bytes) -> None:
        self._db.execute("DELETE FROM session WHERE digest = ?", (digest,))

    def add_link(self, account: str, now_ms: int) -> str:
        """A secret that opens one session, within LINK_MS."""
        self.get(account)
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        row = (self.digest("link", secret), account, now_ms + LINK_MS)
        with self._noted("link.add", f"for {account}"):
            self._db.execute("INSERT INTO link VALUES (?, ?, ?)", row)
        return secret

    def use_link(self, secret: str, now_ms: int) -> str | None:
        """The account it opens, once."""
        query = "DELETE FROM link WHERE digest = ? RETURNING account, ends_ms"
        row = self._db.execute(query, (self.digest("link", secret),)).fetchone()
        return str(row[0]) if row and now_ms < row[1] else None

    # -- answers that were given already (Idempotency-Key)

    def answered(self, who: str, key: str) -> tuple[bytes, int, str] | None:
        """(digest of the request, status, body) of the answer under this key."""
        query = "SELECT digest, status, body FROM answer WHERE who = ? AND key = ?"
        row = self._db.execute(query, (who, key)).fetchone()
        return (row[0], row[1], row[2]) if row else None

    def keep_answer(self, who: str, key: str, digest: bytes, status: int, body: str, now_ms: int) -> None:
        row = (who, key, digest, status, body, now_ms)
        self._db.execute("INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, ?, ?)", row)

    def sweep(self, now_ms: int, longest_ms: int) -> None:
        """Drop what can open nothing any more."""
        self._db.execute("DELETE FROM session WHERE made_ms < ?", (now_ms - longest_ms,))
        self._db.execute(_OLD_ANSWERS, (MOST_ANSWERS,))
        self._db.execute("DELETE FROM link WHERE ends_ms < ?", (now_ms,))
        self._db.execute("DELETE FROM answer WHERE at_ms < ?", (now_ms - DAY_MS,))

    @contextmanager
    def _noted(self, what: str, detail: str, actor: str = _ROOT) -> Iterator[None]:
        """All of what is done in here, and its note for the ledger, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.deeds.note(what, actor, detail)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _account_said(name: str, role: str, projects: Sequence[str]) -> str:
    return f"{name}: {role}, {','.join(projects) or 'all projects'}"


def _account(row: tuple[str, str, str, str]) -> Account:
    return Account(row[0], row[1], tuple(json.loads(row[2])), row[3])


def _token(row: tuple[str, str, str, str, int, int, int]) -> Token:
    return Token(row[0], row[1], tuple(json.loads(row[2])), *row[3:])


def _key(path: Path) -> bytes:
    """The key of the digests, made once: whoever copies the database alone cannot even try."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        found = path.read_bytes()
        if len(found) != _SECRET_BYTES:
            raise OSError(5, "is not a key", str(path)) from None
        return found
    with os.fdopen(fd, "wb") as file:
        key = secrets.token_bytes(_SECRET_BYTES)
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key
