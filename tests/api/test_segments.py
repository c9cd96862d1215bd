"""The splitter of reasoning, content and calls: its result never depends on how the text is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.segments import Markers, Piece, SegmentKind, SegmentSplitter

MARKERS = Markers(think=("<think>", "</think>"), call=("<tool_call>", "</tool_call>"))
FRAGMENTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<",
    ">",
    "</",
    "\n",
    "\n\n",
    " ",
    "a",
    "th",
    "tool_",
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


def split(parts: list[str], markers: Markers = MARKERS, *, in_thinking: bool = False) -> list[Piece]:
    """All pieces, neighbours of one kind put together (calls stay apart)."""
    splitter = SegmentSplitter(markers, in_thinking=in_thinking)
    pieces = [piece for part in parts for piece in splitter.push(part)] + splitter.flush()
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].kind is piece.kind and piece.kind in (SegmentKind.CONTENT, SegmentKind.REASONING):
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


@given(texts, st.lists(st.integers(0, 80), max_size=8), st.booleans(), st.booleans(), st.booleans())
def test_cuts_make_no_difference(text: str, cuts: list[int], thinks: bool, calls: bool, in_thinking: bool) -> None:
    markers = Markers(think=MARKERS.think if thinks else None, call=MARKERS.call if calls else None)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    in_thinking = in_thinking and thinks
    assert split(parts, markers, in_thinking=in_thinking) == split([text], markers, in_thinking=in_thinking)


@given(texts)
def test_one_character_at_a_time_is_the_same(text: str) -> None:
    assert split(list(text)) == split([text])


@given(texts)
def test_without_markers_everything_is_content_at_once(text: str) -> None:
    splitter = SegmentSplitter(Markers())
    assert "".join(piece.text for piece in splitter.push(text)) == text
    assert splitter.flush() == []


@given(texts, st.booleans())
def test_no_visible_character_is_lost(text: str, in_thinking: bool) -> None:
    kept = "".join(piece.text for piece in split([text], in_thinking=in_thinking))
    marks = ("<think>", "</think>", "<tool_call>", "</tool_call>")

    def letters(value: str) -> str:
        for mark in marks:
            value = value.replace(mark, "")
        return value.replace("\n", "").replace(" ", "")

    assert letters(kept) == letters(text)


C, R, CALL, OPEN = SegmentKind.CONTENT, SegmentKind.REASONING, SegmentKind.CALL, SegmentKind.OPEN_CALL


@pytest.mark.parametrize(
    ("text", "in_thinking", "expected"),
    [
        ("", False, []),
        ("plain", False, [(C, "plain")]),
        ("  <think>\nhm\n</think>\n\nyes", False, [(R, "hm"), (C, "yes")]),
        ("hm</think>yes", True, [(R, "hm"), (C, "yes")]),
        ("cut off", True, [(R, "cut off")]),
        ("a <think> later", False, [(C, "a <think> later")]),
        ("<tool_call>{}</tool_call>", False, [(CALL, "{}")]),
        ("go\n<tool_call>1</tool_call>\n<tool_call>2</tool_call>", False, [(C, "go"), (CALL, "1"), (CALL, "2")]),
        ("<tool_call>{", False, [(OPEN, "{")]),
        ("<tool_cal", False, [(C, "<tool_cal")]),
        ("hm</think><tool_call>x</tool_call>done", True, [(R, "hm"), (CALL, "x"), (C, "done")]),
    ],
)
def test_segments_are_recognised(text: str, in_thinking: bool, expected: list[tuple[SegmentKind, str]]) -> None:
    assert [(piece.kind, piece.text) for piece in split([text], in_thinking=in_thinking)] == expected


def test_only_a_possible_marker_is_held_back() -> None:
    splitter = SegmentSplitter(MARKERS)
    assert splitter.push("Hello <") == [Piece(C, "Hello ")]
    assert splitter.push("b>") == [Piece(C, "<b>")]
