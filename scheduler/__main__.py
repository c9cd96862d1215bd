"""`python -m scheduler [run|upgrade|current|rebuild|key|rotate-secret|sql]`: the scheduler, and work on the record.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a server cannot be reached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
import uvloop
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table as RichTable

from scheduler.admin_log import COMMAND_LINE
from scheduler.admission import DEFAULT_TENANT
from scheduler.audit_sql import Answer, select_rows
from scheduler.chores import run_chores
from scheduler.connections import blocking_client, command_client
from scheduler.database import open_database
from scheduler.errors import FarmError, QueueUnavailable, RecordUnavailable
from scheduler.key_store import KeyStore
from scheduler.keys import KeyTerms, Role
from scheduler.limits import Limiter
from scheduler.lost import Lost
from scheduler.migrate import current_revision, newest_revision, upgrade
from scheduler.model_record import ModelRecord
from scheduler.pepper import Pepper
from scheduler.process import announce_ready, cancel_all, configure_logs, stop_event
from scheduler.projector import Projector, rebuild
from scheduler.provider_board import ProviderBoard
from scheduler.provider_news import ProviderNews
from scheduler.provider_store import ProviderStore
from scheduler.queue import JobQueue
from scheduler.reaper import Reaper
from scheduler.relay import Relay
from scheduler.retention import Retention
from scheduler.servers import require_server
from scheduler.settings import SchedulerSettings
from scheduler.store import Store
from scheduler.vault import Vault

log = structlog.get_logger()

SCHEDULER_NICE = 5
"""The record may be a moment late; requests on the same machine go first."""

MIGRATION_PATIENCE_S = 5.0
"""Ready is said after this time even where the database is still away."""


async def serve(settings: SchedulerSettings) -> None:
    """Reap and settle limits at once; migrate, then project, relay and do chores; until a stop signal.

    A database that is away delays only what needs it: jobs of dead workers go back to the queue all the same.
    """
    stop = stop_event()
    await require_server(settings.redis)
    redis, blocking = command_client(settings.redis), blocking_client(settings.redis)
    engine = open_database(settings.database)
    queue = JobQueue(redis, shards=settings.shards, policy=settings.queue_policy)
    projectors = [Projector(blocking, engine, queue, shard) for shard in range(settings.shards)]
    retention = Retention(redis, engine, queue, projectors)
    recording: list[Callable[[], Awaitable[None]]] = [
        *(projector.run for projector in projectors),
        ModelRecord(blocking, engine).run,
        Relay(redis, queue, Store(engine)).run,
        Lost(queue, Store(engine)).run,
        ProviderNews(ProviderBoard(redis), ProviderStore(engine, Vault(settings))).run,
        partial(run_chores, settings, retention),
    ]
    migrated = asyncio.ensure_future(migrate(settings))
    loops = [Reaper(queue).run(), Limiter(redis, queue).run(), *(after(migrated, run) for run in recording)]
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([migrated, stopped], timeout=MIGRATION_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    announce_ready(role="scheduler")
    await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in tasks if task.done()]
    await cancel_all([stopped, migrated, *tasks])
    await engine.dispose()
    await redis.aclose()
    await blocking.aclose()
    for task in failed:
        task.result()  # a loop that ended by itself ended by an error: show it and exit 1


async def migrate(settings: SchedulerSettings) -> None:
    """Bring the schema to the newest version, however long the database is away."""
    while settings.auto_migrate:
        try:
            await asyncio.to_thread(upgrade, settings.database)
            return
        except RecordUnavailable as error:
            log.warning("migration waits", error=str(error))
            await asyncio.sleep(2.0)


async def after(migrated: asyncio.Future[None], run: Callable[[], Awaitable[None]]) -> None:
    """Run a loop once the schema is there."""
    await asyncio.shield(migrated)
    await run()


async def show_current(settings: SchedulerSettings, as_json: bool) -> int:
    """Print the database's schema version; 1 when it is not the newest."""
    engine = open_database(settings.database)
    current, newest = await current_revision(engine), newest_revision()
    await engine.dispose()
    url = engine.url.render_as_string(hide_password=True)
    facts = {"database": url, "current": current, "newest": newest, "up_to_date": current == newest}
    _print(json.dumps(facts) if as_json else "\n".join(f"{key}: {value}" for key, value in facts.items()))
    return 0 if current == newest else 1


