"""One frame's bytes, as clients cut them into lines."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from api.stream import sse
from scheduler.frames import START


@given(text=st.text() | st.text(st.sampled_from("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029é\\")))
def test_whatever_is_said_a_data_line_is_one_line_to_every_client(text: str) -> None:
    frame = sse([{"type": "text", "text": text}], START, named=True)
    for lines in (frame.decode().splitlines(), [line.decode() for line in frame.splitlines()]):
        assert [line.partition(": ")[0] for line in lines] == ["id", "event", "data", ""]
        assert json.loads(lines[2].removeprefix("data: "))["text"] == text
