"""What models are is read from their files: kinds, sizes, quantization, context, the marks of calls and thoughts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bench.tiny_configs import CONFIGS, NESTED
from tests.hub_stand_in import DEMO
from workers.engine import UnsupportedModel, task_of
from workers.gallery.facts import (
    Kind,
    Papers,
    Tensor,
    cache_bytes_per_token,
    check_kind,
    count_parameters,
    kind_of,
    missing_weights,
    quantization,
    read_facts,
    read_headers,
)

from mlx_lm.utils import load_tokenizer  # isort: skip  (after the engine, which chooses MLX's BLAS)

QWEN3_4B = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}


def model_folder(folder: Path, config: dict[str, Any], **files: str) -> Path:
    """A folder with a configuration and other files, by their names with __ for a dot."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"} | config))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize("architecture", sorted({*CONFIGS, *NESTED}))
def test_every_architecture_of_mlx_lm_is_for_text_and_can_be_served(architecture: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", {"model_type": architecture, "max_position_embeddings": 512})
    facts = read_facts(folder)
    assert (facts.kind, facts.refused, facts.context_tokens) == (Kind.TEXT, "", 512)
    assert check_kind(folder) is Kind.TEXT


@pytest.mark.parametrize(
    ("config", "files", "kind"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, {}, Kind.TEXT),
        ({"model_type": "qwen3_vl", "vision_config": {}}, {"preprocessor_config__json": "{}"}, Kind.VISION),
        ({"model_type": "gemma3", "vision_config": {}}, {"processor_config__json": "{}"}, Kind.VISION),
        ({"model_type": "qwen3_vl", "vision_config": {}}, {}, Kind.TEXT),
        ({"model_type": "bert"}, {}, Kind.EMBEDDING),
        ({"model_type": "qwen3"}, {"modules__json": "[]"}, Kind.EMBEDDING),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"]}, {}, Kind.RERANK),
        ({"model_type": "whisper"}, {}, Kind.AUDIO),
        ({"model_type": "new_one", "architectures": ["NewOneForSpeechSeq2Seq"]}, {}, Kind.AUDIO),
        ({"model_type": "csm", "architectures": ["CsmForConditionalGeneration"]}, {}, Kind.AUDIO),
    ],
)
def test_kinds_are_told_apart_by_configuration_and_files(
    config: dict[str, Any], files: dict[str, str], kind: Kind, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "model", config, **files)
    assert kind_of(folder, config) is kind


def test_a_model_for_audio_is_refused_by_that_name_also_by_a_worker(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", {"model_type": "whisper"})
    for refuse in (check_kind, task_of):
        with pytest.raises(UnsupportedModel, match=r"audio \(whisper\)"):
            refuse(folder)
    assert "audio" in read_facts(folder).refused


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, None),
        ({"quantization": {"bits": 4, "group_size": 64}}, "4 bit"),
        ({"quantization": {"bits": 8, "group_size": 32, "mode": "affine"}}, "8 bit"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "4 bit mxfp4"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
    ],
)
def test_quantization_in_words(config: dict[str, Any], text: str | None) -> None:
    assert quantization(config) == text


