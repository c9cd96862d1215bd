"""Which rows guess at their next tokens, from what, and how far: see `drafts`. Pure, but for what it asks.

Guesses need the newest token on the host, so a step that checks some is planned after the last one has been read, and
not while it runs. That is only done where guesses have turned out right.

A draft model's guesses cost time even if nothing comes of them. So a row's own text comes first where it promises as
much, and the model is asked only where its measured cost and its rate of right guesses promise more tokens per second.
Before it can guess for a row it has to read the row's text, which is done only where the rest of the text will repay
it: first for one row, to see how often it would have been right, then for the others if that was often. Where it was
not, a small share of the time goes into finding out whether that has changed.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from workers.engine.paged.drafts import MOST_DRAFTS, Choice, DraftBudget, Drafter, Source
from workers.engine.paged.rows import Row
from workers.engine.paged.trust import COMPARED_TOKENS, Guesser, Trust

Cover: TypeAlias = Callable[[Row, int], int]

MOST_UNREAD_TOKENS = 2 * COMPARED_TOKENS  # of a row that the model can guess for at once
FORESEEN_TOKENS = 256  # of a row's text that is still to come, at most: it may end any time
TRIAL_SHARE = 0.005  # of the time, for a model that does not pay
FIRST_TRIAL_S = 0.1  # at most, for one of which nothing is known
MOST_TRIAL_S = 5.0  # saved up
IDLE_STEPS = 8  # between two looks at rows that are not worth reading


class _Asking(NamedTuple):
    """What is best without and with a draft model; `asked` rows would be guessed for by it, with these `chances`."""

    own: Choice
    mixed: Choice
    asked: list[bool]
    chances: list[Sequence[float]]

    @property
    def best(self) -> tuple[Choice, list[bool]]:
        if self.mixed.tokens_per_s > self.own.tokens_per_s:
            return self.mixed, self.asked
        return self.own, [False] * len(self.asked)


class Speculation:
    """A drafter for every decoding row, one budget for all of them, and a draft model if there is one."""

    def __init__(self, model: Guesser | None = None) -> None:
        self.drafted_tokens_total: Counter[str] = Counter({source.value: 0 for source in Source})
        self.right_tokens_total: Counter[str] = Counter(self.drafted_tokens_total)
        self._model = model
        self._drafters: dict[str, Drafter] = {}
        self._sources: dict[str, Source] = {}
        self._budget = DraftBudget()
        self._trust = Trust()
        self._aside_s = self._trial_s = 0.0
        self._idle_steps = 0

    def learn(self, row: Row, token_ids: Sequence[int]) -> None:
        """These are the row's latest tokens."""
        drafter = self._drafters.get(row.id)
        if drafter is None:
            self._drafters[row.id] = Drafter(row.tokens)
        else:
            drafter.append(token_ids)

    def force(self, row: Row, token_ids: Sequence[int]) -> None:
        """The row's grammar leaves it nothing else."""
        if row.id in self._drafters:
            self._drafters[row.id].force(token_ids)

    def checked(self, row: Row, drafts: int, right: int) -> None:
        """So many of the row's drafts were right."""
        source = self._sources.get(row.id, Source.NGRAM)
        self.drafted_tokens_total[source] += drafts
        self.right_tokens_total[source] += right
        if source is Source.MODEL:
            self._trust.observe(row.id, [True] * right + [False] * (right < drafts))

    def timed(self, lengths: Sequence[int], step_s: float) -> None:
        """A step of rows with so many drafts, and without prompts, took that long, the draft model not counted."""
        self._budget.observe(lengths, step_s)
        self._trial_s = min(self._trial_s + TRIAL_SHARE * step_s, MOST_TRIAL_S)

    def take_aside_s(self) -> float:
        """For how long the draft model has been at work since the last call."""
        aside_s, self._aside_s = self._aside_s, 0.0
        return aside_s

    def forget(self, row_ids: Collection[str]) -> None:
        """These rows have gone, or have lost their place."""
        for row_id in row_ids:
            self._drafters.pop(row_id, None)
            self._sources.pop(row_id, None)
        self._trust.forget(row_ids)
        if self._model is not None:
            self._model.forget(row_ids)

    def pays(self, rows: Sequence[Row]) -> bool:
        """Whether the rows' next tokens are worth waiting for, to guess at those behind them."""
        return bool(rows) and any(self._choose(rows).best[0].lengths)

    def guess(self, rows: Sequence[Row], cover: Cover) -> None:
        """Give the rows their drafts. `cover(row, tokens)` makes room for so many tokens and says for how many."""
        if not rows:
            return
        choice, asked = self._choose(rows).best
        wanted: dict[Row, int] = {}
        for row, length, is_asked in zip(rows, choice.lengths, asked, strict=True):
            row.drafts = ()
            if length and is_asked:
                self._sources[row.id] = Source.MODEL
                wanted[row] = max(0, min(length, cover(row, len(row.tokens) + length) - len(row.tokens)))
            elif length:
                self._sources[row.id] = self._drafters[row.id].source
                row.drafts = self._drafters[row.id].guess(length)
        if wanted and self._model is not None:
            self._aside_s += self._model.propose(list(wanted), list(wanted.values()))

    def follow(self, rows: Sequence[Row]) -> None:
        """Let the draft model read on in the rows that it shall guess for, at most a chunk in all."""
        model = self._model
        if model is None or not self._budget.costs.is_measured or self._idle_steps:
            self._idle_steps = max(0, self._idle_steps - 1)
            return
        lagging = [row for row in rows if self._is_known(row) and model.behind(row) > MOST_UNREAD_TOKENS]
        lagging.sort(key=model.behind)
        is_trial, chosen = self._worth_reading(model, rows, lagging)
        room = model.chunk_tokens
        while chosen and room > 0:
            row = chosen.pop(0)
            reading = model.read(row, room)
            room -= reading.tokens
            self._trust.observe(row.id, reading.verdicts)
            self._aside_s += reading.spent_s
            self._trial_s -= reading.spent_s if is_trial else 0.0
        self._idle_steps = IDLE_STEPS if room == model.chunk_tokens else 0

    def _worth_reading(self, model: Guesser, rows: Sequence[Row], lagging: list[Row]) -> tuple[bool, list[Row]]:
        """Whether this is a trial, which is paid from its share of the time, and the rows to read, best first."""
        if not lagging:
            return False, []
        saved_s = self._saved_s([row for row in rows if self._is_known(row)])
        worth = [row for row in lagging if model.read_s(model.behind(row)) < saved_s.get(row.id, 0.0)]
        if worth and self._trust.is_proven:
            return False, worth
        telling = [row for row in worth or lagging if len(row.output_ids) >= COMPARED_TOKENS]
        if not worth:
            spare_s = self._trial_s if self._trust.is_proven else max(self._trial_s, FIRST_TRIAL_S)
            telling = [row for row in telling if model.read_s(model.behind(row)) <= spare_s]
        return not worth and self._trust.is_proven, telling[:1]

    def _saved_s(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """By row, how much less time the rest of its text will take if the draft model guesses for all rows."""
        asking = self._choose(rows, as_if_read=True)
        saved_s = 1 / asking.own.tokens_per_s - 1 / asking.mixed.tokens_per_s  # for a token of each row, by rows
        right = [
            sum(chances) if is_asked else 0.0 for chances, is_asked in zip(asking.chances, asking.asked, strict=True)
        ]
        if saved_s <= 0 or not any(right):
            return {}
        return {
            row.id: saved_s * min(row.draws_left, FORESEEN_TOKENS) * own * len(rows) / sum(right)
            for row, own in zip(rows, right, strict=True)
        }

    def _choose(self, rows: Sequence[Row], *, as_if_read: bool = False) -> _Asking:
        """`as_if_read`: as if the draft model had read all rows."""
        own = [self._chances(row) for row in rows]
        choice, nobody = self._budget.choose(own), [False] * len(rows)
        model = self._model
        if model is None or not self._budget.costs.is_measured:
            return _Asking(choice, choice, nobody, list(own))
        chances: list[Sequence[float]] = []
        asked: list[bool] = []
        for row, found in zip(rows, own, strict=True):
            limit = min(MOST_DRAFTS, row.draws_left - 1)
            able = self._is_known(row) and (as_if_read or model.behind(row) <= MOST_UNREAD_TOKENS)
            guessed = self._trust.chances(row.id, limit) if able else ()
            asked.append(sum(guessed) > sum(found))
            chances.append(guessed if asked[-1] else found)
        if not any(asked):
            return _Asking(choice, choice, nobody, chances)
        longest = max(len(row) for row, is_asked in zip(chances, asked, strict=True) if is_asked)
        mixed = self._budget.choose(chances, asked_tokens=longest, asked_s=model.guess_s(sum(asked)))
        return _Asking(choice, mixed, asked, chances)

    def _is_known(self, row: Row) -> bool:
        """Whether the draft model may be asked about the row."""
        known = row.id in self._drafters and row.draws_left > 0
        return known and self._model is not None and self._model.can_guess(row, MOST_DRAFTS)

    def _chances(self, row: Row) -> Sequence[float]:
        drafter, limit = self._drafters.get(row.id), min(MOST_DRAFTS, row.draws_left - 1)
        return drafter.chances(limit) if drafter is not None and limit > 0 else ()
