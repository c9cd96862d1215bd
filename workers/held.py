"""A job in a worker's hands: which choices run, what they have produced, when; pure.

A resumed job starts from its token log: choices that had finished stay finished, the others go on after their ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scheduler.events import EventType
from scheduler.frames import Chunk, End, Frame, FrameId
from scheduler.queue import Claimed
from workers.engine.sequence import NO_PREFIX, PrefixUse


@dataclass(slots=True)
class Choice:
    """One sequence of a job: the tokens that are in the log or on their way there.

    `has_scores`: so are the log-probabilities of its prompt.
    """

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prefix: PrefixUse = NO_PREFIX
    has_scores: bool = False


class HeldJob:
    """What the consumer knows of one claimed job. Monotonic times are this process's own, in seconds.

    `run` names this claim to the engine, in front of `/<choice>`.
    """

    def __init__(self, claimed: Claimed, log: Sequence[Frame], now_s: float, *, run: str) -> None:
        self.claimed = claimed
        self.run = run
        self.frames: list[tuple[FrameId, tuple[Chunk, ...]]] = []
        self.choices = [Choice() for _ in range(claimed.request.choices)]
        self.ending: EventType | None = None
        self.closing = False
        self.error: tuple[str, str] | None = None
        self.claimed_s = now_s
        self.first_token_s: float | None = None
        self.resumed = bool(log)
        self.counts: dict[str, Any] = {}  # what a provider counted, in place of ours
        for frame in log:
            if not isinstance(frame.body, End):
                self.frames.append((frame.id, frame.body))
                self._apply(frame.body)

    @property
    def id(self) -> str:
        """The job's id."""
        return self.claimed.id

    @property
    def sequence(self) -> int:
        """Of the last frame in the log or on its way there; 0 before the first."""
        return self.frames[-1][0].sequence if self.frames else 0

    @property
    def unfinished(self) -> list[int]:
        """Indices of the choices that the engine still has to run."""
        return [index for index, choice in enumerate(self.choices) if choice.finish_reason is None]

    @property
    def output_tokens(self) -> int:
        """Tokens of all choices and attempts."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def has_spoken(self) -> bool:
        """Is anything of an answer in the log, or on its way there?"""
        return any(chunk.tokens or chunk.text for _, body in self.frames for chunk in body)

    def next_frame(self, chunks: Iterable[Chunk], now_s: float) -> tuple[FrameId, tuple[Chunk, ...]]:
        """Number a step's chunks as the next frame of this job's log and remember them."""
        body = tuple(chunks)
        if self.first_token_s is None and any(chunk.token_ids or chunk.vector or chunk.parts for chunk in body):
            self.first_token_s = now_s
        self.frames.append((FrameId(self.claimed.generation, self.sequence + 1), body))
        self._apply(body)
        return self.frames[-1]

    def ended_choice(self, index: int, prefix: PrefixUse) -> None:
        """What a cache did for a choice that this worker brought to its end."""
        self.choices[index].prefix = prefix

    def count(self, counts: Mapping[str, Any]) -> None:
        """What a provider counted of one choice, added to what it counted of the others."""
        for name, value in counts.items():
            is_number = isinstance(value, int | float)
            self.counts[name] = self.counts.get(name, 0) + value if is_number else value

    def end(self, event: EventType, now_s: float) -> dict[str, Any]:
        """The facts of the terminal event: usage, timings, and why."""
        request = self.claimed.request
        facts: dict[str, Any] = {
            "prompt_tokens": request.prompt_tokens,
            **self._prefix_use(),
            "output_tokens": self.output_tokens,
            "finish_reason": self._finish_reason(event),
            **self.counts,
        }
        if self.first_token_s is not None:
            prefill_ms = (self.first_token_s - self.claimed_s) * 1000
            facts["prefill_ms"] = round(prefill_ms, 3)
            facts["decode_ms"] = round((now_s - self.first_token_s) * 1000, 3)
            if not self.resumed:  # the first token of a resumed job came from an earlier attempt
                queue_ms = self.claimed.claimed_ms - self.claimed.submitted_ms
                facts["ttft_ms"] = round(queue_ms + prefill_ms, 3)
        if self.error is not None:
            facts["error_code"], facts["error"] = self.error
        return facts

    def _prefix_use(self) -> dict[str, int]:
        """Each prompt counts once: answers to the same one share what the first of them has read."""
        n = self.claimed.request.n
        uses = [[choice.prefix for choice in self.choices[at : at + n]] for at in range(0, len(self.choices), n)]
        return {
            "cached_tokens": sum(min(use.read_tokens for use in same) for same in uses),
            "cache_written_tokens": sum(max(use.written_tokens for use in same) for same in uses),
        }

    def _apply(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            choice = self.choices[chunk.index]
            choice.token_ids += chunk.token_ids
            choice.finish_reason = chunk.finish_reason or choice.finish_reason
            choice.has_scores |= chunk.prompt_logprobs is not None

    def _finish_reason(self, event: EventType) -> str:
        if event is not EventType.FINISHED:
            return event.value
        return next((choice.finish_reason for choice in self.choices if choice.finish_reason), "stop")
