"""Whether a model says over pools what it says alone: a comparison on random prompts, made once when it is loaded.

Over pools of 8 bits it is compared with the model alone on caches whose keys and values are rounded in the same way.
So the bound stays nearly as narrow as without rounding, and a wrong table or mask shows; what rounding itself changes
is a second comparison, of the model alone with the model alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import make_prompt_cache

from workers.engine.adapters import Adapters
from workers.engine.paged.cache import MODEL_ERRORS, CannotPage, PagedModel
from workers.engine.paged.layout import ForwardLayout, Group, Span
from workers.engine.paged.rounding import rounded_caches

LONGEST_TOKENS = 256  # a longer window is not tested: the prompt would cost more than it shows
PORTION_TOKENS = 5
DECODED_TOKENS = 3
VERIFIED_TOKENS = 3  # at most, in one forward
# How much of their spread the logits may differ by: so many times as much as the model alone differs from itself when
# it reads the same tokens in other portions, but no less and no more than this.
NOISE_TIMES = 5.0
LEAST_TOLERANCE = 1e-3
LEAST_ROUNDED_TOLERANCE = 5e-3  # a sum in another order may put a number over the border between two codes
MOST_TOLERANCE = 5e-2
# How much of their spread rounded keys and values may change the logits by. The demo model's change by 0.005, those of
# random weights by 0.01 to 0.04; where an outlier swallows its row, by 0.5 and more.
MOST_LOSS = 0.3
LOSS_SEQUENCES, LOSS_TOKENS = 4, 16

Logits = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class _Row:
    """A random sequence, its blocks, and its logits by position: alone, in other portions, and over the pools."""

    token_ids: list[int]
    table: list[int]
    slot: int
    adapter: str | None = None
    done: int = 0
    expected: list[Logits] = field(default_factory=list)
    repeated: list[Logits] = field(default_factory=list)
    said: dict[int, Logits] = field(default_factory=dict)

    def span(self, tokens: int) -> Span:
        return Span(self.table, self.done, tokens)


def open_pages(
    model: Module,
    *,
    blocks: int,
    block_tokens: int,
    state_slots: int = 0,
    kv_bits: int | None = None,
    adapters: Adapters | None = None,
) -> PagedModel:
    """A paged model that has passed its self-test, if need be without direct layers. Raises `CannotPage`."""
    adapters = adapters or Adapters()
    reasons = []
    for direct in (True, False):
        paged = PagedModel(
            model,
            blocks=blocks,
            block_tokens=block_tokens,
            state_slots=state_slots,
            direct=direct,
            kv_bits=kv_bits,
            adapters=adapters,
        )
        reason = self_test(model, paged, adapters)
        if reason is None:
            return paged
        reasons.append(reason)
        if not paged.kinds["direct"]:
            break
        del paged  # before the next one makes its pools
    raise CannotPage("; ".join(dict.fromkeys(reasons)))


def self_test(model: Module, paged: PagedModel, adapters: Adapters | None = None) -> str | None:
    """What is wrong with the model over these pools, or None.

    A few random sequences are read in chunks that cross block borders, decoded together in two groups, one of them from
    its first token on, then continued by unlike numbers of tokens; their logits are compared with those of the model
    alone on its own caches, or on rounded ones where the pools are. Where there are adapters, the rows have unlike
    ones. To be called before the pools hold anything, since it uses their blocks and slots.
    """
    adapters = adapters or Adapters()
    try:
        rows = _make_rows(model, paged, [None, *adapters.digests])
        if not rows:
            return f"{paged.blocks} blocks are too few to test with"
        for row in rows:
            with adapters.of_rows([row.adapter]):
                _say_alone(model, paged, row)
        _read_prompts(paged, rows)
        for _ in range(DECODED_TOKENS):
            _advance(paged, rows, [1] * len(rows))
        if not paged.has_state:
            _advance(paged, rows, [1 + place % VERIFIED_TOKENS for place in range(len(rows))])
    except MODEL_ERRORS as error:
        return f"the model fails over a paged cache: {error!r}"
    finally:
        for slot in range(paged.state_slots):
            paged.reset_slot(slot)
    bits, least = paged.kv_bits, LEAST_TOLERANCE
    if bits is not None:
        least, loss = LEAST_ROUNDED_TOLERANCE, _rounding_loss(model)
        if not loss <= MOST_LOSS:
            return f"keys and values of {bits} bits change the logits by {loss:.2g} of their spread, above {MOST_LOSS}"
    return next((reason for row in rows for reason in _differences(row, least)), None)


def _say_alone(model: Module, paged: PagedModel, row: _Row) -> None:
    """What the model alone says to the row's tokens."""
    prompt = len(row.token_ids) - DECODED_TOKENS - VERIFIED_TOKENS
    own = make_prompt_cache if paged.kv_bits is None else rounded_caches
    row.expected, row.repeated = (_alone(model, row.token_ids, part, own) for part in (prompt, PORTION_TOKENS))


