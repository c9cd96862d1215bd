"""What a model will need, from its files: nothing is computed, and no weights are read."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from workers.engine.loading import ModelInfo, sketch_model
from workers.engine.paged.sizing import ASSUMED_CONTEXT_TOKENS, CacheNeeds, cache_blocks

BLOCK_TOKENS = 16
PROCESS_BYTES = 192 << 20
"""The interpreter, its libraries, and what one step works with (150 MB were measured for the smallest model)."""

STEP_TOKENS = 256
"""By which mlx-lm's caches grow."""

COPIES_SHARE = 0.25
"""Of the cache's bytes: what is kept beside it to read it faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`cache_bytes` is a good size for the KV cache, `needs_bytes` all that the model's process will take then."""

    info: ModelInfo
    cache_bytes: int
    cache_tokens: int
    needs_bytes: int


def estimate(
    model: str, *, max_sequences: int, spare_bytes: int, kv_bytes: int | None = None, kv_bits: int | None = None
) -> Estimate:
    """Look at a model that generates (a folder or a Hugging Face id).

    The cache gets `kv_bytes`, or what suits the model and is not more than `spare_bytes`. Raises `ModelError`.
    """
    sketch = sketch_model(model)
    info = sketch.info
    token_bytes, sequence_bytes = _cache_bytes(sketch.model, bits=kv_bits)
    needs = CacheNeeds(
        block_tokens=BLOCK_TOKENS,
        block_bytes=token_bytes * BLOCK_TOKENS,
        weight_bytes=info.weight_bytes,
        max_sequences=max_sequences,
        context_tokens=info.context_tokens,
        spare_bytes=spare_bytes,
    )
    tokens = cache_blocks(needs, kv_bytes=kv_bytes) * BLOCK_TOKENS
    cache_bytes = tokens * token_bytes
    return Estimate(
        info=info,
        cache_bytes=cache_bytes,
        cache_tokens=min(tokens, info.context_tokens or ASSUMED_CONTEXT_TOKENS),
        needs_bytes=info.weight_bytes
        + int((1 + COPIES_SHARE) * cache_bytes)
        + max_sequences * sequence_bytes
        + PROCESS_BYTES,
    )


def _cache_bytes(network: Any, *, bits: int | None) -> tuple[int, int]:
    """What a cache takes per token, and per sequence besides: by the shapes after one token and after STEP more."""
    one, many = (_bytes_after(network, tokens) for tokens in (1, 1 + STEP_TOKENS))
    token_bytes = (many - one) // STEP_TOKENS
    if bits is not None:
        token_bytes = token_bytes // 2  # or less: of 32 bits it is a fourth
    return token_bytes, max(0, one - token_bytes * STEP_TOKENS)


def _bytes_after(network: Any, tokens: int) -> int:
    """Of a new cache, once so many tokens were read: nothing is computed for it."""
    caches = make_prompt_cache(network)
    network(mx.zeros((1, tokens), dtype=mx.int32), cache=caches)
    return sum(int(cache.nbytes) for cache in caches)
