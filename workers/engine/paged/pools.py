"""The memory of one attention layer: flat arrays that hold the keys and values of every block, and how tokens get in
and out.

An array is [blocks * heads * block_tokens, width]: new tokens are one scatter of rows, and the same memory seen as
[blocks * heads, block_tokens * width] is read by one gather that lands as (rows, heads, tokens, width), without any
transposition. MLX overwrites an array in place only while nobody else refers to it, so nothing here keeps an old one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from workers.engine.paged.layout import ForwardLayout, Group
from workers.engine.paged.rounding import Coded, code, restore

INDEX_LIMIT = 1 << 31


class Sides(NamedTuple):
    """Keys (..., heads, tokens, key width) and values (..., heads, tokens, value width)."""

    keys: mx.array
    values: mx.array


class BlockArray:
    """One array [blocks * heads * block_tokens, width], addressed by block."""

    def __init__(self, blocks: int, block_tokens: int, heads: int, width: int, dtype: mx.Dtype) -> None:
        if blocks * heads * block_tokens >= INDEX_LIMIT:
            raise ValueError(f"{blocks} blocks of {block_tokens} tokens and {heads} heads exceed 32-bit indices")
        self.blocks, self.block_tokens, self.heads, self.width = blocks, block_tokens, heads, width
        self.array = mx.zeros((blocks * heads * block_tokens, width), dtype)

    @property
    def dtype(self) -> mx.Dtype:
        return self.array.dtype

    @property
    def parts(self) -> dict[str, "BlockArray"]:
        """What it consists of, by the ending of its name."""
        return {"": self}

    def write(self, layout: ForwardLayout, new: mx.array) -> mx.array:
        """Put (rows, heads, tokens, width) where the layout's new tokens belong; returned as `read` will give it."""
        self.array[layout.writes(self.heads)] = new
        return new

    def read(self, index: mx.array) -> mx.array:
        """`index` (..., heads, n), as the layout makes it for reads -> (..., heads, n * block_tokens, width)."""
        taken = self.array.reshape(self.blocks * self.heads, self.block_tokens * self.width)[index]
        return taken.reshape(*index.shape[:-1], index.shape[-1] * self.block_tokens, self.width)

    def take(self, blocks: Sequence[int]) -> mx.array:
        """A copy (len(blocks), heads, block_tokens, width), lazy."""
        index = mx.array(np.asarray(blocks, dtype=np.int32))
        return self.array.reshape(self.blocks, -1)[index].reshape(-1, self.heads, self.block_tokens, self.width)

    def take_first(self, blocks: Sequence[int], tokens: Sequence[int]) -> mx.array:
        """A copy of the first tokens of each block, as rows (heads * tokens of all, width), lazy."""
        return self.array[self._firsts(blocks, tokens)]

    def put_first(self, blocks: Sequence[int], tokens: Sequence[int], rows: mx.array) -> None:
        """The inverse of `take_first`; whatever else the blocks hold stays."""
        self.array[self._firsts(blocks, tokens)] = rows

    def _firsts(self, blocks: Sequence[int], tokens: Sequence[int]) -> mx.array:
        places = np.arange(self.heads * self.block_tokens, dtype=np.int32)
        inside = places % self.block_tokens < np.asarray(tokens)[:, None]
        return mx.array((np.asarray(blocks, dtype=np.int32)[:, None] * np.int32(places.size) + places)[inside])

    def put(self, blocks: Sequence[int], content: mx.array) -> None:
        """The inverse of `take`; `content` must not be a view of this array."""
        span = self.heads * self.block_tokens
        rows = np.asarray(blocks, dtype=np.int32)[:, None] * span + np.arange(span, dtype=np.int32)
        self.array[mx.array(rows.reshape(-1))] = content.reshape(rows.size, self.width)


class RoundedArray:
    """As a `BlockArray`, which takes and gives rows of `dtype`, but they are kept in 8 bits with a scale each.

    What is attended is always what `read` gives, also by the step that writes it: otherwise the borders of chunks
    would change what a row says.
    """

    def __init__(self, blocks: int, block_tokens: int, heads: int, width: int, dtype: mx.Dtype) -> None:
        self.heads, self.width, self.dtype = heads, width, dtype
        self._codes = BlockArray(blocks, block_tokens, heads, width, mx.int8)
        self._scales = BlockArray(blocks, block_tokens, heads, 1, mx.float32)

    @property
    def parts(self) -> dict[str, BlockArray]:
        return {".int8": self._codes, ".scale": self._scales}

    def write(self, layout: ForwardLayout, new: mx.array) -> mx.array:
        coded = code(new)
        self._codes.write(layout, coded.codes)
        self._scales.write(layout, coded.scales)
        return restore(coded, self.dtype)

    def read(self, index: mx.array) -> mx.array:
        return restore(Coded(self._codes.read(index), self._scales.read(index)), self.dtype)


