"""What is said about a model, and how each defect of a model folder is named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load, quantize_model, save
from tokenizers import Tokenizer

from workers.engine import (
    Backend,
    ConfigMissing,
    InvalidPrompt,
    LoadedModel,
    ModelNotFound,
    Prompt,
    TokenizerMissing,
    UnsupportedModel,
    WeightsMissing,
    installed_backend,
    load_engine,
    load_model,
)
from workers.engine.loading import context_tokens


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_a_loaded_model_says_what_it_is(loaded: LoadedModel, model_folder: Path) -> None:
    info = loaded.info
    assert (info.path, info.model_type, info.context_tokens) == (model_folder.resolve(), "qwen3", 256)
    assert info.vocab_size == 268
    assert info.parameters * 4 == info.weight_bytes > 100_000
    assert info.eos_token_ids == (262, 263)
    assert info.special_tokens["eos_token"] == "<|endoftext|>"
    assert (info.think_start, info.think_end, info.has_tool_calling) == ("<think>", "</think>", True)
    assert info.chat_template is not None
    assert "<|im_start|>" in info.chat_template


def test_the_tokenizer_json_suffices_to_encode(loaded: LoadedModel, tokenizer: Tokenizer) -> None:
    copy = Tokenizer.from_str(loaded.info.tokenizer_json)
    text = "<|im_start|>the thin man 😀"
    assert copy.encode(text).ids == tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("config", "tokenizer_max", "expected"),
    [
        ({"max_position_embeddings": 4096}, 1e30, 4096),
        ({"text_config": {"max_position_embeddings": 8192}}, 512, 8192),
        ({"n_positions": 1024, "max_position_embeddings": None}, 1e30, 1024),
        ({}, 2048, 2048),
        ({}, 1e30, None),
    ],
)
def test_the_context_is_found_wherever_a_configuration_has_it(
    config: dict[str, Any], tokenizer_max: float, expected: int | None
) -> None:
    assert context_tokens(config, tokenizer_max) == expected


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nothing", "~/no-model-here", "a/b/c"])
def test_a_missing_folder_is_named(model: str) -> None:
    with pytest.raises(ModelNotFound, match="there is no folder"):
        load_model(model)


def test_a_name_that_is_neither_folder_nor_repository_says_where_it_looked() -> None:
    with pytest.raises(ModelNotFound, match="Hugging Face cache"):
        load_model("not a valid name!")


def test_an_uncached_repository_without_a_network_says_where_it_looked(tmp_path: Path) -> None:
    script = "from workers.engine import *\ntry: load_model('someone/something')\nexcept ModelNotFound as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert str(tmp_path / "hub") in done.stdout
    assert "not reachable" in done.stdout


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("config.json", ConfigMissing, r"no config\.json"),
        ("*.safetensors", WeightsMissing, "safetensors"),
        ("tokenizer*", TokenizerMissing, "no tokenizer"),
    ],
)
def test_a_folder_with_something_missing_is_refused_with_the_reason(
    folder: Path, pattern: str, error: type[Exception], message: str
) -> None:
    for file in folder.glob(pattern):
        file.unlink()
    with pytest.raises(error, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigMissing):
        load_model(str(folder))


@pytest.mark.parametrize(
    "change", [{"model_type": "no_such_architecture"}, {"model_file": "evil.py"}, {"hidden_size": 32}]
)
def test_what_mlx_lm_cannot_or_must_not_load_is_unsupported(folder: Path, change: dict[str, Any]) -> None:
    (folder / "evil.py").write_text("raise SystemExit('code from a model folder was run')")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UnsupportedModel):
        load_model(str(folder))


@pytest.mark.skipif(installed_backend() is not Backend.CPU, reason="weights stay as they are on a GPU")
def test_on_the_cpu_quantized_weights_become_float32(folder: Path, tmp_path: Path) -> None:
    loaded_by_mlx_lm: tuple[Any, ...] = load(str(folder), return_config=True)
    network, wrapper, config = loaded_by_mlx_lm
    network, config = quantize_model(network, config, group_size=32, bits=8)
    save(tmp_path / "small", folder, network, wrapper, config)
    loaded = load_model(str(tmp_path / "small"))
    assert loaded.model.lm_head.weight.dtype == mx.float32
    assert loaded.info.weight_bytes == 4 * loaded.info.parameters


def test_an_engine_is_loaded_with_its_facts(
    model_folder: Path, prompt: Callable[..., Prompt], run: Callable[..., dict[str, Any]]
) -> None:
    engine, info = load_engine(str(model_folder), max_sequences=2)
    assert len(run(engine, [prompt("p", max_tokens=3)])["p"].token_ids) == 3
    with pytest.raises(InvalidPrompt, match="context"):
        engine.submit(prompt("q", token_ids=(1,) * (info.context_tokens or 0)))
    engine.close()
