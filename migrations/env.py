"""Alembic's entry: runs migrations on the async engine of scheduler/database.py, SQLite and PostgreSQL alike."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import text
from sqlalchemy.engine import Connection

from scheduler.database import open_database
from scheduler.settings import SchedulerSettings
from scheduler.tables import Table


def run_on(connection: Connection) -> None:
    lock(connection)
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


def lock(connection: Connection) -> None:
    """Two processes that migrate at once wait for each other; the second one finds nothing to do."""
    postgresql = connection.dialect.name == "postgresql"
    connection.execute(text("SELECT pg_advisory_xact_lock(7253)" if postgresql else "BEGIN IMMEDIATE"))


async def run() -> None:
    url = context.config.get_main_option("sqlalchemy.url") or SchedulerSettings().database
    engine = open_database(url)
    async with engine.connect() as connection:
        await connection.run_sync(run_on)
        await connection.commit()
    await engine.dispose()


asyncio.run(run())
