"""What a model's files say about it, without its weights: kind, size, context, marks of calls and thoughts.

The same rules as when it is loaded: our own for tasks, mlx-lm's for calls and thoughts, which are given the files
instead of a tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from workers.engine import Task, UnsupportedModel, task_of
from workers.engine.loading import context_tokens
from workers.engine.tasks import PROCESSOR_FILES, SEEING, is_audio, read_config, read_header

import mlx_lm.tokenizer_utils as mlx_lm_tokenizers  # isort: skip  (after the engine, which chooses MLX's BLAS)
from mlx_lm.utils import MODEL_REMAPPING  # isort: skip

_infer_tool_parser: Callable[[Any], str | None] = mlx_lm_tokenizers._infer_tool_parser
_infer_thinking: Callable[[Any], tuple[Any, ...]] = mlx_lm_tokenizers._infer_thinking
INDEX: Final = "model.safetensors.index.json"
PACKED: Final = "U32"
"""What mlx packs quantized weights into; their scales and biases lie beside them."""


class Kind(StrEnum):
    """What a model is for."""

    TEXT = "text"
    VISION = "vision"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    AUDIO = "audio"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One array of a weight file."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """`parameters` as published: a quantized weight counts as many as it stands for; None where weights are missing.

    `refused` says why it cannot be served here; empty where it can. `cache_bytes_per_token` is what keys and values
    of one token take in 16 bits, None where the configuration does not tell.
    """

    kind: Kind
    model_type: str
    context_tokens: int | None
    parameters: int | None
    weight_bytes: int
    quantization: str | None
    has_chat_template: bool
    tool_format: str | None
    think_start: str | None
    think_end: str | None
    cache_bytes_per_token: int | None
    refused: str


def check_kind(folder: Path) -> Kind:
    """The kind of model in a folder. Raises ConfigMissing, and UnsupportedModel where it cannot be served here."""
    config = read_config(folder)
    kind = kind_of(folder, config)
    if why := _why_not(folder, config, kind):
        raise UnsupportedModel(why)
    return kind


def kind_of(folder: Path, config: Mapping[str, Any]) -> Kind:
    """By the configuration and by which files there are; the weights need not be there yet. Raises ConfigMissing."""
    if is_audio(dict(config)):
        return Kind.AUDIO
    by_task = {Task.EMBED: Kind.EMBEDDING, Task.RERANK: Kind.RERANK}
    task = task_of(folder)
    if task in by_task:
        return by_task[task]
    has_eyes = "vision_config" in config or config["model_type"] in SEEING
    has_processor = any((folder / name).exists() for name in PROCESSOR_FILES)
    return Kind.VISION if has_eyes and has_processor else Kind.TEXT


def read_facts(folder: Path) -> ModelFacts:
    """All that the files of a model say. Raises ConfigMissing, and UnsupportedModel where a file is torn."""
    config = read_config(folder)
    kind = kind_of(folder, config)
    tensors = read_headers(sorted(folder.glob("model*.safetensors")))
    papers = Papers(folder)
    think_start, think_end = papers.thoughts()
    return ModelFacts(
        kind=kind,
        model_type=config["model_type"],
        context_tokens=context_tokens(config, papers.longest_tokens),
        parameters=count_parameters(tensors, config) if tensors and not missing_weights(folder) else None,
        weight_bytes=sum(tensor.size_bytes for tensor in tensors.values()),
        quantization=quantization(config),
        has_chat_template=papers.chat_template is not None or papers.config.get("chat_template_type") is not None,
        tool_format=papers.tool_format(),
        think_start=think_start,
        think_end=think_end,
        cache_bytes_per_token=cache_bytes_per_token(config),
        refused=_why_not(folder, config, kind),
    )


def _why_not(folder: Path, config: Mapping[str, Any], kind: Kind) -> str:
    """Why the farm cannot serve it; empty where it can."""
    model_type = config["model_type"]
    if kind is Kind.AUDIO:
        return f"it is a model for audio ({model_type}), which is not served here"
    if "model_file" in config:
        return f"it wants to run {config['model_file']!r} from its folder, which is never done"
    if kind in (Kind.TEXT, Kind.VISION) and not _known_to_mlx_lm(model_type) and model_type not in SEEING:
        return f"mlx-lm has no implementation of {model_type!r}"
    return ""


def _known_to_mlx_lm(model_type: str) -> bool:
    module = MODEL_REMAPPING.get(model_type, model_type)
    return re.fullmatch(r"[\w-]+", module) is not None and find_spec(f"mlx_lm.models.{module}") is not None


def missing_weights(folder: Path) -> list[str]:
    """Weight files that the index names and that are not there; of a model without an index, its one file."""
    index = _json(folder / INDEX)
    named = sorted(set(index.get("weight_map", {}).values())) if index else []
    missing = [name for name in named if not (folder / name).exists()]
    if not named and not any(folder.glob("model*.safetensors")):
        missing = ["model.safetensors"]
    return missing


def read_headers(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The arrays in weight files, from their headers. Raises UnsupportedModel for a file that is none."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, entry in read_header(path).items():
            try:
                begin, end = entry["data_offsets"]
                tensors[name] = Tensor(entry["dtype"], tuple(entry["shape"]), end - begin)
            except (ValueError, KeyError, TypeError) as error:
                raise UnsupportedModel(f"{path.name} is torn: {name} is not described ({error})") from error
    return tensors


def count_parameters(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """Parameters as published, scales and biases of quantized weights not counted."""
    total = 0
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        weight = tensors.get(f"{stem}.weight")
        if part in ("scales", "biases") and weight is not None and weight.dtype == PACKED:
            continue
        scales = tensors.get(f"{stem}.scales")
        if part == "weight" and tensor.dtype == PACKED and scales is not None:
            total += _product(scales.shape) * _group_size(config, stem)
        else:
            total += _product(tensor.shape)
    return total


def _group_size(config: Mapping[str, Any], layer: str) -> int:
    """How many weights share a scale; a layer may say it for itself."""
    found = _quantization(config)
    own = found.get(layer)
    return int((own if isinstance(own, Mapping) else found).get("group_size") or found.get("group_size") or 64)


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("quantization") or config.get("quantization_config") or {}
    return found if isinstance(found, Mapping) else {}


def quantization(config: Mapping[str, Any]) -> str | None:
    """In words, as `4 bit` or `4 bit mxfp4`; layers that have their own are not told."""
    found = _quantization(config)
    bits, mode = found.get("bits"), found.get("mode") or found.get("quant_method")
    if bits is None:
        return str(mode) if mode else None
    return f"{bits} bit" + (f" {mode}" if mode and mode != "affine" else "")


def cache_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    """Keys and values of one token in 16 bits, all layers; windows and recurrent layers are counted as if they had all.

    Of multi-head latent attention (DeepSeek) what it keeps instead.
    """
    nested = config.get("text_config")
    part: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
    layers, heads = part.get("num_hidden_layers"), part.get("num_attention_heads")
    if not isinstance(layers, int):
        return None
    if isinstance(rank := part.get("kv_lora_rank"), int):
        return 2 * layers * (rank + int(part.get("qk_rope_head_dim") or 0))
    hidden = part.get("hidden_size")
    head = part.get("head_dim") or (hidden // heads if isinstance(hidden, int) and isinstance(heads, int) else None)
    kv_heads = part.get("num_key_value_heads") or heads
    if not isinstance(head, int) or not isinstance(kv_heads, int):
        return None
    return 2 * 2 * layers * kv_heads * head


class Papers:
    """What mlx-lm's rules ask of a tokenizer, from its files alone."""

    def __init__(self, folder: Path) -> None:
        self.config = _json(folder / "tokenizer_config.json")
        self._tokenizer = _json(folder / "tokenizer.json")
        self.chat_template = _chat_template(folder, self.config)
        self.longest_tokens = float(_number(self.config.get("model_max_length")))

    def get_vocab(self) -> dict[str, int]:
        """Tokens, with those that were added."""
        vocabulary = self._tokenizer.get("model", {}).get("vocab", {})
        added = {token["content"]: token["id"] for token in self._tokenizer.get("added_tokens", ())}
        return (dict(vocabulary) if isinstance(vocabulary, dict) else {}) | added

    def encode(self, _text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Ids are not asked for here."""
        assert not add_special_tokens
        return ()

    def tool_format(self) -> str | None:
        """The name of mlx-lm's parser for the model's calls."""
        named = self.config.get("tool_parser_type")
        found = named if isinstance(named, str) else _infer_tool_parser(self)
        return found if found else None

    def thoughts(self) -> tuple[str | None, str | None]:
        """What stands before and behind thoughts."""
        start, end, *_ = _infer_thinking(self)
        return start, end


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """From its own file, or from the tokenizer's configuration; "default" of several."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    template = _json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _json(path: Path) -> dict[str, Any]:
    """An object in a file; empty where there is none. Raises UnsupportedModel for a file that is torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UnsupportedModel(f"{path.name} is torn: it is no JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _product(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
