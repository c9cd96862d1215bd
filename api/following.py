"""A job's frames from wherever they are: the live channel and the token log, or the record once the log has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

import structlog

from api.node import Node
from scheduler.errors import FarmError, UnknownJob
from scheduler.frames import START, End, Frame, FrameId
from scheduler.heard import Heard
from scheduler.queue import NewJob
from scheduler.tokens import Backlog

log = structlog.get_logger()

MAX_RESUBMISSIONS = 3
"""In a row, without a frame of the job in between."""


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
    behind what was heard. `expected`: this node listens since before the submission. Raises UnknownJob,
    RecordUnavailable, AnswerDiverged.
    """
    heard, attempts = Heard(), 0
    while True:
        try:
            async with aclosing(node.listener.follow(job_id, heard, tick_s, expected=expected)) as frames:
                async for frame in frames:
                    if frame is not None:
                        attempts = 0
                        if resubmission is not None and isinstance(frame.body, End):
                            node.told.hear(resubmission, frame.body)
                    yield frame
            return
        except UnknownJob:
            expected = None
            if resubmission is None:
                break
            if attempts == MAX_RESUBMISSIONS:
                raise
            attempts += 1
            await _submit_again(node, resubmission)
    async for frame in _recorded(node, job_id, heard, tick_s):
        yield frame


async def _submit_again(node: Node, job: NewJob) -> None:
    """Give a forgotten job to the queue again; a queue that is still away is tried again by the caller's loop."""
    log.warning("the queue has forgotten a job, submitting it again", job=job.id)
    try:
        await node.queue.submit(job)
    except FarmError as error:
        log.warning("could not submit again", job=job.id, error=str(error))
        await asyncio.sleep(1.0)


async def _recorded(node: Node, job_id: str, heard: Heard, tick_s: float) -> AsyncGenerator[Frame | None, None]:
    """The stored frames of an async job; while the queue does not have it yet, ticks and then its live frames."""
    while True:
        durable = await node.store.durable_job(job_id)
        if durable is None or (durable.ended_ms is not None and durable.frames is None):
            raise UnknownJob(job_id)
        if durable.frames is not None:
            for frame in unheard(durable.frames, heard):
                yield frame
            return
        yield None
        await asyncio.sleep(tick_s)
        if await node.queue.snapshot(job_id) is not None:
            async with aclosing(node.listener.follow(job_id, heard, tick_s)) as frames:
                async for live in frames:
                    yield live
            return


def unheard(log: Sequence[Frame], heard: Heard) -> Iterator[Frame]:
    """The part of a whole log that was not told yet."""
    if heard.last != START and all(frame.id != heard.last for frame in log):
        heard.rewind()
    for frame in log:
        if position(frame.id) > position(heard.last) and (news := heard.news(frame)) is not None:
            yield news


def position(frame: FrameId) -> tuple[int, int]:
    """For ordering."""
    return (frame.generation, frame.sequence)
