"""What one follower of a job was told, so that it is told all of it once, also after the log was written again; pure.

A queue that loses its last second (power loss, failover) may lose frames that a client has already read. Another worker
then writes them again, cut into other frames: only the positions inside each choice, in tokens and characters, still
mean the same. The text of a position is the same in both, because every job has a seed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from scheduler.errors import AnswerDiverged
from scheduler.frames import START, Chunk, End, Frame, FrameId


@dataclass(slots=True)
class _Reach:
    """How far one choice goes. `digest` stands for its token ids, in order."""

    tokens: int = 0
    characters: int = 0
    digest: int = 0
    ended: bool = False

    def add(self, chunk: Chunk) -> None:
        self.tokens += len(chunk.token_ids)
        self.characters += len(chunk.text)
        for token_id in chunk.token_ids:
            self.digest = hash((self.digest, token_id))
        self.ended = self.ended or chunk.finish_reason is not None


class Heard:
    """Follows one job's log. `last` is the frame read last: what comes next must stand behind it."""

    __slots__ = ("_again", "_told", "last")

    def __init__(self, last: FrameId = START) -> None:
        self.last = last
        self._told: dict[int, _Reach] = defaultdict(_Reach)
        self._again: dict[int, _Reach] | None = None  # how far a log that was written again has been read

    def rewind(self) -> None:
        """The log does not hold `last` any more: it will be read from its start, and what was told is left out."""
        self.last = START
        self._again = defaultdict(_Reach)

    def news(self, frame: Frame) -> Frame | None:
        """The part of the next frame that was not told yet; None when all of it was. An End is always news.

        Raises AnswerDiverged when the log now has other tokens where some were told.
        """
        self.last = frame.id
        if isinstance(frame.body, End):
            return frame
        if self._again is None:
            for chunk in frame.body:
                self._told[chunk.index].add(chunk)
            return frame
        fresh = [part for chunk in frame.body if (part := self._beyond(frame.job_id, chunk, self._again)) is not None]
        return replace(frame, body=tuple(fresh)) if fresh else None

    def _beyond(self, job_id: str, chunk: Chunk, again: dict[int, _Reach]) -> Chunk | None:
        """The part of a chunk behind what was told of its choice."""
        told, reach = self._told[chunk.index], again[chunk.index]
        known_tokens = min(max(0, told.tokens - reach.tokens), len(chunk.token_ids))
        known_characters = min(max(0, told.characters - reach.characters), len(chunk.text))
        was_known = reach.tokens < told.tokens
        reach.add(replace(chunk, token_ids=chunk.token_ids[:known_tokens]))
        if was_known and reach.tokens == told.tokens and reach.digest != told.digest:
            raise AnswerDiverged(job_id)
        rest = replace(
            chunk,
            token_ids=chunk.token_ids[known_tokens:],
            text=chunk.text[known_characters:],
            logprobs=None if chunk.logprobs is None else chunk.logprobs[known_tokens:],
            finish_reason=None if told.ended else chunk.finish_reason,
            prompt_logprobs=None if told.tokens or told.ended else chunk.prompt_logprobs,
        )
        reach.add(replace(rest, text=""))
        if not (rest.token_ids or rest.text or rest.finish_reason):
            return None
        told.add(rest)
        return rest
