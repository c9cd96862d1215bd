"""Keys in SQL: made, listed, rotated, revoked, each with its row in the log of changes.

Every change takes the next `version`, of which there can be one only: two changes at once are put in order, and who
has read version n will never meet an older change that came late.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from scheduler.admin_log import Actor, note_change
from scheduler.database import record_errors
from scheduler.errors import InvalidTerms, KeyEnded, PepperUnusable, RecordUnavailable, UnknownKey
from scheduler.keys import ApiKey, KeyState, KeyTerms, Role, mac_of, new_key_id, new_key_text, pepper_id_of
from scheduler.pepper import Pepper
from scheduler.tables import KeyRow

ATTEMPTS = 50
"""Changes of keys are rare; so many at once are a mistake."""

_TABLE = KeyRow.__table__
Change = Callable[[AsyncConnection, int], Awaitable[None]]


class KeyStore:
    """All methods raise RecordUnavailable when the database does not answer."""

    def __init__(self, engine: AsyncEngine, pepper: Pepper) -> None:
        self._engine = engine
        self._pepper = pepper

    async def changed_since(self, version: int) -> list[ApiKey]:
        """Keys whose last change is newer, in order of it."""
        return await self._select(_TABLE.c.version > version)

    async def all(self) -> list[ApiKey]:
        """Every key, ended ones too, newest first."""
        return sorted(await self._select(), key=lambda key: key.created_ms, reverse=True)

    async def get(self, key_id: str) -> ApiKey:
        """One key. Raises UnknownKey."""
        found = await self._select(_TABLE.c.id == key_id)
        if not found:
            raise UnknownKey(key_id)
        return found[0]

    async def create(self, terms: KeyTerms, actor: Actor, *, has_other_admin: bool = False) -> tuple[ApiKey, str]:
        """Make a key; its text is in this answer and nowhere else. Raises InvalidTerms, PepperUnusable.

        The first key of a farm has to be an admin's, unless there is another way in.
        """
        if terms.expires_ms is not None and terms.expires_ms <= _now_ms():
            raise InvalidTerms("expires", "a time to come")
        pepper, key_id = await self._pepper_in_use(), new_key_id()
        text = new_key_text(key_id)

        async def write(connection: AsyncConnection, version: int) -> None:
            if version == 1 and terms.role is not Role.ADMIN and not has_other_admin:
                raise InvalidTerms("role", "admin for a farm's first key, because from then on every request needs one")
            await connection.execute(insert(KeyRow).values(_new_row(key_id, version, terms, pepper, text)))
            await note_change(connection, actor, "keys.create", key_id, _shown(terms))

        await self._change(write)
        return await self.get(key_id), text

    async def create_first(self, actor: Actor) -> str | None:
        """The text of the farm's first key, an admin's; None where a farm has keys. Of many at once one makes it.

        Raises PepperUnusable.
        """
        if await self.changed_since(0):
            return None
        terms = KeyTerms(name="first", tenant="default", role=Role.ADMIN)
        pepper, key_id = await self._pepper_in_use(), new_key_id()
        text = new_key_text(key_id)
        async with record_errors():
            try:
                async with self._engine.begin() as connection:
                    await connection.execute(insert(KeyRow).values(_new_row(key_id, 1, terms, pepper, text)))
                    await note_change(connection, actor, "keys.create", key_id, _shown(terms))
            except IntegrityError:
                return None
        return text

    async def rotate(self, key_id: str, grace_ms: int, actor: Actor) -> tuple[ApiKey, str]:
        """A new text for a key; the old one is taken for another `grace_ms`.

        Raises UnknownKey, KeyEnded, PepperUnusable.
        """
        await self.get(key_id)
        pepper, text = await self._pepper_in_use(), new_key_text(key_id)

        async def write(connection: AsyncConnection, version: int) -> None:
            key, now_ms = await self._active(connection, key_id), _now_ms()
            keeps = grace_ms > 0 and key.pepper_id == pepper_id_of(pepper)
            values = {
                "version": version,
                "mac": mac_of(pepper, text),
                "pepper_id": pepper_id_of(pepper),
                "previous_mac": key.mac if keeps else None,
                "previous_until_ms": now_ms + grace_ms if keeps else None,
                "rotated_ms": now_ms,
            }
            await connection.execute(update(KeyRow).where(_TABLE.c.id == key_id).values(values))
            await note_change(connection, actor, "keys.rotate", key_id, {"grace_ms": grace_ms if keeps else 0})

        await self._change(write)
        return await self.get(key_id), text

    async def revoke(self, key_id: str, actor: Actor) -> ApiKey:
        """End a key for good; one that is revoked stays as it is. Raises UnknownKey."""
        if (await self.get(key_id)).revoked_ms is not None:
            return await self.get(key_id)

        async def write(connection: AsyncConnection, version: int) -> None:
            values = {"version": version, "revoked_ms": _now_ms()}
            await connection.execute(update(KeyRow).where(_TABLE.c.id == key_id).values(values))
            await note_change(connection, actor, "keys.revoke", key_id, {})

        await self._change(write)
        return await self.get(key_id)

    async def _pepper_in_use(self) -> bytes:
        """A farm's first key makes the pepper; a node that lacks the one of the others must not make another."""
        if self._pepper.read() is None and await self.changed_since(0):
            raise PepperUnusable(self._pepper.where, "is missing; give this node the one that the farm's keys have")
        return self._pepper.read_or_make()

    async def _active(self, connection: AsyncConnection, key_id: str) -> ApiKey:
        row = (await connection.execute(select(_TABLE).where(_TABLE.c.id == key_id))).mappings().one_or_none()
        if row is None:
            raise UnknownKey(key_id)
        key = _key_of(row)
        state = key.state(_now_ms())
        if state is not KeyState.ACTIVE:
            raise KeyEnded(key_id, state)
        return key

    async def _change(self, write: Change) -> None:
        """Run a change with the next version; again, if another took that version meanwhile."""
        for _ in range(ATTEMPTS):
            async with record_errors():
                try:
                    async with self._engine.begin() as connection:
                        newest = await connection.scalar(select(func.coalesce(func.max(_TABLE.c.version), 0)))
                        await write(connection, int(newest or 0) + 1)
                    return
                except IntegrityError:
                    continue
        raise RecordUnavailable("too many changes of keys at once")

    async def _select(self, *conditions: Any) -> list[ApiKey]:
        query = select(_TABLE).where(*conditions).order_by(_TABLE.c.version)
        async with record_errors(), self._engine.connect() as connection:
            return [_key_of(row) for row in (await connection.execute(query)).mappings()]


def _new_row(key_id: str, version: int, terms: KeyTerms, pepper: bytes, text: str) -> dict[str, Any]:
    return {
        "id": key_id,
        "version": version,
        "name": terms.name,
        "tenant": terms.tenant,
        "role": terms.role.value,
        "terms": terms.encoded(),
        "pepper_id": pepper_id_of(pepper),
        "mac": mac_of(pepper, text),
        "created_ms": _now_ms(),
        "expires_ms": terms.expires_ms,
    }


def _key_of(row: Mapping[Any, Any]) -> ApiKey:
    terms = KeyTerms(
        name=row["name"],
        tenant=row["tenant"],
        role=Role(row["role"]),
        expires_ms=row["expires_ms"],
        **KeyTerms.decoded(row["terms"]),
    )
    kept = ("id", "version", "pepper_id", "mac", "previous_mac", "previous_until_ms")
    times = ("created_ms", "rotated_ms", "revoked_ms")
    return ApiKey(terms=terms, **{name: row[name] for name in kept + times})


def _shown(terms: KeyTerms) -> dict[str, Any]:
    named = {"name": terms.name, "tenant": terms.tenant, "role": terms.role.value, "expires_ms": terms.expires_ms}
    return named | terms.encoded()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
