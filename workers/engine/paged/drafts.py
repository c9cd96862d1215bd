"""Speculation from a row's own text: guesses at its next tokens, and how many of them are worth a check. Pure.

Text repeats itself: where the last tokens stood before, what followed them is a good guess (prompt lookup, Saxena
2023). One forward checks several guesses at once. Nothing changes in what is generated, as in Leviathan et al. 2023:
the token at a position depends on the logits, the seed and the position only, so that drawing behind a right guess
gives what drawing one by one would have given, and whatever was drawn behind a wrong one is thrown away.

Guesses cost nothing until they are checked, and every token shows whether the guess was right, checked or not. So a
row learns all the time how good its guesses are, and needs no trial runs.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum
from itertools import accumulate, pairwise
from math import log2
from typing import NamedTuple

MOST_DRAFTS = 8  # of one row in one step
SHORTEST_MATCH_TOKENS = 2
LONGEST_MATCH_TOKENS = 8
MOST_CANDIDATES = 16  # earlier places that are compared

UNSEEN_RATES = (0.3, 0.6, 0.8, 0.9)  # of right guesses by `Evidence`, while nothing is known
UNSEEN_WEIGHT = 4  # tokens that such a rate counts for
RATE_MEMORY_TOKENS = 16
SMALLEST_CHANCE = 0.05  # of a draft that is worth a place in a forward

PRIOR_SLOPE = 0.05  # what one more token adds to the cost of an empty step, while nothing is measured
BUCKETS_PER_DOUBLING = 8
STEP_MEMORY = 8
LARGEST_SURPRISE = 2.0  # times the expected cost; what is above it was something else's fault
FORGOTTEN_STEPS = 1024
SMALLEST_GAIN = 1.05  # in tokens per second, to be expected from checking
MOST_DRAFTED_STEPS = 64  # without a plain one


def accepted(drafts: Sequence[int], drawn: Sequence[int]) -> tuple[int, ...]:
    """The tokens that one check yields: the right drafts, and the token drawn behind the last of them.

    `drawn[i]` was drawn as if the first i drafts came before it, so there is one more of them than drafts. A right
    draft equals the drawn token in its place. Raises ValueError for any other number of tokens.
    """
    if len(drawn) != len(drafts) + 1:
        raise ValueError(f"{len(drafts)} drafts need {len(drafts) + 1} drawn tokens, not {len(drawn)}")
    for index, draft in enumerate(drafts):
        if draft != drawn[index]:
            return tuple(drawn[: index + 1])
    return tuple(drawn)


class Source(StrEnum):
    """Where guesses come from: the row's own text, what its grammar forces, a draft model."""

    NGRAM = "ngram"
    GRAMMAR = "grammar"
    MODEL = "model"


class Match(NamedTuple):
    """The last `tokens` tokens of a text also stand right before index `source`."""

    source: int
    tokens: int


class NgramIndex:
    """Where a growing text's last tokens stood before. Appending a token takes constant time.

    `_previous[end]` is the latest earlier end of the pair of tokens that ends at `end`, 0 for none; following it, one
    visits all places where the last two tokens stood, the latest first.
    """

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._latest: dict[int, int] = {}
        self._previous = [0]
        self.extend(token_ids)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> int:
        return self._tokens[index]

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens to the text. Ids are non-negative and below 2**32."""
        if not token_ids:
            return
        joined = [*self._tokens[-1:], *token_ids]
        if not self._tokens:
            self._previous.append(0)
        first_end = max(len(self._tokens), 1) + 1
        self._tokens += token_ids
        latest, previous = self._latest, self._previous
        for end, (left, right) in enumerate(pairwise(joined), first_end):
            pair = left << 32 | right
            previous.append(latest.get(pair, 0))
            latest[pair] = end

    def find(self) -> Match | None:
        """The longest match, up to `LONGEST_MATCH_TOKENS`, of those the latest.

        Only the latest `MOST_CANDIDATES` places of the last two tokens are looked at.
        """
        best: Match | None = None
        source = self._previous[len(self._tokens)]
        for _ in range(MOST_CANDIDATES):
            if source == 0:
                break
            tokens = self._common_tokens(source)
            if best is None or tokens > best.tokens:
                best = Match(source, tokens)
                if tokens == LONGEST_MATCH_TOKENS:
                    break
            source = self._previous[source]
        return best

    def copy(self, source: int, limit: int) -> tuple[int, ...]:
        """`limit` tokens from index `source` on; behind the text's end the copy goes on with itself."""
        copied = self._tokens[source : source + limit]
        period = len(self._tokens) - source
        while len(copied) < limit:
            copied.append(copied[-period])
        return tuple(copied)

    def propose(self, limit: int) -> tuple[int, ...]:
        """A guess at the next `limit` tokens; none where the last two tokens are new together."""
        match = self.find()
        return () if match is None else self.copy(match.source, limit)

    def _common_tokens(self, source: int) -> int:
        """How many tokens before `source` are the text's last ones; the first two are known to be."""
        text, end = self._tokens, len(self._tokens)
        tokens = SHORTEST_MATCH_TOKENS
        longest = min(LONGEST_MATCH_TOKENS, source)
        while tokens < longest and text[source - 1 - tokens] == text[end - 1 - tokens]:
            tokens += 1
        return tokens


