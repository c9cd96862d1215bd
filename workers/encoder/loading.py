"""From a model's name to an encoder: which network, how its outputs are pooled, what its files say of its use.

Pooling follows the model's own sentence-transformers files where it has them, and mlx-embeddings where it has none. A
file that asks for what cannot be done (another pooling, a layer behind it) refuses the model: its vectors would be
wrong, and nothing would show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_embeddings.models import bert, xlm_roberta
from mlx_embeddings.utils import load_model as load_with_mlx_embeddings
from mlx_lm.utils import dequantize_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from workers.encoder.cross import BertScorer, XlmRobertaScorer
from workers.encoder.engine import EncoderEngine
from workers.encoder.networks import Encoder, Pooling
from workers.engine import Backend, LoadedEngine, ModelInfo, Task, UnsupportedModel, find_model, installed_backend
from workers.engine.loading import check_folder, count_parameters, fast_tokenizer, weight_bytes

STEP_TOKENS: Final = {Backend.CPU: 512, Backend.METAL: 16_384, Backend.CUDA: 16_384}
MAX_CONTEXT_TOKENS: Final = 8192
"""Attention over one input takes memory with the square of its length."""

CPU_CACHE_LIMIT_BYTES: Final = 1 << 30

NATIVE_POOLING: Final = {
    "bert": Pooling.MEAN,
    "xlm-roberta": Pooling.MEAN,
    "modernbert": None,  # as its configuration says
    "qwen3": Pooling.LAST,
    "gemma3_text": Pooling.MEAN,
    "llama_bidirec": Pooling.MEAN,
}
"""What mlx-embeddings does, by architecture: those that embed."""

BEHIND_POOLING: Final = {"gemma3_text": {"Dense"}}
"""Modules behind the pooling that mlx-embeddings computes, by architecture."""

POOLING_NAMES: Final = {
    "cls": Pooling.FIRST,
    "cls_token": Pooling.FIRST,
    "mean": Pooling.MEAN,
    "mean_tokens": Pooling.MEAN,
    "lasttoken": Pooling.LAST,
}
SCORERS: Final[Mapping[str, tuple[Any, Any] | None]] = {
    "bert": (BertScorer, bert.ModelArgs),
    "xlm-roberta": (XlmRobertaScorer, xlm_roberta.ModelArgs),
    "modernbert": None,  # mlx-embeddings has its head
}


def load_encoder(model: str, *, task: Task, step_tokens: int | None = None) -> LoadedEngine:
    """Load a model (a folder or a Hugging Face id) that embeds or scores, in the thread that will run it.

    `step_tokens`: what one step computes (default: 512 on a CPU, 16,384 on a GPU). Raises `ModelError`.
    """
    installed = installed_backend()
    if installed is Backend.CPU:
        mx.set_cache_limit(CPU_CACHE_LIMIT_BYTES)
    folder = find_model(model)
    config = check_folder(folder)
    try:
        tokenizer = _tokenizer(folder)
        network = _scorer(folder, config) if task is Task.RERANK else _embedder(folder, config)
        parameters = count_parameters(network)
        if installed is Backend.CPU:
            network = dequantize_model(network)
            network.set_dtype(mx.float32)
        mx.eval(network.parameters())
        encoder = _encoder(folder, config, network, task)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        kind = config["model_type"]
        raise UnsupportedModel(f"mlx-embeddings cannot load {folder} ({kind}) to {task}: {error}") from error
    info = _describe(folder, config, encoder, tokenizer, parameters, task)
    return LoadedEngine(EncoderEngine(encoder, step_tokens=step_tokens or STEP_TOKENS[installed]), info)


def _tokenizer(folder: Path) -> Tokenizer:
    """Without the truncation and padding that tokenizer files may ask for: nothing is cut unless a caller says so."""
    tokenizer = fast_tokenizer(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False), folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _embedder(folder: Path, config: dict[str, Any]) -> Any:
    _require(config["model_type"] in NATIVE_POOLING, f"it is none of {', '.join(sorted(NATIVE_POOLING))}")
    changes = {}
    if config["model_type"] == "modernbert" and (asked := pooling_asked(folder, "modernbert")):
        _require(asked is not Pooling.LAST, "ModernBERT's last token is no summary")
        changes = {"classifier_pooling": "cls" if asked is Pooling.FIRST else "mean"}
    return load_with_mlx_embeddings(folder, lazy=True, model_config=changes, path_to_repo=str(folder))


def _scorer(folder: Path, config: dict[str, Any]) -> Any:
    kind = config["model_type"]
    _require(kind in SCORERS, f"cross-encoders are {', '.join(sorted(SCORERS))}")
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    _require(labels == 1, f"a cross-encoder gives one score, this one has {labels} labels")
    classes = SCORERS[kind]
    options: dict[str, Any] = {"lazy": True, "path_to_repo": str(folder)}
    if classes is None:
        options["model_config"] = {"is_regression": True}  # logits: what becomes of them is decided here
    else:
        options["get_model_classes"] = lambda config: (*classes, None, None)
    return load_with_mlx_embeddings(folder, **options)


def pooling_asked(folder: Path, model_type: str) -> Pooling | None:
    """What the model's own files ask for; None where they say nothing. Raises ValueError for what is not done."""
    modules = _json(folder / "modules.json")
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules or ()]
    known = {"Transformer", "Pooling", "Normalize"} | BEHIND_POOLING.get(model_type, set())
    _require(set(kinds) <= known, f"modules.json names {', '.join(sorted(set(kinds) - known))}")
    paths = [module["path"] for module, kind in zip(modules or (), kinds, strict=True) if kind == "Pooling"]
    _require(all(".." not in path for path in paths), "modules.json leaves the model's folder")
    asked = _json(folder / (paths[0] if paths else "1_Pooling") / "config.json")
    if asked is None:
        return None
    names = [asked["pooling_mode"]] if "pooling_mode" in asked else []
    names += [key.removeprefix("pooling_mode_") for key, on in asked.items() if on is True and "pooling_mode_" in key]
    _require(len(names) == 1 and names[0] in POOLING_NAMES, f"pooling {' and '.join(map(str, names))} is not done")
    return POOLING_NAMES[names[0]]


