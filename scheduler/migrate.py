"""Bringing the record's schema to the newest version, and saying which version it has (Alembic)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.database import record_errors, record_errors_raised


def upgrade(database_url: str) -> None:
    """Apply all missing migrations; blocks, and runs an event loop of its own: call it in a thread that has none.

    Two at once wait for each other. Raises RecordUnavailable.
    """
    with record_errors_raised():
        command.upgrade(_config(database_url), "head")


def newest_revision() -> str:
    """The revision that this version of the code needs."""
    return ScriptDirectory.from_config(_config("")).get_current_head() or ""


async def current_revision(engine: AsyncEngine) -> str:
    """The revision that the database has, '' for an empty one. Raises RecordUnavailable."""
    async with record_errors(), engine.connect() as connection:
        return await connection.run_sync(_revision) or ""


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_folder()))
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return config


def _folder() -> Path:
    """Beside this file in an installed wheel, at the top of the repository in a checkout."""
    installed = Path(__file__).parent / "migrations"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "migrations"
