"""How much of which prompt is read in a step, and which prompts are read in one forward. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workers.engine.paged.rows import Row

SMALLEST_CHUNK_TOKENS = 64
LARGEST_CHUNK_TOKENS = 512  # a larger one computes more of what the causal mask then hides
PADDED_SHARE = 0.25
PADDED_TOKENS = 32  # what one more forward costs
SCORED_CHUNK_TOKENS = 128  # all of their logits are computed: a megabyte for each, with a large vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLimits:
    """`rows` have a place at most. A step computes `step_tokens` tokens, of one prompt `chunk_tokens` at most.

    `forward_rows`: how many prompts one forward may read.
    """

    rows: int
    step_tokens: int
    chunk_tokens: int = LARGEST_CHUNK_TOKENS
    forward_rows: int = 1 << 30

    @property
    def smallest_chunk_tokens(self) -> int:
        return min(SMALLEST_CHUNK_TOKENS, self.step_tokens, self.chunk_tokens)


class Chunk(NamedTuple):
    """Tokens start..start+tokens-1 of a row's prompt; `snapshot` is where to keep the state behind them, or -1.

    `is_scored`: the log-probabilities of the tokens that follow are wanted.
    """

    row: Row
    start: int
    tokens: int
    snapshot: int
    is_scored: bool = False


class Want(NamedTuple):
    """A prompt's next tokens begin at `start`; `unread` of them are left."""

    start: int
    unread: int


def share_budget(wants: Sequence[Want], budget: int, limits: PlanLimits, block_tokens: int) -> list[int]:
    """How many tokens of each prompt are read now: half for the first, the rest in order, what is left for the first.

    A chunk ends at a block border or the prompt's end, and is not small unless it ends the prompt.
    """
    grants = [0] * len(wants)
    if not wants:
        return grants
    half = budget if len(wants) == 1 else max(budget // 2, limits.smallest_chunk_tokens)
    head = _chunk_tokens(wants[0], half, limits, block_tokens)
    left = budget - head
    for index, want in enumerate(wants[1:], 1):
        grants[index] = _chunk_tokens(want, left, limits, block_tokens)
        left -= grants[index]
    grants[0] = max(head, _chunk_tokens(wants[0], head + left, limits, block_tokens))
    return grants


def _chunk_tokens(want: Want, room: int, limits: PlanLimits, block_tokens: int) -> int:
    tokens = max(0, min(want.unread, limits.chunk_tokens, room))
    if tokens == want.unread:
        return tokens
    if tokens < limits.smallest_chunk_tokens:
        return 0
    aligned = tokens - (want.start + tokens) % block_tokens
    return aligned if aligned > 0 else tokens


def pack_forwards(chunks: Sequence[Chunk], forward_rows: int) -> list[list[Chunk]]:
    """Chunks that are read together, each padded to the longest: as few forwards as keep the padding small.

    One that is scored is read alone.
    """
    forwards: list[list[Chunk]] = []
    longest = real = 0
    for chunk in sorted((chunk for chunk in chunks if not chunk.is_scored), key=lambda chunk: -chunk.tokens):
        forward = forwards[-1] if forwards else []
        padding = (len(forward) + 1) * longest - real - chunk.tokens
        if not forward or len(forward) >= forward_rows or padding > max(PADDED_TOKENS, PADDED_SHARE * real):
            forwards.append([chunk])
            longest, real = chunk.tokens, chunk.tokens
        else:
            forward.append(chunk)
            real += chunk.tokens
    return forwards + [[chunk] for chunk in chunks if chunk.is_scored]


def last_writers(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Where a snapshot was given away again in the same step, only the chunk that has it now writes it."""
    writers = {chunk.snapshot: chunk.row for chunk in chunks}
    return [chunk if writers[chunk.snapshot] is chunk.row else chunk._replace(snapshot=-1) for chunk in chunks]
