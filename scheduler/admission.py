"""Who may submit what: the key first, then its limits (limits.py), then the queue's bounds (inside the submit script).

`FARM_API_KEY` is an admin's key of the tenant `default`. Where neither it nor any key of the record exists, the farm
serves whoever reaches it, as an admin.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace

from scheduler.backpressure import UNLIMITED, Limits
from scheduler.errors import Forbidden, InvalidKey
from scheduler.jobs import Lane
from scheduler.key_ring import KeyRing
from scheduler.keys import ID_PREFIX, ApiKey, Role, key_id_of

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request runs. `models` and `lanes` that it may ask for; none: all."""

    tenant: str
    key_id: str
    limits: Limits = UNLIMITED
    role: Role = Role.ADMIN
    models: frozenset[str] = frozenset()
    lanes: tuple[Lane, ...] = ()

    @property
    def budget(self) -> str:
        """What its limits are counted under; empty where it has none."""
        return (self.key_id or self.tenant) if self.limits else ""

    def sees_model(self, name: str) -> bool:
        """May it ask for this name?"""
        return not self.models or name in self.models

    def require_model(self, name: str) -> None:
        """Raises Forbidden for a name that it may not ask for."""
        if not self.sees_model(name):
            raise Forbidden(f"This key may not use the model {name!r}, but: {', '.join(sorted(self.models))}.")

    def lane(self, named: Lane | None, usual: Lane) -> Lane:
        """The lane of a request that names one, or else would get the usual one. Raises Forbidden.

        The normal lane is what a request gets that says nothing, so a key without it gets its first lane there.
        """
        wanted = named or usual
        if not self.lanes or wanted in self.lanes:
            return wanted
        if named is None and usual is Lane.NORMAL:
            return self.lanes[0]
        raise Forbidden(f"This key may not use the {wanted} lane, but: {', '.join(self.lanes)}.")


class Admission:
    """Checks keys, in a time that does not depend on how wrong they are."""

    def __init__(
        self,
        own_key: str | None,
        limits: Limits = UNLIMITED,
        ring: KeyRing | None = None,
        *,
        never_open: bool = False,
    ) -> None:
        """`own_key` is that of the settings; `limits` hold for every key that has none of its own.

        `never_open`: without any key nobody gets in.
        """
        self._own_key = own_key
        self._limits = limits
        self._ring = ring or KeyRing()
        self._never_open = never_open

    @property
    def is_open(self) -> bool:
        """May everybody do everything?"""
        return self._own_key is None and not self._never_open and not self._ring.is_required

    @property
    def has_own_key(self) -> bool:
        """Do the settings have a key?"""
        return self._own_key is not None

    def authenticate(self, presented: str | None, *, chosen: bool = True) -> Caller:
        """Return the caller of a key; `chosen` False: one that somebody thought of himself is not looked at.

        Raises InvalidKey when a key is required and this is not one; RecordUnavailable.
        """
        if self.is_open:
            return Caller(DEFAULT_TENANT, "", self._limits)
        if key_id_of(presented) is not None:
            return self.caller_of(self._ring.check(presented))
        if presented is None or self._own_key is None or not chosen:
            raise InvalidKey
        if not hmac.compare_digest(presented.encode(), self._own_key.encode()):
            raise InvalidKey
        return Caller(DEFAULT_TENANT, "env", self._limits)

    def caller_of(self, key: ApiKey) -> Caller:
        """On whose behalf the holder of a key asks."""
        terms = key.terms
        limits = replace(self._limits, **terms.limits)
        return Caller(terms.tenant, key.id, limits, terms.role, frozenset(terms.models), terms.lanes)

    def caller_known_as(self, key_id: str, tenant: str) -> Caller:
        """On whose behalf work goes on that a key has begun, whatever has become of the key since.

        Raises RecordUnavailable for a key that is not known here yet.
        """
        if not key_id.startswith(ID_PREFIX):
            return Caller(tenant, key_id)
        return replace(self.caller_of(self._ring.find(key_id)), limits=UNLIMITED)


def cache_salt_of(tenant: str, *, shared: bool) -> str:
    """What goes into the names of a tenant's cached prefixes. The default tenant's have none, as on a farm of one."""
    return "" if shared or tenant == DEFAULT_TENANT else tenant
