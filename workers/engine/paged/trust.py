"""What is asked of a draft model, and how often it says what its target says: by row, and for all lately. Pure."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from workers.engine.paged.drafts import SMALLEST_CHANCE
from workers.engine.paged.rows import Row

COMPARED_TOKENS = 16  # of a row's output, when a draft model reads it
UNSEEN_RATE = 0.7  # of right guesses, while nothing is known
UNSEEN_WEIGHT = 4  # tokens that a row's first rate counts for
ROW_MEMORY_TOKENS = 32
MEMORY_TOKENS = 128
PROVEN_TOKENS = 16  # that were compared before the rate of all rows is believed


class Reading(NamedTuple):
    """`tokens` of a row were read in `spent_s`; `verdicts` says which of its latest output had been guessed right."""

    tokens: int
    verdicts: tuple[bool, ...]
    spent_s: float


class Guesser(Protocol):
    """What a draft model is to those who decide whether to ask it."""

    @property
    def chunk_tokens(self) -> int:
        """The most tokens that are read between two steps."""
        ...

    def guess_s(self, rows: int) -> float:
        """What a guess for each of so many rows will probably take."""
        ...

    def read_s(self, tokens: int) -> float:
        """What reading so many tokens of a row will probably take."""
        ...

    def can_guess(self, row: Row, tokens: int) -> bool:
        """Whether the row and so many guesses fit the model's context."""
        ...

    def behind(self, row: Row) -> int:
        """How many of the row's known tokens are not read."""
        ...

    def read(self, row: Row, most_tokens: int) -> Reading:
        """Read up to so many more of the row's tokens, all but the newest; at the end, compare it with its output."""
        ...

    def propose(self, rows: Sequence[Row], lengths: Sequence[int]) -> float:
        """Give each row so many drafts, or fewer where its text would end; returns the seconds that it took.

        The rows' tables cover their tokens and that many more.
        """
        ...

    def forget(self, row_ids: Collection[str]) -> None:
        """These rows have no tables any more."""
        ...


class Rate:
    """A share of right guesses: a moving average over `memory_tokens`, beginning at `rate` as if from `weight`."""

    __slots__ = ("_memory_tokens", "rate", "weight")

    def __init__(self, rate: float, weight: int, memory_tokens: int) -> None:
        self.rate, self.weight, self._memory_tokens = rate, weight, memory_tokens

    def observe(self, is_right: bool) -> None:
        self.weight = min(self.weight + 1, self._memory_tokens)
        self.rate += (is_right - self.rate) / self.weight


class Trust:
    """The rates of all rows that were compared. A row of which nothing is known is taken to be like the others."""

    def __init__(self) -> None:
        self._all = Rate(UNSEEN_RATE, 0, MEMORY_TOKENS)
        self._rows: dict[str, Rate] = {}

    @property
    def is_proven(self) -> bool:
        """Whether the rate of all rows is known from anything."""
        return self._all.weight >= PROVEN_TOKENS

    def observe(self, row_id: str, verdicts: Sequence[bool]) -> None:
        """So the model's latest guesses for a row turned out, up to the first wrong one where they were a chain."""
        row = self._rows.setdefault(row_id, Rate(self._all.rate, UNSEEN_WEIGHT, ROW_MEMORY_TOKENS))
        for is_right in verdicts:
            row.observe(is_right)
            self._all.observe(is_right)

    def forget(self, row_ids: Collection[str]) -> None:
        for row_id in row_ids:
            self._rows.pop(row_id, None)

    def chances(self, row_id: str, limit: int) -> tuple[float, ...]:
        """For each of at most `limit` guesses in a chain, the probability that it and all before it are right."""
        rate = self._rows.get(row_id, self._all).rate
        chances: list[float] = []
        chance = rate
        while len(chances) < limit and chance >= SMALLEST_CHANCE:
            chances.append(chance)
            chance *= rate
        return tuple(chances)
