"""What providers send, read into parts of an answer: however the bytes are cut, and whatever they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.frames import AnswerPart
from scheduler.providers import TokenUse
from tests.workers.providers.stand_in import (
    anthropic_answer,
    call_block,
    openai_answer,
    openai_calls,
    sse,
    text_block,
    thinking_block,
)
from workers.providers.anthropic import AnthropicStream
from workers.providers.engine import joined
from workers.providers.openai import OpenAiStream
from workers.providers.saying import AnswerStream, Finish, Garbage, ProviderFailed
from workers.providers.sse import EventReader, SseEvent

Stream = Callable[[], AnswerStream]

texts = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4)
OPENAI = texts.map(
    lambda said: b"".join([*openai_calls(("a", "f", ['{"x":', "1}"]), thought=said[0]), *openai_answer(*said)])
)
ANTHROPIC = texts.map(
    lambda said: b"".join(
        anthropic_answer(
            thinking_block(*said), text_block(*said), call_block("a", "f", '{"x"', ":1}"), call_block("b", "g")
        )
    )
)
ANSWERS = st.one_of(OPENAI.map(lambda data: (OpenAiStream, data)), ANTHROPIC.map(lambda data: (AnthropicStream, data)))


def read(stream: Stream, pieces: Sequence[bytes]) -> tuple[tuple[AnswerPart, ...], Finish]:
    reader = stream()
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return joined(parts), reader.close()


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@given(
    answer=ANSWERS, places=st.lists(st.integers(0, 10**6), max_size=30), ends=st.sampled_from([b"\n", b"\r\n", b"\r"])
)
def test_any_cut_of_the_bytes_gives_the_same_parts(
    answer: tuple[Stream, bytes], places: list[int], ends: bytes
) -> None:
    stream, data = answer
    data = data.replace(b"\n", ends) + (b"\n" if ends == b"\r" else b"")
    assert read(stream, cut(data, places)) == read(stream, [data]) == read(stream, cut(data, range(len(data))))


@given(answer=ANSWERS, length=st.floats(0, 0.999))
def test_an_answer_that_was_cut_off_is_never_taken_for_a_whole_one(answer: tuple[Stream, bytes], length: float) -> None:
    stream, data = answer
    last = data.rindex(b"message_stop") if stream is AnthropicStream else data.index(b'"finish_reason"')
    with pytest.raises(ProviderFailed):
        read(stream, [data[: min(int(len(data) * length), last)]])


@given(data=st.binary(max_size=200), stream=st.sampled_from([OpenAiStream, AnthropicStream]))
def test_no_bytes_bring_a_reader_down(data: bytes, stream: Stream) -> None:
    with pytest.raises(ProviderFailed):
        read(stream, [data, b"\n\n"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "tool_calls", "index", "function", "name", "usage", "error"]
            )
            | st.sampled_from(
                ["type", "message", "content_block", "text", "partial_json", "prompt_tokens", "finish_reason"]
            ),
            inner
            | st.sampled_from(
                ["message_start", "content_block_start", "content_block_delta", "tool_use", "text_delta"]
            ),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(events=st.lists(JSON, max_size=4), stream=st.sampled_from([OpenAiStream, AnthropicStream]))
def test_no_json_brings_a_reader_down(events: list[object], stream: Stream) -> None:
    reader = stream()
    try:
        for event in events:
            for kind, text, call, name, _ in reader.feed(sse(event)):
                assert kind in ("reasoning", "content", "call")
                assert isinstance(text, str)
                assert call >= 0
                assert name is None or name
        reader.close()
    except ProviderFailed:
        pass


def test_reasoning_text_and_calls_are_told_apart() -> None:
    data = b"".join(openai_calls(("id1", "look", ['{"a"', ":1}"]), ("id2", "go", ["{}"]), thought="hm"))
    parts, finish = read(OpenAiStream, [data])
    assert parts == (
        ("reasoning", "hm", 0, None, None),
        ("call", '{"a":1}', 0, "look", "id1"),
        ("call", "{}", 1, "go", "id2"),
    )
    assert finish == Finish("stop", None, TokenUse(prompt_tokens=11, cached_tokens=3, output_tokens=2))


def test_the_three_parts_of_anthropics_prompt_add_up() -> None:
    data = anthropic_answer(thinking_block("hm"), text_block("Hi"), call_block("id1", "look"), stop="max_tokens")
    parts, finish = read(AnthropicStream, data)
    assert parts == (
        ("reasoning", "hm", 0, None, None),
        ("content", "Hi", 0, None, None),
        ("call", "{}", 0, "look", "id1"),
    )
    assert finish == Finish("length", None, TokenUse(prompt_tokens=11, cached_tokens=3, output_tokens=2))


@pytest.mark.parametrize(
    ("stream", "event", "says"),
    [
        (OpenAiStream, {"error": {"message": "too busy"}}, "too busy"),
        (OpenAiStream, {"choices": 7}, "choices"),
        (OpenAiStream, {"choices": [{"index": 1, "delta": {}}]}, "not asked for"),
        (OpenAiStream, {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}, "without a name"),
        (AnthropicStream, {"type": "error", "error": {"type": "overloaded_error", "message": "full"}}, "full"),
        (AnthropicStream, {"type": "content_block_start", "content_block": {"type": "tool_use"}}, "without a name"),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(stream: Stream, event: object, says: str) -> None:
    with pytest.raises(ProviderFailed, match=says):
        stream().feed(sse(event))


def test_an_event_without_bounds_is_refused() -> None:
    reader = EventReader()
    with pytest.raises(Garbage, match="more than"):
        reader.feed((b"data: " + b"x" * 2**20 + b"\n") * 9)


def test_comments_marks_and_names_are_read_as_the_standard_says() -> None:
    data = b"\xef\xbb\xbf: hello\nevent:a\ndata:1\ndata: 2\n\nid: 7\n\ndata\n\nevent: b\ndata: cut off"
    assert EventReader().feed(data) == [SseEvent("a", "1\n2"), SseEvent("", "")]
