"""Greedy decoding over the pools as plainly as it can be done, and the same by the model alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import make_prompt_cache

from workers.engine.paged.cache import PagedModel
from workers.engine.paged.layout import ForwardLayout, Group, Span

import mlx.core as mx  # isort: skip

PROMPTS = (3, 13, 14, 22, 7)
SIZE = 4


@dataclass
class Row:
    """A sequence over the pools: its tokens so far, of which `done` are in them."""

    token_ids: list[int]
    table: list[int]
    slot: int
    done: int = 0
    logits: list[mx.array] = field(default_factory=list)


class Rows:
    """Greedy decoding of several rows together, as plainly as it can be done."""

    def __init__(self, model: PagedModel, prompts: Sequence[Sequence[int]], *, most_tokens: int = 48) -> None:
        self.model = model
        size = model.block_tokens
        blocks = np.random.default_rng(1).permutation(np.arange(1, model.blocks)).tolist()
        count = -(-most_tokens // size)
        self.rows = [Row(list(ids), [blocks.pop() for _ in range(count)], slot) for slot, ids in enumerate(prompts)]

    def forward(self, rows: Sequence[Row], counts: Sequence[int], groups: list[Group] | None = None) -> mx.array:
        spans = [Span(row.table, row.done, count) for row, count in zip(rows, counts, strict=True)]
        layout = ForwardLayout(spans, block_tokens=self.model.block_tokens, groups=groups)
        ids = np.zeros((layout.rows, layout.tokens), dtype=np.int32)
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            ids[place, :count] = row.token_ids[row.done : row.done + count]
            row.done += count
        return self.model.forward(mx.array(ids), layout, [r.slot for r in rows] if self.model.has_state else ())

    def read(self, chunk: int) -> None:
        """All but the last token of every prompt."""
        while waiting := [row for row in self.rows if row.done < len(row.token_ids) - 1]:
            for batch in [waiting] if self.model.batched_prefill else [[row] for row in waiting]:
                self.forward(batch, [min(chunk, len(row.token_ids) - 1 - row.done) for row in batch])
                mx.eval(self.model.pools())

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            logits = self.forward(self.rows, [1] * len(self.rows))[:, -1]
            for row, token, one in zip(self.rows, best_of(logits), logits, strict=True):
                row.token_ids.append(token)
                row.logits.append(one)


def best_of(logits: mx.array) -> list[int]:
    """The most likely token of each row."""
    return [int(token) for token in np.asarray(mx.argmax(logits, axis=-1))]


def prompts_of(lengths: Sequence[int] = PROMPTS, seed: int = 4) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 150, length).tolist() for length in lengths]


def alone(network: Module, prompt: Sequence[int], steps: int) -> tuple[list[int], list[mx.array]]:
    """Greedy tokens of the model on its own caches, prompt included, and the logits they were taken from."""
    caches, said, logits = make_prompt_cache(network), list(prompt), []
    last = network(mx.array([prompt]), cache=caches)[0, -1]
    for _ in range(steps):
        logits.append(last)
        said += best_of(last[None])
        last = network(mx.array([said[-1:]]), cache=caches)[0, -1]
    return said, logits


def paged(network: Module, **options: Any) -> PagedModel:
    return PagedModel(network, **{"blocks": 90, "block_tokens": SIZE, "state_slots": 6, **options})
