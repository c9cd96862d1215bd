"""What a reader of tool calls gives and takes; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

ArgumentTypes = Mapping[str, Mapping[str, tuple[str, ...]]]
"""JSON types that a function's argument may have, by function and argument; formats without quotes need them."""


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
