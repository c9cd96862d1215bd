"""What the engine asks of whatever computes its sequences, and what it gets back. Pure.

A runner owns its rows from `insert` to `remove`: it decides when a row begins, which rows share a forward, and where
their keys and values lie. It knows token ids and probabilities, but no text.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from workers.engine.sequence import NO_PREFIX, Fault, PrefixUse, Sequence, TokenLogprob

NOT_FINITE = "the model's logits are not finite"


@dataclass(frozen=True, slots=True)
class RowToken:
    """A row's next token, or why there is none and whose `fault` that is (None: as for all errors of a runner).

    With the first one come the prompt's log-probabilities, where they were asked for.
    """

    row_id: str
    token: int
    logprob: TokenLogprob | None
    error: str | None
    fault: Fault | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStats:
    """What a runner holds now and has done so far; zeros for what it does not measure.

    `waiting` rows have not begun, `prefilling` ones have (read, total) prompt tokens. `kv_bytes` are those of rows.
    `used_blocks` belong to rows, `cached_blocks` can be found again, both out of `total_blocks`.
    Times are of the last step, then of all: deciding and building graphs; handing work to the device and waiting for
    tokens; drawing tokens. Of the looked up prompt tokens, the hit ones were found computed. Preempted rows lost their
    place and begin again later. Wasted rows were computed in a step after their end. Of the drafted tokens, by
    their source, the right ones came out without a step of their own. Of the blocks that were asked of the store on
    disk, some were there.
    """

    backend: str = ""
    waiting: int = 0
    prefilling: dict[str, tuple[int, int]] = field(default_factory=dict)
    kv_bytes: int = 0
    prompt_tokens_total: int = 0
    plan_ms: float = 0.0
    forward_ms: float = 0.0
    sample_ms: float = 0.0
    plan_ms_total: float = 0.0
    forward_ms_total: float = 0.0
    sample_ms_total: float = 0.0
    used_blocks: int = 0
    cached_blocks: int = 0
    total_blocks: int = 0
    prefix_hit_tokens_total: int = 0
    prefix_looked_up_tokens_total: int = 0
    preemptions_total: int = 0
    wasted_rows_total: int = 0
    drafted_tokens_total: dict[str, int] = field(default_factory=dict)
    right_drafts_total: dict[str, int] = field(default_factory=dict)
    disk_hit_blocks_total: int = 0
    disk_missed_blocks_total: int = 0
    disk_bytes: int = 0


class Runner(Protocol):
    """What computes rows: `PagedRunner`, `BatchRunner`, `SerialRunner`, `VisionRunner`. Not thread-safe."""

    @property
    def capacity_tokens(self) -> int | None:
        """The most tokens, prompt and output, that one sequence may ever have here; None: only the model bounds it."""
        ...

    @property
    def obeys_grammars(self) -> bool:
        """Whether rows may have a guide."""
        ...

    @property
    def scores_prompts(self) -> bool:
        """Whether rows may ask for the log-probabilities of their prompts."""
        ...

    @property
    def waiting(self) -> int:
        """Rows that were inserted and have not begun."""
        ...

    def insert(self, sequence: Sequence) -> None:
        """Take a row in; it begins in a later step. Its id is that of its prompt and must not be in use."""
        ...

    def remove(self, row_ids: Collection[str]) -> None:
        """Drop rows at any stage; unknown ids are ignored."""
        ...

    def step(self) -> list[RowToken]:
        """One round: every decoding row's next token (several in order, where the runner guesses ahead)."""
        ...

    def prefix_use(self, row_id: str) -> PrefixUse:
        """What a cache of prefixes did for a row that has read its prompt and was not removed."""
        ...

    def stats(self) -> RunnerStats: ...

    def close(self) -> None:
        """Drop all rows."""
        ...


class RowLine:
    """A part of the runners that keep no prefixes: rows stand in line, in order, until they begin."""

    scores_prompts = False

    def __init__(self) -> None:
        self._line: dict[str, Sequence] = {}

    @property
    def waiting(self) -> int:
        """As in `Runner`."""
        return len(self._line)

    def insert(self, sequence: Sequence) -> None:
        """As in `Runner`."""
        self._line[sequence.prompt.id] = sequence

    def prefix_use(self, row_id: str) -> PrefixUse:
        """As in `Runner`: none."""
        return NO_PREFIX
