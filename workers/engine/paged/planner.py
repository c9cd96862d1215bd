"""What the next step does: which prompts are read and how far, who decodes, who begins, who loses its place. Pure.

Rows are ranked by priority, then by arrival. Blocks are taken when they are needed; where there are none left, the
lowest ranked row gives up its own and waits for its turn, with its tokens. A row that is itself the lowest ranked
pauses instead, so that the highest ranked row always moves on. All decisions depend on the calls made, nothing else.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from workers.engine.paged.blocks import NULL_BLOCK, BlockPool
from workers.engine.paged.chunks import (
    SCORED_CHUNK_TOKENS,
    Chunk,
    PlanLimits,
    Want,
    last_writers,
    pack_forwards,
    share_budget,
)
from workers.engine.paged.prefix import PrefixCache, Snapshots
from workers.engine.paged.rows import Phase, Row

MOST_WITHHELD_STEPS = 4  # in a row that lower lanes read nothing for the sake of a higher one's first token


class BlockCopy(NamedTuple):
    """The first `tokens` tokens of the block `source` go to the block `target`."""

    source: int
    target: int
    tokens: int


@dataclass(slots=True)
class StepPlan:
    """One step. In this order: state is reset or restored, blocks are copied, chunks are read, rows decode.

    `fresh` slots begin with empty state, `restored` (slot, snapshot) with a copy. `copied` are the first tokens of
    blocks. Each of `forwards` reads some chunks together. `decode` rows compute their token at `computed` - 1 -
    len(drafts) and their drafts; `joined` ones among them do so for the first time since they have a place.
    `preempted` rows have lost theirs.
    `is_new_order`: `decode` has other rows than the last plan's, or the same in another order.
    """

    fresh: list[int] = field(default_factory=list)
    restored: list[tuple[int, int]] = field(default_factory=list)
    copied: list[BlockCopy] = field(default_factory=list)
    forwards: list[list[Chunk]] = field(default_factory=list)
    decode: list[Row] = field(default_factory=list)
    joined: list[Row] = field(default_factory=list)
    preempted: list[Row] = field(default_factory=list)
    is_new_order: bool = False


class Planner:
    """Owns the line of waiting rows, those with a place, and their blocks.

    After each `plan`, call `settle` when the planned work has been handed to the device, before the next `plan`. Rows
    may be inserted and removed in between: what is planned for them is computed in any case.
    """

    def __init__(
        self,
        pool: BlockPool,
        prefix: PrefixCache,
        limits: PlanLimits,
        *,
        has_state: bool = False,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.waiting: dict[str, Row] = {}
        self.reading: list[Row] = []
        self.decoding: list[Row] = []
        self.preemptions_total = 0
        self._pool = pool
        self._prefix = prefix
        self._limits = limits
        self._snapshots = snapshots
        self._slots = list(range(limits.rows - 1, -1, -1)) if has_state else None
        self._line_is_sorted = True
        self._last_decode: list[Row] = []
        self._last_joined: list[Row] = []
        self._withheld_steps = 0

    def insert(self, row: Row) -> None:
        self._line_is_sorted &= not self.waiting or next(reversed(self.waiting.values())).rank < row.rank
        self.waiting[row.id] = row

    def remove(self, row: Row) -> None:
        """Drop a row at any stage. Its blocks are free at once: see `_free`."""
        match row.phase:
            case Phase.WAITING:
                del self.waiting[row.id]
            case Phase.READING:
                self.reading.remove(row)
            case Phase.DECODING:
                self.decoding.remove(row)
        self._prefix.publish(row)
        self._free(row)
        row.phase = Phase.ENDED

    def plan(self) -> StepPlan:
        """Decide the next step, as if it were certain that every row of the last one goes on."""
        plan = StepPlan()
        self._end_full_rows()
        self._leave_windows()
        paused = self._grow_decoding(plan)
        self._admit(plan)
        self._plan_reading(plan)
        self._plan_decoding(plan, paused)
        self._last_joined = plan.joined
        return plan

    def settle(self, plan: StepPlan) -> None:
        """The planned work is on its way: whoever begins behind it may use what it computes."""
        for forward in plan.forwards:
            for chunk in forward:
                self._prefix.publish(chunk.row)
        for row in plan.decode:
            self._prefix.publish(row)
        for row in plan.joined:
            if row.phase is Phase.DECODING:  # and not removed meanwhile
                self._prefix.offer_tail(row)

    def stretch(self, row: Row, tokens: int) -> int:
        """Let a decoding row's table cover `tokens` tokens, as far as each decoding row still finds a block for its
        newest token; returns how many it covers."""
        spare = max(0, self._pool.free_blocks - len(self.decoding))
        row.table += self._pool.allocate(max(0, min(self._missing_blocks(row, tokens), spare)))
        return len(row.table) * self._pool.block_tokens

    def _free(self, row: Row) -> None:
        """Give a row's blocks and slot back, although the device may still be at work on them.

        That is safe because device work is done in the order in which it is handed over: whoever gets a block writes
        and reads it in later work. It needs no copy either: nothing but the table names the block.
        """
        self._prefix.withdraw_tail(row)
        self._pool.release(row.table)
        row.table = []
        if row.slot >= 0 and self._slots is not None:
            self._slots.append(row.slot)
        row.slot = -1

    def _end_full_rows(self) -> None:
        """Rows that have drawn their last token need no place; by now all that they computed is known and published."""
        if any(row.draws_left == 0 for row in self.decoding):
            for row in [row for row in self.decoding if row.draws_left == 0]:
                self.remove(row)

    def _leave_windows(self) -> None:
        """Give back the blocks that no coming token of their row will look at."""
        if self._prefix.window_tokens is None:
            return
        for row in (*self.reading, *self.decoding):
            last = self._prefix.first_visible(row.computed) - 1
            first = last
            while first >= 0 and row.table[first] != NULL_BLOCK:
                first -= 1
            if first < last:
                self._pool.release(row.table[first + 1 : last + 1])
                row.table[first + 1 : last + 1] = [NULL_BLOCK] * (last - first)

    def _grow_decoding(self, plan: StepPlan) -> set[Row]:
        """Blocks for the next token of every decoding row, and for its drafts; returns those that have to pause."""
        size = self._pool.block_tokens
        growing = [row for row in self.decoding if row.computed + len(row.drafts) >= len(row.table) * size]
        missing = sum((row.computed + len(row.drafts)) // size + 1 - len(row.table) for row in growing)
        if missing > self._pool.free_blocks:
            for row in self.decoding:
                row.drafts = ()
            growing = sorted(growing, key=lambda row: row.rank)
        return {
            row
            for row in growing
            if row.phase is Phase.DECODING and not self._reserve(row, row.computed + len(row.drafts) + 1, plan)
        }

    def _reserve(self, row: Row, tokens: int, plan: StepPlan) -> bool:
        """Let the row's table cover that many tokens, at the cost of lower ranked rows; False if that is not enough."""
        missing = self._missing_blocks(row, tokens)
        if missing > 0:
            while missing > self._pool.free_blocks:
                lowest = max((*self.reading, *self.decoding), key=lambda other: other.rank)
                if lowest is row:
                    return False
                self._preempt(lowest, plan)
            row.table += self._pool.allocate(missing)
        return True

    def _preempt(self, row: Row, plan: StepPlan) -> None:
        """Back to the line, in front of everyone who came later. A token that is being drawn for it is not lost."""
        (self.reading if row.phase is Phase.READING else self.decoding).remove(row)
        plan.copied = [copy for copy in plan.copied if copy.target not in row.table]
        self._free(row)
        row.forget()
        row.preemptions += 1
        self.preemptions_total += 1
        plan.preempted.append(row)
        self.insert(row)

    def _missing_blocks(self, row: Row, tokens: int) -> int:
        return -(-tokens // self._pool.block_tokens) - len(row.table)

    def _admit(self, plan: StepPlan) -> None:
        """Let rows begin while there are blocks for all that is still unread, and one for each row that decodes."""
        if not self._line_is_sorted:
            self.waiting = {row.id: row for row in sorted(self.waiting.values(), key=lambda row: row.rank)}
            self._line_is_sorted = True
        while self.waiting and len(self.reading) + len(self.decoding) < self._limits.rows:
            row = next(iter(self.waiting.values()))
            if row.unread or not self._begin(row, plan):
                return
            del self.waiting[row.id]
            row.phase = Phase.READING
            self.reading.append(row)

    def _begin(self, row: Row, plan: StepPlan) -> bool:
        found = self._prefix.find(row)
        idle = sum(block != NULL_BLOCK and self._pool.references(block) == 0 for block in found)
        promised = sum(self._outstanding(other) for other in self.reading) + len(self.reading) + len(self.decoding)
        if self._outstanding(row, len(found)) + idle + promised > self._pool.free_blocks:
            return False
        self._prefix.look_up(row)
        if self._slots is not None:
            row.slot = self._slots.pop()
            if not found:
                plan.fresh.append(row.slot)
        self._take_over(row, found, plan)
        return True

    def _outstanding(self, row: Row, found: int = 0) -> int:
        """Blocks that the row still has to get before it decodes, if it takes over `found` more."""
        missing = self._missing_blocks(row, len(row.tokens)) - found
        most = self._prefix.window_blocks(self._limits.chunk_tokens)
        return missing if most is None else min(missing, most)

    def _take_over(self, row: Row, found: list[int], plan: StepPlan) -> None:
        if found:
            self._prefix.adopt(row, found)
            if self._snapshots is not None:
                block_hash = self._prefix.hash_at(row, len(row.table) - 1)
                plan.restored.append((row.slot, self._snapshots.take(block_hash)))

    def _fork(self, row: Row, plan: StepPlan) -> None:
        """Copy the end of the row's prompt where another row with the same prompt has it, and has begun to write behind
        it. The next token goes into that block too, so that to share it for longer would be of no use.
        """
        source = self._prefix.find_tail(row)
        if source is not None and self._pool.free_blocks:
            tokens = row.prompt_target - row.computed
            row.table += self._pool.allocate(1)
            row.computed += tokens
            self._prefix.hit_tokens_total += tokens
            row.reused += tokens
            plan.copied.append(BlockCopy(source, row.table[-1], tokens))

    def _plan_reading(self, plan: StepPlan) -> None:
        """Chunks for the prompts, and a place in the decode batch for those that are read.

        Prompts with the same beginning read it once: each looks again for computed blocks before each of its chunks,
        and waits while a higher ranked one computes the very block that it needs next.
        """
        if not self.reading:
            return
        self.reading.sort(key=lambda row: row.rank)
        able: list[Row] = []
        claimed: set[bytes] = set()
        for row in self.reading:
            self._take_over(row, self._prefix.find(row), plan)
            self._fork(row, plan)
            block_hash = self._prefix.next_hash(row)
            if block_hash is None or block_hash not in claimed:
                able.append(row)
                if block_hash is not None:
                    claimed.add(block_hash)
        chunks = [chunk for row, tokens in self._granted(able) if (chunk := self._read(row, tokens, plan)) is not None]
        plan.forwards = pack_forwards(last_writers(chunks), self._limits.forward_rows)

    def _granted(self, able: list[Row]) -> list[tuple[Row, int]]:
        """The rows, by rank, with what each may read now; nothing for those that have read all."""
        unread = self._without_withheld([row for row in able if row.computed < row.prompt_target])
        unread[1:] = sorted(unread[1:], key=lambda row: (row.rank[0], row.prompt_target - row.computed, row.arrival))
        decoded = sum(1 + len(row.drafts) for row in self.decoding)
        budget = max(self._limits.step_tokens - decoded, self._limits.smallest_chunk_tokens)
        wants = [Want(row.computed, self._chunk_end(row) - row.computed) for row in unread]
        shares = dict(zip(unread, share_budget(wants, budget, self._limits, self._pool.block_tokens), strict=True))
        return [(row, shares.get(row, 0)) for row in able]

    def _without_withheld(self, unread: list[Row]) -> list[Row]:
        """Those of the highest lane that waits for a first token, in the coming step or in the one that is running.

        The others would make these steps longer. They wait for a few steps at most, and then read as always.
        """
        waiting = (*unread, *(row for row in self._last_joined if row.phase is Phase.DECODING))
        highest = [row for row in unread if row.rank[0] == min(other.rank[0] for other in waiting)]
        self._withheld_steps = self._withheld_steps + 1 if len(highest) < len(unread) else 0
        if self._withheld_steps > MOST_WITHHELD_STEPS:
            self._withheld_steps = 0
            return unread
        return highest

    def _chunk_end(self, row: Row) -> int:
        """How far the row may be read in one go: where state is kept, to its last block border first; not far where
        every token is scored."""
        border = row.prompt_target // self._pool.block_tokens * self._pool.block_tokens
        keeps = self._snapshots is not None and border - row.computed >= self._limits.smallest_chunk_tokens
        end = border if keeps else row.prompt_target
        return min(end, row.computed + SCORED_CHUNK_TOKENS) if row.wants_scores else end

    def _read(self, row: Row, tokens: int, plan: StepPlan) -> Chunk | None:
        """Plan `tokens` more of the row's prompt (0: all is read, or it has to wait); the last lets it join."""
        start, end = row.computed, row.computed + tokens
        is_last = end == row.prompt_target
        if row.phase is not Phase.READING or not (tokens or is_last) or not self._reserve(row, end + is_last, plan):
            return None
        row.computed = end
        if is_last:
            self.reading.remove(row)
            self.decoding.append(row)
            row.phase = Phase.DECODING
            plan.joined.append(row)
        return Chunk(row, start, tokens, self._snapshot_slot(row), row.wants_scores) if tokens else None

    def _snapshot_slot(self, row: Row) -> int:
        if self._snapshots is None or row.computed % self._pool.block_tokens:
            return -1
        slot = self._snapshots.put(self._prefix.hash_at(row, row.computed // self._pool.block_tokens - 1))
        return -1 if slot is None else slot

    def _plan_decoding(self, plan: StepPlan, paused: set[Row]) -> None:
        rows = [row for row in self.decoding if row not in paused] if paused else list(self.decoding)
        for row in rows:
            tokens = 1 + len(row.drafts)
            row.computed += tokens
            row.draws_left -= tokens
            row.unread += 1
        plan.decode, plan.is_new_order = rows, rows != self._last_decode
        self._last_decode = rows