@given(
    rows=st.integers(1, 64),
    groups=st.integers(1, 8),
    bits=st.sampled_from([2, 3, 4, 6, 8]),
    group_size=st.sampled_from([32, 64, 128]),
    plain=st.integers(0, 1000),
    own=st.booleans(),
)
def test_a_quantized_weight_counts_as_many_parameters_as_it_stands_for(
    rows: int, groups: int, bits: int, group_size: int, plain: int, own: bool
) -> None:
    columns = groups * group_size
    tensors = {
        "a.weight": Tensor("U32", (rows, columns * bits // 32), rows * columns * bits // 8),
        "a.scales": Tensor("BF16", (rows, groups), 2 * rows * groups),
        "a.biases": Tensor("BF16", (rows, groups), 2 * rows * groups),
        "norm.weight": Tensor("BF16", (plain,), 2 * plain),
        "b.biases": Tensor("BF16", (3,), 6),
    }
    said = {"group_size": group_size, "bits": bits}
    config = {"quantization": {"group_size": 16, "bits": 4, "a": said} if own else said}
    assert count_parameters(tensors, config) == rows * columns + plain + 3


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QWEN3_4B, 2 * 2 * 36 * 8 * 128),
        ({"text_config": QWEN3_4B}, 2 * 2 * 36 * 8 * 128),
        ({"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}, 2 * 2 * 32 * 32 * 128),
        ({"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 2 * 61 * 576),
        ({"n_layer": 12}, None),
        ({"num_hidden_layers": 12}, None),
    ],
)
def test_the_cache_of_a_token_by_the_configuration(config: dict[str, Any], expected: int | None) -> None:
    assert cache_bytes_per_token(config) == expected


def test_weight_headers_are_read_without_the_weights_and_torn_ones_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((2, 3), np.float16), "b": np.zeros(4, np.float32)}, path)
    tensors = read_headers([path])
    assert tensors == {"a": Tensor("F16", (2, 3), 12), "b": Tensor("F32", (4,), 16)}
    whole = path.read_bytes()
    for torn in (b"", whole[:4], whole[:12], b"\xff" * 8 + whole[8:], whole[:8] + b"[" + whole[9:]):
        path.write_bytes(torn)
        with pytest.raises(UnsupportedModel, match="torn"):
            read_headers([path])


def test_weights_that_the_index_names_and_that_are_not_there_are_missing(tmp_path: Path) -> None:
    assert missing_weights(tmp_path) == ["model.safetensors"]
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    assert missing_weights(tmp_path) == ["model-2.safetensors"]


TEMPLATES = {
    "qwen": "<tool_call>{{ tool_call.name }}</tool_call>",
    "coder": "<tool_call>\n<function={{ name }}>",
    "mistral": "[TOOL_CALLS]",
    "plain": "{{ messages }}",
    "kimi": "<|tool_calls_section_begin|>",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("place", ["file", "config", "list"])
def test_calls_and_thoughts_are_told_as_mlx_lm_tells_them_when_it_loads(
    template: str, place: str, tmp_path: Path
) -> None:
    """The contract with mlx-lm's own rules, which are given files instead of a tokenizer."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    last = max(token["id"] for token in tokenizer["added_tokens"])
    known = {token["content"] for token in tokenizer["added_tokens"]}
    for number, mark in enumerate(m for m in ("<think>", "</think>") if m not in known):
        tokenizer["added_tokens"].append(
            {"id": last + 1 + number, "content": mark, "special": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        )
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if place == "config":
        config["chat_template"] = template
    if place == "list":
        config["chat_template"] = [{"name": "tools", "template": "no"}, {"name": "default", "template": template}]
    folder = model_folder(tmp_path / "model", json.loads((DEMO / "config.json").read_text()))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if place == "file":
        (folder / "chat_template.jinja").write_text(template)
    papers, load = Papers(folder), load_tokenizer
    if place == "list":  # mlx-lm looks for marks only in a template that is alone
        assert papers.chat_template == template
        return
    wrapper: Any = load(folder)  # type: ignore[no-untyped-call]
    parser = wrapper.tool_parser
    assert papers.tool_format() == (parser.__module__.rpartition(".")[2] if parser else None)
    assert papers.thoughts() == (wrapper.think_start, wrapper.think_end) == ("<think>", "</think>")
    assert papers.chat_template == wrapper.chat_template


def test_the_demo_models_files_say_what_loading_it_says() -> None:
    facts = read_facts(DEMO)
    assert (facts.kind, facts.refused, facts.has_chat_template) == (Kind.TEXT, "", True)
    assert facts.parameters is not None
    assert 3_000_000 < facts.parameters < 4_000_000
