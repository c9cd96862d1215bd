"""A second, smaller model that says what its target will probably say, for many rows in one forward.

It draws with the row's own parameters, and with the random number that the target will use at the same position
(the inverse transform of one uniform by both): where the two distributions are alike, so are the tokens, for drawn
rows as for greedy ones. Nothing depends on it but the time that a text takes.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import is_

import mlx.core as mx
import numpy as np

from workers.engine.drawing import BatchSampler, Draw, Masks
from workers.engine.guided import Guide, GuideFailed
from workers.engine.paged.cache import PagedModel
from workers.engine.paged.drafts import StepCosts
from workers.engine.paged.layout import NULL_BLOCK, ForwardLayout, Group, Span, arrange_rows
from workers.engine.paged.mirror import Mirror
from workers.engine.paged.prefix import PrefixCache
from workers.engine.paged.rows import Row
from workers.engine.paged.trust import COMPARED_TOKENS, Reading

TIMED_FORWARDS = 3


@dataclass(frozen=True, slots=True)
class DraftPages:
    """A draft model over pools with as many blocks as its target's. `vocab_size` is the width of its logits.

    `context_tokens`: rows that are longer are not guessed for; None: no bound.
    """

    pages: PagedModel
    vocab_size: int
    context_tokens: int | None


class DraftModel:
    """A `Guesser` for rows of a target model, whose block tables it uses. Waits for everything that it computes."""

    def __init__(
        self,
        draft: DraftPages,
        prefix: PrefixCache,
        sampler: BatchSampler,
        vocab_size: int,
        chunk_tokens: int,
        *,
        waits_for_stages: bool,
    ) -> None:
        """`sampler` is the target's and `vocab_size` the width of its logits; `chunk_tokens` are read in one go."""
        self.chunk_tokens = chunk_tokens
        self._pages = draft.pages
        self._own_vocab_size, self._vocab_size = draft.vocab_size, vocab_size
        self._context_tokens = draft.context_tokens
        self._sampler = sampler
        self._waits_for_stages = waits_for_stages
        self._mirror = Mirror(prefix, draft.pages.block_tokens)
        self._guess_costs, self._read_costs = StepCosts(), StepCosts()
        self._arranged: tuple[list[Row], list[Group], list[int]] = ([], [], [])
        self._time_forwards()

    def guess_s(self, rows: int) -> float:
        return self._guess_costs.estimate_s(rows)

    def read_s(self, tokens: int) -> float:
        return self._read_costs.estimate_s(tokens)

    def can_guess(self, row: Row, tokens: int) -> bool:
        return self._context_tokens is None or len(row.tokens) + tokens <= self._context_tokens

    def behind(self, row: Row) -> int:
        return len(row.tokens) - self._mirror.reach(row)

    def forget(self, row_ids: Collection[str]) -> None:
        self._mirror.forget(row_ids)

    def read(self, row: Row, most_tokens: int) -> Reading:
        began_s = time.perf_counter()
        start, newest = self._mirror.reach(row), len(row.tokens) - 1
        end = min(newest, start + most_tokens)
        first_draw = len(row.prompt.token_ids) - 1  # the position whose logits are for the first token of the output
        compared = max(start, newest - COMPARED_TOKENS, first_draw) if end == newest else end
        if start < compared:
            self._forward([row], [start], [row.tokens[start:compared]])
            self._evaluate([])
        verdicts: tuple[bool, ...] = ()
        if compared < end:
            verdicts = self._compare(row, compared, row.tokens[compared:end])
        self._mirror.has_read(row, end)
        spent_s = time.perf_counter() - began_s
        self._read_costs.observe(max(1, end - start), spent_s)
        return Reading(end - start, verdicts, spent_s)

    def propose(self, rows: Sequence[Row], lengths: Sequence[int]) -> float:
        began_s = time.perf_counter()
        wanted = dict(zip(rows, lengths, strict=True))
        guides = {row: row.guide.fork() for row in rows if row.guide is not None}
        active = [row for row in self._in_order(rows) if wanted[row]]
        starts = {row: self._mirror.reach(row) for row in active}
        unread = {row: row.tokens[starts[row] :] for row in active}
        forwards = 0
        while active:
            forwards += 1
            logits = self._forward(active, [starts[row] for row in active], [unread[row] for row in active])
            ids, finite = self._draw(logits, active, guides)
            going = []
            for place, row in enumerate(active):
                starts[row] += len(unread[row])
                token = ids[place]
                if not finite[place]:
                    self._clear(active)
                    return time.perf_counter() - began_s
                row.drafts = (*row.drafts, token)
                unread[row] = [token]
                if len(row.drafts) < wanted[row] and token not in row.end_ids and _follows(guides.get(row), token):
                    going.append(row)
            active = going
        for row in starts:
            self._mirror.has_read(row, len(row.tokens), row.drafts[:-1])
        spent_s = time.perf_counter() - began_s
        if forwards:
            self._guess_costs.observe(len(starts), spent_s / forwards)
        return spent_s

    def _compare(self, row: Row, start: int, token_ids: list[int]) -> tuple[bool, ...]:
        """Read these tokens from position `start` on; for each, whether the next one would have been drawn."""
        logits = self._forward([row], [start], [token_ids], every=True)
        output = row.output_ids
        first = start + 1 - len(row.prompt.token_ids)
        coming = tuple(output[first : first + len(token_ids)])
        allowed: Masks | None = None
        if row.guide is not None:
            guide = row.guide.fork()
            guide.rollback(len(output) - first)
            allowed = dict(enumerate(guide.draft_masks(coming[:-1])))
        sampler = BatchSampler(self._vocab_size)
        sampler.add(row.id, row.prompt, row.end_ids, output[:first])
        drawn = sampler.draw(logits, [Draw(row.id, coming[:place]) for place in range(len(coming))], allowed)
        self._evaluate([drawn.tokens, drawn.finite])
        return tuple(np.equal(np.asarray(drawn.tokens), coming).tolist())

    def _draw(self, logits: mx.array, rows: Sequence[Row], guides: dict[Row, Guide]) -> tuple[list[int], list[bool]]:
        """The rows' next tokens behind their drafts, and which of them mean anything."""
        allowed = {place: guides[row].mask() for place, row in enumerate(rows) if row in guides}
        drawn = self._sampler.draw(logits, [Draw(row.id, row.drafts) for row in rows], allowed)
        self._evaluate([drawn.tokens, drawn.finite])
        return np.asarray(drawn.tokens).tolist(), np.asarray(drawn.finite).tolist()

    def _forward(
        self, rows: Sequence[Row], starts: Sequence[int], token_ids: Sequence[Sequence[int]], *, every: bool = False
    ) -> mx.array:
        """Logits (rows, vocab) float32 behind each row's last token, lazy; with `every`, behind each of one row's."""
        spans = [Span(row.table, start, len(ids)) for row, start, ids in zip(rows, starts, token_ids, strict=True)]
        layout = ForwardLayout(spans, block_tokens=self._pages.block_tokens, groups=self._groups_of(rows, starts))
        input_ids = np.zeros((layout.rows, layout.tokens), dtype=np.int32)
        for place, (row, span) in enumerate(zip(rows, spans, strict=True)):
            input_ids[place, : span.tokens] = token_ids[place]
            self._mirror.begins(row, span.start, span.start + span.tokens)
        # The target may have ids of its own behind those of the tokenizer.
        logits = self._pages.forward(mx.array(np.minimum(input_ids, self._own_vocab_size - 1)), layout)
        if every:
            return self._fitted(logits[0])
        if layout.tokens == 1:
            return self._fitted(logits[:, 0])
        return self._fitted(logits[mx.arange(layout.rows), mx.array([span.tokens - 1 for span in spans])])

    def _fitted(self, logits: mx.array) -> mx.array:
        """As wide as the target's: only padding behind the tokenizer's ids may be missing, or be too much."""
        missing = self._vocab_size - self._own_vocab_size
        logits = logits[:, : self._vocab_size].astype(mx.float32)
        return mx.pad(logits, [(0, 0), (0, missing)], constant_values=-mx.inf) if missing > 0 else logits

    def _evaluate(self, arrays: list[mx.array]) -> None:
        """With all that was written; nothing may be at work on the pools then, or MLX copies them."""
        if self._waits_for_stages:
            mx.synchronize()
        mx.eval(arrays, self._pages.pools())

    def _in_order(self, rows: Sequence[Row]) -> list[Row]:
        """As last time if they are the same rows, so that what is kept of them can be used again."""
        ordered, _, starts = self._arranged
        same = len(ordered) == len(rows) and set(ordered) == set(rows)
        if not same or any(self._mirror.reach(row) < start for row, start in zip(ordered, starts, strict=True)):
            reached = [self._mirror.reach(row) for row in rows]
            order, groups = arrange_rows([row.table for row in rows], reached, block_tokens=self._pages.block_tokens)
            ordered = [rows[place] for place in order]
            self._arranged = (ordered, groups, [reached[place] for place in order])
        return ordered

    def _groups_of(self, rows: Sequence[Row], starts: Sequence[int]) -> list[Group] | None:
        ordered, groups, _ = self._arranged
        return groups if len(rows) == len(ordered) and all(map(is_, rows, ordered)) else None

    def _clear(self, rows: Sequence[Row]) -> None:
        """What is not finite spoils whoever reads it, even behind a mask."""
        for row in rows:
            row.drafts = ()
            self._pages.clear_blocks([NULL_BLOCK, *row.table])
        self._mirror.clear()

    def _time_forwards(self) -> None:
        """So that it is known from the start what guesses cost, and reading. All in the null block."""
        size = self._pages.block_tokens
        for tokens, costs in ((1, self._guess_costs), (8, self._guess_costs), (self.chunk_tokens, self._read_costs)):
            layout = ForwardLayout([Span((NULL_BLOCK,) * -(-tokens // size), 0, tokens)], block_tokens=size)
            times_s = []
            for _ in range(TIMED_FORWARDS):
                began_s = time.perf_counter()
                logits = self._pages.forward(mx.zeros((1, tokens), mx.int32), layout)[:, -1]
                self._evaluate([logits])
                del logits
                times_s.append(time.perf_counter() - began_s)
            costs.observe(tokens, min(times_s))


def _follows(guide: Guide | None, token: int) -> bool:
    """Whether more can be guessed behind the token."""
    if guide is None:
        return True
    try:
        guide.accept(token)
    except GuideFailed:
        return False
    return not guide.is_over
