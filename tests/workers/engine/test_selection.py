"""The choice of tokens: the sets that truncation leaves, the distribution within them, and independence of the rest."""

import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine import SamplingParams
from workers.engine.selection import (
    draw_keys,
    kind_of,
    log_normaliser,
    powers_of_two,
    powers_of_two_at_most,
    rectangle,
    row_sums,
    select,
    truncation_of,
    uniforms,
)

Floats = npt.NDArray[np.float32]
MASK = (1 << 64) - 1


def keys_of(seeds: int | npt.NDArray[np.uint64], rows: int, *, position: int = 0) -> npt.NDArray[np.uint64]:
    first = np.arange(rows, dtype=np.uint64) + np.uint64(seeds) if isinstance(seeds, int) else seeds
    return draw_keys(first, np.full(rows, position, dtype=np.int64))


def drawn(logits: Floats, rows: int, params: SamplingParams, *, seed: int = 0) -> npt.NDArray[np.int32]:
    """Tokens of `rows` equal rows of logits (vocab,) with different seeds."""
    kind = kind_of(params, logits.size)
    batch = mx.broadcast_to(mx.array(logits), (rows, logits.size))
    return np.array(select(batch, truncation_of([params] * rows, kind), uniforms(keys_of(seed, rows), kind.draws)))


def probabilities(logits: Floats, temperature: float) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return np.asarray(weights / weights.sum())


def expected(logits: Floats, params: SamplingParams) -> npt.NDArray[np.float64]:
    """The distribution that is left, by sorting, in float64; what is closer to a border than 1e-6 is NaN."""
    p = probabilities(logits, params.temperature)
    order = np.argsort(-p)
    sorted_p = p[order]
    top_k = params.top_k if 0 < params.top_k < p.size else p.size
    above = np.cumsum(sorted_p[:top_k]) - sorted_p[:top_k]
    limit = params.top_p * sorted_p[:top_k].sum()
    inside = above < limit if params.top_p < 1 else np.ones(top_k, dtype=bool)
    least = sorted_p[inside.sum() - 1]
    lowest = max(least, params.min_p * sorted_p[0])
    kept = np.where(p >= lowest * (1 - 1e-9), p, 0)
    unsure = np.abs(p / (params.min_p * sorted_p[0]) - 1) < 1e-5 if params.min_p > 0 else np.zeros(p.size, dtype=bool)
    if params.top_p < 1 and np.abs(above - limit).min() < 1e-6:
        unsure |= np.ones(p.size, dtype=bool)
    return np.where(unsure, np.nan, kept / kept.sum())


def surprise(counts: npt.NDArray[np.int64], p: npt.NDArray[np.float64]) -> float:
    """Standard deviations by which chi-squared exceeds its mean (Wilson and Hilferty 1931); rare tokens are pooled."""
    expected_counts = p * counts.sum()
    common = expected_counts >= 10
    seen = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected_counts[common], expected_counts[~common].sum())
    used = wanted > 1e-9
    assert seen[~used].sum() == 0
    degrees = max(1, int(used.sum()) - 1)
    statistic = float((((seen - wanted) ** 2)[used] / wanted[used]).sum())
    spread = 2 / (9 * degrees)
    return float(((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.05, 0.5, 0.8, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 1.0, 0.97, 0.9, 0.6, 0.3, 0.06, 0.001]),
    top_k=st.sampled_from([0, 0, 0, 1, 3, 20, 70, 1000, 5000]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.2, 1.0]),
)


def random_logits(seed: int, vocab_size: int, spread: float, *, coarse: bool = False) -> Floats:
    values = np.random.default_rng(seed).normal(0, spread, vocab_size)
    return (np.round(values * 2) / 2 if coarse else values).astype(np.float32)


