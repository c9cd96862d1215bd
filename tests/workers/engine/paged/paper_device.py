"""A device on paper, for the planner: blocks hold what was written into them, and every read is checked."""

from collections.abc import Callable, Iterable

from workers.engine.paged.blocks import NULL_BLOCK, BlockPool, root_hash
from workers.engine.paged.chunks import PlanLimits
from workers.engine.paged.planner import Planner, StepPlan
from workers.engine.paged.prefix import PrefixCache, Snapshots
from workers.engine.paged.rows import Row
from workers.engine.sequence import Limits, Prompt, SamplingParams, Sequence, StopRule
from workers.engine.text import TextStream

ROOT = root_hash("paper")
VOCAB = 1000
EMPTY = 7


class Silent:
    """A detokenizer for rows whose text nobody reads."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def row_of(id: str, tokens: list[int], *, draws: int, priority: int = 0, arrival: int = 0) -> Row:
    stop = StopRule(max_tokens=draws, ignore_eos=True)
    prompt = Prompt(
        id=id, token_ids=tuple(tokens), sampling=SamplingParams(temperature=0), stop=stop, priority=priority
    )
    sequence = Sequence(prompt, Limits(VOCAB, None, frozenset()), lambda stops: TextStream(Silent(), stops))
    return Row(sequence, arrival=arrival, root=ROOT)


def naming(name: int, tokens: Iterable[int]) -> list[int]:
    """The names of all that begin with what `name` names."""
    return [name := hash((name, token)) for token in tokens]


class PaperDevice:
    """Executes plans one step behind the planner, and draws tokens that depend on all tokens before them.

    A block's place holds the tokens up to it, shortened to their hash. With `drafts`, plans are read at once instead,
    and `guess` says what is tried ahead.
    """

    def __init__(
        self,
        *,
        blocks: int,
        block_tokens: int,
        limits: PlanLimits,
        prefix: bool = True,
        window: int | None = None,
        snapshots: int | None = None,
        guess: Callable[[Row], tuple[int, ...]] | None = None,
    ) -> None:
        self.pool = BlockPool(blocks, block_tokens)
        self.limits = limits
        self.window = window
        self.guess = guess
        kept = None if snapshots is None else Snapshots(first=limits.rows, count=snapshots)
        self.prefix = PrefixCache(self.pool, enabled=prefix, window_tokens=window, snapshots=kept)
        self.planner = Planner(self.pool, self.prefix, limits, has_state=snapshots is not None, snapshots=kept)
        self.rows: dict[str, Row] = {}
        self.content: dict[int, int] = {}
        self.names: dict[str, list[int]] = {}
        self.state: dict[int, int] = {}
        self.flight: list[tuple[Row, list[int]]] = []
        self.said: dict[str, list[int]] = {}
        self.arrivals = 0
        self.computed_tokens = 0

    def add(self, id: str, tokens: list[int], *, draws: int, priority: int = 0) -> Row:
        row = row_of(id, tokens, draws=draws, priority=priority, arrival=self.arrivals)
        self.arrivals += 1
        self.rows[id] = row
        self.said[id] = []
        self.planner.insert(row)
        return row

    def remove(self, id: str) -> None:
        self.planner.remove(self.rows.pop(id))
        self.names.pop(id, None)

    def step(self) -> StepPlan:
        if self.guess is not None:
            self._read()
            for row in self.planner.decoding:
                row.drafts = self.guess(row)[: max(0, row.draws_left - 1)]
        plan = self.planner.plan()
        self._check(plan)
        if self.guess is None:
            self._read()
        self._execute(plan)
        self.planner.settle(plan)
        self.pool.check([row.table for row in self.rows.values()])
        return plan

    def run(self, most_steps: int = 2000) -> None:
        for _ in range(most_steps):
            if not self.rows:
                return
            self.step()
        raise AssertionError("the plan does not come to an end")

    def _check(self, plan: StepPlan) -> None:
        chunks = [chunk for forward in plan.forwards for chunk in forward]
        decoded = sum(1 + len(row.drafts) for row in plan.decode if row not in plan.joined)
        budget = max(self.limits.step_tokens - decoded, self.limits.smallest_chunk_tokens)
        assert sum(chunk.tokens for chunk in chunks) <= budget
        assert all(chunk.tokens <= self.limits.chunk_tokens for chunk in chunks)
        assert len({chunk.row.id for chunk in chunks}) == len(chunks)
        assert all(len(forward) <= self.limits.forward_rows for forward in plan.forwards)
        assert len(self.planner.reading) + len(self.planner.decoding) <= self.limits.rows
        assert len({id(row) for row in plan.decode}) == len(plan.decode)
        assert all(row in plan.decode for row in plan.joined)

    def _execute(self, plan: StepPlan) -> None:
        for slot in plan.fresh:
            self.state[slot] = EMPTY
        for slot, snapshot in plan.restored:
            self.state[slot] = self.state[snapshot]
        size = self.pool.block_tokens
        for source, target, tokens in plan.copied:
            assert self.pool.is_writable(target), "a shared block is written"
            for place in range(tokens):
                self.content[target * size + place] = self.content[source * size + place]
        for row, start, tokens, snapshot, _ in (chunk for forward in plan.forwards for chunk in forward):
            self._compute(row, self._names(row, ()), range(start, start + tokens))
            if snapshot >= 0:
                self.state[snapshot] = self.state[row.slot]
        for row in plan.decode:
            names = self._names(row, row.drafts)
            positions = range(row.computed - 1 - len(row.drafts), row.computed)
            self._compute(row, names, positions)
            drawn = [names[position] % VOCAB for position in positions]
            right = next((i for i, guess in enumerate(row.drafts) if guess != drawn[i]), len(row.drafts))
            self.flight.append((row, drawn[: right + 1]))

    def _names(self, row: Row, drafts: tuple[int, ...]) -> list[int]:
        """What position i holds is the name of all tokens up to it, and names the next token."""
        names = self.names.setdefault(row.id, [])
        names += naming(names[-1] if names else EMPTY, row.tokens[len(names) :])
        return [*names, *naming(names[-1], drafts)]

    def _compute(self, row: Row, names: list[int], positions: range) -> None:
        """Write some positions, and look at all that each of them sees."""
        size = self.pool.block_tokens
        for position in positions:
            block = row.table[position // size]
            assert block != NULL_BLOCK
            assert self.pool.is_writable(block), "a shared block is written"
            self.content[block * size + position % size] = names[position]
            first = 0 if self.window is None else max(0, position - self.window + 1)
            seen = [self.content.get(row.table[i // size] * size + i % size) for i in range(first, position + 1)]
            assert seen == names[first : position + 1], f"row {row.id} reads another's tokens"
            if row.slot >= 0:
                before = names[position - 1] if position else EMPTY
                assert self.state[row.slot] == before, "the state is not that of the tokens before"
                self.state[row.slot] = names[position]
        self.computed_tokens += len(positions)

    def _read(self) -> None:
        flight, self.flight = self.flight, []
        for row, ids in flight:
            if self.rows.get(row.id) is not row:
                continue
            row.take(ids)
            self.said[row.id] += ids
            if len(self.said[row.id]) == row.prompt.stop.max_tokens:
                self.remove(row.id)


def expected(tokens: list[int], draws: int) -> list[int]:
    """What a row says alone."""
    name = [EMPTY, *naming(EMPTY, tokens)][-1]
    said: list[int] = []
    for _ in range(draws):
        said.append(name % VOCAB)
        name = hash((name, said[-1]))
    return said
