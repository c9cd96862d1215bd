"""Cross-encoders that mlx-embeddings has no head for: its BERT and XLM-RoBERTa with their classifiers on top.

The layout of the weights is that of transformers' `BertForSequenceClassification` and
`XLMRobertaForSequenceClassification`. Both give logits of shape (inputs, 1).
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx_embeddings.models import bert, xlm_roberta
from mlx_embeddings.models.base import BaseModelOutput


class BertScorer(Module):
    """A linear layer over BERT's pooled first token."""

    def __init__(self, config: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.config = config
        self.bert = bert.Model(config)
        self.classifier = Linear(config.hidden_size, 1)

    def __call__(self, input_ids: mx.array, token_type_ids: mx.array, attention_mask: mx.array) -> BaseModelOutput:
        """Logits as `pooler_output`."""
        inner = self.bert(input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask)
        return BaseModelOutput(pooler_output=self.classifier(inner.pooler_output))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Without the buffers of old checkpoints."""
        return {name: weight for name, weight in weights.items() if "position_ids" not in name}


class _Head(Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dense = Linear(hidden_size, hidden_size)
        self.out_proj = Linear(hidden_size, 1)

    def __call__(self, first: mx.array) -> mx.array:
        scores: mx.array = self.out_proj(mx.tanh(self.dense(first)))
        return scores


class XlmRobertaScorer(Module):
    """Two layers over XLM-RoBERTa's first token."""

    def __init__(self, config: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        config.add_pooling_layer = False
        self.config = config
        self.roberta = xlm_roberta.Model(config)
        self.classifier = _Head(config.hidden_size)

    def __call__(self, input_ids: mx.array, attention_mask: mx.array) -> BaseModelOutput:
        """Logits as `pooler_output`."""
        inner = self.roberta(input_ids, attention_mask=attention_mask)
        return BaseModelOutput(pooler_output=self.classifier(inner.last_hidden_state[:, 0]))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Without the buffers of old checkpoints."""
        return {name: weight for name, weight in weights.items() if "position_ids" not in name}
