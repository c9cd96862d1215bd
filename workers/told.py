"""News of a sequence that a provider computes, who tells reasoning, text and calls apart and counts his own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scheduler.frames import AnswerPart
from workers.engine import Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Chunk):
    """A chunk with `parts` in place of token ids and text.

    `reason` is a finish reason that engines do not have. The last one has `counts`, which go into the job's record in
    place of ours (tokens, cost), or of an error its `code`; one that may pass is not tried again for `wait_s`.
    """

    parts: tuple[AnswerPart, ...] = ()
    reason: str = ""
    counts: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    wait_s: float = 0.0