TokenArray = BlockArray | RoundedArray


def _array_for(blocks: int, block_tokens: int, heads: int, like: mx.array, *, rounds: bool) -> TokenArray:
    kind = RoundedArray if rounds else BlockArray
    return kind(blocks, block_tokens, heads, like.shape[-1], like.dtype)


class JoinedPool:
    """Keys and values of one width in one array, as heads 0 to H - 1 and H to 2 H - 1: one scatter, one gather."""

    def __init__(self, blocks: int, block_tokens: int, keys: mx.array, *, rounds: bool) -> None:
        self.heads = 2 * keys.shape[1]
        self._array = _array_for(blocks, block_tokens, self.heads, keys, rounds=rounds)

    @property
    def arrays(self) -> dict[str, BlockArray]:
        return {f"kv{ending}": part for ending, part in self._array.parts.items()}

    @property
    def token_bytes(self) -> int:
        """Of a token as it is read."""
        return self.heads * self._array.width * self._array.dtype.size

    def write(self, layout: ForwardLayout, keys: mx.array, values: mx.array) -> Sides:
        """Returns the new keys and values as `read` will give them."""
        new, half = self.write_joined(layout, self.join(keys, values)), self.heads // 2
        if isinstance(self._array, BlockArray):
            return Sides(keys, values)
        return Sides(new[:, :half], new[:, half:])

    def join(self, keys: mx.array, values: mx.array) -> mx.array:
        """Next to each other as in the pool, (rows, heads, tokens, width)."""
        return mx.concatenate([keys, values], axis=1)

    def write_joined(self, layout: ForwardLayout, new: mx.array) -> mx.array:
        """Returns `new` as `read_joined` will give it."""
        return self._array.write(layout, new)

    def read_joined(self, index: mx.array) -> mx.array:
        """`index` (rows, heads, n) as made by `block_rows` -> (rows, heads, n * block_tokens, width)."""
        return self._array.read(index)

    def read(self, layout: ForwardLayout, group: Group, window: int | None) -> Sides:
        sight = layout.view(group, window).sight
        both, half = self._array.read(layout.reads(group, window, self.heads)), self.heads // 2
        return Sides(both[:, :half, sight.low : sight.high], both[:, half:, sight.low : sight.high])

    def read_shared(self, layout: ForwardLayout, group: Group) -> Sides:
        both, half = self._array.read(layout.shared_reads(group, self.heads)), self.heads // 2
        return Sides(both[:half], both[half:])


class SplitPool:
    """Keys and values of different widths in an array each."""

    def __init__(self, blocks: int, block_tokens: int, keys: mx.array, values: mx.array, *, rounds: bool) -> None:
        self._keys = _array_for(blocks, block_tokens, keys.shape[1], keys, rounds=rounds)
        self._values = _array_for(blocks, block_tokens, values.shape[1], values, rounds=rounds)

    @property
    def arrays(self) -> dict[str, BlockArray]:
        sides = {"keys": self._keys, "values": self._values}
        return {f"{name}{ending}": part for name, side in sides.items() for ending, part in side.parts.items()}

    def write(self, layout: ForwardLayout, keys: mx.array, values: mx.array) -> Sides:
        """Returns the new keys and values as `read` will give them."""
        return Sides(self._keys.write(layout, keys), self._values.write(layout, values))

    def read(self, layout: ForwardLayout, group: Group, window: int | None) -> Sides:
        sight = layout.view(group, window).sight
        sides = (a.read(layout.reads(group, window, a.heads)) for a in (self._keys, self._values))
        return Sides(*(side[:, :, sight.low : sight.high] for side in sides))

    def read_shared(self, layout: ForwardLayout, group: Group) -> Sides:
        return Sides(*(a.read(layout.shared_reads(group, a.heads)) for a in (self._keys, self._values)))


KvPool = JoinedPool | SplitPool


def make_pool(blocks: int, block_tokens: int, keys: mx.array, values: mx.array, *, rounds: bool = False) -> KvPool:
    """A pool for keys and values like these (rows, heads, tokens, width); `rounds`: which keeps them in 8 bits."""
    if keys.shape == values.shape and keys.dtype == values.dtype:
        return JoinedPool(blocks, block_tokens, keys, rounds=rounds)
    return SplitPool(blocks, block_tokens, keys, values, rounds=rounds)
