"""What an API key is: its text, how it is checked without being kept, and what its holder may do. Pure.

A key is `fk_<12 characters>_<43 characters>`: a public id by which people know it, and 32 random bytes. Only an
HMAC-SHA256 of the whole text is kept, made with a pepper that the database does not have.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from scheduler.backpressure import Limits
from scheduler.errors import InvalidTerms
from scheduler.jobs import Lane

ID_PREFIX = "fk_"
ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
MAX_NAME_CHARS = 100
LIMIT_NAMES = frozenset(limit.name for limit in fields(Limits))

_KEY = re.compile(r"(fk_[a-z2-7]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f]+")


class Role(StrEnum):
    """Client: uses models. Viewer: looks at the farm. Operator: both, and runs it. Admin: all of it, and makes keys."""

    ADMIN = "admin"
    OPERATOR = "operator"
    VIEWER = "viewer"
    CLIENT = "client"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What the holder of a key may do. Raises InvalidTerms.

    `models` are the names that may be asked for (none: all), `lanes` the lanes (none: all), the first of which serves
    requests that name none. `limits` are the limits of its own, by their name in `Limits`; the settings have the rest.
    """

    name: str
    tenant: str
    role: Role
    models: tuple[str, ...] = ()
    lanes: tuple[Lane, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    expires_ms: int | None = None

    def __post_init__(self) -> None:
        for what, name in (("name", self.name), ("tenant", self.tenant)):
            if not name.strip() or len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name):
                raise InvalidTerms(what, f"1 to {MAX_NAME_CHARS} characters, no control characters")
        if not all(self.models):
            raise InvalidTerms("models", "names of models")
        if not set(self.limits) <= LIMIT_NAMES or any(limit < 0 for limit in self.limits.values()):
            raise InvalidTerms("limits", f"0 or more of {', '.join(sorted(LIMIT_NAMES))}")

    def encoded(self) -> dict[str, Any]:
        """What has no column of its own, as JSON; `decoded` is its inverse."""
        return {"models": self.models, "lanes": self.lanes, "limits": dict(self.limits)}

    @staticmethod
    def decoded(terms: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the class."""
        lanes = tuple(Lane(lane) for lane in terms["lanes"])
        return {"models": tuple(terms["models"]), "lanes": lanes, "limits": dict(terms["limits"])}


class KeyState(StrEnum):
    """An ended key opens nothing."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as the record has it. After a rotation the text before it is taken until `previous_until_ms`."""

    id: str
    version: int
    terms: KeyTerms
    pepper_id: str
    mac: bytes = field(repr=False)
    previous_mac: bytes | None = field(default=None, repr=False)
    previous_until_ms: int | None = None
    created_ms: int
    rotated_ms: int | None = None
    revoked_ms: int | None = None

    def state(self, now_ms: int) -> KeyState:
        """May it be used?"""
        if self.revoked_ms is not None:
            return KeyState.REVOKED
        expires_ms = self.terms.expires_ms
        return KeyState.EXPIRED if expires_ms is not None and expires_ms <= now_ms else KeyState.ACTIVE

    def fits(self, mac: bytes, now_ms: int) -> bool:
        """Is this the MAC of its text? Takes the same time whatever the answer is."""
        now = hmac.compare_digest(mac, self.mac)
        before = hmac.compare_digest(mac, self.previous_mac or b"\0" * len(mac))
        return now or (before and self.previous_mac is not None and now_ms < (self.previous_until_ms or 0))


def new_key_id() -> str:
    """A public id; it is no secret, only unlikely to be taken."""
    return ID_PREFIX + "".join(secrets.choice(ID_LETTERS) for _ in range(12))


def new_key_text(key_id: str) -> str:
    """A key's text, to be shown once."""
    return f"{key_id}_{secrets.token_urlsafe(32)}"


def key_id_of(text: str | None) -> str | None:
    """The id in a key's text; None for anything that is no text of a generated key."""
    if text is None or len(text) != 59:
        return None
    match = _KEY.fullmatch(text)
    return match[1] if match else None


def mac_of(pepper: bytes, text: str) -> bytes:
    """What is kept of a key's text."""
    return hmac.digest(pepper, text.encode(), "sha256")


def pepper_id_of(pepper: bytes) -> str:
    """Tells peppers from each other and nothing else about them."""
    return mac_of(pepper, "the id of this pepper").hex()[:16]
