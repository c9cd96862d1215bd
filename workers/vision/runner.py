"""Rows of a model that sees: prompts are read one after the other, and all rows that were read decode in turns.

Every row has a forward of its own. Batches of mlx-vlm share positions and masks among rows, which its issues show to
corrupt each other; a row's output here cannot depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import mlx.core as mx
import numpy as np
from PIL import Image

from scheduler.images import ImageRefused
from workers.decoding import Undecodable, decode
from workers.engine.guided import GuideFailed
from workers.engine.runner import NOT_FINITE, RowLine, RowToken, RunnerStats
from workers.engine.sampling import RowSampler, as_floats
from workers.engine.sequence import Fault, Sequence
from workers.vision.seeing import Seeing, Sight

DECODED_AHEAD = 2
"""Prompts of the line whose images are decoded before their turn."""

_PROMPT_ERRORS = (ValueError, TypeError, LookupError, AttributeError)
"""What mlx-vlm raises for tokens and images that do not belong together."""


@dataclass(slots=True)
class Row:
    """A row that has begun; `token` is its last one, None while the prompt is being read."""

    sequence: Sequence
    sampler: RowSampler
    sight: Sight
    output: list[int]
    token: int | None = None


class VisionRunner(RowLine):
    """At most `capacity` rows have begun. A step reads up to `step_tokens` of one prompt and draws a token per row."""

    capacity_tokens = None
    obeys_grammars = True

    def __init__(self, seeing: Seeing, *, vocab_size: int, capacity: int, step_tokens: int) -> None:
        super().__init__()
        self._seeing = seeing
        self._vocab_size = vocab_size
        self._capacity = capacity
        self._step_tokens = step_tokens
        self._decoding: dict[str, Future[list[Image.Image]]] = {}  # images of the first of them
        self._rows: dict[str, Row] = {}
        self._decoders = ThreadPoolExecutor(DECODED_AHEAD, thread_name_prefix="images")
        self._prompt_tokens = 0

    def stats(self) -> RunnerStats:
        caches = [cache for row in self._rows.values() for cache in row.sight.cache]
        return RunnerStats(
            backend="vision",
            waiting=len(self._line),
            prefilling={row_id: _progress(row) for row_id, row in self._rows.items() if row.token is None},
            kv_bytes=sum(int(getattr(cache, "nbytes", 0)) for cache in caches),
            prompt_tokens_total=self._prompt_tokens,
        )

    def remove(self, row_ids: Collection[str]) -> None:
        """Drop rows at any stage; unknown ids are ignored."""
        for row_id in row_ids:
            self._line.pop(row_id, None)
            self._rows.pop(row_id, None)
            if future := self._decoding.pop(row_id, None):
                future.cancel()

    def step(self) -> list[RowToken]:
        """The next token of every row that has read its prompt, and a part of the prompt of one that has not."""
        reading = next((row for row in self._rows.values() if row.token is None), None)
        begun = [row for row in self._rows.values() if row is not reading]
        drawn = [(row, *self._draw(row, row.sight.next_logits(row.token or 0))) for row in begun]
        mx.async_eval([part for _, *parts in drawn for part in parts])  # type: ignore[no-untyped-call]
        tokens = [_taken(row, token, logprobs) for row, token, logprobs in drawn]
        try:
            reading = reading or self._begin()
            if reading is not None:
                tokens += self._read(reading)
        except (ImageRefused, Undecodable, *_PROMPT_ERRORS) as error:
            row_id = reading.sequence.prompt.id if reading else next(iter(self._line))
            tokens.append(RowToken(row_id, 0, None, f"the images do not fit the prompt: {error}", Fault.PROMPT))
        return tokens

    def close(self) -> None:
        self.remove([*self._line, *self._rows])
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> Row | None:
        """The next row, once its images are decoded; nobody who has begun waits for that."""
        for row_id, sequence in islice(self._line.items(), DECODED_AHEAD):
            if row_id not in self._decoding:
                self._decoding[row_id] = self._decoders.submit(decode, sequence.prompt.images)
        if not self._line or len(self._rows) >= self._capacity:
            return None
        row_id, sequence = next(iter(self._line.items()))
        if self._rows and not self._decoding[row_id].done():
            return None
        images = self._decoding[row_id].result()
        self._seeing.check(sequence.prompt.token_ids, images)
        inputs = self._seeing.inputs(images)
        sight = Sight(self._seeing, sequence.prompt.token_ids, inputs, sequence.prompt.resume_ids)
        row = Row(
            sequence,
            RowSampler(sequence.prompt, sequence.end_ids, self._vocab_size),
            sight,
            [*sequence.prompt.resume_ids],
        )
        del self._line[row_id], self._decoding[row_id]
        self._rows[row_id] = row
        self._prompt_tokens += len(sequence.input_ids)
        return row

    def _read(self, row: Row) -> list[RowToken]:
        row.sight.read(self._step_tokens)
        if row.sight.unread_tokens > 1:
            return []
        return [_taken(row, *self._draw(row, row.sight.last_logits()))]

    def _draw(self, row: Row, logits: mx.array) -> tuple[mx.array, mx.array]:
        """The next token (1,), and the log-probabilities (1, vocabulary) of all of them."""
        context = [*row.sequence.prompt.token_ids, *row.output]
        for process in row.sampler.processors:
            logits = process(mx.array(context), logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if row.sequence.guide is None:
            return row.sampler.sampler(logprobs), logprobs
        bits = np.unpackbits(row.sequence.guide.mask().view(np.uint8), bitorder="little")
        allowed = mx.array(bits[None, : self._vocab_size].astype(bool))
        masked = mx.where(allowed, logits, -mx.inf)
        return row.sampler.sampler(masked - mx.logsumexp(masked, axis=-1, keepdims=True)), logprobs


def _taken(row: Row, drawn: mx.array, logprobs: mx.array) -> RowToken:
    [token] = as_floats(drawn)
    row.token = int(token)
    row.output.append(row.token)
    [chosen] = as_floats(logprobs[0, row.token : row.token + 1])
    error = NOT_FINITE if math.isnan(chosen) else row.sampler.error or _refused(row, row.token)
    logprob = None if error else row.sampler.take_logprob(row.token, logprobs)
    return RowToken(row.sequence.prompt.id, row.token, logprob, error)


def _refused(row: Row, token: int) -> str | None:
    """Tell the row's guide, and what it objects to."""
    if row.sequence.guide is not None:
        try:
            row.sequence.guide.accept(token)
        except GuideFailed as failure:
            return str(failure)
    return None


def _progress(row: Row) -> tuple[int, int]:
    total = len(row.sequence.input_ids)
    return total - row.sight.unread_tokens, total
