"""Opening the record: one async engine per process, on SQLite (WAL) or PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from asyncpg import PostgresError
from sqlalchemy import BigInteger, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from scheduler.errors import RecordUnavailable


class DatabaseClock(FunctionElement[int]):
    """The database's time, in ms since 1970: the one clock that all who write to it share."""

    type = BigInteger()
    inherit_cache = True


@compiles(DatabaseClock, "sqlite")
def _sqlite_clock(_element: DatabaseClock, _compiler: Any, **_options: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(DatabaseClock, "postgresql")
def _postgresql_clock(_element: DatabaseClock, _compiler: Any, **_options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


def open_database(url: str) -> AsyncEngine:
    """Create the engine. Parameters of failing statements (prompts may be among them) are never logged."""
    parsed = make_url(url)
    if not parsed.drivername.startswith("sqlite"):
        return create_async_engine(url, hide_parameters=True, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": 30})
    event.listen(engine.sync_engine, "connect", _set_pragmas)
    return engine


@asynccontextmanager
async def record_errors() -> AsyncIterator[None]:
    """Turn what a down, locked or missing database raises into RecordUnavailable."""
    with record_errors_raised():
        yield


@contextmanager
def record_errors_raised() -> Iterator[None]:
    """The same for code that is not async."""
    try:
        yield
    except DBAPIError as error:
        raise RecordUnavailable(str(error.orig)) from error
    except (SQLAlchemyError, PostgresError, OSError) as error:
        raise RecordUnavailable(str(error)) from error


def insert_into(connection: AsyncConnection, table: type[Any]) -> Any:
    """An INSERT that knows ON CONFLICT, in the connection's dialect."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _set_pragmas(connection: Any, _record: Any) -> None:
    """WAL lets readers go on while the projector writes; FULL keeps a 202's promise over a power cut."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
