"""Adapters are loaded beside one copy of the weights, or refused with the layer and the reason."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.base import Module
from mlx_lm.models.switch_layers import SwitchLinear

from bench.adapters import write_adapter
from tests.workers.engine.adapted_models import ADAPTED, AdaptedReference, load_adapted, network_of, write_both
from tests.workers.engine.conftest import build_prompt, run_engine, write_model
from workers.engine import AdapterRefused, ModelError, load_engine
from workers.engine.adapted import AdaptedLinear
from workers.engine.adapters import Adapters, attach_adapters

ROWS = ("a", None, "b", "a", "b")
TOLERANCE = 1e-4  # logits are about 10; float32 in another order moves them by about 1e-5


adapted_reference = functools.cache(AdaptedReference)


def largest(difference: mx.array) -> float:
    return float(np.abs(np.array(difference)).max())


@pytest.mark.parametrize("tokens", [1, 7, 40])
@pytest.mark.parametrize("name", ADAPTED)
def test_each_row_of_a_forward_has_its_own_adapter(name: str, tokens: int) -> None:
    """Few tokens and many, which experts sort."""
    loaded, mlx_lm = load_adapted(name), adapted_reference(name)
    network: Any = loaded.model
    mx.random.seed(tokens)
    ids = mx.random.randint(1, 100, (len(ROWS), tokens))
    with loaded.adapters.of_rows(ROWS):
        together = network(ids)
    for row, adapter in enumerate(ROWS):
        expected = mlx_lm.logits(adapter, ids[row : row + 1])
        with loaded.adapters.of_rows([adapter]):
            alone = network(ids[row : row + 1])
        assert largest(together[row : row + 1] - expected) < TOLERANCE
        assert largest(alone - expected) < TOLERANCE
        if adapter is not None:
            assert largest(mlx_lm.logits(None, ids[row : row + 1]) - expected) > 100 * TOLERANCE


def test_rows_without_an_adapter_have_the_very_bits_of_the_model_without_adapters(tmp_path: Path) -> None:
    name = "adapted llama"
    plain, network = network_of(name), network_of(name)
    adapters = attach_adapters(network, write_both(name, tmp_path))
    ids = mx.random.randint(1, 100, (3, 5))
    expected = plain(ids)
    assert mx.array_equal(network(ids), expected).item()
    with adapters.of_rows([None, None, None]):
        assert mx.array_equal(network(ids), expected).item()
    with adapters.of_rows([None, "a", None]):
        mixed = network(ids)
    assert mx.array_equal(mixed[::2], expected[::2]).item()
    assert not mx.array_equal(mixed[1], expected[1]).item()


def test_the_weights_are_there_once_and_ranks_are_padded_to_the_greatest(tmp_path: Path) -> None:
    network = network_of("adapted llama")
    query = network.model.layers[1].self_attn.q_proj
    adapters = attach_adapters(network, write_both("adapted llama", tmp_path))
    adapted = network.model.layers[1].self_attn.q_proj
    assert isinstance(adapted, AdaptedLinear)
    assert adapted.base is query
    width = query.weight.shape[1]
    assert adapted.a.shape == (3, width, 8)
    assert largest(adapted.a[0]) == largest(adapted.b[0]) == 0.0  # no adapter
    assert largest(adapted.a[2, :, 3:]) == 0.0  # "b" has rank 3
    assert list(adapters.digests) == ["a", "b"]


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    network = network_of("adapted llama")
    folders = {
        "one": write_adapter(tmp_path / "one", network_of("adapted llama"), seed=1),
        "same": write_adapter(tmp_path / "same", network_of("adapted llama"), seed=1),
        "other": write_adapter(tmp_path / "other", network_of("adapted llama"), seed=2),
    }
    digests = attach_adapters(network, folders).digests
    assert digests["one"] == digests["same"] != digests["other"]


def test_names_that_were_not_loaded_are_errors() -> None:
    adapters = Adapters({"a": b"1"})
    with pytest.raises(KeyError), adapters.of_rows([None, "c"]):
        pass


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, mx.array]], object]) -> None:
    path = str(folder / "adapters.safetensors")
    arrays: Any = mx.load(path)
    arrays = {name: array + 0 for name, array in arrays.items()}
    mx.eval(list(arrays.values()))
    change(arrays)
    mx.save_safetensors(path, arrays)


HALF = "model.layers.0.mlp.down_proj.lora_b"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "cannot be loaded: .*adapter_config.json"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("["), "cannot be loaded: "),
    "no weights": (lambda folder: (folder / "adapters.safetensors").unlink(), "cannot be loaded: "),
    "torn weights": (lambda folder: (folder / "adapters.safetensors").write_bytes(b"torn"), "cannot be loaded: "),
    "no scale": (lambda folder: edit_config(folder, lora_parameters={"rank": 4, "alpha": 8}), "not 'alpha'"),
    "full": (lambda folder: edit_config(folder, fine_tune_type="full"), "is a full fine-tune, not LoRA: serve it as"),
    "strange": (lambda folder: edit_weights(folder, lambda a: a.update(x=mx.ones(1))), "x: not an adapter parameter"),
    "half": (lambda folder: edit_weights(folder, lambda a: a.pop(HALF)), "down_proj.lora_a without its other half"),
    "nothing": (lambda folder: edit_weights(folder, lambda a: a.clear()), "changes no layer of the model"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_cannot_be_loaded_is_refused_with_the_reason(broken: str, tmp_path: Path) -> None:
    spoil, said = BROKEN[broken]
    folder = write_adapter(tmp_path / "x", network_of("adapted llama"))
    spoil(folder)
    with pytest.raises(AdapterRefused, match=f"(?s)^adapter 'x': .*{said}"):
        attach_adapters(network_of("adapted llama"), {"x": folder})


def test_what_cannot_be_added_row_by_row_is_refused_with_the_layer_and_the_kind(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, network_of("adapted llama"), dora=True)
    with pytest.raises(AdapterRefused, match=r"adapter 'x': layer model\.layers\.\d\.\S+ is adapted by DoRALinear"):
        attach_adapters(network_of("adapted llama"), {"x": folder})


class LooseExperts(Module):
    """A block whose experts stand outside of those modules that sort tokens for them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.loose = SwitchLinear(4, 4, 2)


