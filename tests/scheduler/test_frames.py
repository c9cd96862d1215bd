"""Frames come back from their wire form as they were."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.frames import Chunk, End, FrameId, decode_body, encode_chunks, encode_end
from scheduler.jobs import JobState

ids = st.integers(0, 2**40)
text = st.text(st.characters(codec="utf-8"))
numbers = st.floats(allow_nan=False)
logprobs = st.none() | st.lists(
    st.tuples(ids, numbers, st.lists(st.tuples(ids, numbers), max_size=3).map(tuple)), max_size=3
).map(tuple)
chunks = st.builds(
    Chunk,
    index=st.integers(0, 200),
    token_ids=st.lists(ids, max_size=4).map(tuple),
    text=text,
    logprobs=logprobs,
    finish_reason=st.none() | st.sampled_from(["stop", "length"]),
    stop_string=st.none() | text,
    vector=st.none() | st.binary(max_size=16),
    prompt_logprobs=st.none()
    | st.lists(st.tuples(ids, st.none() | numbers, st.lists(st.tuples(ids, numbers), max_size=3).map(tuple))).map(
        tuple
    ),
)
data = st.dictionaries(text, st.none() | ids | numbers | text)


@given(st.lists(chunks, max_size=4).map(tuple))
def test_chunks_come_back(body: tuple[Chunk, ...]) -> None:
    assert decode_body(encode_chunks(body)) == body


@given(st.sampled_from(JobState), data)
def test_an_end_comes_back(state: JobState, data: dict[str, object]) -> None:
    assert decode_body(encode_end(End(state, data))) == End(state, data)


@given(st.builds(FrameId, ids, ids))
def test_a_frame_id_comes_back(frame_id: FrameId) -> None:
    assert FrameId.parse(str(frame_id)) == frame_id


@pytest.mark.parametrize(
    "text", ["", "1", "-", "a-b", "1-", "1-2-3", "x1-2", "1--2", "-1-2", " 1-2", "1-٣", "1-" + "9" * 20]
)
def test_what_is_no_frame_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid"):
        FrameId.parse(text)


def test_what_a_newer_worker_adds_to_a_chunk_is_ignored() -> None:
    parts = (("content", "a", 0, None, None),)
    chunk = Chunk(0, (1, 2), "ab", None, "stop", None, b"vector", parts, ((1, None, ()),))
    (told,) = msgpack.unpackb(encode_chunks([chunk]))
    assert decode_body(msgpack.packb([[*told, "news", 7]])) == (chunk,)
