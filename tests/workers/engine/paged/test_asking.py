"""When a draft model is asked: where it pays, by measured times, and what is spent to find that out."""

import random
from collections.abc import Callable, Collection, Sequence

import pytest

from tests.workers.engine.paged.paper_device import row_of
from workers.engine.paged.drafts import Source, accepted
from workers.engine.paged.rows import Row
from workers.engine.paged.speculation import MOST_UNREAD_TOKENS, Speculation
from workers.engine.paged.trust import COMPARED_TOKENS, PROVEN_TOKENS, Reading, Trust

Rate = Callable[[int], float]  # of right guesses, by the step
STEP_S, ROW_S = 0.040, 0.0015  # of the target: a forward, and each token in it


class PaperGuesser:
    """A draft model on paper: a share of its guesses is right, and everything takes time."""

    chunk_tokens = 128

    def __init__(self, rate: Rate, speed: float, dice: random.Random) -> None:
        """`speed`: how many times faster than the target it is."""
        self.rate, self.speed, self.dice = rate, speed, dice
        self.now = 0
        self.reached: dict[str, int] = {}
        self.coming: dict[str, list[int]] = {}
        self.read_rows: list[str] = []
        self.read_tokens = 0  # since the last step

    def guess_s(self, rows: int) -> float:
        return (STEP_S + ROW_S * rows) / self.speed

    def read_s(self, tokens: int) -> float:
        return (STEP_S + ROW_S / 4 * tokens) / self.speed

    def can_guess(self, row: Row, tokens: int) -> bool:
        return len(row.tokens) + tokens <= 2000

    def behind(self, row: Row) -> int:
        return len(row.tokens) - self.reached.get(row.id, 0)

    def forget(self, row_ids: Collection[str]) -> None:
        for row_id in row_ids:
            self.reached.pop(row_id, None)

    def read(self, row: Row, most_tokens: int) -> Reading:
        tokens = min(self.behind(row) - 1, most_tokens)
        self.reached[row.id] = self.reached.get(row.id, 0) + tokens
        self.read_rows.append(row.id)
        self.read_tokens += tokens
        compared = min(COMPARED_TOKENS, len(row.output_ids), tokens) if self.behind(row) == 1 else 0
        return Reading(tokens, tuple(self._is_right() for _ in range(compared)), self.read_s(tokens))

    def propose(self, rows: Sequence[Row], lengths: Sequence[int]) -> float:
        for row, length in zip(rows, lengths, strict=True):
            assert self.behind(row) <= MOST_UNREAD_TOKENS
            self.reached[row.id] = len(row.tokens)
            row.drafts = tuple(token if self._is_right() else -token for token in self.coming[row.id][:length])
        return max(lengths, default=0) * self.guess_s(len(rows))

    def _is_right(self) -> bool:
        return self.dice.random() < self.rate(self.now)


class PaperFarm:
    """Rows of random text that come and go, eight tokens known ahead, on a clock of its own."""

    def __init__(
        self,
        rate: Rate,
        *,
        rows: int,
        draws: int = 400,
        speed: float = 8.0,
        prompt_tokens: int = 300,
        is_drafted: bool = True,
    ) -> None:
        self.dice = random.Random(rows)
        self.guesser = PaperGuesser(rate, speed, self.dice)
        self.speculation = Speculation(self.guesser if is_drafted else None)
        self.draws, self.came, self.clock_s, self.tokens = draws, 0, 0.0, 0
        self.prompt_tokens = prompt_tokens
        self.rows = [self.new_row() for _ in range(rows)]

    def new_row(self) -> Row:
        self.came += 1
        row = row_of(
            str(self.came), [self.dice.randrange(1, 1 << 30) for _ in range(self.prompt_tokens)], draws=self.draws
        )
        self.guesser.coming[row.id] = [self.dice.randrange(1, 1 << 30) for _ in range(9)]
        return row

    def step(self) -> None:
        speculation = self.speculation
        for row in self.rows:
            row.drafts = ()
        if speculation.pays(self.rows):
            speculation.guess(self.rows, lambda row, tokens: tokens)
        lengths = [len(row.drafts) for row in self.rows]
        self.guesser.now, self.guesser.read_tokens = self.guesser.now + 1, 0
        speculation.follow(self.rows)
        assert self.guesser.read_tokens <= self.guesser.chunk_tokens
        aside_s = speculation.take_aside_s()
        step_s = (STEP_S + ROW_S * len(self.rows) * (1 + max(lengths))) * self.dice.uniform(0.9, 1.1)
        speculation.timed(lengths, step_s)
        self.clock_s += step_s + aside_s
        for index, row in enumerate(self.rows):
            self.rows[index] = self.take(row)

    def take(self, row: Row) -> Row:
        coming = self.guesser.coming[row.id]
        right = accepted(row.drafts, coming[: len(row.drafts) + 1])
        if row.drafts:
            self.speculation.checked(row, len(row.drafts), len(right) - 1)
        row.draws_left -= len(right)
        row.tokens += right
        row.drafts = ()
        self.tokens += len(right)
        self.speculation.learn(row, right)
        coming[:] = [*coming[len(right) :], *(self.dice.randrange(1, 1 << 30) for _ in right)]
        if row.draws_left > 0:
            return row
        self.speculation.forget([row.id])
        return self.new_row()

    def run(self, steps: int) -> "PaperFarm":
        for _ in range(steps):
            self.step()
        return self

    @property
    def rate(self) -> float:
        return self.tokens / self.clock_s


