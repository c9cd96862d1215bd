"""Keys and values in eight bits: each token's row of a head as int8 codes and one float32 scale, its largest by 127.

The simplest form is also the fastest: gathering and restoring takes about as long as gathering float32, and MLX's own
packed groups take 1.5 to 3.5 times that (CPU); groups of 32 lower the divergence from 7e-6 to 3e-6 only (demo model).
Rows are rounded one by one and once, when they are written, so that what a row holds depends on nothing else.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

KV_BITS = 8
_LARGEST_CODE = 127
_LEAST_SCALE = 2.0**-126  # a row of zeros has some scale

Update = Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]


class Coded(NamedTuple):
    """Rounded rows: int8 codes (..., width) and float32 scales (..., 1)."""

    codes: mx.array
    scales: mx.array


def code(rows: mx.array) -> Coded:
    """Each row (..., width) to the nearest multiples of its largest absolute value by 127.

    A row that is not finite has a scale that is not finite, and stays so when it is restored.
    """
    exact = rows.astype(mx.float32)
    scales = mx.maximum(mx.max(mx.abs(exact), axis=-1, keepdims=True) * (1 / _LARGEST_CODE), _LEAST_SCALE)
    return Coded(mx.round(exact / scales).astype(mx.int8), scales)


def restore(coded: Coded, dtype: mx.Dtype) -> mx.array:
    """What the rows (..., width) have become: each element by itself, so the same numbers wherever the row lies."""
    return (coded.codes.astype(mx.float32) * coded.scales).astype(dtype)


def rounded_caches(model: Module) -> list[Any]:
    """mlx-lm's own caches for the model, whose keys and values are rounded as those of an 8-bit pool are."""
    caches: list[Any] = make_prompt_cache(model)
    for cache in _attention_caches(caches):
        cache.update_and_fetch = _rounding(cache.update_and_fetch)
    return caches


def _attention_caches(caches: Iterable[Any]) -> Iterable[Any]:
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from _attention_caches(cache.caches)
        elif isinstance(cache, KVCache | RotatingKVCache):
            yield cache


def _rounding(update: Update) -> Update:
    def rounding(keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return update(*(restore(code(rows), rows.dtype) for rows in (keys, values)))

    return rounding
