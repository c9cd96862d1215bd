"""What a renderer of this protocol must know besides what all know; travels in `RenderingNote.extras`; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

MESSAGES_KIND = "messages"


class Display(StrEnum):
    """What the caller sees of the model's reasoning."""

    SHOWN = "shown"
    OMITTED = "omitted"
    """An empty thinking block, whose signature carries the text."""
    HIDDEN = "hidden"
    """No block: thinking was not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesNote:
    """`context_bound`: the context ends before `max_tokens`. `silent`: nothing was to be said (`max_tokens` 0)."""

    display: Display = Display.SHOWN
    context_bound: bool = False
    silent: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For RenderingNote.extras."""
        return {"display": self.display.value, "context_bound": self.context_bound, "silent": self.silent}

    @staticmethod
    def of(extras: Mapping[str, Any]) -> MessagesNote:
        """Inverse of `as_dict`; fields of newer writers are ignored."""
        known = {field.name for field in fields(MessagesNote)}
        values = {key: value for key, value in extras.items() if key in known}
        return MessagesNote(**{**values, "display": Display(values.get("display", Display.SHOWN))})
