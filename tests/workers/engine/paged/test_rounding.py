"""Keys and values in 8 bits: how far off they are, and that rows are rounded one by one and once."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bench.tiny_models import tiny_model
from workers.engine.paged.cache import PagedModel
from workers.engine.paged.layout import ForwardLayout, Span
from workers.engine.paged.pools import KvPool, make_pool
from workers.engine.paged.rounding import code, restore, rounded_caches

import mlx.core as mx  # isort: skip

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
ROWS = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=FLOATS)


@given(rows=ROWS)
@settings(deadline=None)
def test_an_element_is_off_by_half_a_step_of_its_row_at_most(rows: Any) -> None:
    coded = code(mx.array(rows))
    back = np.array(restore(coded, mx.float32)).astype(np.float64)
    step = np.abs(rows.astype(np.float64)).max(axis=-1, keepdims=True) / 127
    assert coded.codes.dtype == mx.int8
    assert (np.abs(np.array(coded.codes).astype(int)) <= 127).all()
    assert (np.abs(back - rows) <= 0.5001 * step + 2.0**-126).all()


@given(rows=ROWS)
@settings(deadline=None)
def test_a_row_is_rounded_without_a_look_at_the_others(rows: Any) -> None:
    together = code(mx.array(rows))
    for index, row in enumerate(rows):
        alone = code(mx.array(row[None]))
        assert mx.array_equal(alone.codes[0], together.codes[index])
        assert mx.array_equal(alone.scales[0], together.scales[index])


def test_zeros_stay_zeros() -> None:
    assert mx.array_equal(restore(code(mx.zeros((3, 8))), mx.float32), mx.zeros((3, 8)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(bad: float, dtype: mx.Dtype) -> None:
    rows = mx.random.normal((3, 64)).astype(dtype)
    rows[1, 40] = bad
    back = restore(code(rows), dtype)
    assert not mx.isfinite(back[1, 40]).item()
    assert mx.isfinite(back[mx.array([0, 2])]).all().item()


WIDTHS = {"joined": (16, 16), "split": (24, 8)}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("rounds", [False, True])
def test_a_pool_gives_back_exactly_what_it_said_when_it_was_written(kind: str, dtype: mx.Dtype, rounds: bool) -> None:
    keys, values = (mx.random.normal((2, 3, 7, width)).astype(dtype) for width in WIDTHS[kind])
    pool: KvPool = make_pool(20, 4, keys, values, rounds=rounds)
    layout = ForwardLayout([Span([3, 9], 0, 7), Span([5, 2], 0, 7)], block_tokens=4)
    said = pool.write(layout, keys, values)
    given_back = pool.read(layout, layout.everyone, None)
    for new, written, read in zip((keys, values), said, given_back, strict=True):
        assert written.dtype == read.dtype == dtype
        assert mx.array_equal(written, read)
        assert mx.array_equal(written, new).item() is not rounds
        assert mx.allclose(written, new, atol=0.05).item()


def test_a_pool_of_8_bits_is_smaller() -> None:
    keys = mx.zeros((1, 2, 1, 64))

    def size(like: mx.array, rounds: bool) -> int:
        pool = make_pool(10, 4, like, like, rounds=rounds)
        return sum(part.array.nbytes for part in pool.arrays.values())

    assert size(keys, True) / size(keys, False) == (64 + 4) / (64 * 4)
    half = keys.astype(mx.bfloat16)
    assert size(half, True) / size(half, False) == (64 + 4) / (64 * 2)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "deepseek_v3", "falcon_h1"])
def test_the_models_own_caches_hold_rounded_rows(architecture: str) -> None:
    """Every attention layer's, also those inside of lists of caches; recurrent state is left as it is."""
    network: Any = tiny_model(architecture)
    caches = rounded_caches(network)
    network(mx.array([[3, 1, 4, 1, 5]]), cache=caches)
    parts = [part for cache in caches for part in getattr(cache, "caches", [cache])]
    held = [side for part in parts if hasattr(part, "keys") for side in (part.keys, part.values)]
    assert len(held) >= 2
    for side in held:
        exact = side.astype(mx.float32)
        steps = exact / mx.maximum(mx.max(mx.abs(exact), axis=-1, keepdims=True) / 127, 1e-30)
        assert mx.allclose(steps, mx.round(steps), rtol=0, atol=1e-3).item()


def forms(model: PagedModel) -> dict[str, mx.Dtype]:
    return {name: array.dtype for name, array in model._stored.items()}


@pytest.mark.parametrize(
    ("architecture", "sides"), [("llama", ("kv",)), ("gemma2", ("kv",)), ("deepseek_v3", ("keys", "values"))]
)
def test_every_attention_layer_is_kept_in_8_bits(architecture: str, sides: tuple[str, ...]) -> None:
    """Direct ones, gathered ones, and the latents of MLA."""
    found = forms(PagedModel(tiny_model(architecture), blocks=9, block_tokens=4, kv_bits=8))
    layers = len({name.split(".")[1] for name in found})
    expected = {f"{side}.{part}" for side in sides for part in ("int8", "scale")}
    assert {name.split(".", 2)[2] for name in found} == expected
    assert len(found) == layers * len(expected)
    assert {dtype for name, dtype in found.items() if name.endswith("int8")} == {mx.int8}
