"""What a model is for, by its files: to generate text, to embed it, to score pairs of texts; and whether it sees."""

import json
import struct
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from workers.engine.errors import ConfigMissing


class Task(StrEnum):
    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"


ENCODERS: Final = frozenset({"bert", "xlm-roberta", "modernbert", "llama_bidirec"})
"""Architectures that generate nothing."""

SEEING: Final = frozenset(
    {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "pixtral", "mistral3", "idefics3", "smolvlm"}
)
"""Architectures whose images we know how to count (workers/vision)."""

PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
CLASSIFIER: Final = "ForSequenceClassification"
POOLING_MARKS: Final = ("modules.json", "config_sentence_transformers.json", "1_Pooling")
"""Files that say how a network's outputs become one vector (sentence-transformers' layout)."""


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`. Raises `ConfigMissing`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigMissing(f"{folder} has no config.json: it is not a model folder") from error
    except ValueError as error:
        raise ConfigMissing(f"{folder / 'config.json'} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ConfigMissing(f"{folder / 'config.json'} does not name a model_type")
    return config


def task_of(folder: Path) -> Task:
    """What the model in a folder was made for. Raises `ConfigMissing`."""
    config = read_config(folder)
    if any(CLASSIFIER in str(name) for name in config.get("architectures") or ()):
        return Task.RERANK
    if config["model_type"] in ENCODERS or any((folder / mark).exists() for mark in POOLING_MARKS):
        return Task.EMBED
    return Task.GENERATE


def can_see(folder: Path) -> bool:
    """Is this a model for images that we serve? Conversions for text alone have neither processor nor such weights.

    Raises `ConfigMissing`.
    """
    if read_config(folder)["model_type"] not in SEEING or task_of(folder) is not Task.GENERATE:
        return False
    has_processor = any((folder / name).exists() for name in PROCESSOR_FILES)
    return has_processor and any("vision" in name or "visual" in name for name in _weight_names(folder))


def _weight_names(folder: Path) -> list[str]:
    """Of all weight files, from their headers (https://github.com/huggingface/safetensors, "Format")."""
    names: list[str] = []
    for path in folder.glob("model*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            names += json.loads(file.read(length))
    return names
