"""The schema is what the tables say, however often and from wherever it is brought up to date."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler import migrate
from scheduler.database import open_database
from scheduler.errors import RecordUnavailable
from scheduler.migrate import current_revision, newest_revision, upgrade
from scheduler.tables import Table


async def test_a_migrated_database_is_what_the_tables_say(engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), Table.metadata)

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    assert await current_revision(engine) == newest_revision() != ""


async def test_upgrading_again_or_at_once_does_no_harm(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new % folder/farm.db"
    upgrade_in_thread = [asyncio.to_thread(_upgrade_elsewhere, url) for _ in range(3)]
    assert await asyncio.gather(*upgrade_in_thread) == [0, 0, 0]
    await asyncio.to_thread(upgrade, url)
    engine = open_database(url)
    assert await current_revision(engine) == newest_revision()
    await engine.dispose()


def _upgrade_elsewhere(url: str) -> int:
    """In a process of its own, as two schedulers would."""
    environment = os.environ | {"FARM_DATABASE_URL": url}
    return subprocess.run([sys.executable, "-m", "scheduler", "upgrade"], env=environment, check=False).returncode


async def test_an_empty_database_has_no_revision(tmp_path: Path) -> None:
    engine = open_database(f"sqlite+aiosqlite:///{tmp_path}/farm.db")
    assert await current_revision(engine) == ""
    await engine.dispose()


async def test_a_downgrade_leaves_nothing_behind(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/farm.db"
    await asyncio.to_thread(upgrade, url)
    await asyncio.to_thread(command.downgrade, migrate._config(url), "base")
    engine = open_database(url)
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    assert names == ["alembic_version"]
    await engine.dispose()


@pytest.mark.parametrize(
    "url", ["postgresql+asyncpg://nobody@127.0.0.1:1/none", "sqlite+aiosqlite:////proc/no/farm.db"]
)
async def test_a_database_that_cannot_be_reached_is_said_to_be(url: str) -> None:
    with pytest.raises(RecordUnavailable):
        await asyncio.to_thread(upgrade, url)
