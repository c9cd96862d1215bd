"""The self-test at load: right models pass, wrong pools are found out."""

from typing import Any

import pytest

from bench.tiny_models import tiny_model
from workers.engine.paged.cache import CannotPage, PagedModel
from workers.engine.paged.layout import ForwardLayout
from workers.engine.paged.probe import open_pages, self_test

import mlx.core as mx  # isort: skip

SIZES: dict[str, Any] = {"blocks": 60, "block_tokens": 4, "state_slots": 4}


class Corrupted(PagedModel):
    """Pools in which one block is overwritten once, as a faulty writer would do it."""

    after_forward = 2  # prompts are read in two
    rows: tuple[int, ...] = (0,)
    column = 1

    def forward(self, input_ids: mx.array, layout: ForwardLayout, slots: Any = (), adapters: Any = ()) -> mx.array:
        logits = super().forward(input_ids, layout, slots, adapters)
        self.after_forward -= 1
        if self.after_forward == 0:
            mx.eval(logits, self.pools())
            blocks = [int(layout.tables[row, self.column]) for row in self.rows]
            content = self.read_blocks(blocks)
            self.write_blocks(blocks, {name: array[..., ::-1].copy() for name, array in content.items()})
        return logits


class Unordered(PagedModel):
    """Layouts in which two rows have changed tables."""

    def forward(self, input_ids: mx.array, layout: ForwardLayout, slots: Any = (), adapters: Any = ()) -> mx.array:
        if layout.tokens == 1:
            layout.tables[:2] = layout.tables[:2][::-1].copy()
        return super().forward(input_ids, layout, slots, adapters)


class Forgetful(PagedModel):
    """Recurrent state that is lost between a prompt and its continuation."""

    def forward(self, input_ids: mx.array, layout: ForwardLayout, slots: Any = (), adapters: Any = ()) -> mx.array:
        if layout.rows > 1:
            self.reset_slot(slots[1])
        return super().forward(input_ids, layout, slots, adapters)


@pytest.mark.parametrize(
    "architecture",
    ["llama", "qwen3_moe", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v2", "deepseek_v3", "mamba", "jamba"],
)
def test_a_model_passes(architecture: str) -> None:
    network = tiny_model(architecture)
    assert self_test(network, PagedModel(network, **SIZES)) is None
    assert self_test(network, PagedModel(network, direct=False, **SIZES)) is None


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_a_model_in_half_precision_passes(architecture: str, dtype: mx.Dtype) -> None:
    network = tiny_model(architecture)
    network.set_dtype(dtype)
    assert self_test(network, PagedModel(network, **SIZES)) is None


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "deepseek_v3"])
@pytest.mark.parametrize(("row", "column"), [(0, 3), (1, 1), (2, 0)])
def test_one_corrupted_block_is_found(architecture: str, row: int, column: int, kv_bits: int | None) -> None:
    network = tiny_model(architecture)
    model = Corrupted(network, kv_bits=kv_bits, **SIZES)
    model.rows, model.column = (row,), column
    reason = self_test(network, model)
    assert reason is not None
    assert "logits over pools differ" in reason


def test_a_corrupted_block_is_found_in_half_precision() -> None:
    network = tiny_model("llama")
    network.set_dtype(mx.bfloat16)
    assert self_test(network, Corrupted(network, **SIZES)) is not None


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("direct", [True, False])
def test_rows_with_each_others_blocks_are_found(direct: bool, kv_bits: int | None) -> None:
    network = tiny_model("qwen3")
    assert self_test(network, Unordered(network, direct=direct, kv_bits=kv_bits, **SIZES)) is not None


class FarSighted(PagedModel):
    """A mask that is wrong by one key: the window of sliding layers is a token too long."""

    def forward(self, input_ids: mx.array, layout: ForwardLayout, slots: Any = (), adapters: Any = ()) -> mx.array:
        for layer in self._layers:
            if layer.window is not None and layer.window % 2 == 0:
                layer.window += 1
                self._reader.adds(layer.pool, layer.window)  # type: ignore[arg-type]
        return super().forward(input_ids, layout, slots, adapters)


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_a_mask_that_is_wrong_by_one_key_is_found(kv_bits: int | None) -> None:
    network = tiny_model("gemma3_text")
    reason = self_test(network, FarSighted(network, kv_bits=kv_bits, **SIZES))
    assert reason is not None
    assert "logits over pools differ" in reason


@pytest.mark.parametrize(
    "architecture",
    ["llama", "qwen3_moe", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v2", "deepseek_v3", "jamba", "gemma4_text"],
)
def test_a_model_passes_in_8_bits(architecture: str) -> None:
    network = tiny_model(architecture)
    assert self_test(network, PagedModel(network, kv_bits=8, **SIZES)) is None
    assert self_test(network, PagedModel(network, kv_bits=8, direct=False, **SIZES)) is None


def test_a_model_in_half_precision_passes_in_8_bits() -> None:
    network = tiny_model("llama")
    network.set_dtype(mx.bfloat16)
    assert self_test(network, PagedModel(network, kv_bits=8, **SIZES)) is None


def test_a_model_that_rounding_would_spoil_does_not_pass() -> None:
    """One channel of the values is so large that the others vanish beside it, though nobody looks at that one."""
    network: Any = tiny_model("qwen2")
    for layer in network.layers:
        attention = layer.self_attn
        width = attention.v_proj.bias.size // attention.n_kv_heads
        channels = mx.arange(attention.v_proj.bias.size) % width == 0
        attention.v_proj.bias = mx.where(channels, 3000.0, attention.v_proj.bias)
        looked_at = mx.arange(attention.o_proj.weight.shape[1]) % width != 0
        attention.o_proj.weight = attention.o_proj.weight * looked_at
    assert self_test(network, PagedModel(network, **SIZES)) is None
    reason = self_test(network, PagedModel(network, kv_bits=8, **SIZES))
    assert reason is not None
    assert "keys and values of 8 bits change the logits" in reason


def test_lost_state_is_found() -> None:
    network = tiny_model("mamba")
    assert self_test(network, Forgetful(network, **SIZES)) is not None


def test_a_model_whose_output_is_not_finite_is_not_trusted() -> None:
    network = tiny_model("llama")
    paged = PagedModel(network, **SIZES)
    network.model.norm.weight = network.model.norm.weight * mx.nan
    assert self_test(network, paged) == "logits over pools differ from the model's own by inf of their spread"


def test_too_few_blocks_to_test_with_are_a_reason() -> None:
    network = tiny_model("llama")
    assert self_test(network, PagedModel(network, blocks=2, block_tokens=4)) == "2 blocks are too few to test with"


def test_the_slots_are_new_after_the_test() -> None:
    network = tiny_model("mamba")
    paged = PagedModel(network, **SIZES)
    assert self_test(network, paged) is None
    assert self_test(network, paged) is None


def test_pages_are_opened_where_the_test_is_passed() -> None:
    assert open_pages(tiny_model("llama"), blocks=60, block_tokens=4).kinds["direct"] == 2
    with pytest.raises(CannotPage, match="logits over pools differ"):
        # Its window is one token longer for a prompt than for what is decoded.
        open_pages(tiny_model("plamo3"), blocks=60, block_tokens=4)
