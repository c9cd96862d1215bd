"""Writes the trained network in mlx-lm's layout: model.safetensors, config.json and generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from .network import Parameters, Shape
from .samples import END_OF_TEXT, END_OF_TURN, MODEL_FOLDER


def export(parameters: Parameters, shape: Shape, folder: Path) -> None:
    """Write weights in float16 and the two configurations."""
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    ends = [tokenizer.token_to_id(END_OF_TURN), tokenizer.token_to_id(END_OF_TEXT)]
    weights = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in parameters.items()}
    written = folder / "model.safetensors"
    save_file(weights, written, metadata={"format": "mlx"})
    written.chmod(0o644)
    config = {**shape.config(), "torch_dtype": "float16", "bos_token_id": None, "eos_token_id": ends}
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1]})


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
