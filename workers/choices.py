"""A job's choices in the engine's words, and the engine's chunks in those of the log; pure."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.frames import Chunk as FrameChunk
from scheduler.jobs import Lane
from scheduler.requests import JobRequest
from workers.engine import Chunk, FinishReason, Grammar, GrammarKind, Prompt, SamplingParams, StopRule
from workers.held import HeldJob
from workers.told import Told

PRIORITY = {Lane.HIGH: 1, Lane.NORMAL: 0, Lane.LOW: -1}
"""Whose rows the engine keeps when its memory is short."""


def prompt_for(job: HeldJob, index: int) -> Prompt:
    """One choice as the engine takes it."""
    request = job.claimed.request
    sampling, stopping = request.sampling, request.stopping
    return Prompt(
        id=f"{job.run}/{index}",
        token_ids=request.choice_prompt(index),
        sampling=SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
            seed=request.choice_seed(index),
        ),
        stop=StopRule(
            max_tokens=stopping.max_tokens,
            min_tokens=stopping.min_tokens,
            strings=stopping.strings,
            token_ids=stopping.token_ids,
            ignore_eos=stopping.ignore_eos,
        ),
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs and not job.choices[index].has_scores,
        resume_ids=tuple(job.choices[index].token_ids),
        priority=PRIORITY[job.claimed.lane],
        adapter=request.adapter,
        cache_salt=request.cache_salt,
        second_at=request.choice_second_at(index),
        dimensions=request.dimensions,
        images=request.images,
        grammar=Grammar(GrammarKind(request.grammar.kind), request.grammar.text) if request.grammar else None,
    )


def frame_chunks(job: HeldJob, chunks: Sequence[Chunk]) -> tuple[FrameChunk, ...]:
    """The engine's chunks in the log's words; several steps of one choice become one chunk."""
    merged: dict[int, FrameChunk] = {}
    for chunk in chunks:
        after = _frame_chunk(chunk, job.claimed.request)
        says_nothing = not (after.token_ids or after.text or after.parts or after.finish_reason)
        if job.choices[after.index].finish_reason is not None or says_nothing:
            continue
        before = merged.get(after.index)
        merged[after.index] = after if before is None else _joined(before, after)
    return tuple(merged.values())


def _frame_chunk(chunk: Chunk, request: JobRequest) -> FrameChunk:
    """CANCELLED and ERROR are the job's end, told by the terminal frame, and not a choice's finish reason."""
    reason = chunk.finish_reason if chunk.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) else None
    index, logprobs, scores = choice_of(chunk), None, None
    if chunk.logprobs is not None:
        logprobs = tuple((item.token_id, item.logprob, item.top) for item in chunk.logprobs)
    if chunk.prompt_logprobs is not None:
        scored = ((item.token_id, item.logprob, item.top) for item in chunk.prompt_logprobs)
        scores = ((request.choice_prompt(index)[0], None, ()), *scored)
    ended = reason.value if reason else None
    if isinstance(chunk, Told):
        ended = (ended and chunk.reason) or ended
        return FrameChunk(index, (), "", None, ended, chunk.stop_string, parts=chunk.parts)
    return FrameChunk(
        index,
        chunk.token_ids,
        chunk.text,
        logprobs,
        ended,
        chunk.stop_string,
        chunk.vector,
        prompt_logprobs=scores,
    )


def choice_of(chunk: Chunk) -> int:
    """Which choice of its job a sequence is."""
    return int(chunk.prompt_id.rpartition("/")[2])


def _joined(before: FrameChunk, after: FrameChunk) -> FrameChunk:
    """Two successive chunks of one choice as one."""
    return FrameChunk(
        before.index,
        before.token_ids + after.token_ids,
        before.text + after.text,
        None if after.logprobs is None else (before.logprobs or ()) + after.logprobs,
        after.finish_reason,
        after.stop_string,
        after.vector or before.vector,
        None if after.parts is None else (before.parts or ()) + after.parts,
        before.prompt_logprobs,
    )
