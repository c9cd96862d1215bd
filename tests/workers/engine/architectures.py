"""Tiny models in the architectures that people serve, and what mlx-lm alone says over each."""

import functools
from typing import Any, Final

from bench.reference import Reference
from bench.tiny_models import load_tiny
from tests.workers.engine.adapted_models import ADAPTED, AdaptedReference, load_adapted
from workers.engine import LoadedModel
from workers.engine.paged.rounding import rounded_caches

ROUNDED_TIE: Final = 5e-3  # a sum in another order may put a number over the border between two codes
ALL_SLIDING: Final[dict[str, Any]] = {"layer_types": ["sliding_attention"] * 4}
# Name -> mlx-lm's module and what differs from the module's tiny configuration.
ARCHITECTURES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral3", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "phi3": ("phi3", {}),
    "glm4": ("glm4", {}),
    "gpt_oss": ("gpt_oss", {}),
    "exaone": ("exaone_moe", ALL_SLIDING),
    "deepseek_v2": ("deepseek_v2", {}),
    "deepseek_v3": ("deepseek_v3", {}),
    "qwen3_next": ("qwen3_next", {}),
    "falcon_h1": ("falcon_h1", {}),
    "mamba": ("mamba", {}),
    "jamba": ("jamba", {}),
}
# Some that cannot be paged, or not be batched either.
OTHERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "deepseek_v32": ("deepseek_v32", {}),
    "llama4": ("llama4", {}),
    "recurrent_gemma": ("recurrent_gemma", {}),
    "minimax_m3_vl": ("minimax_m3_vl", {}),
}


@functools.cache
def load(name: str) -> LoadedModel:
    if name in ADAPTED:
        return load_adapted(name)
    module, changes = {**ARCHITECTURES, **OTHERS}[name]
    return load_tiny(module, **changes)


@functools.cache
def reference(name: str, *, rounds: bool = False) -> Reference:
    """`rounds`: over mlx-lm's caches, into which keys and values go as an 8-bit pool gives them back."""
    if name in ADAPTED:
        return AdaptedReference(name)
    return Reference(load(name), rounded_caches, tie=ROUNDED_TIE) if rounds else Reference(load(name))
