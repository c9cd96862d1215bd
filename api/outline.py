"""What routing rules look at in a body, in any protocol and before a tokenizer is known: size, tools, images, session.

The size is an estimate: UTF-8 bytes over four, and token ids as they are. The exact number is the serving model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pydantic import BaseModel

BYTES_PER_TOKEN = 4

_CONTENT = ("messages", "system", "instructions", "input", "prompt", "tools", "query", "documents", "text_1", "text_2")
_LABELS = frozenset({"type", "role", "id", "media_type", "detail"})
_IMAGES = frozenset({"image", "image_url", "input_image"})


@dataclass(frozen=True, slots=True)
class Outline:
    """`prompt_tokens` is an estimate. `session` is a digest of what the client calls its user, or empty."""

    prompt_tokens: int
    has_tools: bool
    has_images: bool
    session: str


def outline_of(body: object, session: str = "") -> Outline:
    """The outline of a validated body; `session` is what a header said."""
    size_bytes, token_ids, has_images = 0, 0, False
    for value in _values([getattr(body, name, None) for name in _CONTENT]):
        if isinstance(value, str):
            size_bytes += len(value) if value.isascii() else len(value.encode())
        elif isinstance(value, int):
            token_ids += value is not True and value is not False
        else:
            has_images = True
    return Outline(
        prompt_tokens=-(-size_bytes // BYTES_PER_TOKEN) + token_ids,
        has_tools=bool(getattr(body, "tools", None)) and not _declines_tools(body),
        has_images=has_images,
        session=session_digest(session or _user(body)),
    )


def session_digest(session: str) -> str:
    """What the record keeps of a session's name, which may say who somebody is."""
    return blake2b(session.encode(), digest_size=8).hexdigest() if session else ""


def _values(content: Any) -> Iterator[str | int | None]:
    """All texts and numbers inside, and None for each image (whose bytes are no text)."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, BaseModel):
            fields = vars(value) | (value.model_extra or {})
            value = [part for name, part in fields.items() if name not in _LABELS]
            if fields.get("type") in _IMAGES:
                yield None
                continue
        if isinstance(value, dict):
            waiting.extend(value)  # a schema's words are as long as its keys
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str | int):
            yield value


def _declines_tools(body: object) -> bool:
    choice = getattr(body, "tool_choice", None)
    return choice == "none" or getattr(choice, "type", None) == "none"


def _user(body: object) -> str:
    user = getattr(body, "user", None) or getattr(getattr(body, "metadata", None), "user_id", None)
    return user if isinstance(user, str) else ""