async def run_sql(settings: SchedulerSettings, query: str, limit: int, as_json: bool) -> int:
    """Print the rows of a read-only SELECT."""
    engine = open_database(settings.database)
    try:
        answer = await select_rows(engine, query, limit)
    finally:
        await engine.dispose()
    if as_json:
        rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
        _print(json.dumps(rows, default=str, ensure_ascii=False))
    else:
        _print_table(answer)
    if answer.more:
        sys.stderr.write(f"More than {limit} rows; raise --limit or add a LIMIT of your own.\n")
    return 0


async def make_key(settings: SchedulerSettings, name: str, tenant: str, as_json: bool) -> int:
    """Write an admin's key into the record and print its text, the only time."""
    engine = open_database(settings.database)
    try:
        terms = KeyTerms(name=name, tenant=tenant, role=Role.ADMIN)
        key, text = await KeyStore(engine, Pepper(settings)).create(terms, COMMAND_LINE)
    finally:
        await engine.dispose()
    _print(
        json.dumps({"id": key.id, "name": name, "tenant": tenant, "role": "admin", "key": text}) if as_json else text
    )
    return 0


async def rotate_secret(settings: SchedulerSettings, *, keep_old: bool) -> int:
    """A new secret for what is kept encrypted; the old one goes once nothing is encrypted with it any more."""
    vault, engine = Vault(settings), open_database(settings.database)
    try:
        vault.begin_rotation()
        count = await ProviderStore(engine, vault).encrypt_again(COMMAND_LINE)
    finally:
        await engine.dispose()
    if not keep_old:
        vault.end_rotation()
    _print(f"{count} keys of providers encrypted again with a new secret ({vault.where})")
    return 0


async def run_rebuild(settings: SchedulerSettings) -> int:
    """Compute the projected tables again."""
    engine = open_database(settings.database)
    count = await rebuild(engine)
    await engine.dispose()
    _print(f"rebuilt from {count} events")
    return 0


def main() -> int:
    """Parse the command and run it; every expected error is one line on stderr."""
    arguments = _parser().parse_args()
    try:
        settings = SchedulerSettings()
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure_logs(settings.log_level, settings.log_format)
    try:
        return _run(arguments, settings)
    except (QueueUnavailable, RecordUnavailable) as error:
        sys.stderr.write(f"{error}\n")
        return 3
    except FarmError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _run(arguments: argparse.Namespace, settings: SchedulerSettings) -> int:
    match arguments.command:
        case "run":
            os.nice(SCHEDULER_NICE)
            uvloop.run(serve(settings))
            return 0
        case "upgrade":
            upgrade(settings.database)
            return asyncio.run(show_current(settings, arguments.json))
        case "current":
            return asyncio.run(show_current(settings, arguments.json))
        case "key":
            return asyncio.run(make_key(settings, arguments.name, arguments.tenant, arguments.json))
        case "rotate-secret":
            return asyncio.run(rotate_secret(settings, keep_old=arguments.keep_old))
        case "rebuild":
            return asyncio.run(run_rebuild(settings))
        case _:
            return asyncio.run(run_sql(settings, arguments.query, arguments.limit, arguments.json))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scheduler", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    parser.set_defaults(command="run", json=False)
    commands.add_parser("run", help="project, reap, relay, chores (the default)")
    for name, text in (("upgrade", "apply all migrations"), ("current", "show the schema version")):
        commands.add_parser(name, help=text).add_argument("--json", action="store_true")
    commands.add_parser("rebuild", help="compute jobs and usage again from the events")
    key = commands.add_parser("key", help="make an admin's key")
    key.add_argument("name")
    key.add_argument("--tenant", default=DEFAULT_TENANT)
    key.add_argument("--json", action="store_true")
    secret = commands.add_parser("rotate-secret", help="encrypt providers' keys with a new secret")
    secret.add_argument("--keep-old", action="store_true")
    sql = commands.add_parser("sql", help="run one read-only SELECT")
    sql.add_argument("query")
    sql.add_argument("--limit", type=int, default=1000)
    sql.add_argument("--json", action="store_true")
    return parser


def _print(text: Any) -> None:
    sys.stdout.write(f"{text}\n")


def _print_table(answer: Answer) -> None:
    table = RichTable(*answer.columns)
    for row in answer.rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


if __name__ == "__main__":
    sys.exit(main())
