"""Which inputs are computed together, and which wait; pure.

Inputs of one request belong to a group, and groups of equal priority take turns, one input each: a request of 2,000
inputs does not keep one of a single input waiting. What is taken for one step is then packed by length, because every
input of a forward is padded to its longest one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

PADDING_SHARE = 0.2
"""Of a forward's tokens, that may be padding."""


class Waiting(Protocol):
    """An input that has not been computed."""

    @property
    def id(self) -> str: ...

    @property
    def token_ids(self) -> tuple[int, ...]: ...

    @property
    def priority(self) -> int: ...


T = TypeVar("T", bound=Waiting)


class Turns(Generic[T]):
    """Inputs that wait. Ids that differ only behind their last slash are of one group."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[int, str], deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: T) -> None:
        """Behind the others of its group."""
        self._groups.setdefault((item.priority, item.id.rpartition("/")[0]), deque()).append(item)
        self._count += 1

    def remove(self, item_id: str) -> bool:
        """Drop one; False where it does not wait."""
        group = item_id.rpartition("/")[0]
        for key, items in self._groups.items():
            kept = deque(item for item in items if item.id != item_id) if key[1] == group else items
            if len(kept) < len(items):
                self._put(key, kept)
                self._count -= 1
                return True
        return False

    def take(self, max_tokens: int) -> list[T]:
        """The next ones, of the highest priority first: at least one, and no more than `max_tokens` otherwise."""
        taken: list[T] = []
        tokens = 0
        while self._groups:
            key = max(self._groups, key=lambda key: key[0])  # the first of them: dictionaries keep their order
            item = self._groups[key][0]
            tokens += len(item.token_ids)
            if taken and tokens > max_tokens:
                break
            taken.append(item)
            rest = self._groups.pop(key)
            rest.popleft()
            self._put(key, rest)
            self._count -= 1
        return taken

    def _put(self, key: tuple[int, str], items: deque[T]) -> None:
        """At its place, or behind the others if it has none; empty groups go."""
        if items:
            self._groups[key] = items
        else:
            self._groups.pop(key, None)


def pack(lengths: Sequence[int]) -> list[list[int]]:
    """Split indices into forwards, each of similar lengths, so that at most PADDING_SHARE of its tokens are padding."""
    packs: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[packs[-1][0]] if packs else 0
        padded = longest * (len(packs[-1]) + 1) if packs else 0
        if packs and padded - (tokens + lengths[index]) <= PADDING_SHARE * padded:
            packs[-1].append(index)
            tokens += lengths[index]
        else:
            packs.append([index])
            tokens = lengths[index]
    return packs
