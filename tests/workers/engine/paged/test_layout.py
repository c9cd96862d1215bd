"""Index arrays and masks of a forward, against a pool that is kept as a dictionary."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.paged.layout import (
    PADDING_BOUND_SHARE,
    ForwardLayout,
    Group,
    Span,
    arrange_rows,
    plan_groups,
)


@dataclass
class Case:
    """Spans whose tables are disjoint but for the first `shared` blocks."""

    spans: list[Span]
    block_tokens: int
    shared: int = 0
    groups: list[Group] = field(default_factory=list)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block_tokens = draw(st.integers(1, 5))
    shared = draw(st.integers(0, 2))
    least = shared * block_tokens
    sizes = draw(
        st.lists(
            st.tuples(st.integers(least, least + 14), st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=5
        )
    )
    needed = [-(-(start + tokens) // block_tokens) + spare for start, tokens, spare in sizes]
    blocks = draw(st.permutations(range(1, sum(needed) + shared + 1)))
    free = iter(blocks)
    prefix = [next(free) for _ in range(shared)]
    spans = [
        Span([*prefix, *(next(free) for _ in range(count - shared))], start, tokens)
        for count, (start, tokens, _) in zip(needed, sizes, strict=True)
    ]
    cut = draw(st.integers(1, len(spans)))
    parts = [(0, cut), (cut, len(spans) - cut)]
    groups = [Group(first, rows, shared) for first, rows in parts if rows]
    return Case(spans, block_tokens, shared, groups)


def stored(case: Case, layout: ForwardLayout, heads: int) -> dict[int, tuple[int, int, int]]:
    """Pool row -> (row, head, position) of what is there; shared blocks belong to row 0."""
    size = case.block_tokens
    pool: dict[int, tuple[int, int, int]] = {}
    for row, span in reversed(list(enumerate(case.spans))):
        for position in range(span.start):
            block = span.table[position // size]
            for head in range(heads):
                pool[(block * heads + head) * size + position % size] = (row, head, position)
    places = np.array(layout.writes(heads))
    assert places.shape == (layout.rows, heads, layout.tokens)
    for (row, head, token), place in np.ndenumerate(places):
        if token < case.spans[row].tokens:
            assert place not in pool
            pool[int(place)] = (row, head, case.spans[row].start + token)
        else:
            assert place < heads * size, "padding belongs to block 0"
    return pool


def owner(case: Case, row: int, position: int) -> int:
    return 0 if position < case.shared * case.block_tokens else row


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(1, 3), st.sampled_from([None, 1, 3, 7]))
def test_a_row_reads_its_own_tokens_and_each_new_token_sees_those_before_it(
    case: Case, heads: int, window: int | None
) -> None:
    layout = ForwardLayout(case.spans, block_tokens=case.block_tokens, groups=case.groups)
    pool = stored(case, layout, heads)
    size = case.block_tokens
    for group in layout.groups_for(window):
        view, index = layout.view(group, window), np.array(layout.reads(group, window, heads))
        first = layout.first_blocks(group, window) * size
        mask = np.array(view.sight.array(None))
        for row in range(group.rows):
            span = case.spans[group.first + row]
            for token in range(span.tokens):
                position = span.start + token
                seen = [int(key) + view.sight.low + int(first[row]) for key in np.flatnonzero(mask[row, 0, token])]
                oldest = group.shared_blocks * size if window is None else max(position - window + 1, 0)
                assert seen == list(range(oldest, position + 1))
                for key in seen:
                    inside = key - int(first[row])
                    place = int(index[row, heads - 1, inside // size]) * size + inside % size
                    assert pool[place] == (owner(case, group.first + row, key), heads - 1, key)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 3))
def test_a_shared_prefix_is_read_once_for_its_group(case: Case, heads: int) -> None:
    layout = ForwardLayout(case.spans, block_tokens=case.block_tokens, groups=case.groups)
    pool = stored(case, layout, heads)
    for group in layout.groups:
        index = np.array(layout.shared_reads(group, heads))
        assert index.shape == (heads, case.shared)
        for (head, column), block_row in np.ndenumerate(index):
            for inside in range(case.block_tokens):
                position = column * case.block_tokens + inside
                assert pool[int(block_row) * case.block_tokens + inside] == (0, head, position)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([None, 1, 3, 7]), st.integers(1, 4))
def test_pieces_of_a_sight_see_what_the_mask_shows(case: Case, window: int | None, most: int) -> None:
    layout = ForwardLayout(case.spans, block_tokens=case.block_tokens, groups=case.groups)
    for group in layout.groups_for(window):
        sight = layout.view(group, window).sight
        whole = np.zeros((group.rows, layout.tokens, sight.high), dtype=bool)
        for first, last, low, high, bias in sight.pieces(most):
            seen = np.ones((1, last - first, high - low), dtype=bool) if bias is None else np.array(bias)[:, 0, 0] == 0
            assert sight.low <= low < high <= sight.high
            whole[:, first:last, low:high] = seen
        expected = np.array(sight.array(None))[:, 0]
        for row in range(group.rows):
            tokens = case.spans[group.first + row].tokens
            assert (whole[row, :tokens, sight.low :] == expected[row, :tokens]).all()


def test_rows_of_one_length_need_no_mask() -> None:
    alike = ForwardLayout([Span([1, 2], 5, 1), Span([3, 4], 5, 1)], block_tokens=4)
    assert alike.view(alike.everyone).sight.mask is None
    assert alike.view(alike.everyone).sight.high == 6
    assert ForwardLayout([Span([1, 2], 5, 3)], block_tokens=4).view(Group(0, 1)).sight.mask == "causal"
    unlike = ForwardLayout([Span([1, 2], 5, 1), Span([3, 4], 6, 1)], block_tokens=4)
    assert unlike.mask(None).shape == (2, 1, 1, 7)  # type: ignore[union-attr]


def test_a_sliding_window_reads_only_the_blocks_that_it_sees() -> None:
    layout = ForwardLayout([Span(list(range(1, 9)), 30, 1)], block_tokens=4)
    view = layout.view(layout.everyone, 6)
    assert view.blocks.tolist() == [[7, 8]]  # positions 24 to 31
    assert (view.sight.low, view.sight.high, view.sight.mask) == (1, 7, None)


def test_offsets_move_on_by_the_longest_row() -> None:
    layout = ForwardLayout([Span([1, 2], 0, 5), Span([3, 4], 3, 2)], block_tokens=4)
    assert layout.offset.tolist() == [0, 3]
    assert layout.offset_after.tolist() == [5, 8]


@pytest.mark.parametrize(
    "groups",
    [[Group(0, 1)], [Group(1, 1)], [Group(0, 1), Group(0, 1)], [Group(0, 3)], [Group(0, 0), Group(0, 2)]],
)
def test_groups_have_to_be_all_rows_in_order(groups: list[Group]) -> None:
    with pytest.raises(ValueError, match="in their order"):
        ForwardLayout([Span([1], 0, 1), Span([2], 0, 1)], block_tokens=4, groups=groups)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 blocks do not cover 3 \\+ 2 tokens"):
        ForwardLayout([Span([1], 3, 2)], block_tokens=4)
    with pytest.raises(ValueError, match="a new token"):
        ForwardLayout([Span([1], 0, 0)], block_tokens=4)
    with pytest.raises(ValueError, match="reaches into new tokens"):
        ForwardLayout([Span([1, 2], 3, 1)], block_tokens=4, groups=[Group(0, 1, 1)])


@given(st.lists(st.integers(1, 5000), max_size=40))
def test_groups_bound_what_padding_costs(lengths: list[int]) -> None:
    groups = plan_groups(lengths, first=7)
    assert [row for g in groups for row in range(g.first, g.first + g.rows)] == list(range(7, 7 + len(lengths)))
    for group in groups:
        own = lengths[group.first - 7 : group.first - 7 + group.rows]
        padding = max(own) * len(own) - sum(own)
        assert padding <= 512 or padding <= PADDING_BOUND_SHARE * max(own) * len(own)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 40)), min_size=1, max_size=12))
def test_rows_are_ordered_by_what_they_share_and_by_length(kinds: list[tuple[int, int, int]]) -> None:
    size, tables, starts = 16, [], []
    for row, (family, common, more) in enumerate(kinds):
        prefix = [100 * family + i for i in range(common)]
        tables.append([*prefix, *range(1000 * (row + 1), 1000 * (row + 1) + 5)])
        starts.append(common * size + more)
    order, groups = arrange_rows(tables, starts, block_tokens=size)
    assert sorted(order) == list(range(len(kinds)))
    for first, rows, shared in groups:
        members = order[first : first + rows]
        assert all(tables[row][:shared] == tables[members[0]][:shared] for row in members)
        assert all(starts[row] >= shared * size for row in members)
        assert [starts[row] for row in members] == sorted((starts[row] for row in members), reverse=True)
    ForwardLayout(
        [Span(tables[row], starts[row], 1) for row in order], block_tokens=size, groups=groups
    )  # valid, and so they stay while rows grow


def test_a_common_prefix_is_shared_from_64_tokens_on() -> None:
    long, short = [1, 2, 3, 4], [11, 12, 13]
    tables = [[*long, 21], [*short, 22], [*long, 23], [*short, 24], [31, 32]]
    order, groups = arrange_rows(tables, [70, 50, 66, 55, 20], block_tokens=16)
    assert order == [0, 2, 3, 1, 4]
    assert groups == [Group(0, 2, 4), Group(2, 3, 0)]
