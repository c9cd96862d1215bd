"""What drafts of vectors share: which fields are refused, how inputs are encoded and cut, the job that comes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from api.errors import ApiError, InvalidParameter
from api.formats import THREAD_CHARS
from api.openai.parameters import LANE_TIERS, check_prompt_tokens, shown_fields, unknown_fields
from api.rendering import RenderingNote
from api.vectors.schemas import Shortening
from scheduler.errors import ContextTooLong
from scheduler.jobs import Lane
from scheduler.models import ModelCard
from scheduler.prompts import Cut, EncodedInput, PromptFormat
from scheduler.requests import JobRequest, Stopping

NO_OPS: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "add_special_tokens": (True,),
    "normalize": (True,),
    "normalized": (True,),
    "use_activation": (True,),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "embedding_type": ("float",),
    "embedding_types": (["float"],),
    "messages": (),
    "chat_template": (),
    "mm_processor_kwargs": (),
    "late_chunking": (False,),
    "rank_fields": (),
    "max_chunks_per_doc": (),
}
"""Documented fields without an implementation: only the values that ask for nothing (or null) are accepted."""

Item = str | list[int] | tuple[str, str]
"""A text, token ids, or a pair of texts."""


def checked(body: Shortening) -> list[str]:
    """Unknown fields, to be listed. Raises ApiError by path for what cannot be done."""
    unknown = unknown_fields(body, NO_OPS)
    if body.truncate_prompt_tokens == 0:
        raise InvalidParameter("truncate_prompt_tokens", "An input needs tokens: 1 or more, or -1.")
    if body.truncation_side is not None and body.truncate_prompt_tokens is None:
        raise InvalidParameter("truncation_side", "truncation_side needs truncate_prompt_tokens.")
    return shown_fields(unknown)


async def encode(
    items: Sequence[tuple[str, Item]],
    body: Shortening,
    card: ModelCard,
    prompts: PromptFormat,
    second_tokens: int | None = None,
) -> list[EncodedInput]:
    """Token ids of each (path, item), the model's special tokens included. Raises ApiError with the path."""
    cut = _cut(body, card)

    def all_of_them() -> list[EncodedInput]:
        return [_encoded(path, item, card, prompts, cut, second_tokens) for path, item in items]

    chars = sum(len(item) if isinstance(item, str) else sum(map(len, map(str, item))) for _, item in items)
    return await asyncio.to_thread(all_of_them) if chars > THREAD_CHARS else all_of_them()


def job(
    kind: str,
    body: Shortening,
    card: ModelCard,
    lane: Lane,
    inputs: Sequence[EncodedInput],
    *,
    dimensions: int | None = None,
    **extras: Any,
) -> JobRequest:
    """The job that computes a vector for each input; `extras` are for its renderer."""
    note = RenderingNote(
        created_s=int(time.time()),
        model=body.model,
        choices=len(inputs),
        prompt_tokens=sum(len(item.token_ids) for item in inputs),
        service_tier=LANE_TIERS[lane],
        user=body.user,
        extras=extras,
    )
    return JobRequest(
        kind=kind,
        model=card.name,
        prompts=tuple(item.token_ids for item in inputs),
        stopping=Stopping(max_tokens=0),
        second_at=tuple(item.second_at for item in inputs),
        dimensions=dimensions,
        rendering=note.as_dict(),
    )


def _cut(body: Shortening, card: ModelCard) -> Cut | None:
    asked = body.truncate_prompt_tokens
    if asked is None:
        return None
    if asked > card.context_tokens:
        limit = f"{card.name!r} takes {card.context_tokens} tokens"
        raise InvalidParameter("truncate_prompt_tokens", f"{limit}; {asked} are more than that.")
    return Cut(card.context_tokens if asked == -1 else asked, body.truncation_side or "right")


def _encoded(
    path: str, item: Item, card: ModelCard, prompts: PromptFormat, cut: Cut | None, second_tokens: int | None
) -> EncodedInput:
    try:
        if isinstance(item, list):
            return _ids(check_prompt_tokens(item, card, path), card, cut)
        text, second = (item, None) if isinstance(item, str) else item
        return prompts.encode_input(text, second, cut=cut, second_tokens=second_tokens)
    except ContextTooLong as error:
        limit = f"it has {error.prompt_tokens} tokens, {card.name!r} takes {error.context_tokens} of one input"
        hint = "Shorten it, or let it be cut: truncate_prompt_tokens: -1." if cut is None else "More cannot be cut off."
        raise ApiError(400, f"Invalid {path!r}: {limit}. {hint}", param=path, code="context_length_exceeded") from error


def _ids(ids: tuple[int, ...], card: ModelCard, cut: Cut | None) -> EncodedInput:
    """Token ids as they are: who sends them has put in the special ones."""
    if cut is not None:
        ids = ids[-cut.max_tokens :] if cut.direction == "left" else ids[: cut.max_tokens]
    if len(ids) > card.context_tokens:
        raise ContextTooLong(len(ids), card.context_tokens)
    return EncodedInput(ids, len(ids))
