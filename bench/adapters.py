"""Random LoRA adapters in mlx-lm's layout, so that nothing has to be trained or downloaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import workers.engine  # noqa: F401 - first, because it loads the BLAS that MLX is to use

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from mlx_lm.tuner.utils import linear_to_lora_layers  # isort: skip


def write_adapter(
    folder: Path,
    network: Any,
    *,
    rank: int = 4,
    layers: int = 4,
    seed: int = 1,
    keys: Sequence[str] | None = None,
    dora: bool = False,
) -> Path:
    """An adapter of the last `layers` blocks of this model, which is changed and not to be used further.

    `keys` are the changed layers of a block, or of the model; None: all that can be.
    """
    parameters: dict[str, Any] = {"rank": rank, "scale": 2.0, "dropout": 0.1}
    if keys is not None:
        parameters["keys"] = list(keys)
    network.freeze()
    linear_to_lora_layers(network, layers, parameters, use_dora=dora)
    mx.random.seed(seed)
    trained = cast("list[tuple[str, mx.array]]", tree_flatten(network.trainable_parameters()))
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: mx.random.normal(array.shape, scale=0.1) for name, array in trained}
    mx.save_safetensors(str(folder / "adapters.safetensors"), arrays)
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": layers, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
