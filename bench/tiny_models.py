"""Tiny models with random weights in every architecture of mlx-lm, so that nothing has to be downloaded.

A configuration is `SMALL` as far as the architecture's `ModelArgs` has such fields, changed by the architecture's own
entry in `CONFIGS`. The weights are scaled so that the next token depends on the whole context.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any, cast

from workers.engine import LoadedModel, ModelInfo  # first, because it loads the BLAS that MLX is to use

import mlx.core as mx  # isort: skip
from mlx.nn.layers.base import Module  # isort: skip
from mlx.nn.layers.embedding import Embedding  # isort: skip
from mlx.utils import tree_flatten, tree_map_with_path  # isort: skip
from tokenizers import Tokenizer, decoders, models  # isort: skip
from mlx_lm.models.cache import make_prompt_cache  # isort: skip
from bench.tiny_configs import CONFIGS, EMBEDDING_SCALES, NESTED, SMALL  # isort: skip
from workers.engine.vocabulary import BYTE_LEVEL, Vocabulary  # isort: skip

# Endings of names whose weights are drawn around another centre than 0, with another deviation: (ending, both).
SPECIAL_WEIGHTS = (
    ("dt_bias", -3.0, 1.0),
    ("dt_proj.bias", -3.0, 1.0),
    ("w_lora.lora.2.bias", -4.0, 1.0),
    ("a_lora.lora.2.bias", -4.0, 1.0),
    ("g_norm.weight", 3.0, 0.5),
    ("sinks", 6.0, 2.0),
    ("sink_bias", 6.0, 2.0),
    (".scales", 0.0, 0.05),
    (".biases", 0.0, 0.05),
)


def tiny_config(architecture: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a tiny model, as a `config.json` would hold it; `changes` win.

    Raises ImportError, or SystemExit, where mlx-lm's module cannot be imported.
    """
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    known = {field.name for field in dataclasses.fields(module.ModelArgs)}
    config = {name: value for name, value in SMALL.items() if name in known} | {"model_type": architecture}
    own = CONFIGS.get(architecture, {})
    if architecture in NESTED:
        return {**config, "text_config": tiny_config(NESTED[architecture], **changes)}
    if "text_config" in own:
        return {**config, **own, "text_config": {**SMALL, **own["text_config"], **changes}}
    return {**config, **own, **changes}


def tiny_model(architecture: str, *, seed: int = 11, **changes: Any) -> Module:
    """A tiny model with random float32 weights; raises what mlx-lm raises where it cannot be built."""
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    network: Any = module.Model(module.ModelArgs.from_dict(tiny_config(architecture, **changes)))
    random_weights(network, seed=seed, embedding_scale=EMBEDDING_SCALES.get(architecture, 0.5))
    return cast(Module, network)


def random_weights(network: Any, *, seed: int, embedding_scale: float = 0.5) -> None:
    """Give a network random float32 weights."""
    embeddings = {f"{name}.weight" for name, part in network.named_modules() if isinstance(part, Embedding)}

    def weight(name: str, old: mx.array) -> mx.array:
        return mx.random.normal(old.shape, scale=embedding_scale) if name in embeddings else _mixing_weight(name, old)

    mx.random.seed(seed)
    network.update(tree_map_with_path(weight, network.parameters()))
    network.set_dtype(mx.float32)
    network.eval()
    mx.eval(network.parameters())


def _mixing_weight(name: str, weight: mx.array) -> mx.array:
    """Random weights under which the next token depends on the whole context; plain ones make models echo.

    What starts as zeros (router and other biases, gains of some norms) becomes random too, because zeros would hide
    that it was left out.
    """
    special = _special_weight(name, weight)
    if special is not None:
        return special
    if not mx.any(weight):
        return mx.random.normal(weight.shape, scale=0.3 if weight.ndim < 2 else 0.5)
    if weight.ndim < 2 or "conv" in name:
        return weight
    if "lm_head" in name:
        return mx.random.normal(weight.shape, scale=0.5)
    gain = 3.0 if "v_proj" in name or "o_proj" in name else 2.0
    return mx.random.normal(weight.shape, scale=gain / float(weight.shape[-1]) ** 0.5)


def _special_weight(name: str, weight: mx.array) -> mx.array | None:
    """Small time steps and slow decay, so that recurrent layers remember; sinks as large as the best keys' scores."""
    for ending, center, scale in SPECIAL_WEIGHTS:
        if name.endswith(ending):
            return mx.random.normal(weight.shape, loc=center, scale=scale)
    if weight.dtype == mx.uint32:  # packed 2-bit weights
        return mx.random.randint(0, 1 << 31, weight.shape).astype(mx.uint32)
    return weight - 2.0 if name.endswith("A_log") else None


def load_tiny(architecture: str, **changes: Any) -> LoadedModel:
    """A tiny model as an engine takes it; its vocabulary writes the token 65 as "A"."""
    network = tiny_model(architecture, **changes)
    tokenizer = Tokenizer(models.BPE(dict(BYTE_LEVEL), []))
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary(tokenizer)
    weights: Any = tree_flatten(cast(Any, network).parameters())
    parameters = sum(int(weight.size) for _, weight in weights)
    info = ModelInfo(
        path=Path(architecture),
        model_type=architecture,
        context_tokens=SMALL["max_position_embeddings"],
        vocab_size=int(network(mx.array([[0]]), cache=make_prompt_cache(network)).shape[-1]),
        parameters=parameters,
        weight_bytes=4 * parameters,
        eos_token_ids=(0,),
        tokenizer_json=vocabulary.json,
        chat_template=None,
        special_tokens={},
        think_start=None,
        think_end=None,
        tool_format=None,
        has_tool_calling=False,
        tool_call_start=None,
        tool_call_end=None,
    )
    return LoadedModel(model=network, vocabulary=vocabulary, info=info)
