"""Which waiting prompts start to be read in the next step. Pure; first come, first served.

Prompts are read together in chunks, each padded to the longest, between two decode steps: what is planned here bounds
how long running sequences wait, and how much of the work is padding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BUDGET_CHUNKS = 2  # of padded chunks: a short prompt may join a long one's chunk, but not eight of them


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillLimits:
    """`rows` read together at most; `step_tokens` of each prompt per step at most."""

    rows: int
    step_tokens: int


def chunk_tokens(unread_tokens: int, limits: PrefillLimits) -> int:
    """What the next step reads of a prompt; its last token is read by the first decode step instead."""
    return min(max(0, unread_tokens - 1), limits.step_tokens)


def plan_admissions(reading: Sequence[int], waiting: Iterable[int], limits: PrefillLimits) -> int:
    """How many of the waiting prompts, from the front, begin now; all arguments are counts of unread tokens.

    As long as padded chunks fit the budget of `BUDGET_CHUNKS` x `step_tokens`; at least one if none is being read.
    """
    chunks = [chunk_tokens(unread, limits) for unread in reading]
    admitted = 0
    for unread in waiting:
        grown = [*chunks, chunk_tokens(unread, limits)]
        fits = len(grown) * max(grown) <= BUDGET_CHUNKS * limits.step_tokens
        if chunks and not (fits and len(grown) <= limits.rows):
            break
        chunks = grown
        admitted += 1
    return admitted