@settings(deadline=None)
@given(
    params=params_strategy,
    seed=st.integers(0, 1000),
    vocab_size=st.sampled_from([2, 7, 50, 256, 2003, 4096]),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    coarse=st.booleans(),
)
def test_only_tokens_within_top_k_top_p_and_min_p_are_drawn(
    params: SamplingParams, seed: int, vocab_size: int, spread: float, coarse: bool
) -> None:
    logits = random_logits(seed, vocab_size, spread, coarse=coarse)
    wanted = expected(logits, params)
    tokens = drawn(logits, 64, params, seed=seed)
    assert np.all((tokens >= 0) & (tokens < vocab_size))
    assert np.all((wanted[tokens] > 0) | np.isnan(wanted[tokens]))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=3.0),
        SamplingParams(top_p=0.95),
        SamplingParams(top_p=0.9, temperature=0.7),
        SamplingParams(top_p=0.5),
        SamplingParams(top_p=0.15, temperature=0.5),
        SamplingParams(top_p=0.03),
        SamplingParams(top_k=5),
        SamplingParams(top_k=20, top_p=0.8),
        SamplingParams(top_k=70),
        SamplingParams(min_p=0.1),
        SamplingParams(min_p=0.05, top_p=0.93),
        SamplingParams(min_p=0.02, top_k=30, top_p=0.9),
    ],
    ids=str,
)
@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
def test_draws_follow_the_distribution_that_is_left(params: SamplingParams, coarse: bool) -> None:
    logits = random_logits(5, 100, 1.5, coarse=coarse)
    wanted = expected(logits, params)
    counts = np.bincount(drawn(logits, 20_000, params), minlength=100)
    assert abs(surprise(counts, wanted)) < 4
    assert set(np.flatnonzero(counts)) >= set(np.flatnonzero(wanted > 2e-3))


def test_draws_from_a_large_vocabulary_follow_the_distribution() -> None:
    vocab_size, groups = 152_064, 64
    logits = random_logits(1, vocab_size, 2.0)
    p = probabilities(logits, 1.0)
    counts = np.zeros(groups, dtype=np.int64)
    for start in range(0, 1000, 40):
        counts += np.bincount(drawn(logits, 40, SamplingParams(), seed=start) * groups // vocab_size, minlength=groups)
    wanted = np.bincount(np.arange(vocab_size) * groups // vocab_size, weights=p).astype(np.float64)
    assert abs(surprise(counts, wanted)) < 4


def test_the_first_and_the_last_token_get_what_is_theirs() -> None:
    """A running sum of many probabilities is inexact at its end."""
    logits = np.zeros(50_000, dtype=np.float32)
    logits[[0, -1]] = math.log(50_000)
    tokens = drawn(logits, 400, SamplingParams())
    assert abs((tokens == 0).mean() - 1 / 3) < 0.1
    assert abs((tokens == 49_999).mean() - 1 / 3) < 0.1


@pytest.mark.parametrize("value", [2.0**-24, 0.5, 1 - 2.0**-24])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}], ids=str)
def test_extreme_random_numbers_choose_no_masked_token(value: float, params: dict[str, float]) -> None:
    logits = np.full(1000, -np.inf, dtype=np.float32)
    allowed = [1, 500, 501, 998]
    logits[allowed] = [0.0, -30.0, 1.0, -60.0]
    sampling = SamplingParams(**params)  # type: ignore[arg-type]
    kind = kind_of(sampling, 1000)
    uniform = np.full((1, kind.draws, 3), value, dtype=np.float32)
    [token] = np.array(select(mx.array(logits)[None], truncation_of([sampling], kind), uniform)).tolist()
    assert token in allowed


def test_a_single_allowed_token_is_drawn() -> None:
    logits = np.full(300, -np.inf, dtype=np.float32)
    logits[299] = -4.0
    for params in (SamplingParams(), SamplingParams(top_p=0.5), SamplingParams(top_k=2), SamplingParams(min_p=1.0)):
        assert set(drawn(logits, 20, params).tolist()) == {299}


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_a_temperature_near_zero_draws_the_most_likely_token(temperature: float) -> None:
    logits = random_logits(3, 500, 1.0)
    assert set(drawn(logits, 50, SamplingParams(temperature=temperature)).tolist()) == {int(logits.argmax())}


def test_a_huge_temperature_draws_all_tokens_alike() -> None:
    logits = random_logits(3, 20, 1.0)
    logits[7] = -np.inf
    assert set(drawn(logits, 500, SamplingParams(temperature=1e300)).tolist()) == set(range(20)) - {7}


@settings(deadline=None)
@given(
    params=params_strategy,
    vocab_size=st.sampled_from([8, 50, 1009, 2048]),
    rows=st.integers(2, 9),
    place=st.integers(0, 8),
    seed=st.integers(0, 100),
)
def test_a_row_draws_the_same_alone_and_at_any_place_of_any_batch(
    params: SamplingParams, vocab_size: int, rows: int, place: int, seed: int
) -> None:
    place %= rows
    logits = np.stack([random_logits(seed + row, vocab_size, 1.0 + row) for row in range(rows)])
    kind = kind_of(params, vocab_size)
    uniform = uniforms(keys_of(seed, rows), kind.draws)
    batch = select(mx.array(logits), truncation_of([params] * rows, kind), uniform)
    alone = select(mx.array(logits[place : place + 1]), truncation_of([params], kind), uniform[place : place + 1])
    assert batch[place].item() == alone[0].item()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 3}, {"top_k": 90}, {"min_p": 0.1}], ids=str)
