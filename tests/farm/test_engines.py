"""Models of several kinds in a real farm: each is served by the paged engine, and operators see how."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx2
import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from bench.models import write_tokenizer
from bench.tiny_models import tiny_config, tiny_model

VOCAB_TOKENS = 1536  # what the tokenizer knows, rounded up
PROMPT = [(index * 37) % 1000 + 100 for index in range(100)]
KINDS = {"gemma3_text": "window", "qwen3_moe": "direct", "jamba": "state"}


def model_folder(path: Path, architecture: str) -> Path:
    """A tiny model with random weights, as a folder that mlx-lm loads."""
    path.mkdir()
    network = tiny_model(architecture, vocab_size=VOCAB_TOKENS)
    weights = dict(cast(Any, tree_flatten(cast(Any, network).parameters())))
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = {**tiny_config(architecture, vocab_size=VOCAB_TOKENS), "eos_token_id": 0}
    if "query_pre_attn_scalar" in config:  # transformers reads the file too, and wants an integer
        config["query_pre_attn_scalar"] = int(config["query_pre_attn_scalar"])
    (path / "config.json").write_text(json.dumps(config))
    write_tokenizer(path)
    return path


def completion(url: str, model: str, **changes: Any) -> list[str]:
    """Twice the same text."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 20, "temperature": 0, "ignore_eos": True, **changes}
    answers = [httpx2.post(f"{url}/v1/completions", json=body, timeout=60) for _ in range(2)]
    return [answer.raise_for_status().json()["choices"][0]["text"] for answer in answers]


@pytest.mark.parametrize(("architecture", "kind"), KINDS.items())
def test_a_model_of_this_kind_is_served_by_blocks_and_shares_what_it_has_computed(
    farm: Any, eventually: Callable[..., Any], tmp_path: Path, architecture: str, kind: str
) -> None:
    folder = model_folder(tmp_path / architecture, architecture)
    farm.start("workers", FARM_MODEL=str(folder), FARM_MODEL_NAME=architecture)
    first, second = completion(farm.url, architecture)
    assert first == second != ""

    def status() -> dict[str, Any]:
        models = httpx2.get(f"{farm.url}/admin/models/status").json()["data"]
        return next(model for model in models if model["name"] == architecture)

    eventually(lambda: (status()["prefix_hit_rate"] or 0) > 0)
    shown = status()
    assert shown["engine"] == "paged"
    assert kind in shown["engine_description"]
    assert shown["used_blocks"] == 0
    assert shown["cached_blocks"] > 0
    assert shown["total_blocks"] > shown["cached_blocks"]
    metrics = httpx2.get(f"{farm.url}/metrics").text
    assert f'farm_prefix_cache_hits_total{{model_name="{architecture}"' in metrics


def test_operators_see_that_keys_and_values_are_kept_in_8_bits(farm: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "rounded", "qwen3")
    farm.start("workers", FARM_MODEL=str(folder), FARM_MODEL_NAME="rounded", FARM_KV_BITS="8")
    first, second = completion(farm.url, "rounded")
    assert first == second != ""
    models = httpx2.get(f"{farm.url}/admin/models/status").json()["data"]
    shown = next(model for model in models if model["name"] == "rounded")
    assert "keys and values in 8 bits" in shown["engine_description"]


def test_a_draft_model_makes_no_difference_but_in_the_figures(
    farm: Any, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "llama", "llama")
    farm.start("workers", FARM_MODEL=str(folder), FARM_MODEL_NAME="alone")
    farm.start("workers", FARM_MODEL=str(folder), FARM_MODEL_NAME="drafted", FARM_DRAFT_MODEL=str(folder))
    for changes in ({}, {"temperature": 1, "seed": 7}):
        texts = completion(farm.url, "drafted", max_tokens=300, **changes)
        assert texts == completion(farm.url, "alone", max_tokens=300, **changes)

    def metrics() -> str:
        return str(httpx2.get(f"{farm.url}/metrics").text)

    pattern = r'farm_spec_decode_draft_tokens_total\{model_name="drafted",source="model",[^}]*\} [1-9]'
    eventually(lambda: re.search(pattern, metrics()) is not None)
    models = {model["name"]: model for model in httpx2.get(f"{farm.url}/admin/models/status").json()["data"]}
    assert models["drafted"]["draft_model"] == str(folder)
    assert "draft model llama" in models["drafted"]["engine_description"]
    assert models["alone"]["draft_model"] is None
