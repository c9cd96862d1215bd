"""The life of a batch and of its lines; pure.

validating ─┬─ in_progress ── finalizing ─┬─ completed
            │       │                     └─ expired
            │       └──┐
            ├──── cancelling ── cancelled
            └─ failed

Wherever the input has to be read and is gone, the batch fails too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class BatchState(StrEnum):
    """OpenAI's words."""

    VALIDATING = "validating"
    """Its input is read for the first time."""
    FAILED = "failed"
    """The input is no batch, and nothing ran; or it was lost on the way."""
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    """Every line has its outcome or never will; the result files are written."""
    COMPLETED = "completed"
    EXPIRED = "expired"
    """The completion window ended first; what was done is in the result files."""
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """What became of a line."""

    SUCCEEDED = "succeeded"
    ERRORED = "errored"
    CANCELED = "canceled"
    EXPIRED = "expired"


MOVES: Mapping[BatchState, frozenset[BatchState]] = {
    BatchState.VALIDATING: frozenset({BatchState.FAILED, BatchState.IN_PROGRESS, BatchState.CANCELLING}),
    BatchState.IN_PROGRESS: frozenset({BatchState.FINALIZING, BatchState.CANCELLING, BatchState.FAILED}),
    BatchState.FINALIZING: frozenset({BatchState.COMPLETED, BatchState.EXPIRED, BatchState.FAILED}),
    BatchState.CANCELLING: frozenset({BatchState.CANCELLED, BatchState.FAILED}),
    BatchState.FAILED: frozenset(),
    BatchState.COMPLETED: frozenset(),
    BatchState.EXPIRED: frozenset(),
    BatchState.CANCELLED: frozenset(),
}
"""Every legal move."""

ACTIVE = frozenset(state for state, following in MOVES.items() if following)
ENDED = frozenset(BatchState) - ACTIVE
CANCELLABLE = frozenset(state for state, following in MOVES.items() if BatchState.CANCELLING in following)


@dataclass(frozen=True, slots=True)
class Counts:
    """Lines of a batch by outcome. `taken`: lines that were read and have become a job or an outcome."""

    total: int = 0
    taken: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0

    @property
    def done(self) -> int:
        """Lines with an outcome."""
        return self.succeeded + self.errored + self.canceled + self.expired

    @property
    def open(self) -> int:
        """Lines that are jobs now."""
        return self.taken - min(self.done, self.taken)

    @property
    def waiting(self) -> int:
        """Lines that are not jobs yet."""
        return self.total - self.taken

    def plus(self, outcome: Outcome, lines: int = 1) -> Counts:
        """With so many more of one outcome."""
        return replace(self, **{outcome.value: getattr(self, outcome.value) + lines})


REFILL_SHARE = 8
"""An eighth of the window is taken together: a transaction for each line would cost more than the line's job."""


def lines_to_take(counts: Counts, *, window: int, at_once: int) -> int:
    """How many lines should become jobs now: the queue never holds more than `window` of one batch.

    None while less than a part of the window is free and more lines than that are waiting.
    """
    wanted = min(window - counts.open, counts.waiting, at_once)
    return wanted if wanted >= min(counts.waiting, at_once, max(1, window // REFILL_SHARE)) else 0


def next_state(state: BatchState, counts: Counts, *, now_ms: int, expires_ms: int) -> BatchState:
    """Where a batch that runs goes from here; `state` itself while lines are still to come.

    In progress until every line has an outcome or the window has ended; what was not done by then has expired.
    """
    if state is BatchState.IN_PROGRESS:
        over = now_ms >= expires_ms or counts.done == counts.total
        return BatchState.FINALIZING if over else state
    if state is BatchState.FINALIZING:
        missed = counts.expired > 0 or counts.done < counts.total
        return BatchState.EXPIRED if missed else BatchState.COMPLETED
    if state is BatchState.CANCELLING:
        return BatchState.CANCELLED
    return state