def _encoder(folder: Path, config: dict[str, Any], network: Module, task: Task) -> Encoder:
    kind = config["model_type"]
    pooling = Pooling.CLASSIFIER if task is Task.RERANK else _pooling(folder, config)
    activation = str((config.get("sentence_transformers") or {}).get("activation_fn", "Sigmoid"))
    pad_id = config.get("pad_token_id")
    encoder = Encoder(
        network=network,
        description=f"mlx-embeddings, {kind}, {pooling}",
        pooling=pooling,
        dimensions=0,
        vocab_size=config["vocab_size"],
        context_tokens=context_tokens(folder, config),
        pad_id=pad_id if isinstance(pad_id, int) else 0,
        token_types=kind == "bert",
        float_mask=kind == "modernbert",
        sigmoid=activation.rpartition(".")[2] != "Identity",
    )
    return encoder.measured()


def _pooling(folder: Path, config: dict[str, Any]) -> Pooling:
    kind = config["model_type"]
    asked = pooling_asked(folder, kind)
    if kind == "modernbert":
        is_unpooled = config.get("architectures", ["ModernBertForMaskedLM"]) == ["ModernBertForMaskedLM"]
        return (asked or Pooling.MEAN) if is_unpooled else Pooling.LIBRARY
    return Pooling.LIBRARY if asked in (None, NATIVE_POOLING[kind]) else asked


def context_tokens(folder: Path, config: dict[str, Any]) -> int:
    """The longest input: what the network has positions for, what its authors meant it for, what memory allows."""
    positions = config.get("max_position_embeddings") or MAX_CONTEXT_TOKENS
    if config["model_type"] == "xlm-roberta":
        positions -= config.get("pad_token_id", 1) + 1  # positions are counted from behind the padding's
    meant = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length") or positions
    return int(min(positions, meant, MAX_CONTEXT_TOKENS))


def _describe(
    folder: Path, config: dict[str, Any], encoder: Encoder, tokenizer: Tokenizer, parameters: int, task: Task
) -> ModelInfo:
    short = config.get("matryoshka_dimensions") or (() if config.get("is_matryoshka") else None)
    return ModelInfo(
        path=folder,
        model_type=config["model_type"],
        context_tokens=encoder.context_tokens,
        vocab_size=encoder.vocab_size,
        parameters=parameters,
        weight_bytes=weight_bytes(encoder.network),
        eos_token_ids=(),
        tokenizer_json=tokenizer.to_str(),
        chat_template=None,
        special_tokens={},
        think_start=None,
        think_end=None,
        has_tool_calling=False,
        tool_format=None,
        tool_call_start=None,
        tool_call_end=None,
        task=task,
        dimensions=encoder.dimensions if task is Task.EMBED else None,
        short_dimensions=tuple(short) if short is not None and task is Task.EMBED else None,
    )


def _json(file: Path) -> Any:
    """A file's content, None where there is no such file. Raises ValueError."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
