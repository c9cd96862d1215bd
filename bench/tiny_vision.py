"""Tiny models that see, with random weights, written to disk in the layout of the real ones.

Their tokens are bytes and the special tokens of their family.
"""

import importlib
import json
from pathlib import Path
from typing import Any

from bench.tiny_models import random_weights  # first, because it loads the BLAS that MLX is to use

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from mlx_vlm.utils import update_module_configs  # isort: skip
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # isort: skip
from workers.engine.vocabulary import BYTE_LEVEL  # isort: skip

CONTEXT_TOKENS = 4096
QWEN_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
GEMMA_MARKS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
GEMMA_IMAGES = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
IDEFICS_MARKS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>"),
    *("<fake_token_around_image>", "<image>", "<global-img>"),
)
MARKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), (*QWEN_MARKS, "<|video_pad|>")),
    "gemma3": (*GEMMA_MARKS, *GEMMA_IMAGES.values()),
    **dict.fromkeys(("pixtral", "mistral3"), ("<unk>", "<s>", "</s>", "[INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")),
    **dict.fromkeys(("idefics3", "smolvlm"), IDEFICS_MARKS),
}
IMAGE_MARKS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|vision_start|><|image_pad|><|vision_end|>"),
    "gemma3": "<start_of_image>",
    **dict.fromkeys(("pixtral", "mistral3"), "[IMG]"),
    **dict.fromkeys(("idefics3", "smolvlm"), "<image>"),
}
"""What a template writes for an image."""

ENDS = {"gemma3": "<eos>", "pixtral": "</s>", "mistral3": "</s>"}
"""Of an answer, where it is no `<|im_end|>`."""

TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == 'image' %}IMAGE_MARK{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
GEMMA_TEMPLATE = """{{ bos_token }}{%- for message in messages -%}
<start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == 'image' %}<start_of_image>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}<start_of_turn>model
{% endif -%}"""

_TEXT: dict[str, Any] = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": CONTEXT_TOKENS},
}
_MROPE = {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]}
_EYE: dict[str, Any] = {
    **{"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "patch_size": 14}
}
_PROCESSOR_CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {"image_seq_length": 4},
    "pixtral": {"patch_size": 14},
    "mistral3": {"patch_size": 14, "spatial_merge_size": 2},
    "idefics3": {"image_seq_len": 4},
    "smolvlm": {"image_seq_len": 4},
}
_QWEN_EYE: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "temporal_patch_size": 2, "in_channels": 3}


