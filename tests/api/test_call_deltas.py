"""Calls that a grammar keeps in their format are told while they are written, however the text is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.openai.chat_rendering import ChatRenderer
from api.rendering import RenderingNote
from scheduler.frames import Chunk, End
from scheduler.jobs import JobState

NOTE = RenderingNote(
    created_s=0,
    model="m",
    choices=1,
    prompt_tokens=1,
    service_tier="default",
    call=("<tool_call>", "</tool_call>"),
    call_format="json_tools",
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('ab"\\{}[]é ', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"{\\', max_size=3), inner, max_size=3),
    max_leaves=6,
)
calls = st.tuples(
    st.text('f"g', min_size=1, max_size=3), st.dictionaries(st.text('a"}', max_size=3), json_values, max_size=3)
)


def written(name: str, arguments: Any) -> str:
    """A call in json_tools' format."""
    inside = f'{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments, ensure_ascii=False)}}}'
    return f"<tool_call>\n{inside}\n</tool_call>"


def render(parts: list[str], reason: str = "stop") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The whole message and the deltas of a text that comes in parts."""
    renderer = ChatRenderer("0-JOB", NOTE, lambda token: b"")
    deltas = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        [event] = renderer.step([Chunk(0, (1,), part, None, reason if last else None, None)])
        deltas += [json.loads(json.dumps(choice["delta"])) for choice in event["choices"]]
    return renderer.whole(End(JobState.FINISHED, {}))["choices"][0], deltas


def joined(deltas: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Names and arguments as a client puts them together."""
    built: list[list[str]] = []
    for part in [part for delta in deltas for part in delta.get("tool_calls", ())]:
        if part["index"] == len(built):
            built.append([part["function"]["name"], ""])
        built[part["index"]][1] += part["function"]["arguments"]
    return [(name, arguments) for name, arguments in built]


@given(st.lists(calls, min_size=1, max_size=3), st.lists(st.integers(0, 200), max_size=12))
def test_deltas_add_up_to_the_calls_however_the_text_is_cut(asked: list[Any], cuts: list[int]) -> None:
    text = "Sure.\n" + "\n".join(written(*call) for call in asked)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    choice, deltas = render([text[a:b] for a, b in pairwise(edges)])
    whole = [(call["function"]["name"], call["function"]["arguments"]) for call in choice["message"]["tool_calls"]]
    assert joined(deltas) == whole
    assert [(name, json.loads(arguments)) for name, arguments in whole] == asked
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Sure."


def test_arguments_come_as_they_are_written() -> None:
    text = written("f", {"city": "Ulm"})
    _, deltas = render(list(text))
    parts = [part["function"]["arguments"] for delta in deltas for part in delta.get("tool_calls", ())]
    assert parts == list('{"city": "Ulm"}')


@pytest.mark.parametrize(
    ("text", "arguments", "content"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"x": [1', '{"x": [1', None),
        ('<tool_call>\n{"name": "f", "argu', None, '<tool_call>\n{"name": "f", "argu'),
    ],
)
def test_a_call_cut_off_by_its_length_is_what_came_of_it(text: str, arguments: str | None, content: str | None) -> None:
    for parts in ([text], list(text)):
        choice, _ = render(parts, "length")
        made = [call["function"]["arguments"] for call in choice["message"].get("tool_calls", ())]
        assert made == ([arguments] if arguments else [])
        assert choice["message"]["content"] == content
        assert choice["finish_reason"] == "length"
