"""Rows of a model that sees: prompts are read one after the other, and all rows that were read decode together.

Only networks and batch caches are mlx-vlm's; what is sampled, and who joins and leaves when, is decided here.
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
from workers.vision.seeing import Company, Seeing, Sight

DECODED_AHEAD = 2
"""Prompts of the line whose images are decoded before their turn."""

_PROMPT_ERRORS = (ValueError, TypeError, LookupError, AttributeError)
"""What mlx-vlm raises for tokens and images that do not belong together."""


@dataclass(slots=True)
class Row:
    """A row that has begun; `output` are its tokens so far, those of an earlier attempt before."""

    sequence: Sequence
    sampler: RowSampler
    output: list[int]

    @property
    def id(self) -> str:
        """Of its prompt."""
        return self.sequence.prompt.id


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
        self._reading: tuple[Row, Sight] | None = None
        self._speaking: list[Row] = []
        self._company = Company(seeing)  # of those who speak, in their order
        self._decoders = ThreadPoolExecutor(DECODED_AHEAD, thread_name_prefix="images")
        self._prompt_tokens = 0

    def stats(self) -> RunnerStats:
        caches, prefilling = [*self._company.cache], dict[str, tuple[int, int]]()
        if self._reading is not None:
            row, sight = self._reading
            total = len(row.sequence.input_ids)
            prefilling[row.id] = total - sight.unread_tokens, total
            caches += sight.cache
        return RunnerStats(
            backend="vision",
            waiting=len(self._line),
            prefilling=prefilling,
            kv_bytes=sum(int(getattr(cache, "nbytes", 0)) for cache in caches),
            prompt_tokens_total=self._prompt_tokens,
        )

    def remove(self, row_ids: Collection[str]) -> None:
        """Drop rows at any stage; unknown ids are ignored."""
        for row_id in row_ids:
            self._line.pop(row_id, None)
            if future := self._decoding.pop(row_id, None):
                future.cancel()
        if self._reading is not None and self._reading[0].id in row_ids:
            self._reading = None
        staying = [place for place, row in enumerate(self._speaking) if row.id not in row_ids]
        if len(staying) < len(self._speaking):
            self._company.keep(staying)
            self._speaking = [self._speaking[place] for place in staying]

    def step(self) -> list[RowToken]:
        """The next token of every row that has read its prompt, and a part of the prompt of one that has not."""
        tokens = self._speak()
        first = None
        try:
            self._reading = self._reading or self._begin()
            if self._reading is not None:
                first = self._read(*self._reading)
        except (ImageRefused, Undecodable, *_PROMPT_ERRORS) as error:
            row_id = self._reading[0].id if self._reading else next(iter(self._line))
            tokens.append(RowToken(row_id, 0, None, f"the images do not fit the prompt: {error}", Fault.PROMPT))
        if first is not None and self._reading is not None:
            row, sight = self._reading
            self._company.join(sight)
            self._speaking.append(row)
            self._reading = None
            tokens.append(first)
        return tokens

    def close(self) -> None:
        reading = [] if self._reading is None else [self._reading[0]]
        self.remove([*self._line, *(row.id for row in (*reading, *self._speaking))])
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _speak(self) -> list[RowToken]:
        """The next token of all rows that have read their prompts, by one forward."""
        if not self._speaking:
            return []
        logits = self._company.next_logits([row.output[-1] for row in self._speaking])
        drawn = [(row, *self._draw(row, logits[at : at + 1])) for at, row in enumerate(self._speaking)]
        mx.async_eval([part for _, *parts in drawn for part in parts])  # type: ignore[no-untyped-call]
        return [_taken(row, token, logprobs) for row, token, logprobs in drawn]

    def _begin(self) -> tuple[Row, Sight] | None:
        """The next row, once its images are decoded; nobody who has begun waits for that."""
        for row_id, sequence in islice(self._line.items(), DECODED_AHEAD):
            if row_id not in self._decoding:
                self._decoding[row_id] = self._decoders.submit(decode, sequence.prompt.images)
        if not self._line or len(self._speaking) >= self._capacity:
            return None
        row_id, sequence = next(iter(self._line.items()))
        if self._speaking and not self._decoding[row_id].done():
            return None
        images = self._decoding[row_id].result()
        self._seeing.check(sequence.prompt.token_ids, images)
        inputs = self._seeing.inputs(images)
        sight = Sight(self._seeing, sequence.prompt.token_ids, inputs, sequence.prompt.resume_ids)
        sampler = RowSampler(sequence.prompt, sequence.end_ids, self._vocab_size)
        del self._line[row_id], self._decoding[row_id]
        self._prompt_tokens += len(sequence.input_ids)
        return Row(sequence, sampler, [*sequence.prompt.resume_ids]), sight

    def _read(self, row: Row, sight: Sight) -> RowToken | None:
        """A part of the prompt; the row's first token behind its end."""
        sight.read(self._step_tokens)
        if sight.unread_tokens > 1:
            return None
        return _taken(row, *self._draw(row, sight.last_logits()))

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
    token_id = int(token)
    row.output.append(token_id)
    [chosen] = as_floats(logprobs[0, token_id : token_id + 1])
    error = NOT_FINITE if math.isnan(chosen) else row.sampler.error or _refused(row, token_id)
    logprob = None if error else row.sampler.take_logprob(token_id, logprobs)
    return RowToken(row.id, token_id, logprob, error)


def _refused(row: Row, token: int) -> str | None:
    """Tell the row's guide, and what it objects to."""
    if row.sequence.guide is not None:
        try:
            row.sequence.guide.accept(token)
        except GuideFailed as failure:
            return str(failure)
    return None