class Evidence(IntEnum):
    """What speaks for a guessed token: a match of 2-3, of 4-7, of 8 or more tokens, or that a grammar forces it."""

    SHORT = 0
    MIDDLING = 1
    LONG = 2
    FORCED = 3

    @classmethod
    def of_match(cls, tokens: int) -> "Evidence":
        if tokens < LONGEST_MATCH_TOKENS // 2:
            return cls.SHORT
        return cls.MIDDLING if tokens < LONGEST_MATCH_TOKENS else cls.LONG


class DraftLength:
    """How long a guess may be before it is likely wrong: grows with right guesses, shrinks with wrong ones.

    Keeps the share of right tokens for each kind of evidence, a moving average over `RATE_MEMORY_TOKENS` tokens.
    """

    def __init__(self) -> None:
        self._rates = list(UNSEEN_RATES)
        self._weights = [UNSEEN_WEIGHT] * len(UNSEEN_RATES)

    def observe(self, evidence: Evidence, is_right: bool) -> None:
        """A token that was guessed on this evidence turned out right or wrong."""
        self._weights[evidence] = min(self._weights[evidence] + 1, RATE_MEMORY_TOKENS)
        self._rates[evidence] += (is_right - self._rates[evidence]) / self._weights[evidence]

    def chances(self, evidence: Iterable[Evidence]) -> tuple[float, ...]:
        """For each draft of a guess, the probability that it and all before it are right.

        Ends before the first draft that is nearly hopeless.
        """
        chances: list[float] = []
        chance = 1.0
        for kind in evidence:
            chance *= self._rates[kind]
            if chance < SMALLEST_CHANCE:
                break
            chances.append(chance)
        return tuple(chances)


class Drafter:
    """One row's guesses. It is told every token of the row, in order, however it came about."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._index = NgramIndex(token_ids)
        self._length = DraftLength()
        self._match = self._index.find()
        self._forced: tuple[int, ...] = ()

    def append(self, token_ids: Sequence[int]) -> None:
        """These tokens came next."""
        for token in token_ids:
            self._judge(token)
            self._index.extend((token,))
            if self._match is None:
                self._match = self._index.find()

    def force(self, token_ids: Sequence[int]) -> None:
        """What comes next by the row's grammar, if the model spells it in these tokens; replaces what was forced."""
        self._forced = tuple(token_ids)

    @property
    def source(self) -> Source:
        """What the next guess comes from."""
        return Source.GRAMMAR if self._forced else Source.NGRAM

    def guess(self, limit: int) -> tuple[int, ...]:
        """At most `limit` next tokens."""
        if self._forced:
            return self._forced[:limit]
        return () if self._match is None else self._index.copy(self._match.source, limit)

    def chances(self, limit: int) -> tuple[float, ...]:
        """For each token of the guess, how likely it and all before it are right; see `DraftLength.chances`."""
        if self._forced:
            return self._length.chances([Evidence.FORCED] * min(limit, len(self._forced)))
        if self._match is None:
            return ()
        matched = self._match.tokens  # and each right draft adds to it
        return self._length.chances(Evidence.of_match(matched + ahead) for ahead in range(limit))

    def _judge(self, token: int) -> None:
        if self._forced:
            is_right = self._forced[0] == token
            self._length.observe(Evidence.FORCED, is_right)
            self._forced = self._forced[1:] if is_right else ()
        if self._match is not None:
            source, tokens = self._match
            is_right = self._index[source] == token
            self._length.observe(Evidence.of_match(tokens), is_right)
            self._match = Match(source + 1, tokens + 1) if is_right else None


class _Measured:
    """Steps of about the same number of tokens: moving averages of both, and when the last one was."""

    __slots__ = ("seen_at", "step_s", "steps", "tokens")

    def __init__(self, tokens: int, step_s: float) -> None:
        self.tokens, self.step_s = float(tokens), step_s
        self.steps, self.seen_at = 0, 0