def gain(rate: Rate, *, rows: int, steps: int = 1500, **sizes: float) -> float:
    """In tokens per second, to the same rows without a draft model."""
    drafted = PaperFarm(rate, rows=rows, **sizes).run(steps)  # type: ignore[arg-type]
    return drafted.rate / PaperFarm(rate, rows=rows, is_drafted=False, **sizes).run(steps).rate  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "goal"), [(1, 2.0), (4, 1.6), (16, 1.15)])
def test_a_model_that_is_often_right_makes_texts_faster(rows: int, goal: float) -> None:
    assert gain(lambda step: 0.85, rows=rows) >= goal


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize(("right", "draws"), [(0.0, 400), (0.1, 400), (0.0, 40), (0.3, 40)])
def test_a_model_that_is_seldom_right_costs_nearly_nothing(right: float, draws: int, rows: int) -> None:
    assert gain(lambda step: right, rows=rows, draws=draws) >= 0.97


@pytest.mark.parametrize("rows", [1, 8])
def test_a_model_that_is_hardly_faster_than_its_target_costs_nearly_nothing(rows: int) -> None:
    assert gain(lambda step: 0.6, rows=rows, speed=1.2) >= 0.97


def test_a_model_that_turns_good_is_found_out_and_one_that_turns_bad_is_dropped() -> None:
    better = PaperFarm(lambda step: 0.9 if step > 1000 else 0.0, rows=4, draws=2000).run(1000)
    before = better.guesser.read_rows
    assert better.speculation.drafted_tokens_total[Source.MODEL] < 300
    assert len(before) < 100
    better.run(2000)
    assert better.speculation.right_tokens_total[Source.MODEL] > 2000
    worse = PaperFarm(lambda step: 0.0 if step > 500 else 0.9, rows=4, draws=1 << 20).run(700)
    drafted = worse.speculation.drafted_tokens_total[Source.MODEL]
    worse.run(1000)
    assert worse.speculation.drafted_tokens_total[Source.MODEL] - drafted < 200


def test_one_row_is_read_first_and_the_others_when_it_has_shown_that_it_pays() -> None:
    farm = PaperFarm(lambda step: 0.9, rows=4)
    while not farm.speculation._trust.is_proven:
        farm.step()
        assert len(set(farm.guesser.read_rows)) <= 1
    farm.run(30)
    assert len(set(farm.guesser.read_rows)) == 4


@pytest.mark.parametrize(("draws", "is_read"), [(3, False), (200, True)])
def test_a_text_is_read_only_if_what_is_to_come_repays_it(draws: int, is_read: bool) -> None:
    farm = PaperFarm(lambda step: 0.9, rows=2, draws=draws, prompt_tokens=1500)
    farm.speculation._trust.observe("another", [True] * 100)
    assert bool(farm.run(30).guesser.read_rows) == is_read


def test_repeated_text_is_not_asked_of_the_model() -> None:
    """What stood there before costs nothing, and is as often right."""
    farm = PaperFarm(lambda step: 0.9, rows=1, draws=4000).run(60)
    asked = farm.speculation.drafted_tokens_total[Source.MODEL]
    assert asked > 0
    [row] = farm.rows
    cycle = [5, 6, 7, 8, 9]
    for turn in range(400):
        token = cycle[turn % 5]
        row.tokens.append(token)
        farm.speculation.learn(row, (token,))
    farm.guesser.reached[row.id] = len(row.tokens) - 1
    farm.speculation.guess([row], lambda _, tokens: tokens)
    assert farm.speculation.drafted_tokens_total[Source.MODEL] == asked
    assert set(row.drafts) <= set(cycle)
    assert len(row.drafts) > 2


def test_a_row_of_which_nothing_is_known_is_taken_to_be_like_the_others() -> None:
    trust = Trust()
    unseen = trust.chances("a", 8)
    assert not trust.is_proven
    trust.observe("a", [True] * PROVEN_TOKENS)
    assert trust.is_proven
    assert trust.chances("b", 8) > unseen
    assert len(trust.chances("b", 3)) == 3
    trust.observe("b", [False] * 200)
    assert trust.chances("b", 8) == ()
    assert trust.chances("a", 2)[1] > 0.5
    trust.forget(["a", "b", "unknown"])
    assert trust.chances("a", 8) == trust.chances("c", 8)
