"""From planned rows to graphs: which tokens go through the model, in which order, over which blocks. Lazy."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from workers.engine.drawing import Draw, Drawn
from workers.engine.paged.cache import PagedModel
from workers.engine.paged.chunks import Chunk
from workers.engine.paged.layout import ForwardLayout, Group, Span, arrange_rows, plan_groups
from workers.engine.paged.planner import StepPlan
from workers.engine.paged.rows import Row


@dataclass(frozen=True, slots=True)
class Flight:
    """Rows that decode together, and what they will have drawn: a token behind each draft of a row, and one more."""

    rows: list[Row]
    drafts: list[tuple[int, ...]]
    drawn: Drawn


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in the order of the forward; `logits` (draws, vocab) float32 belong to the `draws`."""

    rows: list[Row]
    draws: list[Draw]
    logits: mx.array

    @property
    def has_drafts(self) -> bool:
        return len(self.draws) > len(self.rows)


class Forwards:
    """Builds the forwards of one model. Decoding rows keep their order until others join or leave."""

    def __init__(self, model: PagedModel) -> None:
        self._model = model
        self._rows: list[Row] = []
        self._groups: list[Group] = []

    def read(self, chunks: Sequence[Chunk]) -> mx.array | None:
        """Chunks of prompts, padded on the right to the longest. No logits are kept, so that none are computed, but of
        a chunk that is scored: (tokens, vocab)."""
        chunks = sorted(chunks, key=lambda chunk: -chunk.start - chunk.tokens)
        input_ids = np.zeros((len(chunks), max(chunk.tokens for chunk in chunks)), dtype=np.int32)
        for place, chunk in enumerate(chunks):
            input_ids[place, : chunk.tokens] = chunk.row.tokens[chunk.start : chunk.start + chunk.tokens]
        layout = ForwardLayout(
            [Span(chunk.row.table, chunk.start, chunk.tokens) for chunk in chunks],
            block_tokens=self._model.block_tokens,
            groups=plan_groups([chunk.start + chunk.tokens for chunk in chunks]),
        )
        slots = [chunk.row.slot for chunk in chunks if chunk.row.slot >= 0]
        adapters = [chunk.row.prompt.adapter for chunk in chunks]
        logits = self._model.forward(mx.array(input_ids), layout, slots, adapters)
        for chunk in chunks:
            if chunk.snapshot >= 0:
                self._model.snapshot(chunk.row.slot, chunk.snapshot)
        return logits[0] if chunks[0].is_scored else None

    def decode(self, plan: StepPlan, flight: Flight | None) -> Batch:
        """The newest token of every row, which the step in `flight` may be about to draw, and its drafts."""
        if plan.is_new_order:
            starts = [row.computed - 1 - len(row.drafts) for row in plan.decode]
            tables = [row.table for row in plan.decode]
            order, self._groups = arrange_rows(tables, starts, block_tokens=self._model.block_tokens)
            self._rows = [plan.decode[place] for place in order]
        rows = self._rows
        layout = ForwardLayout(
            [Span(row.table, row.computed - 1 - len(row.drafts), 1 + len(row.drafts)) for row in rows],
            block_tokens=self._model.block_tokens,
            groups=self._groups,
        )
        input_ids = _newest(rows, flight) if layout.tokens == 1 else _drafted(rows, layout.tokens)
        slots, adapters = [row.slot for row in rows if row.slot >= 0], [row.prompt.adapter for row in rows]
        return _batch(rows, self._model.forward(input_ids, layout, slots, adapters))


def _batch(rows: list[Row], logits: mx.array) -> Batch:
    """From logits (rows, tokens, vocab), of which the padding behind a row's drafts belongs to no draw."""
    draws = [Draw(row.id, row.drafts[:count]) for row in rows for count in range(1 + len(row.drafts))]
    tokens, logits = logits.shape[1], logits.reshape(-1, logits.shape[-1])
    if len(draws) < len(rows) * tokens:
        places = [i * tokens + j for i, row in enumerate(rows) for j in range(1 + len(row.drafts))]
        logits = logits[mx.array(places)]
    return Batch(rows, draws, logits.astype(mx.float32))


def _newest(rows: list[Row], flight: Flight | None) -> mx.array:
    """(rows, 1) int32: each row's newest token; those that are being drawn stay on the device."""
    if flight is not None and flight.rows is rows:
        return flight.drawn.tokens[:, None]
    known = [row.tokens[row.computed - 1] if row.computed <= len(row.tokens) else None for row in rows]
    host_ids = np.array([id for id in known if id is not None], dtype=np.int32)
    if flight is None or host_ids.size == len(rows):
        return mx.array(host_ids[:, None])
    places = iter(range(len(flight.rows), len(flight.rows) + host_ids.size))
    index = [row.place if id is None else next(places) for row, id in zip(rows, known, strict=True)]
    tokens = mx.concatenate([flight.drawn.tokens, mx.array(host_ids)]) if host_ids.size else flight.drawn.tokens
    return tokens[mx.array(index)][:, None]


def _drafted(rows: list[Row], tokens: int) -> mx.array:
    """(rows, tokens) int32: each row's newest token and its drafts, padded on the right."""
    input_ids = np.zeros((len(rows), tokens), dtype=np.int32)
    for place, row in enumerate(rows):
        input_ids[place, : 1 + len(row.drafts)] = (row.tokens[-1], *row.drafts)
    return mx.array(input_ids)