class LooseModel(Module):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = [LooseExperts()]


def test_experts_that_nobody_tells_about_rows_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, LooseModel())
    with pytest.raises(AdapterRefused, match=r"layer layers\.0\.loose is adapted, but .* in a LooseExperts"):
        attach_adapters(LooseModel(), {"x": folder})


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, network_of("adapted qwen3_moe"))
    with pytest.raises(AdapterRefused, match=r"(?s)adapter 'x': .* cannot be loaded: .*not an adapter parameter"):
        attach_adapters(network_of("adapted llama"), {"x": folder})


def test_a_name_is_needed(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="an adapter needs a name"):
        attach_adapters(network_of("adapted llama"), {"": tmp_path})


def test_an_engine_is_loaded_with_adapters_by_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    engine, _ = load_engine(str(folder), max_sequences=4)
    plain = run_engine(engine, [build_prompt("p")])["p"]
    network: Any = engine._runner._model._model  # type: ignore[attr-defined]
    adapter = write_adapter(tmp_path / "x", network, layers=2)
    engine, _ = load_engine(str(folder), max_sequences=4, adapters={"x": adapter})
    said = run_engine(engine, [build_prompt("p"), build_prompt("q", adapter="x")])
    assert said["p"].token_ids == plain.token_ids != said["q"].token_ids
    with pytest.raises(ModelError, match="adapter 'y'"):
        load_engine(str(folder), adapters={"y": tmp_path})
