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
from scheduler.workers import FIGURES
from tests.farm.conftest import Farm
from tests.farm.streams import post
from tests.waiting import PATIENCE_S

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
    answers = [post(f"{url}/v1/completions", body) for _ in range(2)]
    return [answer.raise_for_status().json()["choices"][0]["text"] for answer in answers]


@pytest.mark.parametrize(("architecture", "kind"), KINDS.items())
def test_a_model_of_this_kind_is_served_by_blocks_and_shares_what_it_has_computed(
    farm: Farm, eventually: Callable[..., Any], tmp_path: Path, architecture: str, kind: str
) -> None:
    folder = model_folder(tmp_path / architecture, architecture)
    farm.start("workers", FARM_MODEL=str(folder), FARM_MODEL_NAME=architecture)
    first, second = completion(farm.url, architecture)
    assert first == second != ""

    def figures_of_the_end() -> dict[str, Any] | None:
        """Workers publish once a second: what they say may be of a moment before the second answer's end."""
        shown = status(farm, architecture)
        return shown if (shown["prefix_hit_rate"] or 0) > 0 and shown["used_blocks"] == 0 else None

    shown = eventually(figures_of_the_end)
    assert shown["engine"] == "paged"
    assert kind in shown["engine_description"]
    assert shown["total_blocks"] > shown["cached_blocks"] > 0
    eventually(lambda: f'farm_prefix_cache_hits_total{{model_name="{architecture}"' in metrics(farm))


def test_a_worker_tells_all_figures_and_no_other_ones(farm: Farm, eventually: Callable[..., Any]) -> None:
    farm.model_pid()  # one has published
    rows = eventually(lambda: [row for row in farm.get("/admin/workers")["data"] if row["model"]])
    assert [set(row) for row in rows] == [set(FIGURES)] * len(rows)
    assert {name for row in rows for name, value in row.items() if value is None} <= {"draft_model"}


def status(farm: Farm, name: str) -> dict[str, Any]:
    """What operators are shown of a model."""
    return next(model for model in farm.get("/admin/models/status")["data"] if model["name"] == name)


def described(farm: Farm, name: str) -> dict[str, Any] | None:
    """The same, once a worker has said what its engine is."""
    shown = status(farm, name)
    return shown if shown["engine_description"] else None


def metrics(farm: Farm) -> str:
    return str(httpx2.get(f"{farm.url}/metrics", timeout=PATIENCE_S).text)


def test_operators_see_that_keys_and_values_are_kept_in_8_bits(
    farm: Farm, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "rounded", "qwen3")
    farm.start("workers", FARM_MODEL=str(folder), FARM_MODEL_NAME="rounded", FARM_KV_BITS="8")
    first, second = completion(farm.url, "rounded")
    assert first == second != ""
    shown = eventually(lambda: described(farm, "rounded"))
    assert "keys and values in 8 bits" in shown["engine_description"]


def test_a_draft_model_makes_no_difference_but_in_the_figures(
    farm: Farm, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "llama", "llama")
    farm.start("workers", FARM_MODEL=str(folder), FARM_MODEL_NAME="alone")
    farm.start("workers", FARM_MODEL=str(folder), FARM_MODEL_NAME="drafted", FARM_DRAFT_MODEL=str(folder))
    for changes in ({}, {"temperature": 1, "seed": 7}):
        texts = completion(farm.url, "drafted", max_tokens=300, **changes)
        assert texts == completion(farm.url, "alone", max_tokens=300, **changes)

    pattern = r'farm_spec_decode_draft_tokens_total\{model_name="drafted",source="model",[^}]*\} [1-9]'
    eventually(lambda: re.search(pattern, metrics(farm)) is not None)
    drafted, alone = (eventually(lambda name=name: described(farm, name)) for name in ("drafted", "alone"))
    assert drafted["draft_model"] == str(folder)
    assert "draft model llama" in drafted["engine_description"]
    assert alone["draft_model"] is None
