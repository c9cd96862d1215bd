"""The arq worker: a timetable that calls short, repeatable errands. The timetable is the guarantee, no errand is.

An errand that a kill interrupts is taken up by the next second's, here or in another process.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import msgpack
import structlog
from arq import ArqRedis, Worker, cron
from redis.exceptions import RedisError

from api.batches.delivery import Delivery
from api.batches.progress import Progress, may_rest
from api.node import Node
from scheduler.batches.records import Batch
from scheduler.connections import connection_pool
from scheduler.errors import BatchMoved, QueueUnavailable, RecordUnavailable
from scheduler.outbox import Outbox

log = structlog.get_logger()

QUEUE_NAME = "farm:batches"

ERRAND_S = 3600
"""The longest errand: writing the results of a large batch."""

GATHER_S = 0.25
"""Lines that end within this time are settled together. A window of lines lasts longer than that."""

TURN_S = 5.0
"""A batch that always has something to do gives the others their turn after this."""


class Errands:
    """What the timetable calls."""

    def __init__(self, node: Node, progress: Progress, delivery: Delivery, *, retention_s: float) -> None:
        self._node = node
        self._retention_ms = round(retention_s * 1000)
        self._progress = progress
        self._delivery = delivery
        self._busy: set[str] = set()

    async def advance(self) -> None:
        """Move every batch that nobody here moves already; each on its own, so that none waits for another."""
        idle = [batch for batch in await self._node.batches.active() if batch.id not in self._busy]
        await asyncio.gather(*(self._advance(batch) for batch in idle))

    async def deliver(self) -> None:
        """Send the webhooks that are due."""
        await self._delivery.deliver()

    async def tidy(self) -> None:
        """Remove batches and files past their time, contents that nobody knows, old webhooks."""
        await self._forget_batches()
        for file_id in await self._node.files.expired():
            if await self._node.batches.reader_of(file_id) is None:  # else it goes when its batch has ended
                await self._node.files.delete([file_id])
        await self._node.files.sweep()
        await Outbox(self._node.store.engine).forget()

    async def _forget_batches(self) -> None:
        """The files first: what a kill interrupts is found again by the batch's row."""
        while old := await self._node.batches.ended_before(time.time_ns() // 1_000_000 - self._retention_ms):
            for batch in old:
                made = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id is not None]
                await self._node.files.delete(made + await self._node.files.internal([batch.input_file_id]))
                await self._node.batches.delete(batch)
            log.info("batches are forgotten", batches=len(old))

    async def _advance(self, batch: Batch) -> None:
        self._busy.add(batch.id)
        until_s = time.monotonic() + TURN_S
        moved: Batch | None = batch
        try:
            while moved is not None and time.monotonic() < until_s:
                before, moved = moved, await self._progress.step(moved)
                if moved is not None and moved.state is not before.state:
                    log.info("batch", batch=batch.id, state=moved.state.value)
                if moved is not None and may_rest(before, moved):
                    await asyncio.sleep(GATHER_S)
        except BatchMoved:
            log.info("batch was moved by somebody else", batch=batch.id)
        finally:
            self._busy.discard(batch.id)


async def run_errands(errands: Errands, redis_url: str) -> None:
    """Run the arq worker for ever; it ends when Redis goes away, so it is started again."""
    while True:
        worker = _worker(errands, redis_url)
        try:
            await worker.async_run()
        except (RedisError, OSError) as error:
            log.warning("batches wait for Redis", error=str(error))
            await asyncio.sleep(1.0)
        finally:
            with suppress(RedisError, OSError):
                await worker.close()


def _worker(errands: Errands, redis_url: str) -> Worker:
    every_second = set(range(60))
    timetable = [
        cron(_advance, second=every_second, timeout=ERRAND_S, keep_result=0),
        cron(_deliver, second=every_second, timeout=ERRAND_S, keep_result=0),
        cron(_tidy, minute={5, 20, 35, 50}, second=30, timeout=ERRAND_S, keep_result=0),
    ]
    return Worker(
        functions=[_advance, _deliver, _tidy],
        cron_jobs=timetable,
        redis_pool=ArqRedis(
            connection_pool(redis_url),
            default_queue_name=QUEUE_NAME,
            job_serializer=msgpack.packb,
            job_deserializer=_unpacked,
        ),
        queue_name=QUEUE_NAME,
        ctx={"errands": errands},
        handle_signals=False,
        poll_delay=0.2,
        keep_result=0,
        log_results=False,
        job_serializer=msgpack.packb,
        job_deserializer=_unpacked,
    )


def _unpacked(data: bytes) -> dict[str, Any]:
    unpacked: dict[str, Any] = msgpack.unpackb(data, use_list=True)
    return unpacked


async def _advance(ctx: dict[Any, Any], *_args: Any, **_kwargs: Any) -> None:
    await _run(ctx["errands"].advance())


async def _deliver(ctx: dict[Any, Any], *_args: Any, **_kwargs: Any) -> None:
    await _run(ctx["errands"].deliver())


async def _tidy(ctx: dict[Any, Any], *_args: Any, **_kwargs: Any) -> None:
    await _run(ctx["errands"].tidy())


async def _run(errand: Any) -> None:
    try:
        await errand
    except (QueueUnavailable, RecordUnavailable) as error:
        log.warning("an errand waits", error=str(error))
