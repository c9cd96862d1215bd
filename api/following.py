"""A job's frames from wherever they are: the live channel and the token log, or the record once the log has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from api.node import Node
from scheduler.errors import FarmError, UnknownJob
from scheduler.frames import START, Frame, FrameId
from scheduler.queue import NewJob
from scheduler.tokens import Backlog

log = structlog.get_logger()

MAX_RESUBMISSIONS = 3


async def frames_of(
    node: Node,
    job_id: str,
    *,
    resubmission: NewJob | None = None,
    expected: Backlog | None = None,
    tick_s: float = 1.0,
) -> AsyncGenerator[Frame | None, None]:
    """All frames of a job, in order, each once, up to and with its End; None after each tick of silence.

    A queue that has lost its memory gets `resubmission` again: seeds make the same text, so that the frames go on
    behind those already seen. `expected`: this node listens since before the submission. Raises UnknownJob,
    RecordUnavailable.
    """
    last = START
    for attempt in range(MAX_RESUBMISSIONS + 1):
        try:
            async with aclosing(node.listener.follow(job_id, last, tick_s, expected=expected)) as frames:
                async for frame in frames:
                    yield frame
                    if frame is not None:
                        last = frame.id
            return
        except UnknownJob:
            expected = None
            if resubmission is None:
                break
            if attempt == MAX_RESUBMISSIONS:
                raise
            await _submit_again(node, resubmission)
    async for frame in _recorded(node, job_id, last, tick_s):
        yield frame


async def _submit_again(node: Node, job: NewJob) -> None:
    """Give a forgotten job to the queue again; a queue that is still away is tried again by the caller's loop."""
    log.warning("the queue has forgotten a job, submitting it again", job=job.id)
    try:
        await node.queue.submit(job)
    except FarmError as error:
        log.warning("could not submit again", job=job.id, error=str(error))
        await asyncio.sleep(1.0)


async def _recorded(node: Node, job_id: str, last: FrameId, tick_s: float) -> AsyncGenerator[Frame | None, None]:
    """The stored frames of an async job; while the queue does not have it yet, ticks and then its live frames."""
    while True:
        durable = await node.store.durable_job(job_id)
        if durable is None or (durable.ended_ms is not None and durable.frames is None):
            raise UnknownJob(job_id)
        if durable.frames is not None:
            for frame in durable.frames:
                if position(frame.id) > position(last):
                    yield frame
            return
        yield None
        await asyncio.sleep(tick_s)
        if await node.queue.snapshot(job_id) is not None:
            async with aclosing(node.listener.follow(job_id, last, tick_s)) as frames:
                async for live in frames:
                    yield live
            return


def position(frame: FrameId) -> tuple[int, int]:
    """For ordering."""
    return (frame.generation, frame.sequence)
