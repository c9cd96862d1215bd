"""Recurrent state of sequences (state-space models, linear attention, short convolutions): one slot per sequence.

mlx-lm's `ArraysCache` holds a layer's state for the rows of a forward. A slot that is computed alone has caches of its
own; rows that are computed together stay together in one batch, and only when other rows meet are they put into pools
[slots, ...] and gathered again. Arrays are values in MLX, so that keeping a state costs nothing but its memory.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache


class StatePool:
    """The states of all recurrent layers; `entries` says how many arrays each of them keeps.

    A slot without a history is given to the model as mlx-lm gives it: nothing where it is computed alone or all rows
    are new, zeros beside older rows. A slot is either new, or has caches of its own, or is in the batch, or in the
    pools, which are made when they are first needed since only the model knows the shapes.
    """

    def __init__(self, entries: Sequence[int], slots: int) -> None:
        self.slots = slots
        self._entries = tuple(entries)
        self._new = set(range(slots))
        self._single: dict[int, list[ArraysCache]] = {}
        self._batch_slots: tuple[int, ...] = ()
        self._batch: list[ArraysCache] = []
        self._pools: list[list[mx.array | None]] = [[None] * count for count in entries]
        self._last: list[ArraysCache] = []
        self._stored = False  # into the pools, and not evaluated yet

    def take(self, slots: Sequence[int]) -> list[ArraysCache]:
        """One cache per recurrent layer for a forward of these slots' rows; the forward changes them.

        Raises ValueError for a slot that does not exist or is named twice.
        """
        wanted = tuple(slots)
        if len(set(wanted)) != len(wanted) or not all(0 <= slot < self.slots for slot in wanted):
            raise ValueError(f"state slots {wanted}: not {len(wanted)} different ones below {self.slots}")
        self._last = self._alone(wanted[0]) if len(wanted) == 1 else self._together(wanted)
        return self._last

    def reset(self, slot: int) -> None:
        """Forget a slot's history: its next forward begins a sequence."""
        self._forget(slot)
        self._new.add(slot)

    def copy(self, source: int, target: int) -> None:
        """Give `target` the state of `source`, without computing anything."""
        if source == target:
            return
        if source in self._new:
            self.reset(target)
            return
        caches = self._alone(source)
        self._forget(target)
        self._single[target] = [_holding([None if a is None else copy(a) for a in cache.cache]) for cache in caches]

    def arrays(self) -> list[mx.array]:
        """What has changed since the last call: evaluating it finishes the last forward.

        The pools are among it once rows were put into them. Left unevaluated, they would hold on to all that led to
        them, for as long as no row is gathered from them again.
        """
        changed: list[mx.array | None] = [array for cache in self._last for array in _entries_of(cache)]
        if self._stored:
            changed += [pool for pools in self._pools for pool in pools]
            self._stored = False
        return [array for array in changed if array is not None]

    def _alone(self, slot: int) -> list[ArraysCache]:
        if slot in self._batch_slots:
            self._dissolve()
        if slot in self._new:
            self._single[slot] = [ArraysCache(count) for count in self._entries]
            self._new.discard(slot)
        elif slot not in self._single:
            self._single[slot] = self._gathered((slot,))
        return self._single[slot]

    def _together(self, slots: tuple[int, ...]) -> list[ArraysCache]:
        if slots != self._batch_slots:
            self._dissolve()
            for slot in slots:
                if slot in self._single:
                    self._store((slot,), self._single.pop(slot))
            self._batch, self._batch_slots = self._gathered(slots), slots
            self._new.difference_update(slots)
        return self._batch

    def _forget(self, slot: int) -> None:
        if slot in self._batch_slots:
            self._dissolve()
        self._single.pop(slot, None)
        self._new.discard(slot)

    def _dissolve(self) -> None:
        """Put the batch's rows into the pools."""
        if self._batch_slots:
            self._store(self._batch_slots, self._batch)
        self._batch_slots, self._batch = (), []

    def _gathered(self, slots: tuple[int, ...]) -> list[ArraysCache]:
        if self._new.issuperset(slots):
            return [ArraysCache(count) for count in self._entries]
        index = mx.array(slots)
        old = None if self._new.isdisjoint(slots) else mx.array([slot not in self._new for slot in slots])

        def rows(pool: mx.array | None) -> mx.array | None:
            if pool is None:
                return None
            some = pool[index]
            return some if old is None else mx.where(old.reshape(-1, *[1] * (some.ndim - 1)), some, 0)

        return [_holding([rows(pool) for pool in pools]) for pools in self._pools]

    def _store(self, slots: tuple[int, ...], caches: Sequence[ArraysCache]) -> None:
        index, needed = mx.array(slots), max(slots) + 1
        self._stored = True
        for pools, cache in zip(self._pools, caches, strict=True):
            for entry, state in enumerate(cache.cache):
                if state is not None:
                    pools[entry] = _widened(pools[entry], state, needed)
                    pools[entry][index] = state


def _holding(arrays: list[mx.array | None]) -> ArraysCache:
    cache: Any = ArraysCache(len(arrays))
    cache.cache = arrays
    return cast(ArraysCache, cache)


def _entries_of(cache: Any) -> list[mx.array | None]:
    return list(cache.cache)


def _widened(pool: mx.array | None, state: mx.array, slots: int) -> mx.array:
    """A pool [at least `slots`, ...] for states [rows, ...], with what it held."""
    held = 0 if pool is None else pool.shape[0]
    if pool is not None and held >= slots:
        return pool
    more = mx.zeros((max(slots, 2 * held) - held, *state.shape[1:]), state.dtype)
    return more if pool is None else mx.concatenate([pool, more])