def _make_rows(model: Module, paged: PagedModel, adapters: Sequence[str | None]) -> list[_Row]:
    size = paged.block_tokens
    windows = [window for window in paged.windows if window + size <= LONGEST_TOKENS]
    prompts = [max(windows, default=2 * size) + size + 2, 2 * size + 3, size + 1, 1]
    vocabulary = _vocabulary(model)
    rng = np.random.default_rng(7)
    free = rng.permutation(np.arange(1, paged.blocks)).tolist()
    rows: list[_Row] = []
    for prompt in prompts:
        tokens = prompt + DECODED_TOKENS + VERIFIED_TOKENS
        count = -(-tokens // size)
        if count > len(free) or (paged.has_state and len(rows) == paged.state_slots):
            continue
        ids = rng.integers(0, vocabulary, tokens).tolist()
        rows.append(_Row(ids, [free.pop() for _ in range(count)], len(rows), adapters[len(rows) % len(adapters)]))
    return rows


def _vocabulary(model: Module) -> int:
    """How many of the model's tokens are drawn from: half, since the last ones may be special."""
    return max(int(model(mx.array([[0]]), cache=make_prompt_cache(model)).shape[-1]) // 2, 1)


def _alone(
    model: Module, token_ids: Sequence[int], portion_tokens: int, make_caches: Callable[[Module], list[Any]]
) -> list[Logits]:
    """The logits after each token, from the model on mlx-lm's caches, all but the last few tokens in portions."""
    caches, logits = make_caches(model), []
    last = len(token_ids) - DECODED_TOKENS - VERIFIED_TOKENS
    cuts = [*range(0, last, portion_tokens), *range(last, len(token_ids) + 1)]
    for start, end in pairwise(cuts):
        logits += list(_floats(model(mx.array([token_ids[start:end]]), cache=caches)[0]))
    return logits


def _read_prompts(paged: PagedModel, rows: Sequence[_Row]) -> None:
    """All but the last prompt token, two thirds first."""
    for share in (2 / 3, 1.0):
        counts = []
        for row in rows:
            prompt = len(row.token_ids) - DECODED_TOKENS - VERIFIED_TOKENS - 1
            counts.append(min(max(round(prompt * share), 1), prompt) - row.done)
        members = [(row, count) for row, count in zip(rows, counts, strict=True) if count > 0]
        batches = [members] if paged.batched_prefill else [[member] for member in members]
        for batch in batches:
            if batch:
                _forward(paged, [row for row, _ in batch], [count for _, count in batch])
                mx.eval(paged.pools())


def _advance(paged: PagedModel, rows: Sequence[_Row], counts: Sequence[int]) -> None:
    """One forward of all rows, the first in a group of its own; keeps the logits."""
    groups = [Group(0, 1), Group(1, len(rows) - 1)] if len(rows) > 1 else None
    before = [row.done for row in rows]
    logits = _forward(paged, rows, counts, groups)
    for place, (row, start, count) in enumerate(zip(rows, before, counts, strict=True)):
        for index, one in enumerate(_floats(logits[place, :count])):
            row.said[start + index] = one


def _forward(
    paged: PagedModel, rows: Sequence[_Row], counts: Sequence[int], groups: Sequence[Group] | None = None
) -> mx.array:
    layout = ForwardLayout(
        [row.span(count) for row, count in zip(rows, counts, strict=True)],
        block_tokens=paged.block_tokens,
        groups=groups,
    )
    ids = np.zeros((layout.rows, layout.tokens), dtype=np.int32)
    for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
        ids[place, :count] = row.token_ids[row.done : row.done + count]
        row.done += count
    slots = [row.slot for row in rows] if paged.has_state else ()
    return paged.forward(mx.array(ids), layout, slots, [row.adapter for row in rows])


def _floats(logits: mx.array) -> Logits:
    return np.array(logits.astype(mx.float32))


def _differences(row: _Row, least: float) -> Iterator[str]:
    """A row is wrong if half of its positions are: at a single one, two experts may have been equally good."""
    difference = median(_error(said, row.expected[position]) for position, said in row.said.items())
    noise = median(_error(row.repeated[position], row.expected[position]) for position in row.said)
    if not difference <= min(max(NOISE_TIMES * noise, least), MOST_TOLERANCE):
        yield f"logits over pools differ from the model's own by {difference:.2g} of their spread"


def _rounding_loss(model: Module) -> float:
    """How much rounding changes the logits of the model alone, in the middle of the positions of a few sequences.

    Not of the rows above: where there are few blocks, they are few and short, and a first token for which another
    expert is chosen changes all that follow.
    """
    rng = np.random.default_rng(7)
    errors = []
    for ids in rng.integers(0, _vocabulary(model), (LOSS_SEQUENCES, LOSS_TOKENS)).tolist():
        plain, rounded = (_alone(model, ids, LOSS_TOKENS, make) for make in (make_prompt_cache, rounded_caches))
        errors += [_error(said, expected) for said, expected in zip(rounded, plain, strict=True)]
    return median(errors)


def _error(said: Logits, expected: Logits) -> float:
    """Root mean square difference by the standard deviation of what was expected; infinite if either is not finite."""
    finite = np.isfinite(expected)
    if not finite.any() or not np.array_equal(finite, np.isfinite(said)):
        return float("inf")
    spread = float(np.std(expected[finite]))
    difference = float(np.sqrt(np.mean(np.square(said[finite] - expected[finite]))))
    return difference / spread if spread > 0 else difference
