"""Rows of one model over a paged cache: each step is planned, built, read, dispatched.

Build-ahead: while the device computes step t, the graphs of step t + 1 are built from the plan; its input tokens are
those that step t draws, still on the device. Then the tokens of t are read, which is the only wait, and t + 1 is
handed over (on a CPU this lasts until most of it is done). MLX can write into the pools in place only because nothing
of t is running by then. A step that checks guesses is planned after t has been read. Masks of grammars are computed
while the forward runs whose logits they are for.
"""

import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from workers.engine.drawing import BatchSampler, Masks
from workers.engine.guided import Guide, GuideCompiler, GuideFailed
from workers.engine.paged.blocks import NULL_BLOCK, BlockPool, root_hash
from workers.engine.paged.cache import PagedModel
from workers.engine.paged.chunks import PlanLimits
from workers.engine.paged.draft_model import DraftModel, DraftPages
from workers.engine.paged.drafts import accepted
from workers.engine.paged.forwards import Batch, Flight, Forwards
from workers.engine.paged.planner import Planner, StepPlan
from workers.engine.paged.prefix import PrefixCache, Snapshots
from workers.engine.paged.rows import Row
from workers.engine.paged.scores import PromptScores
from workers.engine.paged.speculation import Speculation
from workers.engine.paged.store import PrefixStore, StoreStats
from workers.engine.paged.stored import StoredPrefixes
from workers.engine.runner import NOT_FINITE, RowToken, RunnerStats
from workers.engine.sequence import PrefixUse, Sequence

Finite: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"


@dataclass(slots=True)
class Times:
    """Milliseconds of the phases of a step."""

    plan_ms: float = 0.0
    forward_ms: float = 0.0
    sample_ms: float = 0.0


@dataclass(slots=True)
class Built:
    """Graphs of one step.

    `stages` are evaluated one after the other, and let go of one by one: whoever still holds what a stage has written
    makes MLX copy it in the next. `batch` is what tokens will be drawn from; `flight` is set where it waits for a later
    call, until which rows may go.
    """

    stages: deque[list[mx.array]] = field(default_factory=deque)
    batch: Batch | None = None
    flight: Flight | None = None
    plan: StepPlan = field(default_factory=StepPlan)


