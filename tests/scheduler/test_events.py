"""Events are read from the log, or refused as malformed."""

from __future__ import annotations

import pytest

from scheduler.events import Event, EventType, decode_event, stream_position

GOOD = {b"t": b"claimed", b"j": b"0-X", b"at": b"7", b"d": b'{"a":1}'}


def test_an_entry_is_an_event() -> None:
    event = decode_event(b"17-3", GOOD)
    assert event == Event("17-3", EventType.CLAIMED, "0-X", 7, {"a": 1})
    assert event.position == stream_position("17-3") == (17, 3)


@pytest.mark.parametrize("field", [b"t", b"j", b"at", b"d"])
def test_a_missing_field_is_an_error(field: bytes) -> None:
    with pytest.raises(KeyError):
        decode_event(b"1-1", {name: value for name, value in GOOD.items() if name != field})


@pytest.mark.parametrize(
    "wrong",
    [
        {b"t": b"exploded"},
        {b"j": b"\xff"},
        {b"at": b"soon"},
        {b"d": b"{"},
        {b"d": b"[1]"},
        {b"d": b"null"},
        {b"d": b"\xff"},
    ],
)
def test_a_malformed_field_is_an_error(wrong: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_event(b"1-1", GOOD | wrong)


def test_nul_characters_are_replaced() -> None:
    assert decode_event(b"1-1", GOOD | {b"d": rb'{"error":"a\u0000b"}'}).data == {"error": "a\ufffdb"}
