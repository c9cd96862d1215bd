"""Which machine loads a model that jobs wait for; pure.

Node agents show what they have in memory (agents.py). Each of them computes the same answer from the same rows: the
machine where it takes least, and where that is the same, the one that has most memory left after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

Row = Mapping[str, Any]
"""What an agent shows of itself, or of one of its models."""

HERE = ("loaded", "loading")
"""States of a model that its machine serves, or is about to."""


class Effort(IntEnum):
    """What it takes to load a model on a machine, the least first."""

    FREE = 0
    """Nothing: there is memory for it."""
    IDLE = 1
    """Models that nobody uses give up their places, or are just leaving."""
    BUSY = 2
    """Busy ones do, once their turn is over."""
    LATER = 3
    """Others are being loaded, and have to be waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What loading a model takes on one machine. `turn_left_s`: until the last of those who would go has had its turn.

    `free_bytes` is what would be left besides the model.
    """

    agent: str
    effort: Effort
    turn_left_s: float = 0.0
    evicted_bytes: int = 0
    free_bytes: int = 0


def offers(agents: Iterable[Row], model: str) -> list[Offer]:
    """Of the machines that could load the model and do not have it, the best one first."""
    found = [offer for figures in agents if (offer := _offer(figures, model)) is not None]
    return sorted(found, key=lambda offer: _rank(offer, model))


def holders(agents: Iterable[Row], model: str) -> list[str]:
    """Agents that have the model in memory or are loading it."""
    return [figures["agent"] for figures in agents if (row := _row(figures, model)) and row["state"] in HERE]


def falls_to(agents: Sequence[Row], model: str, *, oldest_wait_s: float | None, copy_after_s: float) -> str | None:
    """The agent that is to load a model which jobs wait for; None: nobody now.

    Where others have it, another copy is for free memory only, once a job has waited for `copy_after_s`, and while no
    copy is being loaded. Where nobody could load it, it falls to nobody.
    """
    places = offers(agents, model)
    if not holders(agents, model):
        return places[0].agent if places else None
    loading = any(row["state"] == "loading" for figures in agents if (row := _row(figures, model)))
    late = oldest_wait_s is not None and oldest_wait_s >= copy_after_s
    if late and not loading and places and places[0].effort is Effort.FREE:
        return places[0].agent
    return None


def _offer(figures: Row, model: str) -> Offer | None:
    row = _row(figures, model)
    if row is None or row["state"] in ("failed", "leaving", *HERE):
        return None
    others = [other for other in figures["models"] if other["model"] != model]
    needs_bytes, budget_bytes = row["needs_bytes"], figures["budget_bytes"]
    there = [other for other in others if other["state"] in HERE]
    if needs_bytes > budget_bytes - _bytes(other for other in there if other["pinned"]):
        return None
    promised_bytes = _bytes(other for other in others if other["waits_for"] in ("room", "turn"))
    later_bytes = budget_bytes - _bytes(there) - promised_bytes
    now_bytes = later_bytes - _bytes(other for other in others if other["state"] == "leaving")
    if needs_bytes <= now_bytes:
        return Offer(agent=figures["agent"], effort=Effort.FREE, free_bytes=now_bytes - needs_bytes)
    gone = _gone(there, needs_bytes - later_bytes)
    left_bytes = later_bytes + _bytes(gone) - needs_bytes
    effort = Effort.LATER if left_bytes < 0 else Effort.BUSY if any(map(_is_busy, gone)) else Effort.IDLE
    return Offer(
        agent=figures["agent"],
        effort=effort,
        turn_left_s=max(map(_turn_left_s, gone), default=0.0),
        evicted_bytes=_bytes(gone),
        free_bytes=left_bytes,
    )


def _gone(there: Iterable[Row], missing_bytes: int) -> list[Row]:
    """Who gives up a place, those whose turn ends first, until so much is free or nobody else can go."""
    places = sorted((row for row in there if row["state"] == "loaded" and not row["pinned"]), key=_turn_left_s)
    gone: list[Row] = []
    while places and _bytes(gone) < missing_bytes:
        gone.append(places.pop(0))
    return gone


def _rank(offer: Offer, model: str) -> tuple[int, float, int, int, bytes]:
    """Equal machines are told apart by a hash, so that models spread over them."""
    spread = hashlib.blake2b(f"{model}\n{offer.agent}".encode(), digest_size=8).digest()
    return (offer.effort, round(offer.turn_left_s), offer.evicted_bytes, -offer.free_bytes, spread)


def _row(figures: Row, model: str) -> Row | None:
    return next((row for row in figures["models"] if row["model"] == model), None)


def _is_busy(row: Row) -> bool:
    return bool(row["jobs"] or row["waiting"])


def _turn_left_s(row: Row) -> float:
    return float(row["turn_left_s"] or 0.0) if _is_busy(row) else 0.0


def _bytes(rows: Iterable[Row]) -> int:
    return sum(int(row["needs_bytes"]) for row in rows)
