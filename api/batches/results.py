"""Ended jobs as lines of result files, and the files themselves, written whole before anybody sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from api.batch_format import BatchFormat
from api.batches.reading import raw_lines
from api.batches.translation import request_id
from api.errors import ApiError, end_error
from api.job_object import answer_of
from api.node import Node
from scheduler.batches.records import Batch, EndedLine, Line
from scheduler.batches.states import Counts, Outcome
from scheduler.errors import UnknownModel
from scheduler.files import FileStore, IncomingFile, StoredFile, new_file_id
from scheduler.frames import End
from scheduler.jobs import JobState

PAGE_LINES = 500
UNLIMITED_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class Finished:
    """The result files of a batch (None where one would be empty), and its counts with the lines that were dropped."""

    output: StoredFile | None
    errors: StoredFile | None
    counts: Counts


async def settled(node: Node, form: BatchFormat, batch: Batch, line: EndedLine) -> tuple[Line, dict[str, Any]] | None:
    """A line's outcome, and its usage; None while its model has to come back for it. Raises QueueUnavailable."""
    asked_id = request_id(batch, line.number)
    done = Line(line.number, line.custom_id, line.job.id, Outcome.SUCCEEDED)
    try:
        body = await _answer(node, line)
    except UnknownModel:
        return None  # log probabilities need the model's tokenizer
    except ApiError as error:
        if line.state is JobState.EXPIRED:
            dropped = form.dropped(line.custom_id, asked_id, Outcome.EXPIRED)
            return replace(done, outcome=Outcome.EXPIRED, result=dropped), {}
        refused = form.refused(line.custom_id, asked_id, error)
        return replace(done, outcome=Outcome.ERRORED, result=refused), {}
    return replace(done, result=form.answered(line.custom_id, asked_id, body)), body.get("usage") or {}


async def _answer(node: Node, line: EndedLine) -> dict[str, Any]:
    """The whole answer of an ended job. Raises ApiError, UnknownModel, QueueUnavailable."""
    if line.state is not JobState.FINISHED:
        raise end_error(End(line.state, {"error_code": line.error_code, "error": line.error}))
    frames, request = line.job.frames or (), line.job.request
    if request is None or not frames or not isinstance(frames[-1].body, End):
        raise ApiError(500, "The answer was lost with the queue's memory. Send the request again.", code="answer_lost")
    return await answer_of(node, line.job.id, request, frames)


def added_usage(total: dict[str, Any], news: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch's usage, from the answers' own in either protocol's words."""
    counts = {name: int(total.get(name, 0)) for name in ("input", "cached", "output", "reasoning")}
    for usage in news:
        read = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        wrote = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
        # Anthropic's input_tokens are those that the cache neither had nor took
        read_apart, made_apart = (usage.get(f"cache_{what}_input_tokens") or 0 for what in ("read", "creation"))
        counts["input"] += (usage.get("prompt_tokens") or usage.get("input_tokens") or 0) + read_apart + made_apart
        counts["cached"] += (read.get("cached_tokens") or 0) + read_apart
        counts["output"] += usage.get("completion_tokens") or usage.get("output_tokens") or 0
        counts["reasoning"] += wrote.get("reasoning_tokens") or 0
    return counts


async def write_files(
    node: Node, form: BatchFormat, batch: Batch, rest: Outcome | None, line_limit_bytes: int
) -> Finished:
    """Every line's result, each once; lines that never became jobs get `rest`, None leaves them out as errors.

    What is written is on the disk when this returns; the rows that name it are for the caller to commit. Raises
    InputGone where such lines cannot be read.
    """
    writer = _Writer(node.files, form)
    try:
        after = 0
        while lines := await node.batches.results(batch.id, after, PAGE_LINES):
            await asyncio.to_thread(writer.write, lines)
            after = lines[-1].number
        never = batch.counts.waiting
        if rest is not None:
            path = node.files.path(batch.input_file_id)
            never = await asyncio.to_thread(writer.drop_rest, path, batch, rest, line_limit_bytes)
        output, errors = await asyncio.to_thread(writer.publish, batch)
    finally:
        writer.close()
    return Finished(
        output, errors, replace(batch.counts.plus(rest or Outcome.ERRORED, never), taken=batch.counts.total)
    )


class _Writer:
    """The two files while they are written; blocks."""

    def __init__(self, files: FileStore, form: BatchFormat) -> None:
        self._files = files
        self._form = form
        self._output = files.receive(UNLIMITED_BYTES)
        self._errors = files.receive(UNLIMITED_BYTES) if form.separates_errors else self._output

    def write(self, lines: Sequence[Line]) -> None:
        """Append results."""
        for line in lines:
            if line.result is not None:
                target = self._output if line.outcome is Outcome.SUCCEEDED else self._errors
                target.write(line.result + b"\n")

    def drop_rest(self, path: Path, batch: Batch, outcome: Outcome, limit_bytes: int) -> int:
        """Lines that were never taken; return how many."""
        never = 0
        if batch.counts.waiting:
            for line in raw_lines(path, batch.next_offset, limit_bytes):
                never += 1
                custom_id = self._form.read(line.raw, batch.endpoint).custom_id
                asked_id = request_id(batch, batch.counts.taken + never)
                self._errors.write(self._form.dropped(custom_id, asked_id, outcome) + b"\n")
        return never

    def publish(self, batch: Batch) -> tuple[StoredFile | None, StoredFile | None]:
        """Bring what has content under names."""
        output = self._published(batch, self._output, "output")
        if self._errors is self._output:
            return output, None
        return output, self._published(batch, self._errors, "error")

    def _published(self, batch: Batch, incoming: IncomingFile, what: str) -> StoredFile | None:
        if not incoming.size_bytes:
            return None
        now_ms = time.time_ns() // 1_000_000
        file = StoredFile(
            id=new_file_id(),
            tenant=batch.tenant,
            purpose=self._form.result_purpose,
            filename=f"{batch.id}_{what}.jsonl",
            size_bytes=incoming.size_bytes,
            sha256=incoming.sha256,
            created_ms=now_ms,
            expires_ms=now_ms + round(float(batch.options["result_ttl_s"]) * 1000),
        )
        self._files.publish(file, incoming)
        return file

    def close(self) -> None:
        """Forget what was not published."""
        self._output.discard()
        self._errors.discard()
