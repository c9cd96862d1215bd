"""Which rows guess at their next tokens, and how far: see `drafts`. Pure.

Guesses need the newest token on the host, so a step that checks some is planned after the last one has been read, and
not while it runs. That is only done where guesses have turned out right.
"""

from collections.abc import Collection, Sequence

from workers.engine.paged.drafts import MOST_DRAFTS, DraftBudget, Drafter
from workers.engine.paged.rows import Row


class Speculation:
    """A drafter for every decoding row, and one budget for all of them."""

    def __init__(self) -> None:
        self.drafted_tokens_total = self.right_tokens_total = 0
        self._drafters: dict[str, Drafter] = {}
        self._budget = DraftBudget()

    def learn(self, row: Row, token_ids: Sequence[int]) -> None:
        """These are the row's latest tokens."""
        drafter = self._drafters.get(row.id)
        if drafter is None:
            self._drafters[row.id] = Drafter(row.tokens)
        else:
            drafter.append(token_ids)

    def force(self, row: Row, token_ids: Sequence[int]) -> None:
        """The row's grammar leaves it nothing else."""
        if row.id in self._drafters:
            self._drafters[row.id].force(token_ids)

    def checked(self, drafts: int, right: int) -> None:
        self.drafted_tokens_total += drafts
        self.right_tokens_total += right

    def timed(self, lengths: Sequence[int], step_s: float) -> None:
        """A step of rows with so many drafts, and without prompts, took that long."""
        self._budget.observe(lengths, step_s)

    def forget(self, row_ids: Collection[str]) -> None:
        for row_id in row_ids:
            self._drafters.pop(row_id, None)

    def pays(self, rows: Sequence[Row]) -> bool:
        """Whether the rows' next tokens are worth waiting for, to guess at those behind them."""
        return bool(rows) and self._budget.worthwhile([self._chances(row) for row in rows])

    def guess(self, rows: Sequence[Row]) -> None:
        """Give the rows their drafts."""
        if not rows:
            return
        lengths = self._budget.lengths([self._chances(row) for row in rows])
        for row, length in zip(rows, lengths, strict=True):
            row.drafts = self._drafters[row.id].guess(length) if length else ()

    def _chances(self, row: Row) -> Sequence[float]:
        drafter, limit = self._drafters.get(row.id), min(MOST_DRAFTS, row.draws_left - 1)
        return drafter.chances(limit) if drafter is not None and limit > 0 else ()
