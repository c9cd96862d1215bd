"""What a model is for, by its files: to generate text, to embed it, to score pairs of texts; and whether it sees."""

import json
import struct
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from workers.engine.errors import ConfigMissing, UnsupportedModel


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

LONGEST_HEADER_BYTES: Final = 100 << 20
"""Of a safetensors file, as its specification bounds it."""

PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
CLASSIFIER: Final = "ForSequenceClassification"
AUDIO: Final = frozenset(
    {
        *("whisper", "parakeet", "moonshine", "wav2vec2", "wav2vec2-bert", "hubert", "qwen3_asr", "granite_speech"),
        *("csm", "bark", "vits", "speecht5", "musicgen", "encodec", "dac", "kokoro", "qwen3_tts", "voxtral_tts"),
    }
)
"""Architectures that hear or speak, which nothing here runs."""

AUDIO_MARKS: Final = ("ForSpeechSeq2Seq", "ForCTC", "ForAudioClassification", "TextToWaveform", "TextToSpeech")
"""Of the names of their classes."""

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


def is_audio(config: dict[str, Any]) -> bool:
    """Is it a model that hears or speaks, and does nothing else?"""
    names = [str(name) for name in config.get("architectures") or ()]
    return config["model_type"] in AUDIO or any(mark in name for mark in AUDIO_MARKS for name in names)


def task_of(folder: Path) -> Task:
    """What the model in a folder was made for. Raises `ConfigMissing`, and `UnsupportedModel` for audio."""
    config = read_config(folder)
    if is_audio(config):
        raise UnsupportedModel(f"{folder.name} is a model for audio ({config['model_type']}), which is not served here")
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
    """Of all weight files."""
    return [name for path in folder.glob("model*.safetensors") for name in read_header(path)]


def read_header(path: Path) -> dict[str, Any]:
    """The arrays of a weight file by name, from its header (https://github.com/huggingface/safetensors, "Format").

    Raises `UnsupportedModel` for a file that is none.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LONGEST_HEADER_BYTES:
                raise UnsupportedModel(f"{path.name} is torn: its header would have {length} bytes")
            header = json.loads(file.read(length))
    except (struct.error, ValueError) as error:
        raise UnsupportedModel(f"{path.name} is torn: its header cannot be read ({error})") from error
    if not isinstance(header, dict):
        raise UnsupportedModel(f"{path.name} is torn: its header is no object")
    header.pop("__metadata__", None)
    return header
