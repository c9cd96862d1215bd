"""Who changed what of the farm (`audit_admin`): written in the transaction of the change, read newest first."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from scheduler.database import record_errors
from scheduler.tables import AdminChangeRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who asks for a change: the id of a key ("env", or "" where none is required), or "command line"."""

    id: str
    role: str
    address: str = ""


COMMAND_LINE = Actor(id="command line", role="admin")
"""Whoever may read and write the database itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminChange:
    """One row of the log. `action` is a noun and a verb (`keys.create`), `target` what was changed."""

    id: str
    at_ms: int
    actor: str
    role: str
    address: str
    action: str
    target: str
    details: Mapping[str, Any]


async def note_change(
    connection: AsyncConnection, actor: Actor, action: str, target: str, details: Mapping[str, Any]
) -> None:
    """Write a change down; it is in the log if and only if the caller's transaction is committed. No secrets."""
    now_ns = time.time_ns()
    row = {"id": f"{now_ns:016x}{secrets.token_hex(4)}", "at_ms": now_ns // 1_000_000}
    row |= {"actor": actor.id, "role": actor.role}
    row |= {"address": actor.address, "action": action, "target": target, "details": dict(details)}
    await connection.execute(insert(AdminChangeRow).values(row))


async def admin_changes(engine: AsyncEngine, *, before_id: str = "", limit: int = 100) -> list[AdminChange]:
    """The newest changes, or those before one of them. Raises RecordUnavailable."""
    table = AdminChangeRow.__table__
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if before_id:
        query = query.where(table.c.id < before_id)
    async with record_errors(), engine.connect() as connection:
        return [AdminChange(**row) for row in (await connection.execute(query)).mappings()]
