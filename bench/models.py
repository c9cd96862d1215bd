"""Builds loadable model folders with random weights, so that benchmarks need no download."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.models import qwen3
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

DEMO_MODEL = Path(__file__).parent.parent / "workers" / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def build_qwen3(
    path: Path,
    *,
    layers: int = 12,
    hidden: int = 768,
    vocab: int = 32000,
    context_tokens: int = 8192,
    seed: int = 0,
) -> Path:
    """Write a Qwen3 folder with random float32 weights (132 million parameters as it is); returns `path`.

    The weights are scaled so that the most likely token depends on the whole context. The tokenizer is the bundled
    demo model's where there is one, else one token per byte; it may know fewer ids than `vocab`.
    """
    path.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 192),
        "head_dim": 64,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": context_tokens,
        "tie_word_embeddings": False,
        "rope_theta": 1_000_000.0,
    }
    network = qwen3.Model(qwen3.ModelArgs(**settings))
    mx.random.seed(seed)
    weights = tree_map_with_path(_random_weight, network.parameters())
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(weights)), metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps({**settings, "eos_token_id": 0}, indent=1))
    write_tokenizer(path)
    return path


def _random_weight(name: str, weight: mx.array) -> mx.array:
    if weight.ndim < 2:
        return weight
    if "embed" in name:
        scale = 0.5
    else:
        scale = (3.0 if "v_proj" in name or "o_proj" in name else 2.0) / float(weight.shape[-1]) ** 0.5
    return mx.random.normal(weight.shape, scale=scale)


def write_tokenizer(path: Path) -> None:
    """Put a tokenizer into a model folder: the demo model's, or one token per byte with <|endoftext|> as id 0."""
    if (DEMO_MODEL / "tokenizer.json").exists():
        for name in TOKENIZER_FILES:
            if (DEMO_MODEL / name).exists():
                shutil.copy(DEMO_MODEL / name, path / name)
        return
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
