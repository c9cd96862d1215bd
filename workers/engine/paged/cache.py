"""A model over pools: the one class through which the runner talks to MLX for a model.

Which layer keeps what is read from the list of caches that the model itself asks for. Attention layers become
`PagedLayer`s, which stand where mlx-lm's caches stood; recurrent layers get state slots beside the block tables.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache

from workers.engine.adapters import Adapters
from workers.engine.errors import EngineError
from workers.engine.paged.attention import AttentionReader, GatherReader, Trace, install_seam
from workers.engine.paged.layer import PagedLayer
from workers.engine.paged.layout import NULL_BLOCK, ForwardLayout, Span
from workers.engine.paged.pools import BlockArray
from workers.engine.paged.rounding import KV_BITS
from workers.engine.paged.state import StatePool

HostArrays: TypeAlias = "dict[str, np.ndarray[Any, np.dtype[Any]]]"
COPY_SHARE = 0.125  # of the pools' bytes, for copies of what is decoded
# What a forward on a CPU may take while it is computed. With less than most of a layer's activations at once, every
# operation is waited for by itself, and products lose two fifths of their speed.
SCRATCH_SHARE = 0.125  # of the pools' bytes
SCRATCH_WEIGHT_SHARE = 0.05  # or of the weights', whichever is more
LEAST_SCRATCH_BYTES = 8 << 20
# What a model's code may raise when its cache is not the one that it was written for.
MODEL_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)
PROBE_ROWS = 13  # unlike any number of heads, so that a mask broadcast along a wrong axis is an error
# Architectures whose output is wrong over any batched cache, by their module in mlx-lm; the probe cannot see why.
WRONG_IN_BATCHES = {
    "afm7": "it takes the position of a token from the length of the keys",
}


class CannotPage(EngineError):
    """The model does not work over pools; the message says why."""


class PagedModel:
    """A model whose sequences live in `blocks` blocks of `block_tokens` tokens and in `state_slots` state slots.

    Block 0 takes what is computed for padding. One thread makes all calls. A forward is built lazily; MLX can write
    into the pools in place only if, when it is evaluated, the forward before is complete and nobody holds anything
    unevaluated of it: build ahead, but dispatch a forward only when the last one's result has been read.
    """

    def __init__(
        self,
        model: Module,
        *,
        blocks: int,
        block_tokens: int,
        state_slots: int = 0,
        direct: bool = True,
        copy_bytes: int | None = None,
        kv_bits: int | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """With `direct` false no layer reads its pool by itself. Raises `CannotPage`.

        `kv_bits`: 8, or None for keys and values as the model computes them; recurrent state is always kept so.
        `copy_bytes` bounds what is kept besides the pools to make decoding faster (default: an eighth of the pools).
        """
        if kv_bits not in (None, KV_BITS):
            raise CannotPage(f"keys and values of {kv_bits} bits: it is {KV_BITS}, or the model's own precision")
        self.blocks, self.block_tokens, self.state_slots, self.kv_bits = blocks, block_tokens, state_slots, kv_bits
        self._model = model
        self._on_host = mx.default_device() == mx.Device(mx.cpu)
        self._adapters = adapters or Adapters()
        self._layers: list[PagedLayer] = []
        self._entries: list[int] = []  # arrays per recurrent layer
        self._state_shapes: list[tuple[int, ...]] | None = None
        self.slot_bytes = 0  # of one state slot in all recurrent layers
        _refuse_known(model)
        self._kinds = [self._kind_of(cache) for cache in make_prompt_cache(model)]
        self._state = StatePool(self._entries, state_slots)
        if self._entries and state_slots < 1:
            raise CannotPage("a recurrent model needs state slots")
        if kv_bits is not None and not self._layers:
            raise CannotPage(f"it has no keys and values that could be kept in {kv_bits} bits")
        install_seam()
        found = self._probe()
        limit_bytes = COPY_SHARE * self.block_bytes * blocks if copy_bytes is None else copy_bytes
        self._reader: AttentionReader = GatherReader(blocks, int(limit_bytes))
        self._scratch_bytes = self._scratch()
        for layer, window in found.items() if direct else ():
            layer.make_direct(self._reader, window)
        for layer in self._layers:
            layer.needs_masks = not all(other.direct for other in self._layers)

    @property
    def has_state(self) -> bool:
        return bool(self._entries)

    @property
    def batched_prefill(self) -> bool:
        """Whether prompts of several rows may be read in one forward, padded; recurrent state would take padding in."""
        return not self._entries

    @property
    def kinds(self) -> dict[str, int]:
        """How many layers of each kind: attention by how it reads, those of both that slide, and recurrent ones."""
        direct = sum(layer.direct for layer in self._layers)
        return {
            "direct": direct,
            "gathered": len(self._layers) - direct,
            "window": sum(layer.window is not None for layer in self._layers),
            "state": len(self._entries),
        }

    @property
    def window_tokens(self) -> int | None:
        """How far back any attention looks, if all of it slides: blocks before that are not read any more."""
        slides = all(layer.window is not None for layer in self._layers)
        return max(self.windows) if slides and self.windows else None

    @property
    def windows(self) -> set[int]:
        return {layer.window for layer in self._layers if layer.window is not None}

    @property
    def block_bytes(self) -> int:
        """Of one block in all pools."""
        return sum(stored.array.nbytes for stored in self._stored.values()) // self.blocks

    def forward(
        self,
        input_ids: mx.array,
        layout: ForwardLayout,
        slots: Sequence[int] = (),
        adapters: Sequence[str | None] = (),
    ) -> mx.array:
        """Token ids (rows, tokens) int32 -> logits (rows, tokens, vocab), lazy; the new tokens go into the pools.

        `slots` has each row's state slot where the model `has_state`, `adapters` the name of each row's adapter, or
        nothing where no row has one. Evaluating the logits also finishes the writes;
        evaluating `pools()` finishes the writes alone, without the last layer's output and the logits.
        Raises ValueError where ids, layout and pools do not fit together.
        """
        self._check(input_ids, layout, slots)
        states = self._state.take(slots) if self._entries else []
        self._reader.begin(layout)
        with self._adapters.of_rows(adapters):
            logits = self._call(input_ids, layout, states)
        pools = [stored.array for stored in self._stored.values()]
        return mx.depends(logits, pools) if pools else logits

    def pools(self) -> list[mx.array]:
        """What to evaluate to finish the last forward without its logits, even if others are built before that.

        Let go of the logits before, and of these arrays before anything that was built later is evaluated.
        """
        pools = [copy(stored.array) for stored in self._stored.values()]
        return pools + self._reader.arrays() + self._state.arrays()

    def dispatch(self, arrays: list[mx.array]) -> None:
        """Hand over what was built. On a CPU this returns when most of it is done.

        There MLX takes an operation's memory when it queues it, some fifty operations ahead of the one that runs.
        Under a limit it queues fewer while there is more than that.
        """
        own_limit = mx.get_active_memory() + self._scratch_bytes
        limit_bytes = mx.set_memory_limit(own_limit) if self._on_host else 0
        try:
            mx.async_eval(arrays)  # type: ignore[no-untyped-call]
        finally:
            if self._on_host:
                mx.set_memory_limit(limit_bytes)

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int], tokens: Sequence[int]) -> None:
        """Give the first tokens of each target what they are in its source.

        Waits for what was built before: a pool from which something is still being taken would be copied by the write.
        """
        self._check_blocks((*sources, *targets))
        stored = self._stored.values()
        contents = [array.take_first(sources, tokens) for array in stored]
        mx.eval(contents)
        for array, content in zip(stored, contents, strict=True):
            array.put_first(targets, tokens, content)
        self._reader.changed(targets)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Zero blocks that may hold NaN or infinity: even masked, those would spoil the rows that get them next."""
        self._check_blocks(blocks)
        stored = self._stored.values()
        for array in stored:
            array.put(blocks, mx.zeros((len(blocks) * array.heads * array.block_tokens, array.width), array.dtype))
        self._written(blocks)

    def read_blocks(self, blocks: Sequence[int]) -> HostArrays:
        """Host copies of blocks: one array per layer and pool, the first axis being the block. Waits for them."""
        self._check_blocks(blocks)
        contents = {name: array.take(blocks) for name, array in self._stored.items()}
        mx.eval(list(contents.values()))
        return {name: _to_host(content) for name, content in contents.items()}

    def write_blocks(self, blocks: Sequence[int], arrays: Mapping[str, "np.ndarray[Any, np.dtype[Any]]"]) -> None:
        """Put what `read_blocks` returned into blocks, evaluated at once. Raises ValueError for other arrays."""
        self._check_blocks(blocks)
        stored = self._stored
        if arrays.keys() != stored.keys():
            raise ValueError(f"blocks of {sorted(arrays)} do not fit pools of {sorted(stored)}")
        for name, array in stored.items():
            array.put(blocks, _to_device(arrays[name], array, len(blocks), name))
        self._written(blocks)

    def snapshot(self, slot: int, into: int) -> None:
        """Keep the recurrent state of a slot in another one; lazy, as is `restore`."""
        self._state.copy(slot, into)

    def restore(self, slot: int, origin: int) -> None:
        """Give a slot the recurrent state that was kept in `origin`."""
        self._state.copy(origin, slot)

    def reset_slot(self, slot: int) -> None:
        """The slot's next row begins a sequence."""
        self._state.reset(slot)

    @cached_property
    def _stored(self) -> dict[str, BlockArray]:
        """All arrays of all pools, which exist once the probe has run."""
        return {
            f"layer.{index}.{name}": array
            for index, layer in enumerate(self._layers)
            for name, array in layer.arrays.items()
        }

    def _scratch(self) -> int:
        network: Any = self._model
        weights: Any = tree_flatten(network.parameters())
        of_weights = SCRATCH_WEIGHT_SHARE * sum(weight.nbytes for _, weight in weights)
        return int(max(LEAST_SCRATCH_BYTES, SCRATCH_SHARE * self.block_bytes * self.blocks, of_weights))

    def _written(self, blocks: Sequence[int]) -> None:
        mx.eval([stored.array for stored in self._stored.values()])
        self._reader.changed(blocks)

    def _kind_of(self, cache: Any) -> Callable[[list[ArraysCache]], Any]:
        """From one of the model's own caches: what makes its counterpart for a forward with these states."""
        if type(cache) is KVCache or (type(cache) is RotatingKVCache and cache.keep == 0):
            window, rounds = getattr(cache, "max_size", None), self.kv_bits is not None
            layer = PagedLayer(self.blocks, self.block_tokens, window, rounds=rounds)
            self._layers.append(layer)
            return lambda states: layer
        if type(cache) is ArraysCache:
            place = len(self._entries)
            self._entries.append(len(cache.cache))
            return lambda states: states[place]
        if type(cache) is CacheList:
            parts = [self._kind_of(part) for part in cache.caches]
            return lambda states: CacheList(*(part(states) for part in parts))  # type: ignore[no-untyped-call]
        kept = " that keeps its first tokens" if isinstance(cache, RotatingKVCache) else ""
        raise CannotPage(f"a layer asks for a {type(cache).__name__}{kept}")

    def _probe(self) -> dict[PagedLayer, int | None]:
        """The layers that can be direct, with their windows; two small forwards in the null block, which also make all
        pools."""
        try:
            traces = self._traces()
        except MODEL_ERRORS as error:
            raise CannotPage(f"the model fails over a paged cache: {error!r}") from error
        if any(layer.pool is None for layer in self._layers):
            raise CannotPage("an attention layer never updates its cache")
        windows = {layer: [trace.windows(layer) for trace in traces] for layer in self._layers}
        return {layer: one.pop() for layer, (one, two) in windows.items() if len(one) == 1 and one == two}

    def _traces(self) -> list[Trace]:
        """Forwards of two tokens and of one. Where masks of batches do not fit a model's scores, those with one more
        axis may."""
        try:
            return [self._traced(tokens) for tokens in (2, 1)]
        except ValueError:
            for layer in self._layers:
                layer.grouped_masks = True
            return [self._traced(tokens) for tokens in (2, 1)]

    def _traced(self, tokens: int) -> Trace:
        span = Span((NULL_BLOCK,) * -(-tokens // self.block_tokens), 0, tokens)
        layout = ForwardLayout([span] * PROBE_ROWS, block_tokens=self.block_tokens)
        ids = mx.broadcast_to(mx.arange(1, tokens + 1), (PROBE_ROWS, tokens))
        slots = StatePool(self._entries, PROBE_ROWS)
        states = slots.take(range(PROBE_ROWS))
        with Trace() as trace:
            logits = self._call(ids, layout, states)
        mx.eval(logits, [stored.array for layer in self._layers for stored in layer.arrays.values()], slots.arrays())
        shapes = [array.shape for array in slots.arrays()]
        if self._state_shapes not in (None, shapes):
            raise CannotPage("a recurrent layer's state grows with its tokens")
        self._state_shapes = shapes
        self.slot_bytes = sum(array.nbytes for array in slots.arrays()) // PROBE_ROWS
        return trace

    def _call(self, input_ids: mx.array, layout: ForwardLayout, states: list[ArraysCache]) -> mx.array:
        for layer in self._layers:
            layer.begin(layout)
        try:
            logits: mx.array = self._model(input_ids, cache=[kind(states) for kind in self._kinds])
        finally:
            for layer in self._layers:
                layer.end()
        return logits

    def _check(self, input_ids: mx.array, layout: ForwardLayout, slots: Sequence[int]) -> None:
        """MLX does not check indices: a wrong block would be written into other memory."""
        if input_ids.shape != (layout.rows, layout.tokens):
            raise ValueError(f"ids {input_ids.shape} for {layout.rows} rows of {layout.tokens} tokens")
        if layout.block_tokens != self.block_tokens:
            raise ValueError(f"a layout of blocks of {layout.block_tokens} tokens, not {self.block_tokens}")
        if layout.tables.view(np.uint32).max() >= self.blocks:  # negative ones are large, too
            raise ValueError(f"a table names a block outside of 0 to {self.blocks - 1}")
        if len(slots) != (layout.rows if self._entries else 0):
            raise ValueError(f"{len(slots)} state slots for {layout.rows} rows")
        if self._entries and not layout.is_even:
            raise ValueError("rows with recurrent state cannot be padded")

    def _check_blocks(self, blocks: Sequence[int]) -> None:
        if not all(0 <= block < self.blocks for block in blocks):
            raise ValueError(f"blocks {list(blocks)} are not all among 0 to {self.blocks - 1}")


def _refuse_known(model: Module) -> None:
    name = type(model).__module__.rpartition(".")[2]
    if name in WRONG_IN_BATCHES:
        raise CannotPage(f"{name}: {WRONG_IN_BATCHES[name]}")


def _to_host(content: mx.array) -> "np.ndarray[Any, np.dtype[Any]]":
    """numpy has no bfloat16: its bits travel as uint16."""
    return np.array(mx.view(content, mx.uint16) if content.dtype == mx.bfloat16 else content)


def _to_device(content: "np.ndarray[Any, np.dtype[Any]]", array: BlockArray, blocks: int, name: str) -> mx.array:
    shape = (blocks, array.heads, array.block_tokens, array.width)
    moved = mx.array(content)
    if array.dtype == mx.bfloat16 and moved.dtype == mx.uint16:
        moved = mx.view(moved, mx.bfloat16)
    if moved.shape != shape or moved.dtype != array.dtype:
        raise ValueError(f"{name}: {content.shape} {content.dtype} is not {shape} {array.dtype}")
    return moved
