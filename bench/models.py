"""Builds loadable model folders with random weights, so that benchmarks need no download."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.models import qwen3
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

DEMO_MODEL = Path(__file__).parent.parent / "workers" / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Qwen3; `tied`: one matrix embeds the tokens and makes the logits."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False


SHAPES = {
    "8m": Shape(hidden=256, layers=6, intermediate=768, heads=8, kv_heads=2, head_dim=32, vocab=8192),
    "120m": Shape(hidden=768, layers=12, intermediate=2304, heads=12, kv_heads=4, head_dim=64, vocab=32000),
    "600m": Shape(
        hidden=1024, layers=28, intermediate=3072, heads=16, kv_heads=8, head_dim=128, vocab=151936, tied=True
    ),
}


def cached_qwen3(name: str, *, context_tokens: int = 32768) -> Path:
    """The folder of `SHAPES[name]` below the system's temporary folder, written on first use (600m: 2.4 GB)."""
    folder = Path(tempfile.gettempdir()) / "mlx-farm-bench" / f"qwen3-{name}-{context_tokens}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            built = build_qwen3(Path(unfinished) / name, shape=SHAPES[name], context_tokens=context_tokens)
            os.rename(built, folder)
    return folder


def build_qwen3(path: Path, *, shape: Shape = SHAPES["120m"], context_tokens: int = 8192, seed: int = 0) -> Path:
    """Write a Qwen3 folder with random float32 weights (132 million parameters as it is); returns `path`.

    The weights are scaled so that the most likely token depends on the whole context. The tokenizer is the bundled
    demo model's where there is one, else one token per byte; it may know fewer ids than the vocabulary has.
    """
    path.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": context_tokens,
        "tie_word_embeddings": shape.tied,
        "rope_theta": 1_000_000.0,
    }
    network = qwen3.Model(qwen3.ModelArgs(**settings))
    mx.random.seed(seed)
    weights = tree_map_with_path(random_weight, network.parameters())
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(weights)), metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps({**settings, "eos_token_id": 0}, indent=1))
    write_tokenizer(path)
    return path


def random_weight(name: str, weight: mx.array) -> mx.array:
    """A weight for the parameter of this name, scaled so that the most likely token depends on the whole context."""
    if weight.ndim < 2:
        return weight
    if "embed" in name:
        scale = 0.5
    else:
        scale = (3.0 if "v_proj" in name or "o_proj" in name else 2.0) / float(weight.shape[-1]) ** 0.5
    return mx.random.normal(weight.shape, scale=scale)


def forget_context(model: Any, period: int) -> dict[int, int]:
    """Change a model's weights, but not its work, so that its text repeats itself; returns the token behind each token.

    Attention and feed-forward layers add nothing any more, so that the last token alone decides: it leads to the next
    of a circle of `period` tokens. With tied embeddings every token leads to itself.
    """
    for layer in model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight = mx.zeros_like(projection.weight)
    embeddings = model.model.embed_tokens.weight
    if model.args.tie_word_embeddings:
        following = {token: token for token in range(period)}
    else:
        following = {token: (token + 1) % period for token in range(period)}
        model.lm_head.weight = mx.concatenate(
            [embeddings[period - 1 : period], embeddings[: period - 1], embeddings[period:]]
        )
    mx.eval(model.parameters())
    return following


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
