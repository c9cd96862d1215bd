"""Tiny encoders with random weights as loadable folders, in the architectures that embed and score."""

from __future__ import annotations

import importlib
import json
import string
from pathlib import Path
from typing import Any

import workers.engine  # noqa: F401 - first, because it loads the BLAS that MLX is to use

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten, tree_map  # isort: skip
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # isort: skip
from workers.encoder.cross import BertScorer, XlmRobertaScorer  # isort: skip

SPECIAL = ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
CONTEXT_TOKENS = 96
DECODER = {"num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
EMBEDDERS: dict[str, dict[str, Any]] = {
    "bert": {"architectures": ["BertModel"]},
    "xlm-roberta": {"architectures": ["XLMRobertaModel"], "max_position_embeddings": CONTEXT_TOKENS + 2},
    "modernbert": {"architectures": ["ModernBertModel"], "local_attention": 8},
    "qwen3": {"architectures": ["Qwen3Model"], **DECODER},
}
SCORERS: dict[str, dict[str, Any]] = {
    "bert": {"architectures": ["BertForSequenceClassification"]},
    "xlm-roberta": {
        "architectures": ["XLMRobertaForSequenceClassification"],
        "max_position_embeddings": CONTEXT_TOKENS + 2,
    },
    "modernbert": {"architectures": ["ModernBertForSequenceClassification"], "local_attention": 8},
}


def letter_tokenizer() -> Tokenizer:
    """One token per lower-case letter, with [CLS] and [SEP] around a text and between the texts of a pair."""
    letters = string.ascii_lowercase + string.digits
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=10_000))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(max_length=16)  # as many files have it: to be switched off by who loads them
    return tokenizer


def write_embedder(folder: Path, kind: str, *, pooling: str | None = "mean", **changes: Any) -> Path:
    """A model that embeds; `pooling` is what its sentence-transformers files say (None: it has none)."""
    module = importlib.import_module(f"mlx_embeddings.models.{kind.replace('-', '_')}")
    mx.random.seed(5)
    config = _config(kind) | EMBEDDERS[kind] | changes
    _write(folder, config, module.Model(module.ModelArgs.from_dict(config)))
    if pooling is not None:
        write_pooling(folder, {f"pooling_mode_{pooling}": True, "word_embedding_dimension": SIZES["hidden_size"]})
    return folder


def write_pooling(folder: Path, pooling: dict[str, Any], *more: str) -> None:
    """sentence-transformers' files; `more` are types of modules behind the pooling."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(("Pooling", *more), 1)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def write_scorer(folder: Path, kind: str, **changes: Any) -> Path:
    """A cross-encoder with one label."""
    mx.random.seed(5)
    config = _config(kind) | SCORERS[kind] | {"id2label": {"0": "LABEL_0"}} | changes
    module = importlib.import_module(f"mlx_embeddings.models.{kind.replace('-', '_')}")
    scorers: dict[str, Any] = {"bert": BertScorer, "xlm-roberta": XlmRobertaScorer, "modernbert": module.Model}
    arguments = module.ModelArgs.from_dict(config)
    if kind == "modernbert":
        arguments.is_regression = True
    _write(folder, config, scorers[kind](arguments))
    return folder


def _config(kind: str) -> dict[str, Any]:
    size = letter_tokenizer().get_vocab_size()
    fixed = {"pad_token_id": 1, "max_position_embeddings": CONTEXT_TOKENS, "classifier_pooling": "mean"}
    return {"model_type": kind, "vocab_size": size, **SIZES, **fixed}


def _random(weight: mx.array) -> mx.array:
    """Matrices large enough that texts differ; norms and biases near what they are."""
    return (
        mx.random.normal(weight.shape, scale=0.5) if weight.ndim > 1 else weight + mx.random.normal(weight.shape) / 10
    )


def _write(folder: Path, config: dict[str, Any], network: Any) -> None:
    weights = tree_map(_random, network.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(weights)), metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = letter_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
