"""Who may submit what: the key first, then its limits (limits.py), then the queue's bounds (inside the submit script).

One key and one tenant for now: `FARM_API_KEY` opens everything, and without it the farm serves whoever reaches it. The
limits of that key, or of everybody, are the settings `FARM_LIMIT_…`.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from scheduler.backpressure import UNLIMITED, Limits
from scheduler.errors import InvalidKey

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request runs."""

    tenant: str
    key_id: str
    limits: Limits = UNLIMITED

    @property
    def budget(self) -> str:
        """What its limits are counted under; empty where it has none."""
        return (self.key_id or self.tenant) if self.limits else ""


class Admission:
    """Checks keys in constant time."""

    def __init__(self, api_key: str | None, limits: Limits = UNLIMITED) -> None:
        self._api_key = api_key
        self._limits = limits

    def authenticate(self, presented: str | None) -> Caller:
        """Return the caller of a key. Raises InvalidKey when a key is required and this is not it."""
        if self._api_key is None:
            return Caller(DEFAULT_TENANT, "", self._limits)
        if presented is None or not hmac.compare_digest(presented.encode(), self._api_key.encode()):
            raise InvalidKey
        return Caller(DEFAULT_TENANT, "env", self._limits)
