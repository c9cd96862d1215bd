"""From the fields of a validated body to what the core understands, and refusals by name; pure."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from api.draft import BodyDraft
from api.errors import InvalidParameter, Unsupported
from api.openai.schemas import Body, Generation, Urgency
from scheduler.jobs import Lane
from scheduler.models import ModelCard
from scheduler.requests import Sampling, Stopping

TIER_LANES = {"flex": Lane.LOW, "priority": Lane.HIGH, "fast": Lane.HIGH, "scale": Lane.HIGH}
LANE_TIERS = {Lane.HIGH: "priority", Lane.NORMAL: "default", Lane.LOW: "flex"}

NO_OPS: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "best_of": (1,),
    "echo": (False,),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "documents": ([],),
    "audio": (),
    "moderation": (),
    "web_search_options": (),
    "prompt_logprobs": (),
    "allowed_token_ids": (),
    "truncate_prompt_tokens": (),
    "logits_processors": (),
    "chat_template": (),
    "prompt_embeds": (),
    "mm_processor_kwargs": (),
    "kv_transfer_params": (),
    "structural_tag": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
}
"""Documented fields without an implementation: only the values that ask for nothing (or null) are accepted."""

_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def ignored_fields(body: Generation) -> list[str]:
    """Unknown fields, to be listed for the caller. Raises Unsupported for documented ones that ask for something."""
    if body.stream_options is not None and not body.stream:
        raise InvalidParameter("stream_options", "stream_options needs stream: true.")
    unknown = unknown_fields(body, NO_OPS)
    for field, options in (("stream_options", body.stream_options), ("structured_outputs", body.structured_outputs)):
        if options is not None:
            unknown += [f"{field}.{name}" for name in options.model_extra or {}]
    return shown_fields(unknown)


def unknown_fields(body: Body, no_ops: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Fields that are neither known nor documented. Raises Unsupported for documented ones that ask for something."""
    extra = dict(body.model_extra or {})
    for name, value in extra.items():
        if name in no_ops and value is not None and value not in no_ops[name]:
            raise Unsupported(name)
    return [name for name in extra if name not in no_ops]


def shown_fields(names: list[str]) -> list[str]:
    """Those names of fields that a header can carry."""
    return [name for name in names if _HEADER_SAFE.fullmatch(name)][:20]


class UrgentDraft(BodyDraft):
    """What drafts of this protocol, and of those that keep to its fields, have in common."""

    __slots__ = ()
    body: Urgency

    @property
    def lane(self) -> Lane:
        """The lane that `priority` or `service_tier` asks for."""
        if self.body.priority:
            return Lane.HIGH if self.body.priority < 0 else Lane.LOW
        return TIER_LANES.get(self.body.service_tier or "", Lane.NORMAL)


class PlainDraft(UrgentDraft):
    """One whose `ignored` is a list of its own."""

    __slots__ = ()
    ignored: list[str]

    def ignore(self, field: str) -> None:
        """It is listed as well."""
        self.ignored.append(field)


def sampling(body: Generation, card: ModelCard) -> Sampling:
    """How to draw tokens; a random seed where none was given, so that an interrupted job can go on alike."""
    default = Sampling()
    return Sampling(
        temperature=_or(body.temperature, default.temperature),
        top_p=_or(body.top_p, default.top_p),
        top_k=max(0, body.top_k or 0),
        min_p=_or(body.min_p, default.min_p),
        repetition_penalty=_or(body.repetition_penalty, default.repetition_penalty),
        presence_penalty=_or(body.presence_penalty, default.presence_penalty),
        frequency_penalty=_or(body.frequency_penalty, default.frequency_penalty),
        logit_bias=_logit_bias(body.logit_bias or {}, card),
        seed=secrets.randbits(63) if body.seed is None else body.seed,
    )


def stopping(body: Generation, card: ModelCard, max_tokens: int, *more_strings: str) -> Stopping:
    """When to stop. Raises InvalidParameter for token ids outside the vocabulary or min_tokens above max_tokens."""
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidParameter("min_tokens", f"min_tokens ({min_tokens}) is above the {max_tokens} tokens allowed.")
    for token_id in body.stop_token_ids or ():
        _check_token("stop_token_ids", token_id, card)
    given = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Stopping(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        strings=tuple(dict.fromkeys([*given, *more_strings])),
        token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
    )


def check_prompt_tokens(prompt: list[int], card: ModelCard, param: str) -> tuple[int, ...]:
    """Token ids that the caller sends as a prompt. Raises InvalidParameter."""
    for token_id in prompt:
        _check_token(param, token_id, card)
    return tuple(prompt)


def _logit_bias(bias: Mapping[str, float], card: ModelCard) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit()):
            raise InvalidParameter("logit_bias", f"logit_bias keys are token ids, not {key!r}.")
        _check_token("logit_bias", int(key), card)
        pairs.append((int(key), value))
    return tuple(pairs)


def _check_token(param: str, token_id: int, card: ModelCard) -> None:
    if token_id >= card.vocab_tokens:
        raise InvalidParameter(
            param, f"Token id {token_id} is outside the vocabulary of {card.name!r} ({card.vocab_tokens} tokens)."
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
