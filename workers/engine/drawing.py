"""The next tokens of a whole batch of unlike rows, in one pass over the logits.

Rows are sorted by what has to be computed for them, and each kind is computed together; what a row does not need is
not computed. Given equal logits, a row gets the token that `sampling.RowSampler` gives it: the draw depends on the
row's seed and position only.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from workers.engine.adjusting import Adjuster, Adjustment, Lesson, Place, picked
from workers.engine.sampling import token_logprob
from workers.engine.selection import (
    Kind,
    Truncation,
    draw_keys,
    kind_of,
    log_normaliser,
    row_sums,
    select,
    truncation_of,
    uniforms,
)
from workers.engine.sequence import Prompt, SamplingParams, TokenLogprob

_SEED_MASK = (1 << 64) - 1

Masks = Mapping[int, npt.NDArray[np.uint32]]


class Draw(NamedTuple):
    """A draw for the row's next position behind the tokens `ahead`, which are assumed to come first."""

    row_id: str
    ahead: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Asked:
    """Logits (asked, vocab) of the draws that want log-probabilities, and what normalises them, (asked, 1).

    `rows`: draw index -> row, number of alternatives.
    """

    logits: mx.array
    normaliser: mx.array
    rows: Mapping[int, tuple[int, int]]

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return self.logits, self.normaliser

    def logprob(self, index: int, token: int) -> TokenLogprob | None:
        if index not in self.rows:
            return None
        row, top = self.rows[index]
        logits = np.asarray(self.logits)[row]
        return token_logprob(token, logits, top, float(np.asarray(self.normaliser)[row, 0]))


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one call of `draw` draws, once `arrays` are evaluated: `tokens` (draws,) int32, and `finite` (draws,) bool.

    `finite` is false where the row's logits were not numbers or nothing was left to draw; the token then means nothing.
    `is_short`: so few operations that handing them over does not wait for the device.
    """

    tokens: mx.array
    finite: mx.array
    asked: _Asked | None
    is_short: bool

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return (self.tokens, self.finite) if self.asked is None else (self.tokens, self.finite, *self.asked.arrays)

    def take_logprob(self, index: int, token: int) -> TokenLogprob | None:
        """Of `token` in draw `index`; None where its row asked for none."""
        return None if self.asked is None else self.asked.logprob(index, token)


@dataclass(frozen=True, slots=True)
class _Group:
    """Draws that are computed together: first those of unchanged logits, then those of adjusted ones.

    `plain` are rows of the logits, `adjusted` rows of the adjusted ones. Where there are both, `runs` are the slices
    that `plain` consists of: they are put together with the others without being gathered first.
    `truncation` is None for greedy rows. `places` are the draws' indices.
    """

    places: npt.NDArray[np.int64]
    plain: slice | mx.array | None
    adjusted: slice | mx.array | None
    runs: tuple[slice, ...]
    truncation: Truncation | None

    def rows_of(self, logits: mx.array, adjusted: mx.array | None) -> mx.array:
        if self.adjusted is None or adjusted is None:
            return logits[self.plain]
        changed = adjusted[self.adjusted]
        return mx.concatenate([*(logits[run] for run in self.runs), changed]) if self.runs else changed


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is computed for a list of draws; it can be used again for the same rows in the same order.

    `order` sorts the groups' results back, None where they are in order. `uniforms` is what the neediest row needs.
    """

    row_ids: list[str]
    ahead: npt.NDArray[np.int64] | None  # (draws,) how many tokens are assumed
    masks_ends: npt.NDArray[np.bool_]
    guided: frozenset[int]
    slots: npt.NDArray[np.int64]
    lesson: Lesson
    adjustment: Adjustment | None
    groups: tuple[_Group, ...]
    order: mx.array | None
    uniforms: int
    asked: mx.array | None
    asked_rows: Mapping[int, tuple[int, int]]


class _Row(NamedTuple):
    slot: int
    params: SamplingParams
    kind: Kind | None  # None: greedy
    top: int | None


