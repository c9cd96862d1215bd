"""The grammar of Anthropic's events: it holds for any text, however it is cut, and adds up to the whole message."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from api.anthropic.note import Display, MessagesNote
from api.anthropic.rendering import MessagesRenderer
from api.anthropic.thoughts import carried
from api.rendering import RenderingNote
from scheduler.frames import Chunk, End
from scheduler.jobs import JobState

FRAGMENTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": {"x": "é<"}}',
    '{"name": "g", "arguments": {}}',
    '{"name": "f", "argum',
    "<",
    "\n",
    "\n\n",
    " ",
    "Text",
    "日本",
    "tool_",
]
DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
cuts = st.lists(st.integers(0, 120), max_size=10)
forms = st.sampled_from(["json_tools", "pythonic", "kimi_k2"])
ends = st.sampled_from([("stop", None), ("length", None), ("stop", "END")])


def note(display: str, *, thinking: bool, form: str) -> RenderingNote:
    return RenderingNote(
        created_s=0,
        model="m",
        choices=1,
        prompt_tokens=9,
        service_tier="default",
        think=("<think>", "</think>"),
        in_thinking=thinking,
        call=("<tool_call>", "</tool_call>"),
        call_format=form,
        extras=MessagesNote(display=Display(display)).as_dict(),
    )


def render(parts: list[str], rendering: RenderingNote, end: tuple[str, str | None]) -> tuple[list[Any], dict[str, Any]]:
    """All events of an answer that comes in parts, as they are sent, and the whole message."""
    renderer = MessagesRenderer("0-JOB", rendering, lambda token: b"")
    events = [*renderer.opening()]
    for index, part in enumerate(parts):
        reason, stop_string = end if index == len(parts) - 1 else (None, None)
        events += renderer.step([Chunk(0, (1,), part, None, reason, stop_string)])
    last = End(JobState.FINISHED, {"cached_tokens": 4, "cache_written_tokens": 3})
    events += renderer.closing(last)
    return json.loads(json.dumps(events)), renderer.whole(last)


class Client:
    """Puts a message together, and fails at the first event that is not where it may be."""

    def __init__(self, events: list[Any]) -> None:
        self.message: dict[str, Any] = {}
        self.blocks: list[dict[str, Any]] = []
        self.is_open = self.has_stopped = False
        assert events[0]["type"] == "message_start"
        assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
        for event in events:
            getattr(self, event["type"])(event)
        assert self.has_stopped

    def message_start(self, event: dict[str, Any]) -> None:
        assert not self.message
        self.message = event["message"]
        assert (self.message["content"], self.message["stop_reason"]) == ([], None)

    def ping(self, _event: dict[str, Any]) -> None:
        assert self.message

    def content_block_start(self, event: dict[str, Any]) -> None:
        assert not self.is_open
        assert event["index"] == len(self.blocks)
        self.is_open = True
        self.blocks.append({**event["content_block"], "json": ""})

    def content_block_delta(self, event: dict[str, Any]) -> None:
        assert self.is_open
        assert event["index"] == len(self.blocks) - 1
        block, delta = self.blocks[-1], event["delta"]
        if delta["type"] == "signature_delta":
            assert block["type"] == "thinking"
            assert not block["signature"]
            block["signature"] = delta["signature"]
            return
        assert delta["type"] == DELTAS[block["type"]]
        assert not block.get("signature")
        field = {"text": "text", "thinking": "thinking", "tool_use": "json"}[block["type"]]
        said = delta["partial_json" if field == "json" else field]
        assert said
        block[field] += said

    def content_block_stop(self, event: dict[str, Any]) -> None:
        assert self.is_open
        assert event["index"] == len(self.blocks) - 1
        self.is_open = False
        block = self.blocks[-1]
        written = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = from_json(written or "{}", allow_partial=True)
        if block["type"] == "thinking":
            assert block["signature"]

    def message_delta(self, event: dict[str, Any]) -> None:
        assert not self.is_open
        assert self.message["stop_reason"] is None
        self.message |= event["delta"] | {"content": self.blocks}
        self.message["usage"] |= event["usage"]

    def message_stop(self, _event: dict[str, Any]) -> None:
        assert self.message["stop_reason"]
        self.has_stopped = True


@given(texts, cuts, ends, st.sampled_from(list(Display)), st.booleans(), forms)
def test_any_cut_of_any_text_gives_one_message(
    text: str, places: list[int], end: Any, display: str, thinking: bool, form: str
) -> None:
    rendering = note(display, thinking=thinking, form=form)
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    events, whole = render([text[a:b] for a, b in pairwise(edges)], rendering, end)
    assert Client(events).message == whole
    _, at_once = render([text], rendering, end)
    for message in (whole, at_once):
        del message["usage"]
    assert whole == at_once


@given(texts, st.booleans())
def test_blocks_of_text_have_something_to_see(text: str, thinking: bool) -> None:
    _, whole = render([text], note("shown", thinking=thinking, form="json_tools"), ("stop", None))
    assert all(block["text"].strip() for block in whole["content"] if block["type"] == "text")


@given(st.text(max_size=200))
def test_a_signature_carries_what_is_not_displayed(thought: str) -> None:
    _, whole = render([f"{thought}</think>"], note("omitted", thinking=True, form="json_tools"), ("stop", None))
    for block in whole["content"]:
        if block["type"] == "thinking":
            assert block["thinking"] == ""
            assert (carried(block["signature"]) or "?") in thought


def test_the_prompts_tokens_are_read_written_or_neither() -> None:
    _, whole = render(["x"], note("shown", thinking=False, form="json_tools"), ("stop", None))
    usage = whole["usage"]
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (4, 3)
    assert usage["input_tokens"] == 2


def test_signatures_of_others_carry_nothing() -> None:
    assert [carried(text) for text in ("", "farm1z.", "farm1z.é", "farm1z.AAAA", "ErUBCkYI")] == [None] * 5
