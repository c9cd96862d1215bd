"""What both protocols say, in one form: pieces of an answer, its end, the tokens counted, and failures; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from scheduler.frames import AnswerPart
from scheduler.providers import TokenUse

SHOWN_CHARS = 300
"""Of what a provider says about an error."""

CUT_OFF = "the stream ended before the answer did"


class ProviderFailed(Exception):
    """No answer, or no more of it. `passing`: the same request may do better later, not before `wait_s`, or elsewhere.

    `refused`: the request itself is wrong, and would be elsewhere.
    """

    def __init__(self, code: str, why: str, *, passing: bool = True, refused: bool = False, wait_s: float = 0) -> None:
        super().__init__(why)
        self.code = code
        self.passing = passing
        self.refused = refused
        self.wait_s = wait_s


class Garbage(ProviderFailed):
    """What came is not of the protocol."""

    def __init__(self, what: str) -> None:
        super().__init__("provider_garbage", f"the provider sent what is no answer: {what}")


class Overloaded(ProviderFailed):
    """The provider says in its stream that it cannot."""

    def __init__(self, why: str) -> None:
        super().__init__("provider_error", f"the provider broke off: {why}")


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended: `reason` is stop, length or content_filter; `use` None where the provider told no tokens."""

    reason: str
    stop_string: str | None
    use: TokenUse | None


class AnswerStream(Protocol):
    """Reads one answer of one protocol. Raises ProviderFailed."""

    def feed(self, data: bytes) -> list[AnswerPart]:
        """What these bytes add."""

    def close(self) -> Finish:
        """The end of the bytes. Raises ProviderFailed where it was not the answer's."""


def json_object(text: str) -> dict[str, Any]:
    """Raises Garbage."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Garbage(f"{shown(text)} is no JSON") from error
    if not isinstance(value, dict):
        raise Garbage(f"{shown(text)} is no JSON object")
    return value


def inner(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object inside an object, empty where there is none. Raises Garbage."""
    found = value.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Garbage(f"{name} is no object")
    return found


def text_in(value: Mapping[str, Any], name: str) -> str:
    """A text inside an object, empty where there is none. Raises Garbage."""
    found = value.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise Garbage(f"{name} is no text")
    return found


def tokens_in(value: Mapping[str, Any], name: str) -> int:
    """A number of tokens inside an object, 0 where there is none. Raises Garbage."""
    found = value.get(name)
    if found is None:
        return 0
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise Garbage(f"{name} is no number of tokens")
    return found


def shown(text: str) -> str:
    """The beginning of what a provider has said, on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}…")


def error_text(body: Mapping[str, Any]) -> str:
    """What an error object of either protocol says."""
    error = body.get("error", body)
    message = error.get("message") if isinstance(error, dict) else error
    return shown(message if isinstance(message, str) else str(error))