def test_a_row_that_is_not_finite_disturbs_no_other(poison: float, params: dict[str, float]) -> None:
    logits = np.stack([random_logits(row, 100, 1.0) for row in range(3)])
    sampling = SamplingParams(**params)  # type: ignore[arg-type]
    kind = kind_of(sampling, 100)
    truncation, uniform = truncation_of([sampling] * 3, kind), uniforms(keys_of(0, 3), kind.draws)
    clean = np.array(select(mx.array(logits), truncation, uniform))
    logits[1, 10:20] = poison
    spoilt = np.array(select(mx.array(logits), truncation, uniform))
    assert spoilt[[0, 2]].tolist() == clean[[0, 2]].tolist()
    assert 0 <= spoilt[1] < 100


def reference_key(seed: int, position: int) -> int:
    bits = (seed + (position + 1) * 0x9E3779B97F4A7C15) & MASK
    for _ in range(2):
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
        bits = (bits ^ (bits >> 31) ^ (seed & MASK)) & MASK
    return bits


@settings(deadline=None)
@given(seed=st.integers(0, MASK), position=st.integers(0, 1 << 40))
def test_keys_are_those_of_the_definition_in_whole_numbers(seed: int, position: int) -> None:
    [key] = draw_keys(np.array([seed], dtype=np.uint64), np.array([position], dtype=np.int64))
    assert int(key) == reference_key(seed, position)


def test_keys_of_near_seeds_and_positions_do_not_meet() -> None:
    seeds, positions = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(200, dtype=np.int64))
    assert np.unique(draw_keys(seeds.ravel(), positions.ravel())).size == 40_000


def test_uniform_numbers_are_within_their_bounds_and_spread_evenly() -> None:
    numbers = uniforms(keys_of(0, 3000), 7)
    assert numbers.shape == (3000, 7, 3)
    for which, cells in enumerate((2**23, 2**20, 2**21)):
        places = numbers[:, :, which].astype(np.float64) * cells - 0.5  # in the middle of its cell: neither 0 nor 1
        assert np.all((places == np.floor(places)) & (places >= 0) & (places < cells))
    for which in range(3):
        counts = np.histogram(numbers[:, :, which], bins=50, range=(0, 1))[0]
        assert abs(surprise(counts, np.full(50, 0.02))) < 4
    correlations = np.corrcoef(numbers.reshape(3000, -1), rowvar=False) - np.eye(21)
    assert np.abs(correlations).max() < 0.1


def test_the_first_uniform_numbers_do_not_depend_on_how_many_are_needed() -> None:
    assert np.array_equal(uniforms(keys_of(3, 2), 30)[:, :7], uniforms(keys_of(3, 2), 7))


def test_powers_are_exact_to_float32_and_their_bound_is_one() -> None:
    scores = np.concatenate([np.linspace(-126, 0, 100_001), [-126.7, -200.0, -np.inf]]).astype(np.float32)
    exact = 2.0 ** scores.astype(np.float64)
    powers, bounds = (
        np.array(powers_of_two(mx.array(scores))),
        np.array(powers_of_two_at_most(mx.array(scores * 2**23))),
    )
    assert np.abs(powers[:100_001] / exact[:100_001] - 1).max() < 3e-7
    assert np.all(bounds[:100_001] >= exact[:100_001])
    assert np.abs(bounds[:100_001] / exact[:100_001] - 1).max() < 0.0625
    assert powers[100_000] == 1
    assert powers[-2:].tolist() == bounds[-2:].tolist() == [0, 0]


@pytest.mark.parametrize("vocab_size", [1, 2, 97, 256, 32_000, 50_257, 151_936])
def test_the_rectangle_holds_the_vocabulary(vocab_size: int) -> None:
    wanted = max(1, math.isqrt(vocab_size))
    folds, columns = rectangle(vocab_size, wanted)
    assert 0 <= folds * columns - vocab_size < folds
    assert wanted / 2 - 1 <= folds <= 2 * wanted


def test_sums_and_normalisers_are_those_of_each_row() -> None:
    logits = np.stack([random_logits(row, 1009, 3.0) for row in range(4)])
    assert np.allclose(np.array(row_sums(mx.array(logits))), logits.sum(axis=1, dtype=np.float64), atol=1e-3)
    normaliser = np.array(log_normaliser(mx.array(logits)))[:, 0]
    assert np.allclose(normaliser, np.log(np.exp(logits.astype(np.float64)).sum(axis=1)), atol=2e-6)
