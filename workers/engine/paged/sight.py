"""Which keys the new tokens of a forward may look at, in the forms that attention can use: a mask, or pieces.

The keys of each row lie next to each other from some position on. Causal attention sees what is not later than the
token itself; a sliding window sees the last so many of those.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import mlx.core as mx
import numpy as np

Ints: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"
Bools: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"
Mask: TypeAlias = mx.array | Literal["causal"] | None

UNSEEN = -1e30  # added to the scores of keys that may not be seen


class Piece(NamedTuple):
    """New tokens [first, last) look at keys [low, high) only; `bias` (rows or 1, 1, 1, tokens, keys) is 0 or UNSEEN."""

    first: int
    last: int
    low: int
    high: int
    bias: mx.array | None


@dataclass
class Sight:
    """Of rows with `tokens` new tokens at positions `starts` to `ends` and keys from `base` on, each (rows,).

    A row with fewer new tokens is padded on the right, and what its padding sees has no meaning.
    """

    starts: Ints
    ends: Ints
    base: Ints
    tokens: int
    window: int | None

    @cached_property
    def high(self) -> int:
        """Keys from here on are seen by nobody."""
        return int((self.ends - self.base).max())

    @cached_property
    def low(self) -> int:
        """Keys before this one are seen by nobody."""
        return self._low(0)

    @cached_property
    def is_alike(self) -> bool:
        """Whether every row sees the same."""
        first = self.starts[0]
        alike = (self.starts == first).all() and (self.base == self.base[0]).all()
        return bool(alike and (self.ends == first + self.tokens).all())

    @cached_property
    def is_causal(self) -> bool:
        """Whether each token sees all keys from `low` on but those behind itself."""
        return self.is_alike and (self.tokens == 1 or self.window is None or self.high - self.low <= self.window)

    @cached_property
    def mask(self) -> Mask:
        """For the keys [low, high): (rows, 1, tokens, keys), true where a token sees a key; or a simpler form."""
        if self.is_causal:
            return None if self.tokens == 1 else "causal"
        return self.array(None)

    def array(self, narrower: int | None) -> mx.array:
        """The mask as an array, in which only `narrower` positions count if that is less than the window."""
        return mx.array(self._seen(0, self.tokens, self.low, self.high, narrower or self.window)[:, None])

    def pieces(self, most_tokens: int) -> list[Piece]:
        """The new tokens in pieces of `most_tokens`, each with no more keys than it sees."""
        if most_tokens not in self._pieces:
            firsts = range(0, self.tokens, most_tokens)
            self._pieces[most_tokens] = [self._piece(i, min(i + most_tokens, self.tokens)) for i in firsts]
        return self._pieces[most_tokens]

    @cached_property
    def _pieces(self) -> dict[int, list[Piece]]:
        return {}

    def _piece(self, first: int, last: int) -> Piece:
        low = self._low(first)
        high = max(int((np.minimum(self.starts + last, self.ends) - self.base).max()), low + 1)
        if self.is_alike and last - first == 1:
            return Piece(first, last, low, high, None)
        seen = self._seen(first, last, low, high, self.window)
        if self.is_alike:
            seen = seen[:1]
        bias = np.where(seen, np.float32(0), np.float32(UNSEEN))
        return Piece(first, last, low, high, mx.array(bias[:, None, None]))

    def _low(self, first: int) -> int:
        if self.window is None:
            return 0
        return max(int((self.starts - self.base).min()) + first + 1 - self.window, 0)

    def _seen(self, first: int, last: int, low: int, high: int, window: int | None) -> Bools:
        """(rows, last - first, high - low): which keys each new token may look at."""
        queries = self.starts[:, None, None] + np.arange(first, last, dtype=np.int32)[:, None]
        keys = self.base[:, None, None] + np.arange(low, high, dtype=np.int32)
        seen = keys <= queries
        if window is not None:
            seen &= keys > queries - window
        return seen
