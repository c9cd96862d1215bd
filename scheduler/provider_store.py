"""Providers in SQL: added, changed, given other keys, disabled, each with its row in the log of changes.

Their keys are encrypted. Every change takes the next `version`. Provider workers get a copy (provider_board.py).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from scheduler.admin_log import Actor, note_change
from scheduler.database import record_errors
from scheduler.errors import InvalidProvider, ProviderExists, RecordUnavailable, UnknownProvider, VaultUnusable
from scheduler.providers import KeptProvider, Provider, read_provider
from scheduler.tables import ProviderRow
from scheduler.vault import Vault

ATTEMPTS = 50
"""Changes of providers are rare; so many at once are a mistake."""

_TABLE = ProviderRow.__table__
Change = Callable[[AsyncConnection, int], Awaitable[None]]


class ProviderStore:
    """All methods raise RecordUnavailable when the database does not answer."""

    def __init__(self, engine: AsyncEngine, vault: Vault) -> None:
        self._engine = engine
        self._vault = vault

    async def all(self) -> list[KeptProvider]:
        """Every provider, disabled ones too, by name."""
        async with record_errors(), self._engine.connect() as connection:
            return [_kept(row) for row in await connection.execute(select(_TABLE).order_by(_TABLE.c.name))]

    async def newest(self) -> int:
        """The version of the last change; 0 before the first."""
        async with record_errors(), self._engine.connect() as connection:
            return await _newest(connection)

    async def get(self, name: str) -> KeptProvider:
        """One provider. Raises UnknownProvider."""
        async with record_errors(), self._engine.connect() as connection:
            return await _get(connection, name)

    def key_of(self, kept: KeptProvider) -> str:
        """Its key as text, empty where it has none: for whoever is about to call it. Raises VaultUnusable."""
        return self._vault.key_of(kept.cipher, kept.name)

    async def create(self, provider: Provider, key: str, actor: Actor) -> KeptProvider:
        """Add a provider; an empty `key` means that it wants none.

        Raises ProviderExists, InvalidProvider, VaultUnusable.
        """
        cipher = await self._encrypted(provider.name, key)

        async def write(connection: AsyncConnection, version: int) -> None:
            taken = select(_TABLE.c.name).where(_TABLE.c.name == provider.name)
            if (await connection.execute(taken)).first() is not None:
                raise ProviderExists(provider.name)
            now_ms = _now_ms()
            times = {"created_ms": now_ms, "changed_ms": now_ms, "key_changed_ms": now_ms}
            row = {"name": provider.name, "version": version, "terms": _terms(provider), "enabled": True}
            await connection.execute(insert(ProviderRow).values(row | times | {"cipher": cipher}))
            await note_change(connection, actor, "providers.create", provider.name, _terms(provider))

        await self._change(write)
        return await self.get(provider.name)

    async def change(self, provider: Provider, actor: Actor) -> KeptProvider:
        """Other terms for a provider of the same name; its key stays. Raises UnknownProvider."""
        return await self._update(provider.name, {"terms": _terms(provider)}, actor, "providers.change")

    async def rotate(self, name: str, key: str, actor: Actor) -> KeptProvider:
        """Another key for a provider. Raises UnknownProvider, InvalidProvider, VaultUnusable."""
        await self.get(name)
        values = {"cipher": await self._encrypted(name, key), "key_changed_ms": _now_ms()}
        return await self._update(name, values, actor, "providers.rotate")

    async def enable(self, name: str, actor: Actor, *, enabled: bool) -> KeptProvider:
        """Let it serve, or not. Raises UnknownProvider."""
        return await self._update(
            name, {"enabled": enabled}, actor, "providers.enable" if enabled else "providers.disable"
        )

    async def encrypt_again(self, actor: Actor) -> int:
        """Encrypt all keys with the newest of the secret; return how many. Raises VaultUnusable, nothing changed."""
        changed = 0

        async def write(connection: AsyncConnection, version: int) -> None:
            nonlocal changed
            rows = [_kept(row) for row in await connection.execute(select(_TABLE).order_by(_TABLE.c.name))]
            keyed = [kept for kept in rows if kept.cipher is not None]
            for at, kept in enumerate(keyed):
                values = {"cipher": self._vault.encrypt(self.key_of(kept), kept.name), "version": version + at}
                await connection.execute(update(ProviderRow).where(_TABLE.c.name == kept.name).values(values))
            changed = len(keyed)
            await note_change(connection, actor, "providers.encrypt_again", "", {"keys": changed})

        await self._change(write)
        return changed

    async def _update(self, name: str, values: Mapping[str, Any], actor: Actor, action: str) -> KeptProvider:
        async def write(connection: AsyncConnection, version: int) -> None:
            await _get(connection, name)
            row = {"version": version, "changed_ms": _now_ms(), **values}
            await connection.execute(update(ProviderRow).where(_TABLE.c.name == name).values(row))
            await note_change(connection, actor, action, name, values.get("terms", {}))

        await self._change(write)
        return await self.get(name)

    async def _encrypted(self, name: str, key: str) -> bytes | None:
        """A farm's first key makes the secret; a node that lacks the one of the others must not make another."""
        if not key:
            return None
        if not all("!" <= char <= "~" for char in key):  # it becomes a header
            raise InvalidProvider("key", "it has printable ASCII characters and no spaces")
        if not self._vault.is_there and any(kept.cipher is not None for kept in await self.all()):
            raise VaultUnusable(self._vault.where, "is missing; give this node the one that the others have")
        return self._vault.encrypt(key, name)

    async def _change(self, write: Change) -> None:
        """Run a change with the next version; again, if another took that version meanwhile."""
        for _ in range(ATTEMPTS):
            async with record_errors():
                try:
                    async with self._engine.begin() as connection:
                        await write(connection, await _newest(connection) + 1)
                    return
                except IntegrityError:
                    continue
        raise RecordUnavailable("too many changes of providers at once")


async def _newest(connection: AsyncConnection) -> int:
    return int(await connection.scalar(select(func.coalesce(func.max(_TABLE.c.version), 0))) or 0)


async def _get(connection: AsyncConnection, name: str) -> KeptProvider:
    row = (await connection.execute(select(_TABLE).where(_TABLE.c.name == name))).one_or_none()
    if row is None:
        raise UnknownProvider(name)
    return _kept(row)


def _kept(row: Row[Any]) -> KeptProvider:
    values = dict(row._mapping)
    return KeptProvider(provider=read_provider({"name": values.pop("name"), **values.pop("terms")}), **values)


def _terms(provider: Provider) -> dict[str, Any]:
    return provider.model_dump(mode="json", exclude={"name"})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
