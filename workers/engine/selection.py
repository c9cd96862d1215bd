"""From logits to tokens: temperature, truncation and the random choice, for rows of one batch. Pure; no row is sorted.

A token is chosen by inverse transform: of uniform numbers that depend on the row's seed and the position only, one
chooses a column of tokens by its probability, another a token of the column. All arrays have the shape (rows, ...),
and a row's result depends neither on the other rows nor on its place among them.

The vocabulary is looked at as a rectangle (folds, columns); token t is in column t % columns. Reducing over the first
axis is what CPUs vectorise, and sums of sums are more accurate than a running sum.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Final, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from workers.engine.sequence import SamplingParams

_UNIFORM_BITS = np.array([23, 20, 21], dtype=np.uint64)  # to choose a column, a fold, and whether to accept
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_LOWEST_TEMPERATURE = 1e-30  # float32 can still hold its inverse; equal to greedy
_HIGHEST_TEMPERATURE = 1e30
# 2 ** f for f in -0.5 to 0.5, relative error below 1e-7; exactly 1 for f = 0.
_POWER_OF_TWO: Final = (0.00132647, 0.00967151, 0.05550734, 0.24022242, 0.69314698, 1.0)
_ROUNDING = 1.5 * 2.0**23  # adding it to a small float32 leaves the nearest integer in the low bits
_MANTISSA = 2.0**23
_BIAS_BITS = 127 << 23  # the exponent of 1.0
_CANDIDATES = 5  # of which all are rejected in less than 1e-6 of all rows
_HALVINGS = 3
_NUCLEUS_CANDIDATES = (1 << _HALVINGS) - 1
# Rounds after which less than 1e-6 of all rows have drawn nothing but tokens outside the nucleus.
_ROUNDS: Final = ((0.87, 1), (0.5, 2), (0.2, 3), (0.05, 4), (0.0, 8))  # (top_p at least, rounds)
_SMALL_TOP_K: Final = (64, 1024)
_TIES_SHARE: Final = 4  # a quarter more tokens than top-k asks for are looked at: they may equal the last one


class Kind(NamedTuple):
    """What is computed for a row. Rows of one kind are computed together.

    `top` is a bound of top_k, 0 for none. `rounds` of drawing candidates are needed for top-p alone.
    """

    top: int
    rounds: int

    @property
    def draws(self) -> int:
        """How many triples of uniform numbers a row needs."""
        if self.top:
            return 1
        return self.rounds * _NUCLEUS_CANDIDATES or _CANDIDATES


class Truncation(NamedTuple):
    """The parameters of rows of one kind; each array is (rows, 1).

    `scale` turns differences of logits into binary logarithms of probability ratios; `floor` is that of `min_p`, minus
    infinity for none. `top_p` is infinity for none. What no row `has` is left out, which changes nothing for any.
    """

    kind: Kind
    scale: mx.array
    top_k: mx.array
    top_p: mx.array
    floor: mx.array
    has_top_p: bool
    has_min_p: bool


def kind_of(params: SamplingParams, vocab_size: int) -> Kind:
    top = 0
    if 0 < params.top_k < vocab_size:
        top = next((bound for bound in _SMALL_TOP_K if params.top_k <= bound), vocab_size)
    rounds = next(rounds for least, rounds in _ROUNDS if params.top_p >= least) if params.top_p < 1 and not top else 0
    return Kind(top, rounds)


def scale_of(temperature: float) -> float:
    return math.log2(math.e) / min(max(temperature, _LOWEST_TEMPERATURE), _HIGHEST_TEMPERATURE)


def draw_keys(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """64 bits that depend on the seed and the output token's index only (SplitMix64, Steele et al. 2014)."""
    bits = seeds + (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA
    for _ in range(2):  # twice, so that nearby seeds do not meet on nearby positions
        bits = _mixed(bits) ^ seeds
    return bits


def uniforms(keys: npt.NDArray[np.uint64], draws: int) -> npt.NDArray[np.float32]:
    """(rows, draws, 3), each above 0 and below 1; the first ones do not depend on `draws`."""
    draw = np.arange(1, draws + 1, dtype=np.uint64) * _GAMMA
    bits = _mixed(keys[:, None] + draw)[:, :, None] >> np.array([41, 21, 0], dtype=np.uint64)
    whole = bits & ((np.uint64(1) << _UNIFORM_BITS) - np.uint64(1))
    return ((whole + 0.5) / 2.0**_UNIFORM_BITS).astype(np.float32)


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@cache
def rectangle(vocab_size: int, folds: int) -> tuple[int, int]:
    """(folds, columns) near the wanted number of folds; holds some tokens more than the vocabulary if it has to."""
    near = range(max(1, folds // 2), 2 * folds + 1)
    folds = min((size for size in near if vocab_size % size == 0), key=lambda size: abs(size - folds), default=folds)
    return folds, -(-vocab_size // folds)


def _square(vocab_size: int) -> tuple[int, int]:
    return rectangle(vocab_size, max(1, math.isqrt(vocab_size)))


def select(logits: mx.array, truncation: Truncation, numbers: npt.NDArray[np.float32]) -> mx.array:
    """(rows, vocab) float32 logits and their `uniforms` -> (rows,) int32 tokens, never one of -inf.

    A row whose logits are not finite gets any token.
    """
    vocab_size, kind, uniform = logits.shape[-1], truncation.kind, mx.array(numbers)
    if kind.top:
        tokens = _top_token(logits, truncation, uniform)
    else:
        folds, columns = _square(vocab_size)
        if folds * columns > vocab_size:
            logits = mx.pad(logits, [(0, 0), (0, folds * columns - vocab_size)], constant_values=-mx.inf)
        highest = mx.max(logits.reshape(-1, folds, columns), axis=1)
        peak = mx.max(highest, axis=-1, keepdims=True)
        floor = truncation.floor[:, :, None] if truncation.has_min_p else None
        if kind.rounds:
            scores = ((logits - peak) * truncation.scale).reshape(-1, folds, columns)
            tokens = _nucleus_token(scores, highest, floor, truncation, uniform)
        else:
            scores = ((logits - peak) * (truncation.scale * _MANTISSA)).reshape(-1, folds, columns)
            tokens = _token(scores, None if floor is None else floor * _MANTISSA, uniform)
    return mx.minimum(tokens.astype(mx.int32), vocab_size - 1)[:, 0]


def row_sums(values: mx.array) -> mx.array:
    """(rows, vocab) -> (rows,)"""
    folds, columns = _square(values.shape[-1])
    if folds * columns == values.shape[-1]:
        values = mx.sum(values.reshape(-1, folds, columns), axis=1)
    return mx.sum(values, axis=-1)


def log_normaliser(logits: mx.array) -> mx.array:
    """(rows, vocab) -> (rows, 1): what logits have to be lowered by to be natural logarithms of probabilities."""
    folds, columns = _square(logits.shape[-1])
    peak = mx.max(logits.reshape(-1, folds, columns), axis=1) if folds * columns == logits.shape[-1] else logits
    peak = mx.max(peak, axis=-1, keepdims=True)
    return peak + mx.log(row_sums(powers_of_two((logits - peak) * math.log2(math.e))))[:, None]


def powers_of_two(scores: mx.array) -> mx.array:
    """2 ** scores, for float32 scores of at most 0; exactly 1 for 0 and exactly 0 below -127.

    MLX's own exponential is four times slower on a CPU, where it is not vectorised.
    """
    if mx.default_device().type == mx.gpu:
        return mx.exp(scores * math.log(2))
    power, rounded = _power_and_rounded(scores)
    return _scaled(power.view(mx.int32), rounded.view(mx.int32)).view(mx.float32)


@partial(mx.compile, shapeless=True)
def _power_and_rounded(scores: mx.array) -> tuple[mx.array, mx.array]:
    """2 to the power of what is left of the scores when they are rounded, and the scores + _ROUNDING."""
    scores = mx.maximum(scores, -127.0)
    rounded = scores + _ROUNDING
    fraction = scores - (rounded - _ROUNDING)
    power = fraction * _POWER_OF_TWO[0] + _POWER_OF_TWO[1]
    for coefficient in _POWER_OF_TWO[2:]:
        power = power * fraction + coefficient
    return power, rounded


@partial(mx.compile, shapeless=True)
def _scaled(power: mx.array, rounded: mx.array) -> mx.array:
    """The integer in the low bits of `rounded` added to the exponent of `power`; int32 views of both."""
    return power + (rounded << 23)


def powers_of_two_at_most(scores: mx.array) -> mx.array:
    """Up to 6.2 % more than 2 ** (scores / 2 ** 23) and never less, for scores of at most 0; 0 up to -127 * 2 ** 23.

    The chord of the power between neighbouring integers, which is a float32's bits read as an integer (Schraudolph
    1999). Costs a quarter of the power.
    """
    bits = mx.maximum(scores, -127.0 * _MANTISSA).astype(mx.int32)  # rounds up: they are negative
    return (bits + _BIAS_BITS).view(mx.float32)


def _choice(masses: mx.array, uniform: mx.array, axis: int) -> mx.array:
    """An index along `axis`, which is kept, chosen in proportion to the masses, never one of mass 0."""
    reach = mx.cumsum(masses, axis=axis) * (masses > 0)  # a parallel sum need not be monotonic: only what can be drawn
    total = mx.max(reach, axis=axis, keepdims=True)
    return mx.argmax(reach > uniform * total, axis=axis, keepdims=True)


def _candidates(
    weights: mx.array, masses: mx.array, uniform: mx.array, above: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Tokens drawn in proportion to the weights (rows, folds, columns), and their weights, each (rows, draws).

    `masses` (rows, columns) are the sums of the weights `above` (rows, 1, 1), if given; only these are drawn.
    `uniform` is (rows, draws, 3).
    """
    column = _choice(masses[:, None], uniform[:, :, :1], axis=2).transpose(0, 2, 1)
    blocks = mx.take_along_axis(weights, column, axis=2)  # (rows, folds, draws)
    if above is not None:
        blocks = blocks * (blocks > above)
    fold = _choice(blocks, uniform[:, :, 1][:, None], axis=1)
    tokens = fold * weights.shape[2] + column
    return tokens[:, 0], mx.take_along_axis(blocks, fold, axis=1)[:, 0]


def _token(scores: mx.array, floor: mx.array | None, uniform: mx.array) -> mx.array:
    """(rows, 1): a token whose score is at least the floor (rows, 1, 1), drawn in proportion to 2 ** (score / 2 ** 23).

    Candidates are drawn in proportion to a slightly larger weight, and one is accepted with the ratio of the two.
    """
    weights = powers_of_two_at_most(scores)
    if floor is not None:
        weights = weights * (scores >= floor)
    tokens, weight = _candidates(weights, mx.sum(weights, axis=1), uniform)
    score = mx.take_along_axis(scores.reshape(scores.shape[0], -1), tokens, axis=-1)
    accepted = uniform[:, :, 2] * weight < mx.exp(score * (math.log(2) / _MANTISSA))
    return mx.take_along_axis(tokens, mx.argmax(accepted, axis=-1, keepdims=True), axis=-1)


def _nucleus_token(
    scores: mx.array, highest: mx.array, floor: mx.array | None, truncation: Truncation, uniform: mx.array
) -> mx.array:
    """(rows, 1): a token of the smallest set of most likely ones whose mass reaches top_p (Holtzman et al. 2020).

    Ties at the border stay in. A token belongs to the set if the mass of more likely ones is below the limit. Of some
    candidates, ordered by likelihood, the last that belongs to it is searched by halving; of those that do, the first
    drawn is taken. If none does, only tokens more likely than all of them are drawn from next (rejection sampling
    without sorting the vocabulary; after FlashInfer, Ye et al. 2025). After the last round it is the most likely token.
    """
    weights = powers_of_two(scores)
    masses = mx.sum(weights, axis=1)
    limit = truncation.top_p * mx.sum(masses, axis=-1, keepdims=True)
    if floor is not None:
        weights = weights * (scores >= floor)
        masses = mx.sum(weights, axis=1)
    found: mx.array | None = None
    above: mx.array | None = None
    token = _most_likely(scores, highest)
    for start in range(0, truncation.kind.draws, _NUCLEUS_CANDIDATES):
        tokens, weight = _candidates(weights, masses, uniform[:, start : start + _NUCLEUS_CANDIDATES], above)
        ordered = -mx.sort(-weight, axis=-1)
        inside: mx.array = mx.zeros(limit.shape, dtype=mx.int32)  # so many of the ordered ones are known to be
        for step in (1 << halving for halving in reversed(range(_HALVINGS))):
            above = mx.take_along_axis(ordered, inside + (step - 1), axis=-1)[:, :, None]
            masses = mx.sum(weights * (weights > above), axis=1)
            inside = inside + step * (mx.sum(masses, axis=-1, keepdims=True) < limit)
        border = mx.take_along_axis(ordered, mx.maximum(inside - 1, 0), axis=-1)
        first = mx.take_along_axis(tokens, mx.argmax(weight >= border, axis=-1, keepdims=True), axis=-1)
        new = inside > 0 if found is None else (inside > 0) & ~found
        token = mx.where(new, first, token)
        found = new if found is None else found | new
    return token


def _most_likely(scores: mx.array, highest: mx.array) -> mx.array:
    """(rows, 1): a token with the highest score; `highest` (rows, columns) has the same order as the columns' best."""
    column = mx.argmax(highest, axis=-1, keepdims=True)
    block = mx.take_along_axis(scores, column[:, None], axis=2)[:, :, 0]
    return mx.argmax(block, axis=-1, keepdims=True) * scores.shape[2] + column


def _top_token(logits: mx.array, truncation: Truncation, uniform: mx.array) -> mx.array:
    """(rows, 1): one of the `top_k` most likely tokens, of those one within top-p, of those one that min-p allows.

    Min-p keeps what has at least `min_p` of the most likely token's probability (Nguyen et al. 2024). Ties at a border
    stay in, as far as they are among the tokens that are looked at.
    """
    best, tokens = most_likely_ones(logits, truncation.kind.top + truncation.kind.top // _TIES_SHARE)
    scores = (best - best[:, :1]) * truncation.scale
    masses = powers_of_two(scores)
    last = truncation.top_k - 1
    if truncation.has_top_p:
        limit = truncation.top_p * mx.take_along_axis(mx.cumsum(masses, axis=-1), last, axis=-1)
        within = mx.sum(mx.cumsum(masses, axis=-1, inclusive=False) < limit, axis=-1, keepdims=True)
        last = mx.minimum(last, mx.maximum(within - 1, 0))
    floor = mx.maximum(truncation.floor, mx.take_along_axis(scores, last, axis=-1))
    return mx.take_along_axis(tokens, _choice(masses * (scores >= floor), uniform[:, 0, :1], axis=1), axis=-1)


def most_likely_ones(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The `count` largest logits of each row, in descending order, and their tokens: (rows, count) each.

    They lie in the columns with the highest maxima.
    """
    rows, size = logits.shape
    folds, columns = rectangle(size, max(1, math.isqrt(size) // 5))
    column = None
    if folds * columns == size and 2 * count < columns:
        logits = logits.reshape(rows, folds, columns)
        column = _largest(mx.max(logits, axis=1), count)
        logits = mx.take_along_axis(logits, column[:, None], axis=2).reshape(rows, -1)
    places = None
    if count < logits.shape[-1]:
        places = _largest(logits, count)
        logits = mx.take_along_axis(logits, places, axis=-1)
    order = mx.argsort(-logits, axis=-1)
    places = order if places is None else mx.take_along_axis(places, order, axis=-1)
    tokens = places.astype(mx.int32)
    if column is not None:
        tokens = tokens // count * columns + mx.take_along_axis(column.astype(mx.int32), tokens % count, axis=-1)
    return mx.take_along_axis(logits, order, axis=-1), tokens


def _largest(values: mx.array, count: int) -> mx.array:
    """(rows, count): where each row's largest values are, in no order."""
    size = values.shape[-1]
    return mx.argpartition(values, size - count, axis=-1)[:, size - count :]


def truncation_of(params: Sequence[SamplingParams], kind: Kind) -> Truncation:
    """Of rows that are all of one kind."""

    def column(values: list[float]) -> mx.array:
        return mx.array(np.array(values, dtype=np.float32)[:, None])

    return Truncation(
        kind,
        scale=column([scale_of(p.temperature) for p in params]),
        top_k=mx.array(np.array([p.top_k for p in params], dtype=np.int32)[:, None]),
        top_p=column([p.top_p if p.top_p < 1 else math.inf for p in params]),
        floor=column([math.log2(p.min_p) if p.min_p > 0 else -math.inf for p in params]),
        has_top_p=any(p.top_p < 1 for p in params),
        has_min_p=any(p.min_p > 0 for p in params),
    )
