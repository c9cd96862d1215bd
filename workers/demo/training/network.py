"""The network in PyTorch: Qwen3's arithmetic as plain functions over a dict of tensors.

The dict's keys are the tensor names that mlx-lm's `qwen3` loads, so an export is a cast and a save.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of the network; `config()` is what config.json says about them."""

    vocabulary: int
    hidden: int = 256
    layers: int = 5
    feed_forward: int = 576
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-6
    positions: int = 2048

    def config(self) -> dict[str, object]:
        """Return the fields of config.json that describe the network."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rope_theta,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "use_cache": True,
        }


def initial_parameters(shape: Shape, seed: int) -> Parameters:
    """Draw the first weights; the projections back into the residual stream start at zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, scale: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * scale

    width, queries, keys = shape.hidden, shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    scale = width**-0.5
    parameters = {"model.embed_tokens.weight": normal(shape.vocabulary, width, 0.02)}
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        parameters |= {
            f"{name}.input_layernorm.weight": torch.ones(width),
            f"{name}.self_attn.q_proj.weight": normal(queries, width, scale),
            f"{name}.self_attn.k_proj.weight": normal(keys, width, scale),
            f"{name}.self_attn.v_proj.weight": normal(keys, width, scale),
            f"{name}.self_attn.o_proj.weight": torch.zeros(width, queries),
            f"{name}.self_attn.q_norm.weight": torch.ones(shape.head_size),
            f"{name}.self_attn.k_norm.weight": torch.ones(shape.head_size),
            f"{name}.post_attention_layernorm.weight": torch.ones(width),
            f"{name}.mlp.gate_proj.weight": normal(shape.feed_forward, width, scale),
            f"{name}.mlp.up_proj.weight": normal(shape.feed_forward, width, scale),
            f"{name}.mlp.down_proj.weight": torch.zeros(width, shape.feed_forward),
        }
    parameters["model.norm.weight"] = torch.ones(width)
    return parameters


def rotation_table(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of the rotary position embedding for `length` positions."""
    half = shape.head_size // 2
    frequencies = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def _norm(values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = values.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * weight).to(values.dtype)


def _rotate(values: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosines, sines = (table[:, None, :] for table in rotation)
    first, second = values.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return turned.to(values.dtype)


def _attention(
    parameters: Parameters, name: str, inputs: Tensor, shape: Shape, rotation: tuple[Tensor, Tensor]
) -> Tensor:
    rows, length, _ = inputs.shape

    def heads(which: str, count: int) -> Tensor:
        weight = parameters[f"{name}.{which}_proj.weight"]
        return functional.linear(inputs, weight.to(inputs.dtype)).view(rows, length, count, shape.head_size)

    queries = _norm(heads("q", shape.heads), parameters[f"{name}.q_norm.weight"], shape.norm_epsilon)
    keys = _norm(heads("k", shape.kv_heads), parameters[f"{name}.k_norm.weight"], shape.norm_epsilon)
    queries, keys = _rotate(queries, rotation), _rotate(keys, rotation)
    group = shape.heads // shape.kv_heads
    mixed = functional.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.repeat_interleave(group, dim=2).transpose(1, 2),
        heads("v", shape.kv_heads).repeat_interleave(group, dim=2).transpose(1, 2),
        is_causal=True,
    )
    joined = mixed.transpose(1, 2).reshape(rows, length, -1)
    return functional.linear(joined, parameters[f"{name}.o_proj.weight"].to(joined.dtype))


def hidden_states(
    parameters: Parameters, tokens: Tensor, shape: Shape, rotation: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    """Run the layers; `rotation` covers exactly the length of `tokens`; matrices multiply in `dtype`."""
    stream = functional.embedding(tokens, parameters["model.embed_tokens.weight"]).to(dtype)
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        inputs = _norm(stream, parameters[f"{name}.input_layernorm.weight"], shape.norm_epsilon)
        stream = stream + _attention(parameters, f"{name}.self_attn", inputs, shape, rotation)
        inputs = _norm(stream, parameters[f"{name}.post_attention_layernorm.weight"], shape.norm_epsilon)
        gate = functional.linear(inputs, parameters[f"{name}.mlp.gate_proj.weight"].to(dtype))
        up = functional.linear(inputs, parameters[f"{name}.mlp.up_proj.weight"].to(dtype))
        down = parameters[f"{name}.mlp.down_proj.weight"].to(dtype)
        stream = stream + functional.linear(functional.silu(gate) * up, down)
    return _norm(stream, parameters["model.norm.weight"], shape.norm_epsilon)


def logits(parameters: Parameters, hidden: Tensor) -> Tensor:
    """Score the vocabulary with the tied embedding."""
    return functional.linear(hidden, parameters["model.embed_tokens.weight"].to(hidden.dtype)).float()
