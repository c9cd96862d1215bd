"""Tiny models with two random adapters each, "a" and "b", and what mlx-lm says over each adapter alone."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench.adapters import write_adapter
from bench.reference import Reference
from bench.tiny_models import load_tiny, tiny_model
from workers.engine import LoadedModel, Prompt

import mlx.core as mx  # isort: skip
from mlx.nn.layers.quantized import quantize  # isort: skip
from mlx_lm.tuner.utils import load_adapters  # isort: skip
from workers.engine.adapters import attach_adapters  # isort: skip

EMBEDDING: Final = "model.embed_tokens"


@dataclass(frozen=True)
class Kind:
    """An architecture; `keys` are the layers that adapter "b" changes in each block (None: all that can be)."""

    architecture: str
    quantized: bool = False
    keys: tuple[str, ...] | None = None


ADAPTED: Final = {
    "adapted llama": Kind("llama"),
    "adapted qwen3_moe": Kind("qwen3_moe"),
    "adapted quantized llama": Kind("llama", quantized=True),
    "adapted quantized qwen3_moe": Kind("qwen3_moe", quantized=True),
    "adapted gemma2": Kind("gemma2", keys=(EMBEDDING, "self_attn.q_proj", "mlp.down_proj")),
    "adapted jamba": Kind("jamba", keys=("self_attn.q_proj", "mamba.in_proj", "mamba.out_proj")),
}


def network_of(name: str) -> Any:
    """The model without adapters, always with the same weights."""
    kind = ADAPTED[name]
    mx.random.seed(3)  # some architectures draw what `tiny_model` leaves as it is
    network: Any = tiny_model(kind.architecture)
    if kind.quantized:
        quantize(network, group_size=32, bits=8)
    network.eval()
    return network


def write_both(name: str, folder: Path) -> dict[str, Path]:
    """Adapter "a" changes all that can be changed in all blocks, "b" with another rank half of the blocks."""
    keys = ADAPTED[name].keys
    own = None if keys is None else [key for key in keys if key != EMBEDDING]
    network = network_of(name)
    half = len(network.layers) // 2
    return {
        "a": write_adapter(folder / "a", network_of(name), rank=8, seed=1, keys=own),
        "b": write_adapter(folder / "b", network, rank=3, layers=half, seed=2, keys=keys),
    }


def load_adapted(name: str) -> LoadedModel:
    """The model with both adapters, as an engine takes it."""
    network = network_of(name)
    with tempfile.TemporaryDirectory() as folder:
        adapters = attach_adapters(network, write_both(name, Path(folder)))
    return replace(load_tiny(ADAPTED[name].architecture), model=network, adapters=adapters)


class AdaptedReference(Reference):
    """What mlx-lm says to prompts, one by one, each over the model with the prompt's adapter alone."""

    def __init__(self, name: str) -> None:
        plain = replace(load_tiny(ADAPTED[name].architecture), model=network_of(name))
        super().__init__(plain)
        self._adapted: dict[str, Reference] = {}
        with tempfile.TemporaryDirectory() as folder:
            for adapter, path in write_both(name, Path(folder)).items():
                network: Any = load_adapters(network_of(name), str(path))
                network.eval()
                mx.eval(network.parameters())
                self._adapted[adapter] = Reference(replace(plain, model=network))

    def tokens(self, prompt: Prompt) -> list[int]:
        if prompt.adapter is None:
            return super().tokens(prompt)
        return self._adapted[prompt.adapter].tokens(replace(prompt, adapter=None))

    def differences(self, prompt: Prompt, said: Sequence[int]) -> list[str]:
        if prompt.adapter is None:
            return super().differences(prompt, said)
        return self._adapted[prompt.adapter].differences(replace(prompt, adapter=None), said)

    def logits(self, adapter: str | None, ids: mx.array) -> mx.array:
        """(rows, tokens, vocabulary)."""
        reference = self if adapter is None else self._adapted[adapter]
        logits: mx.array = reference._model(ids)
        return logits