def write_vision_model(folder: Path, kind: str, *, seed: int = 7) -> Path:
    """A model of `kind` (a key of MARKS) that generates from texts and images."""
    tokenizer = _tokenizer(kind)
    config = _config(kind, tokenizer)
    module = importlib.import_module(f"mlx_vlm.models.{kind}")
    settings = module.ModelConfig.from_dict(raw := {"text_config": {}, **config})
    complete: Any = update_module_configs  # not typed
    network: Any = module.Model(complete(settings, module, raw, ["text", "vision"]))
    random_weights(network, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights: Any = tree_flatten(network.parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), metadata={"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "config.json", config)
    _write(folder / "preprocessor_config.json", _processor(kind))
    _write(folder / "processor_config.json", _PROCESSOR_CONFIGS.get(kind, {}))
    _write(folder / "tokenizer_config.json", _tokenizer_config(kind))
    template = GEMMA_TEMPLATE if kind == "gemma3" else TEMPLATE.replace("IMAGE_MARK", IMAGE_MARKS[kind])
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def _tokenizer(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(dict(BYTE_LEVEL), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in MARKS[kind]])
    return tokenizer


def _tokenizer_config(kind: str) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if kind == "gemma3":
        return config | {"eos_token": "<eos>", "bos_token": "<bos>", "extra_special_tokens": GEMMA_IMAGES}
    return config | {"eos_token": ENDS.get(kind, "<|im_end|>"), "pad_token": MARKS[kind][0]}


def _processor(kind: str) -> dict[str, Any]:
    if kind == "gemma3":
        return {
            **{"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56}, "do_resize": True},
            **{"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        }
    if kind in ("pixtral", "mistral3"):
        return {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 112}, "patch_size": 14}
    if kind in ("idefics3", "smolvlm"):
        name = "Idefics3" if kind == "idefics3" else "SmolVLM"
        sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
        return {"image_processor_type": f"{name}ImageProcessor", **sizes, "do_image_splitting": True}
    patch = 16 if kind == "qwen3_vl" else 14
    return {
        "patch_size": patch,
        "merge_size": 2,
        "min_pixels": 4 * (2 * patch) ** 2,
        "max_pixels": 36 * (2 * patch) ** 2,
    }


def _config(kind: str, tokenizer: Tokenizer) -> dict[str, Any]:
    make = {"gemma3": _gemma, "pixtral": _pixtral, "mistral3": _pixtral, "idefics3": _idefics, "smolvlm": _idefics}
    return make.get(kind, _qwen)(kind, tokenizer)


def _gemma(kind: str, tokenizer: Tokenizer) -> dict[str, Any]:
    size, token = tokenizer.get_vocab_size(), tokenizer.token_to_id
    text = {**_TEXT, "num_hidden_layers": 3, "head_dim": 16, "sliding_window_pattern": 2, "sliding_window": 16}
    return {
        **{"model_type": kind, "vocab_size": size, "hidden_size": 64, "eos_token_id": token("<eos>")},
        **{"image_token_index": token("<image_soft_token>"), "pad_token_id": token("<pad>")},
        "text_config": {**text, "model_type": "gemma3_text", "vocab_size": size, "mm_tokens_per_image": 4},
        "vision_config": {**_EYE, "model_type": "siglip_vision_model", "image_size": 56},
    }


def _pixtral(kind: str, tokenizer: Tokenizer) -> dict[str, Any]:
    size, token = tokenizer.get_vocab_size(), tokenizer.token_to_id
    text = {**_TEXT, "model_type": "mistral", "vocab_size": size, "head_dim": 16, "rope_theta": 10000.0}
    return {
        **{"model_type": kind, "vocab_size": size, "eos_token_id": token("</s>"), "image_token_index": token("[IMG]")},
        **({"spatial_merge_size": 2} if kind == "mistral3" else {}),
        "text_config": text,
        "vision_config": {**_EYE, "model_type": "pixtral", "image_size": 112, "head_dim": 16},
    }


def _idefics(kind: str, tokenizer: Tokenizer) -> dict[str, Any]:
    size, token = tokenizer.get_vocab_size(), tokenizer.token_to_id
    return {
        **{"model_type": kind, "vocab_size": size, "eos_token_id": token("<|im_end|>"), "scale_factor": 2},
        "image_token_id": token("<image>"),
        "text_config": {**_TEXT, "model_type": "llama", "vocab_size": size, "rope_theta": 10000.0},
        "vision_config": {**_EYE, "model_type": "siglip_vision_model", "image_size": 56},
    }


def _qwen(kind: str, tokenizer: Tokenizer) -> dict[str, Any]:
    size, token = tokenizer.get_vocab_size(), tokenizer.token_to_id
    eye: dict[str, Any]
    marks = {
        **{"image_token_id": token("<|image_pad|>"), "video_token_id": token("<|video_pad|>")},
        **{"vision_start_token_id": token("<|vision_start|>"), "vision_end_token_id": token("<|vision_end|>")},
        **{"vision_token_id": token("<|image_pad|>"), "eos_token_id": token("<|im_end|>"), "vocab_size": size},
    }
    if kind == "qwen3_vl":
        rope = {"rope_scaling": {**_MROPE, "mrope_interleaved": True}, "rope_theta": 10000.0, "head_dim": 16}
        eye = {
            **_QWEN_EYE,
            "patch_size": 16,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 64,
        }
        eye |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64, "spatial_merge_size": 2}
        marks |= {"image_token_index": marks["image_token_id"], "video_token_index": marks["video_token_id"]}
        text = {**_TEXT, **rope, "model_type": "qwen3_vl_text", "vocab_size": size, "tie_word_embeddings": False}
        return {"model_type": kind, **marks, "text_config": text, "vision_config": {**eye, "model_type": kind}}
    if kind == "qwen2_vl":
        eye = {**_QWEN_EYE, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "spatial_merge_size": 2}
    else:
        eye = {**_QWEN_EYE, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
        eye |= {"fullatt_block_indexes": [1], "window_size": 56, "spatial_merge_size": 2}
    text = {**_TEXT, "rope_scaling": _MROPE, "rope_theta": 10000.0, "tie_word_embeddings": False}
    return {"model_type": kind, **text, **marks, "vision_config": {**eye, "model_type": kind}}
