"""Draft models for a target with random weights: one that always agrees with it, and one that never does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from workers.engine import LoadedModel, load_model  # first, because it loads the BLAS that MLX is to use

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten, tree_map_with_path  # isort: skip
from mlx_lm.models import qwen3  # isort: skip
from bench.models import random_weight  # isort: skip

DRAFT_LAYERS = 1


def agreeing_pair(folder: Path) -> tuple[LoadedModel, LoadedModel]:
    """A Qwen3 whose layers behind the first add nothing, though they are computed, and a draft model without them."""
    target = load_model(str(folder))
    network: Any = target.model
    for layer in network.layers[DRAFT_LAYERS:]:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight = mx.zeros_like(projection.weight)
    mx.eval(network.parameters())
    return target, _shortened(target)


def stranger(target: LoadedModel) -> LoadedModel:
    """A draft model of the same size as the agreeing one, with weights of its own."""
    draft = _shortened(target)
    network: Any = draft.model
    mx.random.seed(99)
    network.update(tree_map_with_path(random_weight, network.parameters()))
    mx.eval(network.parameters())
    return draft


def _shortened(target: LoadedModel) -> LoadedModel:
    whole: Any = target.model
    network: Any = qwen3.Model(replace(whole.args, num_hidden_layers=DRAFT_LAYERS))
    kept = dict(tree_flatten(network.parameters()))
    network.load_weights(
        [(name, weight) for name, weight in dict(tree_flatten(whole.parameters())).items() if name in kept]
    )
    network.eval()
    weight_bytes = sum(int(weight.nbytes) for weight in dict(tree_flatten(network.parameters())).values())
    info = replace(target.info, path=Path("draft"), weight_bytes=weight_bytes, parameters=weight_bytes // 4)
    return LoadedModel(model=network, vocabulary=target.vocabulary, info=info)
