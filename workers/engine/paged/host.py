"""Attention on a processor, in float32: what MLX's own function does there takes two to four times as long.

MLX computes exponentials one number after the other on x86, also of scores that a mask takes away, and reads the keys
once for every query head. Here a polynomial that the compiler can vectorize is used, as exact as MLX's own; chunks of
a prompt are taken in pieces, one after the other, so that most of what a causal mask excludes is not computed and all
of it needs little memory; and query heads that share keys are one matrix.
"""

import math

import mlx.core as mx

from workers.engine.paged.sight import Sight

LOG2_E = math.log2(math.e)
PIECE_TOKENS = 64
PIECE_SCORES = 1 << 18  # at once: what the operations between two products hand each other stays in the cache
FEW_SCORES = 12_000  # below that the many small operations cost more than they save
_ROUNDING = 1.5 * 2**23  # a float32 plus this has its nearest integer in its low bits
_SMALLEST = -126.0
# 2^x on [-1/2, 1/2] with the least relative error, 9e-8, of all polynomials of this degree that are exact at 0.
_COEFFICIENTS = (
    1.0,
    0.6931469775986008,
    0.24022242084451154,
    0.05550733743663578,
    0.00967151270015822,
    0.0013264727255659953,
)


def _fraction_and_rounded(x: mx.array) -> tuple[mx.array, mx.array]:
    """2 to the power of what is left of x when it is rounded, and x + _ROUNDING."""
    x = mx.maximum(x, _SMALLEST)
    rounded = x + _ROUNDING
    rest = x - (rounded - _ROUNDING)
    power = _COEFFICIENTS[5] * rest + _COEFFICIENTS[4]
    for coefficient in _COEFFICIENTS[3::-1]:
        power = power * rest + coefficient
    return power, rounded


def _scaled_bits(power: mx.array, rounded: mx.array) -> mx.array:
    """The integer in the low bits of `rounded` added to the exponent of `power`; int32 views of both."""
    return power + mx.left_shift(rounded, 23)


_fraction_and_rounded_fused = mx.compile(_fraction_and_rounded, shapeless=True)
_scaled_bits_fused = mx.compile(_scaled_bits, shapeless=True)


def exp2(x: mx.array) -> mx.array:
    """2^x of a float32 array with x <= 0, to 3e-7 of the value; what is below 2^-126 becomes that."""
    power, rounded = _fraction_and_rounded_fused(x)
    bits = _scaled_bits_fused(mx.view(power, mx.int32), mx.view(rounded, mx.int32))
    return mx.view(bits, mx.float32)


def after(before: list[mx.array], array: mx.array) -> mx.array:
    """`array`, but what is computed from it waits for `before`.

    MLX evaluates breadth first: parts that do not need each other would all have their memory at the same time.
    """
    return mx.depends(array, before) if before else array


def host_attention(
    queries: mx.array, keys: mx.array, values: mx.array, sight: Sight, scale: float, sinks: mx.array | None
) -> mx.array:
    """Queries (rows, query heads, tokens, width), keys and values (rows, heads, keys, width) from the sight's low to
    its high -> (rows, query heads, tokens, value width)."""
    rows, query_heads, tokens, width = queries.shape
    heads = keys.shape[1]
    split = (queries * (scale * LOG2_E)).reshape(rows, heads, query_heads // heads, tokens, width)
    sink = None if sinks is None else (sinks * LOG2_E).reshape(1, heads, -1, 1, 1)
    before: list[mx.array] = []
    outputs: list[mx.array] = []
    for first, last, low, high, bias in sight.pieces(PIECE_TOKENS):
        some = split if last - first == tokens else split[:, :, :, first:last]
        span = slice(low - sight.low, high - sight.low)
        at_once = max(1, PIECE_SCORES // (query_heads * (last - first) * (high - low)))
        parts: list[mx.array] = []
        for begin in range(0, rows, at_once):
            part = slice(begin, begin + at_once)
            own_bias = bias if bias is None or bias.shape[0] == 1 else bias[part]
            own = after(before, some if rows <= at_once else some[part])
            before = [_attend_piece(own, keys[part, :, span], values[part, :, span], own_bias, sink)]
            parts += before
        outputs.append(parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=0))
    output = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=3)
    return output.reshape(rows, query_heads, tokens, -1)


def _attend_piece(
    queries: mx.array, keys: mx.array, values: mx.array, bias: mx.array | None, sink: mx.array | None
) -> mx.array:
    """Queries (rows, heads, repeats, tokens, width), scaled for powers of 2 -> the same with the values' width."""
    rows, heads, repeats, tokens, width = queries.shape
    folded = queries.reshape(rows, heads, repeats * tokens, width)
    scores = (keys @ folded.swapaxes(-1, -2)).swapaxes(-1, -2) if tokens == 1 else folded @ keys.swapaxes(-1, -2)
    scores = scores.reshape(rows, heads, repeats, tokens, -1)
    if bias is not None:
        scores = scores + bias
    top = mx.max(scores, axis=-1, keepdims=True)
    if sink is not None:
        top = mx.maximum(top, sink)
    weights = exp2(scores - top)
    total = mx.sum(weights, axis=-1, keepdims=True)
    if sink is not None:
        total = total + exp2(sink - top)
    weights = weights.reshape(rows, heads, repeats * tokens, -1)
    return (weights @ values).reshape(rows, heads, repeats, tokens, -1) / total
