"""Attention over blocks, against MLX's own function over the same keys next to each other."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache

from bench.tiny_models import tiny_model
from workers.engine.paged import attention
from workers.engine.paged.attention import GatherReader, cascade
from workers.engine.paged.host import PIECE_TOKENS, exp2, host_attention
from workers.engine.paged.layout import ForwardLayout, Group, Span, arrange_rows
from workers.engine.paged.pools import KvPool, Sides, make_pool
from workers.engine.paged.sight import Sight

import mlx.core as mx  # isort: skip

TOLERANCE = 2e-5


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def furthest(one: mx.array, other: mx.array) -> float:
    return float(mx.max(mx.abs(one - other)))


def test_powers_of_two_are_as_exact_as_floats_allow() -> None:
    x = -np.concatenate([np.linspace(0, 30, 20001), np.linspace(30, 125, 999)]).astype(np.float32)
    expected = np.exp2(x.astype(np.float64))
    assert np.max(np.abs(np.array(exp2(mx.array(x))) / expected - 1)) < 3e-7
    assert exp2(mx.array([0.0, -1000.0, -1e30])).tolist() == [1.0, 2.0**-126, 2.0**-126]


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    rows=st.integers(1, 3),
    heads=st.integers(1, 2),
    repeats=st.integers(1, 3),
    tokens=st.sampled_from([1, 2, 5, 70, 130]),
    window=st.sampled_from([None, 2, 9, 80]),
    sinks=st.booleans(),
)
def test_attention_on_the_host_is_attention(
    data: st.DataObject, rows: int, heads: int, repeats: int, tokens: int, window: int | None, sinks: bool
) -> None:
    starts = data.draw(st.lists(st.integers(0, 60), min_size=rows, max_size=rows))
    counts = data.draw(st.lists(st.integers(1, tokens), min_size=rows, max_size=rows))
    counts[0] = tokens
    base = [max(start - (window or 1000) - data.draw(st.integers(0, 4)), 0) for start in starts]
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    sight = Sight(ints(*starts), ints(*ends), ints(*base), tokens, window)
    mx.random.seed(rows + tokens)
    queries = mx.random.normal((rows, heads * repeats, tokens, 8)) * 3
    keys = mx.random.normal((rows, heads, sight.high - sight.low, 8))
    values = mx.random.normal((rows, heads, sight.high - sight.low, 5))
    sink = mx.random.normal((heads * repeats,)) if sinks else None
    got = host_attention(queries, keys, values, sight, 0.4, sink)
    expected = mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=0.4, mask=sight.array(None), sinks=sink
    )
    for row, count in enumerate(counts):
        assert furthest(got[row, :, :count], expected[row, :, :count]) < TOLERANCE


def long_prompt(rows: int) -> tuple[mx.array, mx.array, mx.array, Sight]:
    """Queries, keys, values and sight of rows in which 256 tokens follow 768."""
    mx.random.seed(1)
    starts = ints(*[768] * rows)
    queries = mx.random.normal((rows, 8, 256, 32))
    keys, values = (mx.random.normal((rows, 2, 1024, 32)) for _ in range(2))
    mx.eval(queries, keys, values)
    return queries, keys, values, Sight(starts, starts + 256, ints(*[0] * rows), 256, None)


def test_a_row_gets_the_same_bits_with_others_and_alone() -> None:
    queries, keys, values, sight = long_prompt(3)
    together = host_attention(queries, keys, values, sight, 0.4, None)
    for row in range(3):
        own = slice(row, row + 1)
        alone = host_attention(queries[own], keys[own], values[own], long_prompt(1)[3], 0.4, None)
        assert mx.array_equal(together[own], alone)


def test_pieces_of_a_prompt_take_turns_with_their_memory() -> None:
    queries, keys, values, sight = long_prompt(4)
    piece_bytes = 8 * 64 * 1024 * 4  # of one row's scores
    mx.eval([piece.bias for piece in sight.pieces(PIECE_TOKENS) if piece.bias is not None])
    mx.synchronize()
    before_bytes = mx.get_active_memory()
    limit_bytes = mx.set_memory_limit(before_bytes)  # so that no more is queued than runs
    try:
        mx.reset_peak_memory()
        mx.eval(host_attention(queries, keys, values, sight, 0.4, None))
        assert mx.get_peak_memory() - before_bytes < 9 * piece_bytes  # there are 16 of them
    finally:
        mx.set_memory_limit(limit_bytes)


class Layer:
    """A pool in which sequences of the same content as `keys` and `values` (rows, heads, tokens, width) lie."""

    def __init__(
        self, lengths: list[int], *, shared: int = 0, heads: int = 2, widths: tuple[int, int] = (8, 8)
    ) -> None:
        self.size, self.blocks, self.heads = 4, 90, heads
        mx.random.seed(5)
        self.keys = mx.random.normal((len(lengths), heads, 64, widths[0]))
        self.values = mx.random.normal((len(lengths), heads, 64, widths[1]))
        for sides in (self.keys, self.values):
            sides[:, :, : shared * self.size] = sides[:1, :, : shared * self.size]
        free = iter(np.random.default_rng(3).permutation(np.arange(1, self.blocks)).tolist())
        prefix = [next(free) for _ in range(shared)]
        self.tables = [[*prefix, *(next(free) for _ in range(16 - shared))] for _ in lengths]
        self.lengths = list(lengths)
        self.pool: KvPool = make_pool(self.blocks, self.size, self.keys, self.values)
        for row, length in enumerate(lengths):
            if length:
                layout = ForwardLayout([Span(self.tables[row], 0, length)], block_tokens=self.size)
                self.pool.write(layout, self.keys[row : row + 1, :, :length], self.values[row : row + 1, :, :length])

    def reader(self, *, copy_bytes: int, window: int | None = None) -> GatherReader:
        reader = GatherReader(self.blocks, copy_bytes)
        reader.adds(self.pool, window)
        return reader

    def step(
        self, reader: GatherReader, counts: list[int], groups: list[Group] | None = None, **how: Any
    ) -> tuple[mx.array, mx.array]:
        """Attention of new tokens by the reader, and as MLX does it row by row; (rows, heads, tokens, width) both."""
        spans = [Span(t, n, c) for t, n, c in zip(self.tables, self.lengths, counts, strict=True)]
        layout = ForwardLayout(spans, block_tokens=self.size, groups=groups)
        queries = mx.random.normal((len(counts), 2 * self.heads, layout.tokens, self.keys.shape[-1])) * 2
        expected = [self.alone(row, queries, count, **how) for row, count in enumerate(counts)]
        reader.begin(layout)
        keys, values = (self.new(sides, counts, layout.tokens) for sides in (self.keys, self.values))
        got = reader.attend(queries, keys, values, self.pool, layout, scale=0.3, **how)
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]
        is_new = mx.array(np.arange(layout.tokens) < np.array(counts)[:, None])[:, None, :, None]
        return mx.where(is_new, got, 0), mx.concatenate(expected)

    def new(self, sides: mx.array, counts: list[int], tokens: int) -> mx.array:
        """What is next of each row, with ones as padding."""
        spans = zip(self.lengths, counts, strict=True)
        own = [sides[row : row + 1, :, start : start + count] for row, (start, count) in enumerate(spans)]
        padded = [mx.pad(x, [(0, 0), (0, 0), (0, tokens - x.shape[2]), (0, 0)], constant_values=1.0) for x in own]
        return mx.concatenate(padded)

    def alone(self, row: int, queries: mx.array, count: int, *, window: int | None, sinks: mx.array | None) -> mx.array:
        end = self.lengths[row] + count
        sight = Sight(ints(end - count), ints(end), ints(0), count, None)
        output = mx.fast.scaled_dot_product_attention(
            queries[row : row + 1, :, :count],
            self.keys[row : row + 1, :, :end],
            self.values[row : row + 1, :, :end],
            scale=0.3,
            mask=sight.array(window),
            sinks=sinks,
        )
        return mx.pad(output, [(0, 0), (0, 0), (0, queries.shape[2] - count), (0, 0)])


@pytest.mark.parametrize("copy_bytes", [0, 1 << 20])
@pytest.mark.parametrize("few_scores", [0, 1 << 30])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_that_go_on_see_all_of_their_context(
    monkeypatch: pytest.MonkeyPatch, copy_bytes: int, few_scores: int, window: int | None, shared: int, sinks: bool
) -> None:
    monkeypatch.setattr(attention, "FEW_SCORES", few_scores)  # by MLX's function, or by the host's
    layer = Layer([9, 9, 17, 12, 9], shared=shared)
    reader = layer.reader(copy_bytes=copy_bytes, window=window)
    sink = mx.array([0.3, -0.5, 1.0, 0.0]) if sinks else None
    groups = [Group(0, 2, shared), Group(2, 3, shared)]
    for counts in ([1] * 5, [1] * 5, [1, 3, 2, 1, 1], [1] * 5, [4, 4, 4, 4, 4], *([[1] * 5] * 20)):
        got, expected = layer.step(reader, counts, groups, window=window, sinks=sink)
        assert furthest(got, expected) < TOLERANCE
    alone = Layer([20, 3], shared=0)
    got, expected = alone.step(alone.reader(copy_bytes=0, window=window), [5, 30], window=window, sinks=sink)
    assert furthest(got, expected) < TOLERANCE
    fresh = Layer([0, 0])
    got, expected = fresh.step(fresh.reader(copy_bytes=0, window=window), [7, 4], window=window, sinks=sink)
    assert furthest(got, expected) < TOLERANCE


def test_keys_and_values_may_have_different_widths() -> None:
    layer = Layer([9, 13], widths=(8, 5))
    reader = layer.reader(copy_bytes=1 << 20)
    for counts in ([1, 1], [1, 1], [2, 1]):
        got, expected = layer.step(reader, counts, window=None, sinks=None)
        assert furthest(got, expected) < TOLERANCE


def test_half_precision_merges_its_parts_in_full_precision() -> None:
    mx.random.seed(2)
    queries = (mx.random.normal((3, 4, 1, 8)) * 4).astype(mx.bfloat16)
    shared = Sides(*(mx.random.normal((2, 12, 8)).astype(mx.bfloat16) for _ in range(2)))
    own = Sides(*(mx.random.normal((3, 2, 5, 8)).astype(mx.bfloat16) for _ in range(2)))
    sight = Sight(ints(16, 16, 16), ints(17, 17, 17), ints(12, 12, 12), 1, None)
    got = cascade(queries, shared, own, sight, 0.4, None)
    whole = [mx.concatenate([mx.broadcast_to(a, (3, *a.shape)), b], axis=2) for a, b in zip(shared, own, strict=True)]
    expected = mx.fast.scaled_dot_product_attention(queries, *whole, scale=0.4, mask=None)
    assert got.dtype == mx.bfloat16
    assert furthest(got, expected) < 0.03


def test_the_seam_leaves_mlx_lms_own_caches_alone() -> None:
    network = tiny_model("llama")
    ids = mx.array([[5, 6, 7, 8]])
    attention.install_seam()
    assert vars(llama)["scaled_dot_product_attention"] is attention.attention
    chunked = make_prompt_cache(network)
    network(ids[:, :2], cache=chunked)
    assert furthest(network(ids)[:, -1], network(ids[:, 2:], cache=chunked)[:, -1]) < 1e-4  # masks: none and "causal"


def test_the_seam_is_installed_once() -> None:
    attention.install_seam()
    attention.install_seam()
    assert attention._original is not attention.attention


def test_rows_that_share_a_prefix_are_arranged_for_it() -> None:
    layer = Layer([40, 41, 60], shared=8)
    order, groups = arrange_rows(layer.tables, layer.lengths, block_tokens=4)
    assert [group.shared_blocks for group in groups] == [0]  # 32 tokens are too few
    assert sorted(order) == [0, 1, 2]
