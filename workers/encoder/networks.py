"""A network of mlx-embeddings as a function from token ids to vectors: masks, pooling, and the model's own settings.

Inputs are padded on the right to the longest of a forward and masked, so that what a neighbour adds to an input is
exactly zero; what remains of it is the order in which a matrix product sums (about 1e-7 in float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module


class Pooling(StrEnum):
    """How a network's outputs become one vector. LIBRARY: as mlx-embeddings does it; CLASSIFIER: a pair's score."""

    LIBRARY = "as mlx-embeddings pools"
    MEAN = "mean of all tokens"
    FIRST = "first token"
    LAST = "last token"
    CLASSIFIER = "classifier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One loaded network.

    `context_tokens` is the longest input. `token_types`: it tells the texts of a pair apart by a number per token.
    `float_mask`: it wants its attention mask as floats. `sigmoid`: scores are probabilities.
    """

    network: Module
    description: str
    pooling: Pooling
    dimensions: int
    vocab_size: int
    context_tokens: int
    pad_id: int
    token_types: bool = False
    float_mask: bool = False
    sigmoid: bool = False

    def measured(self) -> Encoder:
        """The same, with the dimensions that a forward has shown. Raises ValueError where it gives no vectors."""
        shape = self.vectors([(self.pad_id, self.pad_id)], [None]).shape
        if len(shape) != 2:
            raise ValueError(f"the network gives numbers of shape {shape}, not one vector per input")
        return replace(self, dimensions=shape[1])

    def vectors(self, inputs: Sequence[Sequence[int]], second_at: Sequence[int | None]) -> np.ndarray:
        """One forward: float32 of shape (inputs, dimensions)."""
        lengths = [len(ids) for ids in inputs]
        longest = max(lengths)
        padded = np.full((len(inputs), longest), self.pad_id, dtype=np.int32)
        for row, ids in zip(padded, inputs, strict=True):
            row[: len(ids)] = ids
        mask = (np.arange(longest)[None, :] < np.array(lengths)[:, None]).astype(np.int32)
        kwargs: dict[str, Any] = {"attention_mask": mx.array(mask, mx.float32 if self.float_mask else mx.int32)}
        if self.token_types:
            kwargs["token_type_ids"] = mx.array(_types(mask, second_at))
        output = self.network(mx.array(padded), **kwargs)
        return np.array(self._pooled(output, lengths).astype(mx.float32))

    def _pooled(self, output: Any, lengths: list[int]) -> mx.array:
        if self.pooling is Pooling.LIBRARY:
            embedded: mx.array = output.text_embeds
            return embedded
        if self.pooling is Pooling.CLASSIFIER:
            logits: mx.array = output.pooler_output
            return mx.sigmoid(logits) if self.sigmoid else logits
        hidden: mx.array = output.last_hidden_state.astype(mx.float32)
        count = mx.array(lengths)
        if self.pooling is Pooling.FIRST:
            pooled = hidden[:, 0]
        elif self.pooling is Pooling.LAST:
            pooled = hidden[mx.arange(len(lengths)), count - 1]
        else:
            kept = mx.arange(hidden.shape[1])[None, :] < count[:, None]
            pooled = (hidden * kept[..., None]).sum(axis=1) / count[:, None]
        return pooled / mx.maximum(mx.linalg.norm(pooled, axis=-1, keepdims=True), 1e-9)


def _types(mask: np.ndarray, second_at: Sequence[int | None]) -> np.ndarray:
    """0 for the first text and padding, 1 for the second text; shape as `mask`."""
    starts = np.array([mask.shape[1] if start is None else start for start in second_at])
    is_second: np.ndarray = (np.arange(mask.shape[1])[None, :] >= starts[:, None]) & (mask == 1)
    return is_second.astype(np.int32)
