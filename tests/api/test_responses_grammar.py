"""Whatever a model writes, however it is cut: events in the strict order, and an end that says what they said."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.errors import end_error
from api.openai.responses.rendering import ResponseRenderer
from api.rendering import RenderingNote
from scheduler.frames import Chunk, End
from scheduler.jobs import JobState

ECHO = {"background": False, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {}}
NOTE = RenderingNote(
    created_s=0,
    model="m",
    choices=1,
    prompt_tokens=1,
    service_tier="default",
    think=("<think>", "</think>"),
    call=("<tool_call>", "</tool_call>"),
    call_format="json_tools",
    extras={
        "echo": ECHO,
        "tools": {
            "patch": {"type": "custom", "name": "patch", "namespace": None},
            "mcp__f": {"type": "function", "name": "f", "namespace": "mcp"},
        },
        "seals": True,
    },
)
WRITTEN = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '\n{"name": "f", "arguments": {"x": "é😀"}}\n',
    '\n{"name": "mcp__f", "arguments": {}}\n',
    '\n{"name": "patch", "arguments": {"input": "a\\n\\"b"}}\n',
    "<think>why</think>",
    '<tool_call>{"name": "f", "arguments": {"y": [1]}}</tool_call>',
    "Hello",
    "\n",
    " ",
    "😀",
    "<to",
]
PAIRS = {
    "response.output_text.delta": ("response.output_text.done", "text"),
    "response.reasoning_text.delta": ("response.reasoning_text.done", "text"),
    "response.function_call_arguments.delta": ("response.function_call_arguments.done", "arguments"),
    "response.custom_tool_call_input.delta": ("response.custom_tool_call_input.done", "input"),
}
wild = st.lists(st.sampled_from(WRITTEN) | st.text(max_size=4), max_size=12).map("".join)
orderly = st.tuples(
    st.sampled_from(("<think>why</think>", "")),
    st.lists(
        st.sampled_from(("Hello ", "é", '<tool_call>{"name": "f", "arguments": {"y": [1]}}</tool_call>')), max_size=5
    ),
).map(lambda parts: parts[0] + "".join(parts[1]))
"""As a model should write, so that answers have several items."""
texts = wild | orderly
cuts = st.lists(st.integers(0, 300), max_size=12)
ENDS = [
    (End(JobState.FINISHED), "stop"),
    (End(JobState.FINISHED), "length"),
    (End(JobState.CANCELLED), None),
    (End(JobState.FAILED), None),
]


def told(
    text: str, at: list[int], reason: str | None, end: End, note: RenderingNote, after: int = -1
) -> list[dict[str, Any]]:
    """All events of a text that comes in pieces, one token each."""
    renderer = ResponseRenderer("0-01ARZ3NDEKTSV4RRFFQ69G5FAV", note, lambda token: b"")
    renderer.begin_behind(after)
    events = list(renderer.opening())
    edges = [0, *sorted(min(cut, len(text)) for cut in at), len(text)]
    for a, b in pairwise(edges):
        is_last = b == len(text)
        events += renderer.step([Chunk(0, (1,), text[a:b], None, reason if is_last else None, None)])
        if is_last:
            break
    good = end.state is JobState.FINISHED
    events += renderer.closing(end) if good else renderer.failure(end_error(end))
    return [json.loads(json.dumps(event)) for event in events]


def checked(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The final response of a stream that obeys the grammar."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    names = [event["type"] for event in events]
    assert names.count("response.in_progress") == 1
    final = events[-1]["response"]
    assert all(event["response"]["id"] == final["id"] for event in events if "response" in event)
    done: list[dict[str, Any]] = []
    open_item: dict[str, Any] | None = None
    grown = ""
    for event in events[:-1]:
        match event["type"]:
            case "response.output_item.added":
                assert open_item is None
                assert event["output_index"] == len(done)
                open_item, grown = event["item"], ""
                assert open_item["status"] == "in_progress"
            case "response.output_item.done":
                assert open_item is not None
                assert event["output_index"] == len(done)
                assert all(event["item"].get(k) == open_item.get(k) for k in ("id", "type", "call_id", "name"))
                done.append(event["item"])
                open_item = None
            case kind if kind in PAIRS:
                assert open_item is not None
                assert event["item_id"] == open_item["id"]
                assert event["delta"]
                grown += event["delta"]
            case kind if kind in {name for name, _ in PAIRS.values()}:
                field = next(field for name, field in PAIRS.values() if name == kind)
                assert event[field] == grown
            case "response.content_part.added" | "response.content_part.done":
                assert open_item is not None
                assert event["part"]["text"] == grown
            case _:
                assert "response" in event
    assert open_item is None
    assert final["output"] == done
    return dict(final)


def without_counts(response: dict[str, Any]) -> dict[str, Any]:
    return response | {"usage": None}


@given(texts, cuts, st.sampled_from(ENDS), st.booleans())
def test_events_obey_their_grammar_and_cuts_make_no_difference(
    text: str, at: list[int], ending: tuple[End, str | None], background: bool
) -> None:
    end, reason = ending
    note = replace(NOTE, extras={**NOTE.extras, "echo": {**ECHO, "background": background}})
    events = told(text, at, reason, end, note)
    final = checked(events)
    if reason is not None:  # what a job held back when it was cut off is not said
        assert without_counts(final) == without_counts(checked(told(text, [], reason, end, note)))
    for seen in {0, len(events) // 2, len(events) - 1}:
        assert told(text, at, reason, end, note, after=seen) == events[seen + 1 :]


@given(texts, cuts, st.sampled_from(ENDS[:2]))
def test_a_streams_last_response_is_the_one_that_is_not_streamed(
    text: str, at: list[int], ending: tuple[End, str | None]
) -> None:
    end, reason = ending
    last = told(text, at, reason, end, NOTE)[-1]["response"]
    renderer = ResponseRenderer("0-01ARZ3NDEKTSV4RRFFQ69G5FAV", NOTE, lambda token: b"")
    edges = [0, *sorted(min(cut, len(text)) for cut in at), len(text)]
    chunks = []
    for a, b in pairwise(edges):
        chunks.append(Chunk(0, (1,), text[a:b], None, reason if b == len(text) else None, None))
        if b == len(text):
            break
    renderer.step(chunks)
    assert json.loads(json.dumps(renderer.whole(end))) == last
