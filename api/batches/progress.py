"""Moving one batch on: a step at a time, each a transaction of its own, so that any process may die or repeat it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog

from api.batch_format import BatchFormat
from api.batches.formats import format_of
from api.batches.reading import InputGone, take_lines, validate
from api.batches.results import Finished, added_usage, settled, write_files
from api.batches.translation import ModelAway, job_of, request_id, served_models
from api.errors import ApiError
from api.node import Node
from scheduler.batches.records import Batch, Line
from scheduler.batches.states import BatchState, Counts, Outcome, lines_to_take, next_state
from scheduler.errors import QueueFull, QueueUnavailable
from scheduler.outbox import Webhook, webhook
from scheduler.queue import NewJob
from scheduler.settings import BatchSettings

log = structlog.get_logger()

TAKEN_AT_ONCE = 64
"""Lines that one step makes jobs of, and bytes of the input that it reads for that."""
TAKEN_BYTES = 16 * 2**20
SETTLED_AT_ONCE = 64
"""Lines that one step gives their outcomes."""


def may_rest(before: Batch, after: Batch) -> bool:
    """Has a step done all that there was to do, and what comes next is better done together, a little later?"""
    settled, taken = after.counts.done - before.counts.done, after.counts.taken - before.counts.taken
    return before.state is after.state and settled < SETTLED_AT_ONCE and taken < TAKEN_AT_ONCE


class Progress:
    """Moves batches. Raises BatchMoved where somebody else was first, QueueUnavailable, RecordUnavailable."""

    def __init__(self, node: Node, settings: BatchSettings) -> None:
        self._node = node
        self._settings = settings

    async def step(self, batch: Batch) -> Batch | None:
        """The batch after one step; None when there is nothing to do now."""
        form = format_of(batch.protocol)
        try:
            return await self._step(batch, form)
        except InputGone:
            return await self._fail(batch, form)

    async def _step(self, batch: Batch, form: BatchFormat) -> Batch | None:
        match batch.state:
            case BatchState.VALIDATING:
                return await self._validate(batch, form)
            case BatchState.IN_PROGRESS:
                settled = await self._settle(batch, form)
                return await self._go_on(settled or batch, form) or settled
            case BatchState.CANCELLING:
                return await self._settle(batch, form) or await self._finish(batch, form, Outcome.CANCELED)
            case BatchState.FINALIZING:
                return await self._finish(batch, form, Outcome.EXPIRED)
            case _:
                return None

    async def _validate(self, batch: Batch, form: BatchFormat) -> Batch:
        settings = self._settings
        found = await asyncio.to_thread(
            validate,
            self._node.files.path(batch.input_file_id),
            form,
            batch.endpoint,
            max_requests=settings.batch_max_requests,
            line_limit_bytes=settings.body_limit_bytes,
        )
        if found.errors:
            news = _news(batch, BatchState.FAILED)
            return await self._node.batches.end(batch, BatchState.FAILED, [], news, errors={"data": found.errors})
        models = {"asked": found.models, "served": await served_models(self._node, batch.tenant, found.models)}
        return await self._node.batches.move(
            batch, BatchState.IN_PROGRESS, counts=Counts(total=found.total), models=models
        )

    async def _settle(self, batch: Batch, form: BatchFormat) -> Batch | None:
        """Lines whose jobs have ended get their outcomes."""
        done: list[Line] = []
        usage: list[dict[str, Any]] = []
        for ended in await self._node.batches.ended_lines(batch.id, SETTLED_AT_ONCE):
            found = await settled(self._node, form, batch, ended)
            if found is not None:
                done.append(found[0])
                usage.append(found[1])
        if not done:
            return None
        return await self._node.batches.settle(batch, done, added_usage(batch.usage, usage))

    async def _go_on(self, batch: Batch, form: BatchFormat) -> Batch | None:
        """More lines become jobs, or the batch goes to its end."""
        state = next_state(batch.state, batch.counts, now_ms=_now_ms(), expires_ms=batch.expires_ms)
        if state is not batch.state:
            return await self._node.batches.move(batch, state)
        count = lines_to_take(batch.counts, window=self._settings.batch_window, at_once=TAKEN_AT_ONCE)
        return await self._take(batch, form, count) if count else None

    async def _take(self, batch: Batch, form: BatchFormat, count: int) -> Batch | None:
        path, limit_bytes = self._node.files.path(batch.input_file_id), self._settings.body_limit_bytes
        lines: list[Line] = []
        jobs: list[NewJob] = []
        offset = batch.next_offset
        raw_lines = await asyncio.to_thread(take_lines, path, offset, count, limit_bytes, most_bytes=TAKEN_BYTES)
        for number, raw_line in enumerate(raw_lines, batch.counts.taken + 1):
            request = form.read(raw_line.raw, batch.endpoint)
            try:
                job = await job_of(self._node, batch, number, request, _now_ms())
            except ModelAway as away:
                log.warning("a batch waits for its model", batch=batch.id, line=number, why=str(away))
                break
            except ApiError as error:
                refused = form.refused(request.custom_id, request_id(batch, number), error)
                lines.append(Line(number, request.custom_id, None, Outcome.ERRORED, refused))
            else:
                lines.append(Line(number, request.custom_id, job.id))
                jobs.append(job)
            offset = raw_line.end
        if not lines:
            return None
        taken = await self._node.batches.take(batch, lines, jobs, offset)
        await self._submit(jobs)
        return taken

    async def _submit(self, jobs: list[NewJob]) -> None:
        """Tell the queue; what it does not take now, the relay gives it later."""
        known: list[str] = []
        try:
            for job in jobs:
                await self._node.queue.submit(job)
                known.append(job.id)
        except (QueueUnavailable, QueueFull) as error:
            log.warning("lines are relayed later", lines=len(jobs) - len(known), error=str(error))
        if known:
            await self._node.store.relayed(*known)

    async def _finish(self, batch: Batch, form: BatchFormat, rest: Outcome) -> Batch:
        """Drop what is open, write the files, end."""
        if lines := await self._node.batches.open_lines(batch.id):
            return await self._drop(batch, form, lines, rest)
        finished = await write_files(self._node, form, batch, rest, self._settings.body_limit_bytes)
        state = next_state(batch.state, finished.counts, now_ms=_now_ms(), expires_ms=batch.expires_ms)
        return await self._end(batch, state, finished)

    async def _fail(self, batch: Batch, form: BatchFormat) -> Batch | None:
        """The input is gone: what has been taken from it is finished, the rest nobody knows any more."""
        if not self._node.files.folder.is_dir():
            log.warning("a batch waits for the folder of files", batch=batch.id, folder=str(self._node.files.folder))
            return None
        lines = await self._node.batches.open_lines(batch.id)
        if lines and batch.state is BatchState.IN_PROGRESS:
            return None  # their jobs end by themselves
        if lines:
            cancelled = batch.state is BatchState.CANCELLING
            return await self._drop(batch, form, lines, Outcome.CANCELED if cancelled else Outcome.EXPIRED)
        text = f"The content of {batch.input_file_id} was removed before it had been read to its end"
        if batch.counts.total:
            text += f": {batch.counts.waiting} of {batch.counts.total} requests are lost"
        log.error("a batch lost its input", batch=batch.id, file=batch.input_file_id)
        finished = await write_files(self._node, form, batch, None, self._settings.body_limit_bytes)
        error = {"code": "input_file_gone", "message": f"{text}.", "line": None, "param": "input_file_id"}
        return await self._end(batch, BatchState.FAILED, finished, errors={"data": [error]})

    async def _drop(self, batch: Batch, form: BatchFormat, lines: list[Line], outcome: Outcome) -> Batch:
        """Jobs that will not be waited for."""
        for line in lines:
            if line.job_id is not None:
                await self._node.queue.cancel(line.job_id, "batch")
        return await self._node.batches.settle(
            batch, [_dropped(form, batch, line, outcome) for line in lines], batch.usage
        )

    async def _end(self, batch: Batch, state: BatchState, finished: Finished, **changes: Any) -> Batch:
        """The last move. Files of a move that turns out to be void are nobody's, and swept."""
        return await self._node.batches.end(
            batch,
            state,
            [file for file in (finished.output, finished.errors) if file is not None],
            _news(batch, state),
            counts=finished.counts,
            output_file_id=finished.output.id if finished.output else None,
            error_file_id=finished.errors.id if finished.errors else None,
            **changes,
        )


def _dropped(form: BatchFormat, batch: Batch, line: Line, outcome: Outcome) -> Line:
    result = form.dropped(line.custom_id, request_id(batch, line.number), outcome)
    return Line(line.number, line.custom_id, line.job_id, outcome, result)


def _news(batch: Batch, state: BatchState) -> Webhook | None:
    """What a webhook tells of an end."""
    url = batch.options.get("webhook")
    return webhook(batch.tenant, url, f"batch.{state.value}", {"id": batch.id}) if url else None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