class PagedRunner:
    """Rows known by the ids of their sequences. Everything happens in the calling thread."""

    scores_prompts = True

    def __init__(
        self,
        model: PagedModel,
        *,
        vocab_size: int,
        limits: PlanLimits,
        root: bytes,
        adapter_roots: Mapping[str, bytes] | None = None,
        snapshots: int = 0,
        shares_prefixes: bool = True,
        speculates: bool = True,
        draft: DraftPages | None = None,
        guides: GuideCompiler | None = None,
        store: PrefixStore | None = None,
        waits_for_stages: bool = False,
    ) -> None:
        """`root` names what a block's content depends on besides its tokens, `adapter_roots` the same for rows with an
        adapter, by its name; `snapshots` are state slots behind the rows' own; a `draft` guesses for a model without
        state. `waits_for_stages`: the device may still hold what a graph has read when the graph's results are there
        (GPUs)."""
        self.obeys_grammars = guides is not None
        self._model = model
        self._roots: dict[str | None, bytes] = {None: root}
        self._roots.update(adapter_roots or {})
        self._guides = guides
        self._waits_for_stages = waits_for_stages
        self._pool = BlockPool(model.blocks, model.block_tokens)
        kept = Snapshots(first=limits.rows, count=snapshots) if model.has_state else None
        # A draft model reads a row later than its target: no block may be given back before that.
        window_tokens = None if draft else model.window_tokens
        self._prefix = PrefixCache(self._pool, enabled=shares_prefixes, window_tokens=window_tokens, snapshots=kept)
        self._planner = Planner(self._pool, self._prefix, limits, has_state=model.has_state, snapshots=kept)
        # On disk are keys and values only, without the state that belongs to them.
        has_store = store is not None and shares_prefixes and not model.has_state
        self._stored = StoredPrefixes(store, model, self._pool, self._prefix) if store and has_store else None
        self._places = limits.rows
        self._forwards = Forwards(model)
        self._sampler = BatchSampler(vocab_size)
        self._scores = PromptScores()
        # Recurrent state cannot be rewound behind a wrong guess.
        guesser: DraftModel | None = None
        if draft is not None:
            chunk_tokens = limits.chunk_tokens
            guesser = DraftModel(
                draft, self._prefix, self._sampler, vocab_size, chunk_tokens, waits_for_stages=waits_for_stages
            )
        self._speculation = Speculation(guesser) if speculates and not model.has_state else None
        self._rows: dict[str, Row] = {}
        self._arrivals = 0
        self._flight: Flight | None = None
        self._held_back: Built | None = None
        self._has_read_prompts = False  # in the running step
        self._read_s = 0.0
        self._tainted: set[int] = set()
        self._times, self._times_total = Times(), Times()
        self._prompt_tokens = self._wasted_rows = 0
        window_blocks = self._prefix.window_blocks(limits.chunk_tokens)
        slides = window_blocks is not None and window_blocks < model.blocks
        self.capacity_tokens: int | None = None if slides else (model.blocks - 1) * model.block_tokens

    @property
    def waiting(self) -> int:
        return len(self._planner.waiting)

    def prefix_use(self, row_id: str) -> PrefixUse:
        row = self._rows[row_id]
        prompt_tokens, size = len(row.prompt.token_ids), self._model.block_tokens
        read = min(row.reused, prompt_tokens)
        return PrefixUse(read, max(0, min(row.published, prompt_tokens // size) * size - read))

    def stats(self) -> RunnerStats:
        pool, now, total, guesses = self._pool, self._times, self._times_total, self._speculation
        disk = self._stored.stats if self._stored is not None else StoreStats()
        return RunnerStats(
            backend="paged",
            waiting=len(self._planner.waiting),
            prefilling={row.id: (row.computed, len(row.tokens)) for row in self._planner.reading},
            kv_bytes=pool.used_blocks * self._model.block_bytes,
            prompt_tokens_total=self._prompt_tokens,
            plan_ms=now.plan_ms,
            forward_ms=now.forward_ms,
            sample_ms=now.sample_ms,
            plan_ms_total=total.plan_ms,
            forward_ms_total=total.forward_ms,
            sample_ms_total=total.sample_ms,
            used_blocks=pool.used_blocks,
            cached_blocks=pool.cached_blocks,
            total_blocks=pool.blocks - 1,
            prefix_hit_tokens_total=self._prefix.hit_tokens_total,
            prefix_looked_up_tokens_total=self._prefix.looked_up_tokens_total,
            preemptions_total=self._planner.preemptions_total,
            wasted_rows_total=self._wasted_rows,
            drafted_tokens_total=dict(guesses.drafted_tokens_total) if guesses else {},
            right_drafts_total=dict(guesses.right_tokens_total) if guesses else {},
            disk_hit_blocks_total=disk.hits_total,
            disk_missed_blocks_total=disk.misses_total,
            disk_bytes=disk.bytes,
        )

    def insert(self, sequence: Sequence) -> None:
        root, salt = self._roots[sequence.prompt.adapter], sequence.prompt.cache_salt
        row = Row(sequence, arrival=self._arrivals, root=root_hash(root, "salt", salt) if salt else root)
        self._arrivals += 1
        self._rows[row.id] = row
        self._prompt_tokens += len(row.tokens)
        self._planner.insert(row)

    def remove(self, row_ids: Collection[str]) -> None:
        known = [row_id for row_id in row_ids if row_id in self._rows]
        for row_id in known:
            row = self._rows.pop(row_id)
            if self._stored is not None:
                self._stored.keep(row)
            self._planner.remove(row)
        self._stop_drawing(known)
        self._scores.forget(known)

    def close(self) -> None:
        self.remove(list(self._rows))
        self._flight = self._held_back = None
        if self._stored is not None:
            self._stored.close()

    def step(self) -> list[RowToken]:
        """A step that reads prompts is handed over by the next call, so that it does not hold up these tokens."""
        self._times = Times()
        began_s = time.perf_counter()
        if self._held_back is not None:
            self._dispatch(self._held_back, None)
        tokens: list[RowToken] = []
        guesses, flight = self._speculation, self._flight
        if guesses is not None and flight is not None and (flight.drafts or guesses.pays(flight.rows)):
            tokens = self._take_all(self._landed())
            guesses.guess([row for row in self._planner.decoding if row.draws_left], self._planner.stretch)
        if self._stored is not None:
            self._exchange(self._stored)
        planning_s = time.perf_counter()
        plan = self._planner.plan()
        built = self._build(plan)
        self._times.plan_ms = 1000 * (time.perf_counter() - planning_s)
        landed = self._landed()
        if plan.forwards and (tokens or landed):
            tokens += self._take_all(landed)
            self._held_back, built.flight = built, self._draw(built.batch)
        else:
            if guesses is not None and not plan.forwards:
                guesses.follow(self._planner.decoding)
            tokens += self._dispatch(built, landed)
        self._count_times(time.perf_counter() - began_s)
        return tokens

    def _exchange(self, stored: StoredPrefixes) -> None:
        """With the disk, before the next plan gives blocks to somebody else."""
        for row in self._planner.decoding:
            if row.draws_left == 0:
                stored.keep(row)
        stored.keep_some(self._planner.decoding)
        places = self._places - len(self._planner.reading) - len(self._planner.decoding)
        stored.fetch(list(islice(self._planner.waiting.values(), max(0, places))))

    def _build(self, plan: StepPlan) -> Built:
        """Graphs for what was planned; nothing is computed here, but states are copied and spoilt blocks cleared."""
        self._stop_drawing([row.id for row in plan.preempted])
        if self._tainted:
            self._clear_tainted(plan)
        for slot in plan.fresh:
            self._model.reset_slot(slot)
        for slot, snapshot in plan.restored:
            self._model.restore(slot, snapshot)
        if plan.copied:
            self._model.copy_blocks(*zip(*plan.copied, strict=True))
        built = Built(plan=plan)
        for forward in plan.forwards:
            scores = self._scores.read(forward[0], self._forwards.read(forward))
            built.stages.append([*scores, *self._model.pools()])
        self._scores.forget([row.id for row in plan.preempted if not row.unread])
        for row in plan.joined:
            self._sampler.add(row.id, row.prompt, row.end_ids, row.output_ids)
        if plan.decode:
            built.batch = self._forwards.decode(plan, self._flight)
            built.stages.append([built.batch.logits, *self._model.pools()])
        return built

    def _draw(self, batch: Batch | None) -> Flight | None:
        if batch is None:
            return None
        began_s = time.perf_counter()
        rows = batch.rows
        allowed = self._masks(batch) if any(row.guide is not None for row in rows) else None
        drawn = self._sampler.draw(batch.logits, batch.draws, allowed)
        if not batch.has_drafts:
            self._sampler.advance([row.id for row in rows], drawn.tokens)
        for place, row in enumerate(rows):
            row.place = place
        self._times.sample_ms += 1000 * (time.perf_counter() - began_s)
        return Flight(rows, [row.drafts for row in rows] if batch.has_drafts else [], drawn)

    def _dispatch(self, built: Built, landed: Flight | None) -> list[RowToken]:
        """Hand the forwards over. While they run, rows take the tokens of the step that has `landed`, masks of grammars
        are made, and what draws from the last forward is built."""
        self._held_back = None
        while built.stages:
            if self._waits_for_stages:
                mx.synchronize()
            self._model.dispatch(built.stages.popleft())
        tokens = self._take_all(landed)
        self._flight = built.flight or self._draw(built.batch)
        if self._flight is not None and self._flight.drawn.is_short:
            mx.async_eval(self._flight.drawn.arrays)  # type: ignore[no-untyped-call]
        if self._flight is None:
            self._read_s = 0.0
        self._has_read_prompts = bool(built.plan.forwards)
        self._planner.settle(built.plan)
        return tokens

    def _masks(self, batch: Batch) -> Masks:
        """By the index of the draw: what the guides of its rows allow, which have accepted all that was read."""
        guides: list[Guide] = []
        drafts: list[tuple[int, ...]] = []
        places: list[int] = []
        place = 0
        for row in batch.rows:
            width = 1 + len(row.drafts)
            if row.guide is not None:
                guides.append(row.guide)
                drafts.append(row.drafts)
                places += range(place, place + width)
            place += width
        assert self._guides is not None
        masks = np.empty((len(places), guides[0].words), dtype=np.uint32)
        self._guides.fill_masks(guides, masks, drafts)
        return dict(zip(places, masks, strict=True))

    def _landed(self) -> Flight | None:
        """The running step, if there is one, with its tokens: the only wait."""
        flight, self._flight = self._flight, None
        if flight is not None:
            mx.eval(flight.drawn.arrays)
            self._time_reading(flight)
        return flight

    def _take_all(self, flight: Flight | None) -> list[RowToken]:
        """The tokens of a step that has landed; those of rows that have gone meanwhile are lost."""
        if flight is None:
            return []
        ids, finite = np.asarray(flight.drawn.tokens).tolist(), np.asarray(flight.drawn.finite)
        tokens: list[RowToken] = []
        first = 0
        for place, row in enumerate(flight.rows):
            drafts = flight.drafts[place] if flight.drafts else ()
            drawn = ids[first : first + 1 + len(drafts)]
            if self._rows.get(row.id) is row:
                right = accepted(drafts, drawn) if drafts else drawn
                tokens += self._take(row, flight, first, right, finite)
                if drafts and self._speculation is not None:
                    self._speculation.checked(row, len(drafts), len(right) - 1)
            else:
                self._wasted_rows += 1
            first += 1 + len(drafts)
        return tokens

    def _take(self, row: Row, flight: Flight, first: int, ids: Collection[int], finite: Finite) -> list[RowToken]:
        """Give a row the tokens of the draws from `first` on, up to one that ends it or that cannot be."""
        tokens: list[RowToken] = []
        error = None
        for place, token in enumerate(ids, first):
            error = None if finite[place] else NOT_FINITE
            if error is None and row.guide is not None:
                try:
                    row.guide.accept(token)
                except GuideFailed as failure:
                    error = str(failure)
            logprob = None if error else flight.drawn.take_logprob(place, token)
            tokens.append(RowToken(row.id, token, logprob, error, prompt_logprobs=self._scores.take(row)))
            if error or token in row.end_ids:
                break
        taken = [token.token for token in tokens]
        row.take(taken)
        if error:
            self._tainted.update(row.table)
        if error or taken[-1] in row.end_ids:
            row.draws_left = 0
        if flight.drafts:
            self._sampler.accept(row.id, taken)
        self._learn(row, taken)
        return tokens

    def _learn(self, row: Row, taken: list[int]) -> None:
        guesses = self._speculation
        if guesses is None or row.draws_left == 0:
            return
        guesses.learn(row, taken)
        if row.guide is not None:
            guesses.force(row, row.guide.forced_tokens())

    def _stop_drawing(self, row_ids: Collection[str]) -> None:
        if row_ids:
            self._sampler.remove(row_ids)
            if self._speculation is not None:
                self._speculation.forget(row_ids)

    def _time_reading(self, flight: Flight) -> None:
        """Tell the speculation how long a step took, from token to token."""
        now_s, last_s = time.perf_counter(), self._read_s
        self._read_s = now_s
        if self._speculation is None:
            return
        aside_s = self._speculation.take_aside_s()
        if last_s and not self._has_read_prompts:
            lengths = [len(drafts) for drafts in flight.drafts] or [0] * len(flight.rows)
            self._speculation.timed(lengths, now_s - last_s - aside_s)

    def _count_times(self, step_s: float) -> None:
        now, total = self._times, self._times_total
        now.forward_ms = 1000 * step_s - now.plan_ms - now.sample_ms
        total.plan_ms += now.plan_ms
        total.forward_ms += now.forward_ms
        total.sample_ms += now.sample_ms

    def _clear_tainted(self, plan: StepPlan) -> None:
        """Blocks of a row whose numbers were not finite are zeroed when they are given to another one.

        Until then they may be found as a prefix by the same tokens, which they serve as they should.
        """
        rows = [*plan.decode, *(chunk.row for forward in plan.forwards for chunk in forward)]
        tables = {block for row in rows for block in row.table}
        given = {block for block in self._tainted & tables if self._pool.is_writable(block)}
        if given:
            mx.synchronize()  # only then are the pools written in place
            self._model.clear_blocks([NULL_BLOCK, *given])
            self._tainted -= given
