"""The first key of a farm that others can reach: made at its first start, for who can read FARM_HOME."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from scheduler.admin_log import Actor
from scheduler.database import open_database
from scheduler.errors import PepperUnusable, RecordUnavailable
from scheduler.key_store import KeyStore
from scheduler.keys import Role
from scheduler.pepper import Pepper
from scheduler.settings import ApiSettings

log = structlog.get_logger()

PATIENCE_S = 30.0
"""On a farm's first start the scheduler is still making the tables."""

FIRST_START = Actor(id="first start", role=Role.ADMIN)


def first_key_file(settings: ApiSettings) -> Path:
    """Where the first key is, until somebody takes it away."""
    return settings.home_path / "first-key"


async def make_first_key(settings: ApiSettings) -> None:
    """Write a new farm's first key to a file of this user's; nothing where there are keys."""
    engine = open_database(settings.database)
    try:
        text = await _made(KeyStore(engine, Pepper(settings)))
    except (RecordUnavailable, PepperUnusable) as error:
        log.warning("no first key was made; mlx-farm keys create --here makes one", error=str(error))
        return
    finally:
        await engine.dispose()
    if text is None:
        return
    file = first_key_file(settings)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        os.fchmod(opened.fileno(), 0o600)
        opened.write(text + "\n")
    log.warning("the first key, an admin's, is in a file: keep it elsewhere and delete the file", file=str(file))


async def _made(store: KeyStore) -> str | None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + PATIENCE_S
    while True:
        try:
            return await store.create_first(FIRST_START)
        except RecordUnavailable:
            if loop.time() > until_s:
                raise
            await asyncio.sleep(0.2)
