"""What a reader of tool calls gives and takes; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

ArgumentTypes = Mapping[str, Mapping[str, tuple[str, ...]]]
"""JSON types that a function's argument may have, by function and argument; formats without quotes need them."""


_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class CallPart:
    """What is new of a call: with `name` it begins, and `arguments` is more of its JSON object as text.

    `call_id` is the model's own name of the call, where its format has one.
    """

    arguments: str
    name: str | None = None
    call_id: str | None = None


class CallReader(Protocol):
    """Reads what stands between the markers of one section, which holds one call or several, while it is written."""

    @property
    def is_broken(self) -> bool:
        """Was there, in a section that is whole, something that cannot be read?"""

    def read(self, inside: str, *, whole: bool) -> list[CallPart]:
        """What is new in `inside`, which is all of the section so far; `whole`: no more will come."""


def as_json_text(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """A value as JSON that UTF-8 can hold: a model may escape half a character. Raises TypeError, ValueError."""
    text = json.dumps(value, ensure_ascii=False, default=default)
    return json.dumps(value, default=default) if _SURROGATE.search(text) else text


def as_name(text: str) -> str:
    """A function's name in UTF-8."""
    return _SURROGATE.sub("?", text)
