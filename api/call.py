"""What one HTTP request says besides its body: who calls, and the headers that steer its job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request

from api.errors import InvalidParameter
from scheduler.admission import Caller
from scheduler.jobs import Lane

MAX_KEY_CHARS = 255
MAX_TIMEOUT_S = 30 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request's frame. `lane` and `timeout_s` None: as the body and the settings say.

    `patience_s` is how long the client's SDK waits for a whole answer. `stays`: the job goes on when its client leaves
    (Farm-Disconnect: continue, or an Idempotency-Key, whose point is that the client may come back); else it goes on
    for `linger_s` (Farm-Disconnect: continue=30), in which the client may come back. `session` names what belongs
    together (Farm-Session): routing rules with weighted targets keep it on one of them.
    """

    caller: Caller
    request_id: str
    lane: Lane | None
    timeout_s: float | None
    patience_s: float | None
    responds_async: bool
    idempotency_key: str
    stays: bool
    session: str = ""
    linger_s: float = 0.0


async def call_of(request: Request) -> Call:
    """Read the headers. Raises InvalidParameter by header name."""
    headers = request.headers
    key = _idempotency_key(headers.get("idempotency-key", ""))
    stays, linger_s = _after_disconnect(headers.get("farm-disconnect", "continue" if key else "cancel"))
    return Call(
        caller=request.state.caller,
        request_id=request.state.request_id,
        lane=_lane(headers.get("farm-lane", "")),
        timeout_s=_timeout_s(headers.get("farm-timeout", "")),
        patience_s=_patience_s(headers.get("x-stainless-timeout", "")),
        responds_async=_prefers_async(headers.getlist("prefer")),
        idempotency_key=key,
        stays=stays,
        session=_session(headers.get("farm-session", "")),
        linger_s=linger_s,
    )


CurrentCall = Annotated[Call, Depends(call_of)]

PageId = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="An id of the page beside.")]


def _lane(text: str) -> Lane | None:
    if not text:
        return None
    if text.lower() not in tuple(Lane):
        raise InvalidParameter("Farm-Lane", f"Farm-Lane is one of {', '.join(Lane)}.")
    return Lane(text.lower())


def _timeout_s(text: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidParameter("Farm-Timeout", "Farm-Timeout is a number of seconds, up to 30 days.")
    return seconds


def _after_disconnect(text: str) -> tuple[bool, float]:
    """Does the job stay when its client leaves, and if not, for how many seconds does it go on?"""
    word, equals, number = text.lower().partition("=")
    if not equals and word in ("cancel", "continue"):
        return word == "continue", 0.0
    try:
        linger_s = float(number) if word == "continue" else math.nan
    except ValueError:
        linger_s = math.nan
    if not 0 <= linger_s <= MAX_TIMEOUT_S:
        raise InvalidParameter(
            "Farm-Disconnect", "Farm-Disconnect is 'cancel', 'continue', or 'continue=N' for N seconds, up to 30 days."
        )
    return False, linger_s


def _session(text: str) -> str:
    if len(text) > MAX_KEY_CHARS:
        raise InvalidParameter("Farm-Session", f"Farm-Session has up to {MAX_KEY_CHARS} characters.")
    return text


def _patience_s(text: str) -> float | None:
    """How long an SDK will wait for an answer (`x-stainless-timeout`); anything odd is no statement."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds <= MAX_TIMEOUT_S else None


def _idempotency_key(text: str) -> str:
    """Unquoted (the IETF draft quotes it), printable ASCII."""
    key = text.strip().removeprefix('"').removesuffix('"')
    if len(key) > MAX_KEY_CHARS or not all("!" <= char <= "~" for char in key):
        raise InvalidParameter(
            "Idempotency-Key", f"An Idempotency-Key has up to {MAX_KEY_CHARS} printable ASCII characters and no spaces."
        )
    return key


def _prefers_async(values: list[str]) -> bool:
    """RFC 7240: `Prefer: respond-async`, perhaps among others."""
    preferences = (part.partition(";")[0].strip().lower() for value in values for part in value.split(","))
    return "respond-async" in preferences
