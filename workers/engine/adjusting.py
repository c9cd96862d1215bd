"""What changes logits before anything is drawn from them: bias, penalties, end masks and grammars, for some rows.

Order: logit bias, repetition penalty, frequency and presence penalty, then what may not be drawn. What a row has said
is kept on the device and updated with tokens that the host has not read yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from workers.engine.sequence import Prompt, SamplingParams


def repetition_penalised(logits: mx.array, factors: mx.array, lowers: bool) -> mx.array:
    """Logits and factors (rows, vocab), which are 1 for tokens that were not said (Keskar et al. 2019, CTRL).

    Positive logits are divided, negative ones multiplied. `lowers`: no factor is below 1, otherwise none is above.
    """
    return (mx.minimum if lowers else mx.maximum)(logits / factors, logits * factors)


def count_penalised(
    logits: mx.array, counts: mx.array, frequency: mx.array | None, presence: mx.array | None
) -> mx.array:
    """Logits and counts of output tokens (rows, vocab), penalties (rows, 1) or None for 0 (OpenAI's definition)."""
    if frequency is not None:
        logits = logits - frequency * counts
    return logits if presence is None else logits - presence * mx.minimum(counts, 1)


def penalises_repetition(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1


def penalises_counts(params: SamplingParams) -> bool:
    return params.presence_penalty != 0 or params.frequency_penalty != 0


class TokenTable:
    """One number per token of some rows, (slots, vocab) float32 on the device. A row keeps its slot."""

    def __init__(self, vocab_size: int) -> None:
        self._values = mx.zeros((0, vocab_size))
        self._slots: dict[str, int] = {}
        self._free: list[int] = []

    def __contains__(self, row_id: str) -> bool:
        return row_id in self._slots

    def insert(self, row_id: str, numbers: npt.NDArray[np.float32]) -> None:
        size = self._values.shape[0]
        if not self._free:
            self._values = mx.concatenate([self._values, mx.zeros((max(1, size), self._values.shape[1]))])
            self._free = list(range(self._values.shape[0] - 1, size - 1, -1))
        slot = self._slots[row_id] = self._free.pop()
        self._values[slot] = mx.array(numbers)

    def remove(self, row_id: str) -> None:
        """Unknown rows are ignored. The memory is given back with the last row."""
        slot = self._slots.pop(row_id, None)
        if slot is not None:
            self._free.append(slot)
            if not self._slots:
                self._free, self._values = [], self._values[:0]

    def slot(self, row_id: str) -> int:
        """-1 for a row that is not here."""
        return self._slots.get(row_id, -1)

    def rows(self, slots: slice | mx.array) -> mx.array:
        """(slots, vocab)"""
        return self._values[slots]

    def add(self, slots: mx.array, tokens: mx.array, amount: float) -> None:
        """`slots` and `tokens` (n,): a pair that comes twice counts twice."""
        self._values = self._values.at[slots, tokens].add(amount)

    def put(self, slots: mx.array, tokens: mx.array, numbers: mx.array) -> None:
        self._values[slots, tokens] = numbers


def picked(indices: Sequence[int]) -> slice | mx.array:
    """What picks these rows: a slice, which copies nothing, where they are consecutive."""
    first = indices[0]
    if list(indices) == list(range(first, first + len(indices))):
        return slice(first, first + len(indices))
    return mx.array(list(indices))


class Place(NamedTuple):
    """A draw that needs an adjustment: its index, whose it is, and what it assumes."""

    draw: int
    row_id: str
    ahead: tuple[int, ...]
    masks_ends: bool
    is_guided: bool


@dataclass(frozen=True, slots=True)
class Ahead:
    """Tokens that draws of a piece assume: pairs of a row of the piece and a token, and the row's factor; all (n,)."""

    rows: mx.array
    tokens: mx.array
    factors: mx.array


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows that get the same treatment."""

    rows: slice
    repetition: slice | mx.array | None  # slots
    lowers: bool  # what the repetition penalty does
    counts: slice | mx.array | None  # slots
    frequency: mx.array | None  # (rows, 1), None where no row has one
    presence: mx.array | None  # (rows, 1), likewise
    ahead: Ahead | None
    guided: tuple[int, ...]  # the draws' indices, where a grammar restricts them


class Entries(NamedTuple):
    """Single elements: rows, tokens and values (n,)."""

    rows: mx.array
    tokens: mx.array
    values: mx.array


@dataclass(frozen=True, slots=True)
class Adjustment:
    """How the rows `indices` of the logits are changed, in the order of `indices`."""

    indices: list[int]
    source: slice | mx.array
    bias: Entries | None
    pieces: tuple[Piece, ...]
    ends: Entries | None


class Lesson(NamedTuple):
    """Which of some rows' tokens are to be remembered: what picks them, the slots, and the factors, (n,)."""

    counted: slice | mx.array | None
    count_slots: mx.array
    factored: slice | mx.array | None
    factor_slots: mx.array
    factors: mx.array


class _Known(NamedTuple):
    params: SamplingParams
    end_ids: tuple[int, ...]


class Adjuster:
    """The adjustments of all rows, by row id."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows: dict[str, _Known] = {}
        self._factors = TokenTable(vocab_size)  # repetition penalty of tokens in prompt or output, else 1
        self._counts = TokenTable(vocab_size)  # how often the output has each token

    def add(self, row_id: str, prompt: Prompt, end_ids: frozenset[int], output_ids: Sequence[int]) -> None:
        params = prompt.sampling
        self._rows[row_id] = _Known(params, tuple(sorted(end_ids)))
        if penalises_repetition(params):
            factors = np.ones(self._vocab_size, dtype=np.float32)
            factors[[*prompt.token_ids, *output_ids]] = params.repetition_penalty
            self._factors.insert(row_id, factors)
        if penalises_counts(params):
            counts = np.bincount(np.array(output_ids, dtype=np.int64), minlength=self._vocab_size)
            self._counts.insert(row_id, counts.astype(np.float32))

    def remove(self, row_id: str) -> None:
        del self._rows[row_id]
        self._factors.remove(row_id)
        self._counts.remove(row_id)

    def always_adjusts(self, row_id: str) -> bool:
        return bool(self._rows[row_id].params.logit_bias) or self.remembers(row_id)

    def remembers(self, row_id: str) -> bool:
        """Whether it matters what the row says."""
        return row_id in self._factors or row_id in self._counts

    def lesson(self, row_ids: Sequence[str]) -> Lesson:
        """For one token of each of these rows; a row may come several times."""
        counted = [place for place, row_id in enumerate(row_ids) if row_id in self._counts]
        factored = [place for place, row_id in enumerate(row_ids) if row_id in self._factors]
        return Lesson(
            counted=picked(counted) if counted else None,
            count_slots=mx.array([self._counts.slot(row_ids[place]) for place in counted], dtype=mx.int32),
            factored=picked(factored) if factored else None,
            factor_slots=mx.array([self._factors.slot(row_ids[place]) for place in factored], dtype=mx.int32),
            factors=mx.array([self._rows[row_ids[place]].params.repetition_penalty for place in factored]),
        )

    def learn(self, lesson: Lesson, tokens: mx.array) -> None:
        """`tokens` (rows,) were drawn for the lesson's rows; they need not be evaluated."""
        if lesson.counted is not None:
            self._counts.add(lesson.count_slots, tokens[lesson.counted], 1.0)
        if lesson.factored is not None:
            self._factors.put(lesson.factor_slots, tokens[lesson.factored], lesson.factors)

    def plan(self, places: Sequence[Place]) -> Adjustment:
        def treatment(place: Place) -> tuple[bool, bool, bool, bool]:
            lowers = self._rows[place.row_id].params.repetition_penalty > 1
            return place.row_id in self._factors, lowers, place.row_id in self._counts, place.is_guided

        def slots(place: Place) -> tuple[int, int]:
            return self._factors.slot(place.row_id), self._counts.slot(place.row_id)

        ordered = sorted(places, key=lambda place: (treatment(place), slots(place)))
        pieces, start = [], 0
        for _, group in groupby(ordered, key=treatment):
            members = list(group)
            pieces.append(self._piece(start, members))
            start += len(members)
        bias = [(i, *entry) for i, p in enumerate(ordered) for entry in self._rows[p.row_id].params.logit_bias]
        ends = [
            (i, token, -np.inf) for i, p in enumerate(ordered) if p.masks_ends for token in self._rows[p.row_id].end_ids
        ]
        indices = [place.draw for place in ordered]
        return Adjustment(indices, picked(indices), _entries(bias), tuple(pieces), _entries(ends))

    def _piece(self, start: int, places: Sequence[Place]) -> Piece:
        row_ids = [place.row_id for place in places]
        params = [self._rows[row_id].params for row_id in row_ids]
        ahead = [(i, token, params[i].repetition_penalty) for i, place in enumerate(places) for token in place.ahead]
        return Piece(
            rows=slice(start, start + len(places)),
            repetition=self._slots(self._factors, row_ids),
            lowers=params[0].repetition_penalty > 1,
            counts=self._slots(self._counts, row_ids),
            frequency=_penalties([p.frequency_penalty for p in params]),
            presence=_penalties([p.presence_penalty for p in params]),
            ahead=Ahead(*entries) if (entries := _entries(ahead)) else None,
            guided=tuple(place.draw for place in places if place.is_guided),
        )

    def _slots(self, table: TokenTable, row_ids: Sequence[str]) -> slice | mx.array | None:
        return picked([table.slot(row_id) for row_id in row_ids]) if row_ids[0] in table else None

    def apply(
        self, adjustment: Adjustment, logits: mx.array, allowed: Mapping[int, npt.NDArray[np.uint32]]
    ) -> mx.array:
        """(adjusted rows, vocab), in the order of `adjustment.indices`."""
        logits = logits[adjustment.source]
        if adjustment.bias is not None:
            bias = adjustment.bias
            logits = logits.at[bias.rows, bias.tokens].add(bias.values)
        parts = [self._treated(piece, logits, allowed) for piece in adjustment.pieces]
        logits = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        if adjustment.ends is not None:
            ends = adjustment.ends
            logits[ends.rows, ends.tokens] = ends.values
        return logits

    def _treated(self, piece: Piece, logits: mx.array, allowed: Mapping[int, npt.NDArray[np.uint32]]) -> mx.array:
        logits = logits[piece.rows]
        if piece.repetition is not None:
            factors = self._factors.rows(piece.repetition)
            if piece.ahead is not None:
                factors[piece.ahead.rows, piece.ahead.tokens] = piece.ahead.factors
            logits = repetition_penalised(logits, factors, piece.lowers)
        if piece.counts is not None:
            counts = self._counts.rows(piece.counts)
            if piece.ahead is not None:
                counts = counts.at[piece.ahead.rows, piece.ahead.tokens].add(1.0)
            logits = count_penalised(logits, counts, piece.frequency, piece.presence)
        if piece.guided:
            packed = np.stack([allowed[index] for index in piece.guided])
            bits = np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little", count=self._vocab_size)
            logits = mx.where(mx.array(bits.view(np.bool_)), logits, -mx.inf)
        return logits


def _penalties(values: list[float]) -> mx.array | None:
    """(values, 1), or None where all are 0: subtracting nothing changes nothing."""
    return mx.array(values)[:, None] if any(values) else None


def _entries(entries: Sequence[tuple[int, int, float]]) -> Entries | None:
    if not entries:
        return None
    rows, tokens, values = zip(*entries, strict=True)
    return Entries(mx.array(rows, dtype=mx.int32), mx.array(tokens, dtype=mx.int32), mx.array(values, dtype=mx.float32))
