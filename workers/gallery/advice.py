"""Which models fit a machine, and how fast they can be at most: arithmetic on what is known of both, nothing measured.

A token's time is at least that of reading what it needs once: the weights that take part in it, and the keys and
values of what is before it. Reading is what bounds decoding of one stream; several streams share the weights' part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

READABLE_TOKENS_PER_S = 10.0
"""About as fast as people read: models that are slower come after those that are not."""

FLOAT32_BYTES = 4
ASSUMED_CONTEXT_TOKENS = 1 << 20
"""Of models whose configuration names no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`budget_bytes` is what models may take in all. With `computes_float32` weights are unpacked when they are loaded.

    Beside weights and cache a model takes `process_bytes`, and `copies_share` of the cache for copies.
    """

    chip: str
    memory_bytes: int
    budget_bytes: int
    bandwidth_bytes_per_s: float
    bandwidth_source: str
    computes_float32: bool
    process_bytes: int
    copies_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model. `active_parameters` take part in a token. `cache_bytes_per_token` in 16 bits; None: not known."""

    name: str
    parameters: int
    active_parameters: int
    weight_bytes: int
    cache_bytes_per_token: int | None
    context_tokens: int | None
    is_here: bool
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`tokens_per_s` is a bound for one stream whose context is full, None where the cache's size is not known."""

    name: str
    fits: bool
    why_not: str
    needs_bytes: int
    weight_bytes: int
    cache_bytes: int
    context_tokens: int
    tokens_per_s: float | None
    parameters: int
    active_parameters: int
    is_here: bool
    source: str


def advise(machine: Machine, candidates: Iterable[Candidate], context_tokens: int) -> list[Advice]:
    """Each candidate's; those that fit first, of them those that are fast enough to read along, the largest first."""
    found = [_advise(machine, candidate, context_tokens) for candidate in candidates]
    return sorted(found, key=_order)


def _order(advice: Advice) -> tuple[bool, bool, int, str]:
    slow = (advice.tokens_per_s or 0.0) < READABLE_TOKENS_PER_S
    return not advice.fits, slow, -advice.parameters, advice.name


def _advise(machine: Machine, model: Candidate, context_tokens: int) -> Advice:
    longest_tokens = model.context_tokens or ASSUMED_CONTEXT_TOKENS
    tokens = min(context_tokens, longest_tokens)
    weight_bytes, active_bytes = _weights(machine, model)
    token_bytes = (model.cache_bytes_per_token or 0) * (2 if machine.computes_float32 else 1)
    cache_bytes = tokens * token_bytes
    needs_bytes = weight_bytes + int(cache_bytes * (1 + machine.copies_share)) + machine.process_bytes
    why_not = ""
    if needs_bytes > machine.budget_bytes:
        why_not = f"it needs {_mib(needs_bytes)}, and models may take {_mib(machine.budget_bytes)}"
    elif longest_tokens < context_tokens:
        why_not = f"its context is {longest_tokens} tokens"
    read_bytes = active_bytes + cache_bytes
    known = model.cache_bytes_per_token is not None and read_bytes > 0
    return Advice(
        name=model.name,
        fits=not why_not,
        why_not=why_not,
        needs_bytes=needs_bytes,
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
        context_tokens=tokens,
        tokens_per_s=machine.bandwidth_bytes_per_s / read_bytes if known else None,
        parameters=model.parameters,
        active_parameters=model.active_parameters,
        is_here=model.is_here,
        source=model.source,
    )


def _weights(machine: Machine, model: Candidate) -> tuple[int, int]:
    """All of them as loaded, and those that a token reads."""
    weight_bytes = FLOAT32_BYTES * model.parameters if machine.computes_float32 else model.weight_bytes
    return weight_bytes, weight_bytes * model.active_parameters // max(1, model.parameters)


def _mib(count: int) -> str:
    return f"{count >> 20} MiB"
