"""One read-only SELECT by an operator, straight on the record.

Read-only is enforced by the database (SQLite: query_only; PostgreSQL: a READ
ONLY transaction with a statement timeout), not by looking at the text.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from asyncpg import PostgresError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from scheduler.database import record_errors
from scheduler.errors import InvalidQuery

STATEMENT_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """Column names and rows; `more` says that rows beyond the limit were left out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool


async def select_rows(engine: AsyncEngine, query: str, limit: int = 1000) -> Answer:
    """Run one SELECT. Raises InvalidQuery when it writes, is malformed or is more than one statement."""
    async with record_errors(), engine.connect() as connection:
        await _make_read_only(connection)
        try:
            return await _rows(connection, query, limit)
        except DBAPIError as error:
            raise InvalidQuery(f"The database refused the query: {error.orig}") from error
        except ResourceClosedError as error:
            raise InvalidQuery("Only a SELECT returns rows; nothing was changed.") from error
        except (PostgresError, sqlite3.Warning, ValueError) as error:  # a cursor's errors are the driver's own
            raise InvalidQuery(f"The database refused the query: {error}") from error
        finally:
            await connection.invalidate()  # never back into the pool: it is read-only for good


async def _rows(connection: AsyncConnection, query: str, limit: int) -> Answer:
    result = await connection.stream(text(query.replace(":", "\\:")))
    rows = await result.fetchmany(limit + 1)
    columns = tuple(result.keys())
    await result.close()
    return Answer(columns, tuple(tuple(row) for row in rows[:limit]), len(rows) > limit)


async def _make_read_only(connection: AsyncConnection) -> None:
    if connection.dialect.name == "sqlite":
        await connection.execute(text("PRAGMA query_only = ON"))
    else:
        await connection.execute(text("SET TRANSACTION READ ONLY"))
        await connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s'"))
