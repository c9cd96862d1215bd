"""A client that adds up a stream has the answer that is not streamed, whatever the model writes."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.openai.chat_rendering import ChatRenderer
from api.rendering import RenderingNote
from scheduler.frames import Chunk, End
from scheduler.jobs import JobState

FRAGMENTS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "\n", " ", "Hello", "é", "🧶", "<", "</", '"', "\\"),
    *('{"name": "f", "arguments": {', '"x": ', "1", "}}", "}", '{"name": "f", "arguments": {"x": "a"}}'),
)
END = End(JobState.FINISHED, {})
USAGE = {"include_usage": True}


def note(**changes: Any) -> RenderingNote:
    """A chat with a model that thinks and calls."""
    fields: dict[str, Any] = {"created_s": 0, "model": "m", "choices": 1, "prompt_tokens": 1, "service_tier": "default"}
    fields |= {"think": ("<think>", "</think>"), "call": ("<tool_call>", "</tool_call>"), "call_format": "json_tools"}
    return RenderingNote(**fields | USAGE | changes)


def rendered(asked: RenderingNote, parts: list[str], reason: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All chunks, and the whole answer."""
    renderer = ChatRenderer("0-JOB", asked, lambda token: b"")
    events = list(renderer.opening())
    for index, part in enumerate(parts):
        last = reason if index == len(parts) - 1 else None
        events += renderer.step([Chunk(0, (1,), part, None, last, None)])
    events += renderer.closing(END)
    return copy.deepcopy(events), renderer.whole(END)


def added_up(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of the stream: text is joined, calls by their index."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": [], "finish_reason": None}
    for choice in [choice for event in events for choice in event["choices"]]:
        delta = choice["delta"]
        assert message["finish_reason"] is None, "nothing comes behind the finish reason"
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        assert delta.get("reasoning") == delta.get("reasoning_content")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["calls"])
                message["calls"].append([call["id"], call["function"]["name"], ""])
            message["calls"][call["index"]][2] += call["function"]["arguments"]
        message["finish_reason"] = choice["finish_reason"]
    return message


@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.lists(st.integers(0, 150), max_size=10),
    st.booleans(),
    st.sampled_from(["stop", "length"]),
    st.booleans(),
)
def test_the_stream_adds_up_to_the_answer(
    text: str, cuts: list[int], in_thinking: bool, reason: str, single_call: bool
) -> None:
    asked = note(in_thinking=in_thinking, single_call=single_call)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    events, whole = rendered(asked, [text[a:b] for a, b in pairwise(edges)], reason)
    choice = rendered(asked, [text], reason)[1]["choices"][0]
    assert whole["choices"][0] == choice
    message = choice["message"]
    calls = [
        [call["id"], call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())
    ]
    assert added_up(events) == {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content", ""),
        "calls": calls,
        "finish_reason": choice["finish_reason"],
    }
    assert {event["id"] for event in events} == {whole["id"]}
