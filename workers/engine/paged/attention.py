"""Attention over a pool, and the one seam by which mlx-lm's models reach it.

Every model in mlx-lm calls `scaled_dot_product_attention` with its layer's cache. That function is replaced once by one
that looks at the cache's type: a cache which reads its own memory is asked to attend, all others go the old way.
How blocks are read is an `AttentionReader`, chosen once per model: here by gathering; a kernel that reads blocks in
place has the same interface.
"""

import sys
from collections.abc import Sequence
from typing import Any, Protocol, Self

import mlx.core as mx
from mlx_lm.models import base

from workers.engine.paged.copies import WorkingCopies
from workers.engine.paged.host import FEW_SCORES, LOG2_E, after, exp2, host_attention
from workers.engine.paged.layout import ForwardLayout
from workers.engine.paged.pools import JoinedPool, KvPool, Sides
from workers.engine.paged.sight import Mask, Sight

SEAM = "scaled_dot_product_attention"
_original = base.scaled_dot_product_attention


class AttendingCache:
    """A cache whose layer may be direct: the seam asks it to attend, instead of reading what it gave to the model."""

    direct = False

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """New tokens' queries (rows, query heads, tokens, key width), keys and values -> (..., value width)."""
        raise NotImplementedError


class Trace:
    """Of one forward of a model: what its caches handed out, and what came back through the seam.

    A layer can be direct if the seam saw, once, exactly the keys and values that its cache had handed out, under a
    mask that a cache had made, and no other layer's call had them. Active between `with` and its end.
    """

    active: "Trace | None" = None

    def __init__(self) -> None:
        self._handed: dict[AttendingCache, Sides] = {}
        self._masks: list[tuple[Mask, int | None]] = []
        self._calls: dict[AttendingCache, list[object]] = {}
        self._shared: set[AttendingCache] = set()

    def __enter__(self) -> Self:
        Trace.active = self
        return self

    def __exit__(self, *error: object) -> None:
        Trace.active = None

    def hands_out(self, cache: AttendingCache, sides: Sides) -> None:
        if cache in self._handed:
            self._shared.add(cache)
        self._handed[cache] = sides

    def shares(self, cache: AttendingCache) -> None:
        """Another layer has asked for what this cache handed out."""
        self._shared.add(cache)

    def makes_mask(self, mask: Mask, window: int | None) -> Mask:
        self._masks.append((mask, window))
        return mask

    def sees(self, cache: object, keys: object, values: object, mask: object) -> None:
        if isinstance(cache, AttendingCache):
            own = self._handed.get(cache)
            untouched = own is not None and keys is own.keys and values is own.values
            self._calls.setdefault(cache, []).append(mask if untouched else self)
        for other, sides in self._handed.items():
            if other is not cache and keys is sides.keys:
                self._shared.add(other)

    def windows(self, cache: AttendingCache) -> set[int | None]:
        """The windows of the mask that the layer attends under: one if it can be direct, none if it cannot."""
        masks = self._calls.get(cache, [])
        if len(masks) != 1 or cache in self._shared:
            return set()
        return {window for mask, window in self._masks if mask is masks[0]}


