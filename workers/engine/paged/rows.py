"""A sequence as the pager sees it: its tokens, its block table, and how far both are. Pure.

Token i is *computed* when its keys and values are in the pool, or will be once the work that was handed to the device
is done; device work runs in the order in which it was handed over, so nothing else has to be known. The newest token
is never computed: the step that computes it draws the next one.
"""

from collections.abc import Sequence as Items
from enum import Enum, auto

from workers.engine.sequence import Prompt, Sequence


class Phase(Enum):
    """WAITING for a place (new or preempted) → READING the prompt → DECODING → ENDED: all its tokens are drawn."""

    WAITING = auto()
    READING = auto()
    DECODING = auto()
    ENDED = auto()


class Row:
    """One row.

    `tokens` are those whose ids are known; `computed` may be one more, whose id a running step still draws.
    `table[i]` is the block of tokens i * block_tokens onwards, the null block where nothing will read them again.
    `hashes[i]` names the content up to the end of block i; `published` blocks of the table have been offered to others.
    `draws_left` is how many more tokens may be drawn. `slot` holds recurrent state, -1 for none.
    `drafts` are guesses at the coming tokens, to be checked in the next step. `place` is for whoever runs the row.
    `tail` is the name under which others find the end of what the row had to read.
    `reused` tokens were found computed when the row began.
    `kept` blocks have been offered to the store on disk, which was asked for others if the row `is_fetched`.
    While it `wants_scores` of its prompt it has to read all of it itself.
    """

    __slots__ = (
        "arrival",
        "computed",
        "drafts",
        "draws_left",
        "end_ids",
        "guide",
        "hashes",
        "id",
        "is_fetched",
        "kept",
        "phase",
        "place",
        "preemptions",
        "prompt",
        "published",
        "rank",
        "reused",
        "root",
        "slot",
        "table",
        "tail",
        "tokens",
        "unread",
        "wants_scores",
    )

    def __init__(self, sequence: Sequence, *, arrival: int, root: bytes) -> None:
        self.prompt: Prompt = sequence.prompt
        self.id = self.prompt.id
        self.end_ids = sequence.end_ids
        self.guide = sequence.guide
        self.arrival = arrival
        self.rank = (-self.prompt.priority, arrival)  # the smallest is served first and loses its place last
        self.root = root
        self.tokens: list[int] = sequence.input_ids
        self.draws_left = sequence.tokens_left
        self.unread = 0  # steps that draw for this row and whose tokens have not been read
        self.phase = Phase.WAITING
        self.table: list[int] = []
        self.hashes: list[bytes] = []
        self.computed = self.published = self.kept = self.preemptions = self.reused = 0
        self.is_fetched = False
        self.wants_scores = self.prompt.prompt_logprobs
        self.tail: bytes | None = None
        self.slot = self.place = -1
        self.drafts: tuple[int, ...] = ()

    @property
    def prompt_target(self) -> int:
        """Where reading ends: the last known token goes through the decode batch."""
        return len(self.tokens) - 1

    @property
    def output_ids(self) -> Items[int]:
        """All tokens behind the prompt: those that an earlier attempt emitted, and those that were drawn here."""
        return self.tokens[len(self.prompt.token_ids) :]

    def take(self, token_ids: Items[int]) -> None:
        """What the last step drew: of one token per draft and one more, these count; the others were wrong guesses."""
        rejected = 1 + len(self.drafts) - len(token_ids)
        self.drafts = ()
        self.tokens += token_ids
        self.unread -= 1
        self.computed -= rejected
        self.draws_left += rejected

    def forget(self) -> None:
        """Back to the line, with its tokens; what was computed is given up."""
        self.table, self.computed, self.published, self.kept = [], 0, 0, 0
        self.drafts, self.is_fetched = (), False
        self.phase = Phase.WAITING
