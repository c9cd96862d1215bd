"""One answer of a model is the same answer in every protocol, streamed or not, however its text is cut."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.anthropic.note import Display, MessagesNote
from api.kinds import renderer_of
from api.rendering import RenderingNote
from scheduler.frames import Chunk, End
from scheduler.jobs import JobState

WRITTEN = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "\n", " ", "Hello", "<", "</", "tool_", '"'),
    *("<think>why</think>", '<tool_call>{"name": "f", "arguments": {"y": [1]}}</tool_call>', "</think>ends"),
    *('{"name": "f", "arguments": {"x": "é😀<"}}', '{"name": "g", "arguments": {}}', '{"name": "f", "argum'),
)
EXTRAS = {
    "chat.completions": {},
    "responses": {"echo": {"background": False, "tools": [], "tool_choice": "auto", "metadata": {}}, "seals": True},
    "messages": MessagesNote(display=Display.SHOWN).as_dict(),
}
NOTE = RenderingNote(
    created_s=0,
    model="m",
    choices=1,
    prompt_tokens=1,
    service_tier="default",
    think=("<think>", "</think>"),
    call=("<tool_call>", "</tool_call>"),
    call_format="json_tools",
)
wild = st.lists(st.sampled_from(WRITTEN) | st.text(max_size=3), max_size=12).map("".join)
orderly = st.tuples(
    st.sampled_from(("<think>why</think>", "")),
    st.lists(
        st.sampled_from(("Hello ", "é", '<tool_call>{"name": "f", "arguments": {"y": [1]}}</tool_call>')), max_size=5
    ),
).map(lambda parts: parts[0] + "".join(parts[1]))
"""As a model should write, so that answers have several parts."""
END = End(JobState.FINISHED, {})


@dataclass(frozen=True)
class Said:
    """What an answer says, whatever its form. Space between its parts is nobody's."""

    text: str
    reasoning: str
    calls: tuple[tuple[str, Any], ...]
    is_cut: bool

    @staticmethod
    def of(texts: list[str], thoughts: list[str], calls: list[tuple[str, Any]], *, is_cut: bool) -> Said:
        return Said(_bare(texts), _bare(thoughts), tuple(calls), is_cut)


def _bare(parts: list[str]) -> str:
    return "".join("".join(parts).split())


def of_chat(answer: dict[str, Any]) -> Said:
    (choice,) = answer["choices"]
    message = choice["message"]
    functions = [call["function"] for call in message.get("tool_calls", ())]
    return Said.of(
        [message["content"] or ""],
        [message.get("reasoning_content") or ""],
        [(function["name"], json.loads(function["arguments"])) for function in functions],
        is_cut=choice["finish_reason"] == "length",
    )


def of_response(answer: dict[str, Any]) -> Said:
    items = answer["output"]
    texts = [part["text"] for item in items if item["type"] == "message" for part in item["content"]]
    thoughts = [part["text"] for item in items if item["type"] == "reasoning" for part in item["content"]]
    calls = [(item["name"], json.loads(item["arguments"])) for item in items if item["type"] == "function_call"]
    return Said.of(texts, thoughts, calls, is_cut=answer["status"] == "incomplete")


def of_message(answer: dict[str, Any]) -> Said:
    blocks = answer["content"]
    return Said.of(
        [block["text"] for block in blocks if block["type"] == "text"],
        [block["thinking"] for block in blocks if block["type"] == "thinking"],
        [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"],
        is_cut=answer["stop_reason"] == "max_tokens",
    )


READ = {"chat.completions": of_chat, "responses": of_response, "messages": of_message}


def answered(kind: str, parts: list[str], reason: str, stop_string: str | None, *, in_thinking: bool) -> Said:
    """What a client reads that does not stream."""
    note = replace(NOTE, in_thinking=in_thinking, extras=EXTRAS[kind])
    renderer = renderer_of(kind, "0-01ARZ3NDEKTSV4RRFFQ69G5FAV", note, lambda token: b"")
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        end = (reason, stop_string) if is_last else (None, None)
        renderer.step([Chunk(0, (1,), part, None, *end)])
    return READ[kind](json.loads(json.dumps(renderer.whole(END))))


@given(
    wild | orderly,
    st.lists(st.integers(0, 200), max_size=10),
    st.sampled_from([("stop", None), ("stop", "END")]),
    st.booleans(),
)
def test_all_protocols_tell_the_same_answer(
    text: str, cuts: list[int], ending: tuple[str, str | None], in_thinking: bool
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    chat = answered("chat.completions", [text], *ending, in_thinking=in_thinking)
    for kind in READ:
        assert answered(kind, parts, *ending, in_thinking=in_thinking) == chat
