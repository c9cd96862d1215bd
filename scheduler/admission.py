"""Who may submit what: the key first, then (inside the submit script) the bounds of the queue.

One key and one tenant for now: `FARM_API_KEY` opens everything, and without it the farm serves whoever reaches it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from scheduler.errors import InvalidKey

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request runs."""

    tenant: str
    key_id: str


class Admission:
    """Checks keys in constant time."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key

    def authenticate(self, presented: str | None) -> Caller:
        """Return the caller of a key. Raises InvalidKey when a key is required and this is not it."""
        if self._api_key is None:
            return Caller(DEFAULT_TENANT, "")
        if presented is None or not hmac.compare_digest(presented.encode(), self._api_key.encode()):
            raise InvalidKey
        return Caller(DEFAULT_TENANT, "env")