class BatchSampler:
    """Rows known by id. All arrays are lazy; nothing here waits for the device."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows: dict[str, _Row] = {}
        self._adjuster = Adjuster(vocab_size)
        self._free: list[int] = []
        self._seeds = np.zeros(0, dtype=np.uint64)  # by slot, like the following
        self._positions = np.zeros(0, dtype=np.int64)
        self._min_tokens = np.zeros(0, dtype=np.int64)
        self._plan: _Plan | None = None

    def add(self, row_id: str, prompt: Prompt, end_ids: frozenset[int], output_ids: Sequence[int]) -> None:
        """`output_ids` are drawn already. Raises `ValueError` if the row is known."""
        if row_id in self._rows:
            raise ValueError(f"row {row_id!r} is being drawn for")
        params = prompt.sampling
        kind = None if params.temperature == 0 else kind_of(params, self._vocab_size)
        top = None if prompt.logprobs is None else min(prompt.logprobs, self._vocab_size)
        slot = self._take_slot()
        self._rows[row_id] = _Row(slot, params, kind, top)
        self._seeds[slot] = params.seed & _SEED_MASK
        self._positions[slot] = len(output_ids)
        self._min_tokens[slot] = prompt.stop.min_tokens if end_ids else 0
        self._adjuster.add(row_id, prompt, end_ids, output_ids)
        self._plan = None

    def remove(self, row_ids: Collection[str]) -> None:
        """Unknown rows are ignored."""
        for row_id in row_ids:
            row = self._rows.pop(row_id, None)
            if row is not None:
                self._free.append(row.slot)
                self._adjuster.remove(row_id)
                self._plan = None

    def draw(self, logits: mx.array, draws: Sequence[Draw], allowed: Masks | None = None) -> Drawn:
        """One token for each of the `draws` from its row of `logits`, (draws, vocab) float32.

        `allowed`: for some draws, by index, a bit per token, packed in (ceil(vocab / 32),) uint32; the others may draw
        everything. Raises `KeyError` for a row that is not known.
        """
        allowed = allowed or {}
        plan = self._plan_for(draws, frozenset(allowed))
        adjusted = self._adjuster.apply(plan.adjustment, logits, allowed) if plan.adjustment is not None else None
        numbers = self._uniforms(plan)
        tokens, chosen = [], []
        for group in plan.groups:
            rows = group.rows_of(logits, adjusted)
            if group.truncation is None:
                token = mx.argmax(rows, axis=-1).astype(mx.int32)
            else:
                token = select(rows, group.truncation, numbers[group.places, : group.truncation.kind.draws])
            tokens.append(token)
            chosen.append(mx.take_along_axis(rows, token[:, None], axis=-1)[:, 0])
        token, value = (parts[0] if len(parts) == 1 else mx.concatenate(parts) for parts in (tokens, chosen))
        if plan.order is not None:
            token, value = token[plan.order], value[plan.order]
        finite = (row_sums(logits) < mx.inf) & (value > -mx.inf)
        asked = None
        if plan.asked is not None:
            raw = logits[plan.asked]
            asked = _Asked(raw, log_normaliser(raw), plan.asked_rows)
        return Drawn(token, finite, asked, is_short=len(plan.groups) == 1)

    def _uniforms(self, plan: _Plan) -> npt.NDArray[np.float32]:
        """(draws, n, 3), where n is what the neediest draw needs; nothing where all are greedy."""
        if not plan.uniforms:
            return np.empty((len(plan.row_ids), 0, 3), dtype=np.float32)
        positions = self._positions[plan.slots] if plan.ahead is None else self._positions[plan.slots] + plan.ahead
        return uniforms(draw_keys(self._seeds[plan.slots], positions), plan.uniforms)

    def advance(self, row_ids: Sequence[str], tokens: mx.array) -> None:
        """`tokens` (rows,) were drawn for these rows; they need not be evaluated."""
        plan = self._plan
        if plan is not None and plan.row_ids == row_ids:
            slots, lesson = plan.slots, plan.lesson
        else:
            slots, lesson = self._slots(row_ids), self._adjuster.lesson(row_ids)
        self._positions[slots] += 1
        self._adjuster.learn(lesson, tokens)

    def accept(self, row_id: str, token_ids: Sequence[int]) -> None:
        """These tokens come next in the row."""
        self._positions[self._rows[row_id].slot] += len(token_ids)
        if self._adjuster.remembers(row_id) and token_ids:
            lesson = self._adjuster.lesson([row_id] * len(token_ids))
            self._adjuster.learn(lesson, mx.array(list(token_ids), dtype=mx.int32))

    def _slots(self, row_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.array([self._rows[row_id].slot for row_id in row_ids], dtype=np.int64)

    def _take_slot(self) -> int:
        if not self._free:
            size = self._seeds.size
            grown = max(8, 2 * size)
            self._seeds = np.resize(self._seeds, grown)
            self._positions, self._min_tokens = np.resize(self._positions, grown), np.resize(self._min_tokens, grown)
            self._free = list(range(self._seeds.size - 1, size - 1, -1))
        return self._free.pop()

    def _plan_for(self, draws: Sequence[Draw], guided: frozenset[int]) -> _Plan:
        row_ids = [draw.row_id for draw in draws]
        is_ahead = any(draw.ahead for draw in draws)
        plan = self._plan
        if plan is not None and not is_ahead and plan.ahead is None and plan.row_ids == row_ids:
            masks_ends = self._positions[plan.slots] < self._min_tokens[plan.slots]
            if plan.guided == guided and np.array_equal(masks_ends, plan.masks_ends):
                return plan
        self._plan = self._made_plan(draws, row_ids, guided)
        return self._plan

    def _made_plan(self, draws: Sequence[Draw], row_ids: list[str], guided: frozenset[int]) -> _Plan:
        slots = self._slots(row_ids)
        ahead = np.array([len(draw.ahead) for draw in draws], dtype=np.int64)
        masks_ends = self._positions[slots] + ahead < self._min_tokens[slots]
        places = [
            Place(index, row_id, draw.ahead, bool(masks_ends[index]), index in guided)
            for index, (row_id, draw) in enumerate(zip(row_ids, draws, strict=True))
            if masks_ends[index] or index in guided or self._adjuster.always_adjusts(row_id)
        ]
        adjustment = self._adjuster.plan(places) if places else None
        groups = self._groups(row_ids, adjustment)
        order = np.argsort(np.concatenate([group.places for group in groups]))
        asked = [(index, top) for index, row_id in enumerate(row_ids) if (top := self._rows[row_id].top) is not None]
        return _Plan(
            row_ids=row_ids,
            ahead=ahead if ahead.any() else None,
            masks_ends=masks_ends,
            guided=guided,
            slots=slots,
            lesson=self._adjuster.lesson(row_ids),
            adjustment=adjustment,
            groups=groups,
            order=None if np.array_equal(order, np.arange(order.size)) else mx.array(order),
            uniforms=max((group.truncation.kind.draws for group in groups if group.truncation is not None), default=0),
            asked=mx.array([index for index, _ in asked]) if asked else None,
            asked_rows={index: (row, top) for row, (index, top) in enumerate(asked)},
        )

    def _groups(self, row_ids: list[str], adjustment: Adjustment | None) -> tuple[_Group, ...]:
        adjusted = {} if adjustment is None else {index: row for row, index in enumerate(adjustment.indices)}
        members: dict[Kind | None, list[int]] = {}
        for index, row_id in enumerate(row_ids):
            members.setdefault(self._rows[row_id].kind, []).append(index)
        groups = []
        for kind, indices in members.items():
            plain = [index for index in indices if index not in adjusted]
            changed = [index for index in indices if index in adjusted]
            params = [self._rows[row_ids[index]].params for index in (*plain, *changed)]
            groups.append(
                _Group(
                    places=np.array([*plain, *changed], dtype=np.int64),
                    plain=picked(plain) if plain else None,
                    adjusted=picked([adjusted[index] for index in changed]) if changed else None,
                    runs=_runs(plain) if changed else (),
                    truncation=None if kind is None else truncation_of(params, kind),
                )
            )
        return tuple(groups)


def _runs(indices: Sequence[int]) -> tuple[slice, ...]:
    """Ascending indices as slices."""
    borders = [i for i in range(1, len(indices)) if indices[i] != indices[i - 1] + 1]
    parts = pairwise([0, *borders, len(indices)]) if indices else ()
    return tuple(slice(indices[begin], indices[end - 1] + 1) for begin, end in parts)