def attention(
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> mx.array:
    """Stands where mlx-lm's function of this signature stood."""
    if isinstance(cache, AttendingCache) and cache.direct:
        return cache.attend(queries, keys, values, scale, sinks)
    if Trace.active is not None:
        Trace.active.sees(cache, keys, values, mask)
    result: mx.array = _original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
    return result


def install_seam() -> None:
    """Replace the function in every module of mlx-lm that has imported it, and for those still to come."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.models") and getattr(module, SEAM, None) is _original:
            setattr(module, SEAM, attention)


class AttentionReader(Protocol):
    """How attention reads the pools. Made once per model; `begin` comes before each forward."""

    def adds(self, pool: KvPool, window: int | None) -> None:
        """A layer with this pool and window will be read."""
        ...

    def begin(self, layout: ForwardLayout) -> None: ...

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        pool: KvPool,
        layout: ForwardLayout,
        *,
        window: int | None,
        scale: float,
        sinks: mx.array | None,
    ) -> mx.array:
        """Take new tokens in and attend: queries (rows, query heads, tokens, key width), keys and values (rows, heads,
        tokens, width) -> (rows, query heads, tokens, value width).

        A query sees the last `window` positions up to its own, or all.
        """
        ...

    def arrays(self) -> list[mx.array]:
        """What evaluating finishes the last forward, besides the pools."""
        ...

    def changed(self, blocks: Sequence[int]) -> None:
        """Blocks got another content than by a forward."""
        ...


class GatherReader:
    """Puts the blocks that a group of rows sees next to each other and attends to that.

    What it has put together is kept for the next forward of the same rows, in at most `copy_bytes`.
    """

    def __init__(self, blocks: int, copy_bytes: int) -> None:
        self._copies = WorkingCopies(blocks, copy_bytes)
        self._on_host = mx.default_device() == mx.Device(mx.cpu)

    def adds(self, pool: KvPool, window: int | None) -> None:
        if isinstance(pool, JoinedPool):
            self._copies.adds(pool, window)

    def begin(self, layout: ForwardLayout) -> None:
        self._copies.begin(layout)

    def arrays(self) -> list[mx.array]:
        return self._copies.arrays()

    def changed(self, blocks: Sequence[int]) -> None:
        self._copies.changed(blocks)

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        pool: KvPool,
        layout: ForwardLayout,
        *,
        window: int | None,
        scale: float,
        sinks: mx.array | None,
    ) -> mx.array:
        groups = layout.groups_for(window)
        if layout.is_fresh and layout.tokens > 1:
            written = pool.write(layout, keys, values)
            return self._attend(queries, written, layout.fresh_sight(window), scale, sinks)
        if isinstance(pool, JoinedPool):
            new, copies = pool.write_joined(layout, pool.join(keys, values)), self._copies.plan(window)
        else:
            new, copies = pool.write(layout, keys, values).keys, [None] * len(groups)
        outputs: list[mx.array] = []
        for group, copy in zip(groups, copies, strict=True):
            own = after(outputs[-1:], queries if len(groups) == 1 else queries[group.slice])
            if copy is not None and isinstance(pool, JoinedPool):
                sides, sight = copy.read(pool, new if len(groups) == 1 else new[group.slice]), copy.sight
            else:
                sides, sight = pool.read(layout, group, window), layout.view(group, window).sight
            if group.shared_blocks:
                outputs.append(cascade(own, pool.read_shared(layout, group), sides, sight, scale, sinks))
            else:
                outputs.append(self._attend(own, sides, sight, scale, sinks))
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=0)

    def _attend(self, queries: mx.array, sides: Sides, sight: Sight, scale: float, sinks: mx.array | None) -> mx.array:
        """Queries (rows, query heads, tokens, width) to keys and values (rows, heads, keys, width) of a sight."""
        if self._on_host and queries.dtype == mx.float32:
            rows, heads, tokens, _ = queries.shape
            if rows * heads * tokens * (sight.high - sight.low) > FEW_SCORES:
                return host_attention(queries, *sides, sight, scale, sinks)
        return mx.fast.scaled_dot_product_attention(queries, *sides, scale=scale, mask=sight.mask, sinks=sinks)


def cascade(
    queries: mx.array, shared: Sides, own: Sides, sight: Sight, scale: float, sinks: mx.array | None
) -> mx.array:
    """Attention of (rows, query heads, tokens, width) to a prefix that all rows share and to what each has by itself.

    `shared` has no row axis. The prefix is attended by all rows in one product; the two parts are merged by their
    log-sum-exp (Juravsky et al. 2024, "Hydragen"; Ye et al. 2024, "ChunkAttention").
    """
    rows, query_heads, tokens, width = queries.shape
    heads, dtype = own.keys.shape[1], queries.dtype
    split = (queries * (scale * LOG2_E)).reshape(rows, heads, query_heads // heads, tokens, width)
    folded = split.transpose(1, 0, 2, 3, 4).reshape(heads, -1, width)  # (heads, rows * repeats * tokens, width)
    near = (split @ own.keys[:, :, None].swapaxes(-1, -2)).astype(mx.float32)  # (rows, heads, repeats, tokens, keys)
    [piece] = sight.pieces(tokens)
    if piece.bias is not None:
        near = near + piece.bias
    far = (folded @ shared.keys.swapaxes(-1, -2)).astype(mx.float32)

    def unfold(x: mx.array) -> mx.array:
        return x.reshape(heads, rows, -1, tokens, x.shape[-1]).transpose(1, 0, 2, 3, 4)

    top = mx.maximum(unfold(mx.max(far, axis=-1, keepdims=True)), mx.max(near, axis=-1, keepdims=True))
    if sinks is not None:
        sink = (sinks.astype(mx.float32) * LOG2_E).reshape(1, heads, -1, 1, 1)
        top = mx.maximum(top, sink)
    far_weight = exp2(far - top.transpose(1, 0, 2, 3, 4).reshape(heads, -1, 1))
    near_weight = exp2(near - top)
    total = unfold(mx.sum(far_weight, axis=-1, keepdims=True)) + mx.sum(near_weight, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + exp2(sink - top)
    merged = unfold(far_weight.astype(dtype) @ shared.values) + near_weight.astype(dtype) @ own.values[:, :, None]
    return (merged / total).astype(dtype).reshape(rows, query_heads, tokens, -1)
