"""Short, idempotent chores on a timetable, run by arq: retention for now. Never inference, never the job queue."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import structlog
from arq import ArqRedis, Worker, cron
from redis.exceptions import RedisError

from scheduler.connections import connection_pool
from scheduler.retention import Retention
from scheduler.settings import SchedulerSettings

log = structlog.get_logger()

QUEUE_NAME = "farm:chores"


async def retain(ctx: dict[Any, Any], *_args: Any, **_kwargs: Any) -> str:
    """Forget what is past its time."""
    settings: SchedulerSettings = ctx["settings"]
    retention: Retention = ctx["retention"]
    forgotten = await retention.run(
        now_ms=time.time_ns() // 1_000_000,
        result_ttl_ms=round(settings.result_ttl_s * 1000),
        record_ttl_ms=round(settings.event_retention_s * 1000),
        trim_margin_ms=round(settings.trim_margin_s * 1000),
    )
    log.info("retention", forgotten=forgotten)
    return str(forgotten)


def chore_worker(settings: SchedulerSettings, retention: Retention, *, burst: bool = False) -> Worker:
    """An arq worker for the chores; cron runs each once however many scheduler processes there are."""
    return Worker(
        functions=[retain],
        cron_jobs=[cron(retain, minute={7, 22, 37, 52}, timeout=60, keep_result=0)],
        redis_pool=ArqRedis(connection_pool(settings.chores_redis), default_queue_name=QUEUE_NAME),
        queue_name=QUEUE_NAME,
        ctx={"settings": settings, "retention": retention},
        handle_signals=False,
        burst=burst,
        job_timeout=60,
        keep_result=0,
    )


async def run_chores(settings: SchedulerSettings, retention: Retention) -> None:
    """Run the arq worker for ever; it ends when Redis goes away, so it is started again."""
    while True:
        worker = chore_worker(settings, retention)
        try:
            await worker.async_run()
        except (RedisError, OSError) as error:
            log.warning("chores wait for Redis", error=str(error))
            await asyncio.sleep(1.0)
        finally:
            with suppress(RedisError, OSError):
                await worker.close()
