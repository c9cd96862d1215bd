"""What a worker says about a job, step by step, and its wire form (msgpack); pure.

A job's token log is a Redis stream of frames with the explicit id `<generation>-<sequence>`; the last one is an End.
Each claim is a generation of its own; sequences count the log's frames from 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import msgpack

from scheduler.jobs import JobState

TokenLogprobs = tuple[tuple[int, float, tuple[tuple[int, float], ...]], ...]
"""Per emitted token: (token id, logprob, the most likely (token id, logprob) pairs)."""

PromptLogprobs = tuple[tuple[int, float | None, tuple[tuple[int, float], ...]], ...]
"""The same per token of a prompt; nothing predicts the first one."""


_FRAME_ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


AnswerPart = tuple[str, str, int, str | None, str | None]
"""A piece of an answer by somebody who tells its kinds apart: kind (reasoning, content, call) and text; of a call its
number from 0, and where it begins its name and id."""

FILTERED = "content_filter"
"""A finish reason that only providers have: they did not want to say more."""

BYTES_PER_TOKEN = 4
"""An estimate, where only the end says how many there were."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text and token ids that one step added to one choice; `finish_reason` (stop, length) ends the choice.

    `vector`: little-endian float32, the whole answer of a model that does not generate. `parts`: what a provider said,
    in place of text and token ids. `prompt_logprobs` come with a choice's first chunk, where they
    were asked for.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: TokenLogprobs | None = None
    finish_reason: str | None = None
    stop_string: str | None = None
    vector: bytes | None = None
    parts: tuple[AnswerPart, ...] | None = None
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def tokens(self) -> int:
        """How many tokens it counts for, before the end has told their number."""
        return len(self.token_ids) + sum(estimated_tokens(part[1]) for part in self.parts or ())


CHUNK_FIELDS = len(fields(Chunk))


@dataclass(frozen=True, slots=True)
class End:
    """The job's terminal frame. `data` holds usage, timings and, where it failed, `error_code` and `error`."""

    state: JobState
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FrameId:
    """Position in a job's token log; also the SSE `id:`. Orders by generation, then sequence."""

    generation: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.generation}-{self.sequence}"

    @staticmethod
    def parse(text: str) -> FrameId:
        """Read `<generation>-<sequence>`. Raises ValueError for anything else."""
        match = _FRAME_ID.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no frame id, invalid where <generation>-<sequence> is wanted")
        return FrameId(int(match[1]), int(match[2]))


START = FrameId(0, 0)
"""Before the first frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One entry of a job's token log."""

    job_id: str
    id: FrameId
    body: tuple[Chunk, ...] | End


def estimated_tokens(text: str) -> int:
    """How many tokens a provider's text may be."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def encode_chunks(chunks: Sequence[Chunk]) -> bytes:
    """To msgpack: a list of [index, ids, text, logprobs, finish_reason, stop_string], and what few chunks have."""
    return bytes(msgpack.packb([_fields(chunk) for chunk in chunks]))


def _fields(c: Chunk) -> tuple[Any, ...]:
    fields = (c.index, c.token_ids, c.text, c.logprobs, c.finish_reason, c.stop_string)
    if c.prompt_logprobs is not None:
        return (*fields, c.vector, c.parts, c.prompt_logprobs)
    if c.parts is not None:
        return (*fields, c.vector, c.parts)
    return fields if c.vector is None else (*fields, c.vector)


def encode_end(end: End) -> bytes:
    """To msgpack: [state, data]."""
    return bytes(msgpack.packb([end.state.value, dict(end.data)]))


def decode_body(data: bytes) -> tuple[Chunk, ...] | End:
    """Inverse of `encode_chunks` and `encode_end`. What newer writers put behind the fields known here is ignored."""
    raw = msgpack.unpackb(data, use_list=False)
    if raw and isinstance(raw[0], str):
        return End(JobState(raw[0]), raw[1])
    return tuple(Chunk(*chunk[:CHUNK_FIELDS]) for chunk in raw)
