"""Speculation changes no token, finds what a search would find, and pays or keeps quiet.

Times are virtual: those of a model of 107 M parameters on a CPU, by rows and by tokens of a row.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.paged.drafts import (
    LONGEST_MATCH_TOKENS,
    MOST_CANDIDATES,
    MOST_DRAFTED_STEPS,
    MOST_DRAFTS,
    SHORTEST_MATCH_TOKENS,
    UNSEEN_RATES,
    DraftBudget,
    Drafter,
    DraftLength,
    Evidence,
    Match,
    NgramIndex,
    StepCosts,
    accepted,
)

few_tokens = st.lists(st.integers(0, 3), max_size=60)
Text = Iterator[int]


def search(text: Sequence[int]) -> Match | None:
    """The longest, then latest match, by looking at every place."""
    best: Match | None = None
    for source in range(len(text) - 1, SHORTEST_MATCH_TOKENS - 1, -1):
        tokens = 0
        while tokens < min(source, LONGEST_MATCH_TOKENS) and text[source - 1 - tokens] == text[-1 - tokens]:
            tokens += 1
        if tokens >= SHORTEST_MATCH_TOKENS and (best is None or tokens > best.tokens):
            best = Match(source, tokens)
    return best


@given(st.lists(st.integers(0, 9), max_size=60), st.lists(st.integers(0, 60), max_size=3))
def test_the_index_finds_what_a_search_of_the_whole_text_finds(text: list[int], cuts: list[int]) -> None:
    index = NgramIndex()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True):
        index.extend(text[start:end])
    pairs = list(pairwise(text))
    if text[1:] and pairs.count(pairs[-1]) <= MOST_CANDIDATES:
        assert index.find() == search(text)
    assert [index[place] for place in range(len(index))] == text


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 30))
def test_a_proposal_copies_what_followed_the_match_and_then_itself(text: list[int], limit: int) -> None:
    index = NgramIndex(text)
    match = index.find()
    proposed = index.propose(limit)
    if match is None:
        assert proposed == ()
        return
    written = [*text, *proposed]
    assert len(proposed) == limit
    assert all(written[len(text) + ahead] == written[match.source + ahead] for ahead in range(limit))


def test_a_text_of_one_token_is_continued_with_it() -> None:
    assert NgramIndex([7, 7, 7]).propose(5) == (7,) * 5


def test_of_equally_long_matches_the_latest_is_taken() -> None:
    assert NgramIndex([1, 2, 3, 9, 1, 2, 4, 9, 1, 2]).propose(1) == (4,)


def test_a_longer_match_is_taken_before_a_later_one() -> None:
    assert NgramIndex([5, 1, 2, 3, 9, 1, 2, 4, 9, 5, 1, 2]).propose(1) == (3,)


def test_a_text_whose_last_pair_is_new_gets_no_proposal() -> None:
    assert NgramIndex([1, 2, 3, 4]).propose(4) == ()
    assert NgramIndex([1]).propose(4) == ()
    assert NgramIndex().propose(4) == ()


def test_a_check_takes_the_right_drafts_and_one_token_more() -> None:
    assert accepted((), (4,)) == (4,)
    assert accepted((4, 5), (4, 5, 6)) == (4, 5, 6)
    assert accepted((4, 5), (4, 9, 6)) == (4, 9)
    assert accepted((4, 5), (8, 5, 6)) == (8,)
    with pytest.raises(ValueError, match="need 3 drawn"):
        accepted((4, 5), (4, 5))


@given(prompt=few_tokens, seed=st.integers(0, 2**32), memory=st.integers(0, 6), data=st.data())
def test_speculation_yields_the_tokens_that_drawing_one_by_one_yields(
    prompt: list[int], seed: int, memory: int, data: st.DataObject
) -> None:
    def draw(text: Sequence[int]) -> int:
        """A model and its seeded draw: any function of the tokens before and the position."""
        seen = tuple(text[len(text) - memory :])
        return random.Random(hash((seed, seen, len(text) if memory == 6 else 0))).randrange(4)

    expected = list(prompt)
    for _ in range(40):
        expected.append(draw(expected))

    text = list(prompt)
    drafter = Drafter(text)
    while len(text) < len(expected):
        left = len(expected) - len(text) - 1
        drafts = drafter.guess(data.draw(st.integers(0, min(left, MOST_DRAFTS))))
        tokens = accepted(drafts, [draw([*text, *drafts[:ahead]]) for ahead in range(len(drafts) + 1)])
        text += tokens
        drafter.append(tokens)
    assert text == expected


@given(few_tokens, few_tokens)
def test_guesses_do_not_depend_on_how_tokens_arrived(prompt: list[int], output: list[int]) -> None:
    one_by_one, at_once = Drafter(prompt), Drafter(prompt)
    for token in output:
        one_by_one.append([token])
    at_once.append(output)
    assert one_by_one.guess(8) == at_once.guess(8)
    assert one_by_one.chances(8) == at_once.chances(8)


@given(few_tokens, st.integers(0, 10))
def test_there_is_a_chance_for_each_promising_draft_and_chances_fall(text: list[int], limit: int) -> None:
    drafter = Drafter(text)
    chances = drafter.chances(limit)
    assert len(chances) <= len(drafter.guess(limit)) <= limit
    assert list(chances) == sorted(chances, reverse=True)


def test_drafts_get_longer_with_right_guesses_and_stop_with_wrong_ones() -> None:
    length = DraftLength()
    evidence = [Evidence.SHORT] * 8
    assert length.chances(evidence)[0] == UNSEEN_RATES[0]
    lengths = []
    for _ in range(30):
        length.observe(Evidence.SHORT, True)
        lengths.append(len(length.chances(evidence)))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == 8
    for _ in range(60):
        length.observe(Evidence.SHORT, False)
    assert length.chances(evidence) == ()
    assert length.chances([Evidence.LONG])[0] == UNSEEN_RATES[2]


def test_a_row_that_begins_to_repeat_itself_notices_without_a_check() -> None:
    chaos = random.Random(1)
    drafter = Drafter([chaos.randrange(5) for _ in range(300)])
    drafter.append([chaos.randrange(5) for _ in range(300)])
    assert len(drafter.chances(8)) <= 2
    drafter.append([10, 11, 12, 13, 14, 15] * 12)
    assert len(drafter.chances(8)) == 8


def test_what_a_grammar_forces_is_guessed_first_and_judged() -> None:
    drafter = Drafter([1, 2, 3, 1, 2])
    drafter.force((8, 9))
    assert drafter.guess(5) == (8, 9)
    assert drafter.guess(1) == (8,)
    assert len(drafter.chances(5)) == 2
    drafter.append([8])
    assert drafter.guess(5) == (9,)
    drafter.append([4])
    assert drafter.guess(5) == ()
    before = drafter.chances(1)
    drafter.force((8,))
    assert before == ()
    assert drafter.chances(1)[0] < 1


# --- what a step costs ------------------------------------------------------------------------------------------------

PLAIN_MS = {1: 66.0, 4: 72.0, 8: 85.0, 16: 109.0}  # one token of each row
SLOPE = {1: 0.08, 4: 0.195, 8: 0.31, 16: 0.39}  # one more token of each row, in plain steps
UNBUILT_MS = 3.0  # a step that cannot be built while the last one runs


def step_ms(rows: int, longest: int) -> float:
    return PLAIN_MS[rows] * (1 + SLOPE[rows] * longest)


def test_costs_are_interpolated_between_measured_ones_and_guessed_beyond() -> None:
    costs = StepCosts()
    assert costs.estimate_s(64) > costs.estimate_s(1) > 0
    for _ in range(20):
        costs.observe(10, 1.0)
    assert costs.estimate_s(10) == pytest.approx(1.0)
    assert costs.estimate_s(5) < 1.0 < costs.estimate_s(20) < 2.0
    for _ in range(20):
        costs.observe(30, 2.0)
    assert costs.estimate_s(20) == pytest.approx(1.5)
    assert costs.estimate_s(60) > 2.0


def test_one_slow_step_is_not_believed() -> None:
    costs = StepCosts()
    for _ in range(20):
        costs.observe(8, 1.0)
    costs.observe(8, 50.0)
    assert costs.estimate_s(8) < 1.2
    costs.observe(24, 50.0)
    assert costs.estimate_s(24) < 4.0


def test_old_costs_are_forgotten() -> None:
    costs = StepCosts()
    costs.observe(1, 1.0)
    for _ in range(10):
        costs.observe(9, 2.0)
    expensive = costs.estimate_s(9)
    for _ in range(3000):
        costs.observe(1, 1.0)
    assert costs.estimate_s(9) < expensive


@given(
    st.lists(
        st.lists(st.floats(0.01, 1), max_size=8).map(lambda row: sorted(row, reverse=True)), min_size=1, max_size=6
    ),
    st.integers(0, 8),
    st.floats(0, 3),
)
def test_chosen_lengths_never_exceed_the_guesses_and_what_must_be_asked_for_is_never_better(
    chances: list[list[float]], asked_tokens: int, asked_s: float
) -> None:
    budget = DraftBudget()
    free, asked = budget.choose(chances), budget.choose(chances, asked_tokens=asked_tokens, asked_s=asked_s)
    for choice in (free, asked):
        assert all(0 <= length <= len(row) for length, row in zip(choice.lengths, chances, strict=True))
    assert asked.tokens_per_s <= free.tokens_per_s


def test_free_verification_checks_everything_and_dear_verification_nothing() -> None:
    chances = [[0.9, 0.8, 0.7], [0.6], []]
    free, dear = DraftBudget(), DraftBudget()
    for lengths in ([0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 3, 3]):
        for _ in range(8):
            free.observe(lengths, 1.0)
            dear.observe(lengths, 1.0 + sum(lengths))
    free.observe([0, 0, 0], 1.0)
    dear.observe([0, 0, 0], 1.0)
    assert free.choose(chances).lengths == [3, 1, 0]
    assert dear.choose(chances).lengths == [0, 0, 0]
    assert free.choose(chances, asked_tokens=3, asked_s=5.0).lengths == [0, 0, 0]
    assert free.choose(chances, asked_tokens=3, asked_s=0.01).lengths == [3, 1, 0]


def test_after_many_checking_steps_one_plain_step_is_measured() -> None:
    budget = DraftBudget()
    chances = [[0.99] * 8]
    for _ in range(MOST_DRAFTED_STEPS):
        assert any(budget.choose(chances).lengths)
        budget.observe(budget.choose(chances).lengths, 1.0)
    assert not any(budget.choose(chances).lengths)
    budget.observe([0], 0.8)
    assert any(budget.choose(chances).lengths)


# --- whole runs on paper ----------------------------------------------------------------------------------------------


def loop(chaos: random.Random) -> Text:
    """A phrase of 24 tokens, again and again."""
    phrase = [chaos.randrange(1000) for _ in range(24)]
    while True:
        yield from phrase


def noise(chaos: random.Random) -> Text:
    """Every pair has been seen, and says nothing about what comes."""
    while True:
        yield chaos.randrange(12)


def prose(chaos: random.Random) -> Text:
    """Common words in any order; now and then an earlier phrase of five."""
    said: list[int] = []
    while True:
        start = chaos.randrange(len(said) + 1)
        quoted = chaos.random() < 0.03 and len(said) > 20
        for word in said[start : start + 5] if quoted else [int(chaos.paretovariate(0.8)) % 5000 for _ in range(5)]:
            said.append(word)
            yield word


def edit(chaos: random.Random) -> Text:
    """A long text once, then copies in which one token of twenty differs."""
    original = [chaos.randrange(2000) for _ in range(400)]
    yield from original
    while True:
        yield from (chaos.randrange(2000) if chaos.random() < 0.05 else token for token in original)


def moods(chaos: random.Random) -> Text:
    """Noise and repetition in turns."""
    while True:
        yield from islice(noise(chaos), 150)
        yield from islice(loop(chaos), 150)


class PaperRunner:
    """Rows that write given texts, as a runner would: plain steps are built ahead, checking ones cannot be."""

    def __init__(self, texts: Sequence[Text], seed: int) -> None:
        self.texts = list(texts)
        self.chaos = random.Random(seed)
        self.drafters = [Drafter(list(islice(text, 400))) for text in self.texts]
        self.coming = [list(islice(text, MOST_DRAFTS + 1)) for text in self.texts]
        self.budget = DraftBudget()
        self.tokens, self.spent_ms, self.plain_ms = 0, 0.0, 0.0

    @property
    def gain(self) -> float:
        return self.plain_ms / self.spent_ms

    def chances(self) -> list[tuple[float, ...]]:
        return [drafter.chances(MOST_DRAFTS) for drafter in self.drafters]

    def step(self, lengths: list[int], unbuilt_ms: float) -> None:
        rows = len(lengths)
        took_ms = step_ms(rows, max(lengths))
        took_ms = (took_ms + unbuilt_ms) * self.chaos.lognormvariate(0, 0.1) * (8 if self.chaos.random() < 0.005 else 1)
        tokens = 0
        for drafter, length, text, coming in zip(self.drafters, lengths, self.texts, self.coming, strict=True):
            taken = accepted(drafter.guess(length), coming[: length + 1])
            drafter.append(taken)
            coming[:] = [*coming[len(taken) :], *islice(text, len(taken))]
            tokens += len(taken)
        self.budget.observe(lengths, took_ms / 1000)
        base_ms = step_ms(rows, 0)
        self.tokens += tokens
        self.plain_ms += base_ms * tokens / rows * 1.045  # the mean of the disturbances above
        self.spent_ms += took_ms

    def run(self, steps: int) -> "PaperRunner":
        nothing = [0] * len(self.texts)
        checks = False
        for _ in range(steps):
            if checks:
                lengths = self.budget.choose(self.chances()).lengths
                self.step(lengths, UNBUILT_MS)
                checks = any(lengths)
            else:
                checks = any(self.budget.choose(self.chances()).lengths)  # known while the next step is under way
                self.step(nothing, 0.0)
        return self


def paper(kind: Callable[[random.Random], Text], rows: int) -> PaperRunner:
    return PaperRunner([kind(random.Random(row)) for row in range(rows)], rows)


@pytest.mark.parametrize("rows", [1, 4, 8, 16])
def test_repetition_is_written_at_least_half_as_fast_again(rows: int) -> None:
    assert paper(loop, rows).run(600).gain >= 1.5


@pytest.mark.parametrize(("rows", "goal"), [(1, 2.0), (4, 1.5), (8, 1.25)])
def test_an_edited_copy_is_written_faster(rows: int, goal: float) -> None:
    assert paper(edit, rows).run(600).gain >= goal


@pytest.mark.parametrize("rows", [1, 4, 8, 16])
@pytest.mark.parametrize("kind", [noise, prose])
def test_text_that_does_not_repeat_itself_loses_nearly_nothing(
    kind: Callable[[random.Random], Text], rows: int
) -> None:
    assert paper(kind, rows).run(1000).gain >= 0.97


@pytest.mark.parametrize(("rows", "goal"), [(1, 1.3), (4, 1.0), (8, 0.97), (16, 0.97)])
def test_changing_moods_gain_where_they_can(rows: int, goal: float) -> None:
    assert paper(moods, rows).run(1000).gain >= goal
