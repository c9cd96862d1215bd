"""What one HTTP request says besides its body: who calls, and the headers that steer its job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.errors import InvalidParameter
from scheduler.admission import Caller
from scheduler.jobs import Lane

MAX_KEY_CHARS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request's frame. `lane` and `timeout_s` None: as the body and the settings say.

    `patience_s` is how long the client's SDK waits for a whole answer. `stays`: the job goes on when its client leaves
    (Farm-Disconnect: continue, or an Idempotency-Key, whose point is that the client may come back).
    """

    caller: Caller
    request_id: str
    lane: Lane | None
    timeout_s: float | None
    patience_s: float | None
    responds_async: bool
    idempotency_key: str
    stays: bool


async def call_of(request: Request) -> Call:
    """Read the headers. Raises InvalidParameter by header name."""
    headers = request.headers
    key = _idempotency_key(headers.get("idempotency-key", ""))
    disconnect = headers.get("farm-disconnect", "continue" if key else "cancel").lower()
    if disconnect not in ("cancel", "continue"):
        raise InvalidParameter("Farm-Disconnect", "Farm-Disconnect is 'cancel' or 'continue'.")
    return Call(
        caller=request.state.caller,
        request_id=request.state.request_id,
        lane=_lane(headers.get("farm-lane", "")),
        timeout_s=_timeout_s(headers.get("farm-timeout", "")),
        patience_s=_patience_s(headers.get("x-stainless-timeout", "")),
        responds_async=_prefers_async(headers.getlist("prefer")),
        idempotency_key=key,
        stays=disconnect == "continue",
    )


CurrentCall = Annotated[Call, Depends(call_of)]


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
    if not 0 < seconds <= 30 * 86400:
        raise InvalidParameter("Farm-Timeout", "Farm-Timeout is a number of seconds, up to 30 days.")
    return seconds


def _patience_s(text: str) -> float | None:
    """How long an SDK will wait for an answer (`x-stainless-timeout`); anything odd is no statement."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds <= 30 * 86400 else None


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