class StepCosts:
    """How long a step takes by the number of tokens in its forward: measured where possible, else estimated.

    Without measurements a step is taken to cost 1 + `PRIOR_SLOPE` * tokens of some unit (107 M parameters on a CPU).
    Old measurements are forgotten, because texts grow and machines get busy.
    """

    def __init__(self) -> None:
        self._measured: dict[int, _Measured] = {}
        self._order: list[int] = []
        self._steps = 0

    @property
    def is_measured(self) -> bool:
        return bool(self._measured)

    def observe(self, tokens: int, step_s: float) -> None:
        """A step of that many tokens (at least one), with nothing else in it, took that long."""
        self._steps += 1
        bucket = _bucket(tokens)
        known = self._measured.get(bucket)
        if known is None:
            if self._measured:
                step_s = min(step_s, LARGEST_SURPRISE * self.estimate_s(tokens))
            known = self._measured[bucket] = _Measured(tokens, step_s)
            self._order = sorted(self._measured)
        step_s = min(step_s, LARGEST_SURPRISE * known.step_s)
        known.steps = min(known.steps + 1, STEP_MEMORY)
        known.step_s += (step_s - known.step_s) / known.steps
        known.tokens += (tokens - known.tokens) / known.steps
        known.seen_at = self._steps
        if self._steps % FORGOTTEN_STEPS == 0:
            self._forget()

    def estimate_s(self, tokens: int) -> float:
        """What a step of that many tokens will take; comparable with each other even before the first measurement."""
        bucket = _bucket(tokens)
        if bucket in self._measured:
            return self._measured[bucket].step_s
        if not self._order:
            return _prior(tokens)
        place = bisect_left(self._order, bucket)
        if 0 < place < len(self._order):
            below, above = (self._measured[self._order[index]] for index in (place - 1, place))
            share = (tokens - below.tokens) / (above.tokens - below.tokens)
            return below.step_s + share * (above.step_s - below.step_s)
        nearest = self._measured[self._order[min(place, len(self._order) - 1)]]
        return nearest.step_s * _prior(tokens) / _prior(nearest.tokens)

    def _forget(self) -> None:
        oldest = self._steps - FORGOTTEN_STEPS
        self._measured = {bucket: known for bucket, known in self._measured.items() if known.seen_at > oldest}
        self._order = sorted(self._measured)


def _bucket(tokens: int) -> int:
    return round(BUCKETS_PER_DOUBLING * log2(tokens))


def _prior(tokens: float) -> float:
    return 1 + PRIOR_SLOPE * tokens


class Choice(NamedTuple):
    """How many guesses of each row are checked, and the tokens per second that are expected of it."""

    lengths: list[int]
    tokens_per_s: float


class DraftBudget:
    """How many guesses a batch checks in a step, so that the most tokens come out per second.

    A forward computes every row at the length of the longest.
    """

    def __init__(self) -> None:
        self.costs = StepCosts()
        self._drafted_steps = 0

    def observe(self, lengths: Sequence[int], step_s: float) -> None:
        """A step of rows with these numbers of drafts, and without any prompt, took that long from token to token."""
        drafted = len(lengths) * max(lengths)
        self._drafted_steps = self._drafted_steps + 1 if drafted else 0
        self.costs.observe(len(lengths) + drafted, step_s)

    def choose(self, chances: Sequence[Sequence[float]], *, asked_tokens: int = 0, asked_s: float = 0.0) -> Choice:
        """For each row, how many of its guesses are checked; `chances[row]` as from `Drafter.chances`.

        All zero where checking gains less than `SMALLEST_GAIN`, and now and then, so that both costs stay known.
        Each of the longest row's first `asked_tokens` guesses takes `asked_s` to be made, the others no time.
        """
        rows = len(chances)
        best, best_rate = 0, SMALLEST_GAIN * rows / self.costs.estimate_s(rows)
        if self._drafted_steps < MOST_DRAFTED_STEPS and any(chances):
            ahead = range(max(map(len, chances)))
            right = accumulate(sum(row[index] for row in chances if len(row) > index) for index in ahead)
            for times, drafts in enumerate(right, 1):
                step_s = self.costs.estimate_s(rows * (1 + times)) + asked_s * min(times, asked_tokens)
                if (rows + drafts) / step_s > best_rate:
                    best, best_rate = times, (rows + drafts) / step_s
        return Choice([min(best, len(row)) for row in chances], best_rate)
