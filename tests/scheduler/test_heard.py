"""Whatever frames a log is cut into, and wherever the first cut was lost: everything is told once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import AnswerDiverged
from scheduler.frames import Chunk, End, Frame, FrameId
from scheduler.heard import Heard
from scheduler.jobs import JobState

TEXTS = ["He", "", "llo", " ", "", "wor", "ld", "!"]
"""What each token adds: text held back comes with a later token."""


def chunk(index: int, start: int, stop: int) -> Chunk:
    """Tokens `start`..`stop` of a choice."""
    logprobs = tuple((token, -0.5, ()) for token in range(start, stop))
    reason = "stop" if stop == len(TEXTS) else None
    return Chunk(index, tuple(range(start, stop)), "".join(TEXTS[start:stop]), logprobs, reason)


@st.composite
def logs(draw: st.DrawFn, choices: int = 2) -> list[Frame]:
    """A whole log: the same tokens, cut and mixed in any way."""
    generation = draw(st.integers(1, 5))
    reached = dict.fromkeys(range(choices), 0)
    frames: list[Frame] = []
    while min(reached.values()) < len(TEXTS):
        open_choices = [index for index, at in reached.items() if at < len(TEXTS)]
        body = []
        for index in draw(st.lists(st.sampled_from(open_choices), min_size=1, unique=True)):
            stop = draw(st.integers(reached[index] + 1, len(TEXTS)))
            body.append(chunk(index, reached[index], stop))
            reached[index] = stop
        frames.append(Frame("0-job", FrameId(generation, len(frames) + 1), tuple(body)))
    return [*frames, Frame("0-job", FrameId(generation, len(frames) + 1), End(JobState.FINISHED))]


def told(heard: Heard, frames: Sequence[Frame]) -> list[Chunk]:
    news = [heard.news(frame) for frame in frames]
    return [chunk for frame in news if frame is not None and not isinstance(frame.body, End) for chunk in frame.body]


def summed(chunks: Sequence[Chunk], index: int) -> tuple[Any, ...]:
    mine = [chunk for chunk in chunks if chunk.index == index]
    return (
        [token for chunk in mine for token in chunk.token_ids],
        "".join(chunk.text for chunk in mine),
        [entry for chunk in mine for entry in chunk.logprobs or ()],
        [chunk.finish_reason for chunk in mine if chunk.finish_reason],
    )


@given(st.lists(st.tuples(logs(), st.floats(0, 1)), min_size=1, max_size=3), logs())
def test_everything_is_told_once(lost: list[tuple[list[Frame], float]], last: list[Frame]) -> None:
    heard, chunks = Heard(), []
    for log, share in lost:
        chunks += told(heard, log[: int(share * (len(log) - 1))])
        heard.rewind()
    chunks += told(heard, last)
    whole = [chunk(index, 0, len(TEXTS)) for index in range(2)]
    for index in range(2):
        assert summed(chunks, index) == summed(whole, index)
    assert heard.last == last[-1].id


@given(logs(choices=1), st.integers(0, len(TEXTS) - 2))
def test_other_tokens_than_those_told_are_noticed(log: list[Frame], at: int) -> None:
    heard = Heard()
    told(heard, [Frame("0-job", FrameId(9, 1), (chunk(0, 0, len(TEXTS) - 1),))])
    heard.rewind()

    def changed(part: Chunk) -> Chunk:
        ids = tuple(token + 100 * (token == at) for token in part.token_ids)
        return Chunk(part.index, ids, part.text, part.logprobs, part.finish_reason)

    other = [
        frame if isinstance(frame.body, End) else Frame(frame.job_id, frame.id, tuple(map(changed, frame.body)))
        for frame in log
    ]
    with pytest.raises(AnswerDiverged, match="0-job"):
        told(heard, other)
