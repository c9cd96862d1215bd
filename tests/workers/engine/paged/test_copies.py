"""Copies of contexts, kept between steps, change nothing of what rows say."""

from collections.abc import Sequence

import numpy as np
import pytest

from bench.tiny_models import tiny_model
from tests.workers.engine.paged.plain_rows import Rows, alone, paged, prompts_of
from workers.engine.paged.attention import GatherReader
from workers.engine.paged.cache import PagedModel
from workers.engine.paged.layout import ForwardLayout

import mlx.core as mx  # isort: skip


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
@pytest.mark.parametrize("copy_bytes", [0, 20_000, None])
def test_what_is_kept_between_steps_changes_nothing(architecture: str, copy_bytes: int | None) -> None:
    network = tiny_model(architecture)
    rows = Rows(paged(network, copy_bytes=copy_bytes), prompts_of())
    rows.read(chunk=9)
    rows.decode(25)  # longer than the room that a copy has
    for row, prompt in zip(rows.rows, prompts_of(), strict=True):
        assert row.token_ids == alone(network, prompt, 25)[0]


def test_rows_may_come_and_go_between_steps() -> None:
    network = tiny_model("llama")
    rows = Rows(paged(network), prompts_of())
    everyone = rows.rows
    rows.read(chunk=9)
    for members in ((0, 1, 2), (0, 1, 2), (1, 2), (1, 2, 3, 4), (4, 3, 2, 1), (4, 3, 2, 1), (0,), (0, 4), (4, 0)):
        rows.rows = [everyone[place] for place in members]
        rows.decode(2)
    for row, prompt in zip(everyone, prompts_of(), strict=True):
        assert row.token_ids == alone(network, prompt, len(row.token_ids) - len(prompt))[0]


def test_a_block_given_to_another_row_is_not_read_from_a_copy() -> None:
    """The same table at the same length, but another content: as if the row before had gone and this one came."""
    network = tiny_model("llama")
    model = paged(network)
    rows = Rows(model, prompts_of([14, 14]))
    rows.read(chunk=20)
    rows.decode(2)
    length = len(rows.rows[0].token_ids)
    other = prompts_of([length, length], seed=9)
    for row, prompt in zip(rows.rows, other, strict=True):
        row.token_ids, row.done = list(prompt), 0
    rows.read(chunk=20)
    rows.decode(4)
    for row, prompt in zip(rows.rows, other, strict=True):
        assert row.token_ids == alone(network, prompt, 4)[0]


def test_a_row_may_begin_again_in_its_blocks() -> None:
    network = tiny_model("exaone_moe", layer_types=["sliding_attention"] * 4)
    rows = Rows(paged(network), prompts_of([30, 31]), most_tokens=60)
    rows.read(chunk=9)
    rows.decode(2)
    for row, prompt in zip(rows.rows, prompts_of([30, 31]), strict=True):
        row.token_ids, row.done = prompt[:4], 3
    rows.decode(3)
    for row, prompt in zip(rows.rows, prompts_of([30, 31]), strict=True):
        assert row.token_ids == alone(network, prompt[:4], 3)[0]


@pytest.mark.parametrize("way", ["copy", "write"])
def test_a_block_with_another_content_is_not_read_from_a_copy(way: str) -> None:
    network = tiny_model("llama")
    model = paged(network)
    rows = Rows(model, prompts_of([14, 14]))
    rows.read(chunk=20)
    rows.decode(2)
    one, other = rows.rows
    for mine, yours in zip(one.table, other.table, strict=True):
        if way == "copy":
            model.copy_blocks([yours], [mine], [model.block_tokens])
        else:
            model.write_blocks([mine], model.read_blocks([yours]))
    one.token_ids = list(other.token_ids)
    rows.decode(4)
    assert one.token_ids == other.token_ids == alone(network, prompts_of([14, 14])[1], 6)[0]


class Compared(PagedModel):
    """After each forward its working copies are compared, bit by bit, with what the pools give for the same blocks."""

    compared = 0

    def forward(
        self,
        input_ids: mx.array,
        layout: ForwardLayout,
        slots: Sequence[int] = (),
        adapters: Sequence[str | None] = (),
    ) -> mx.array:
        logits = super().forward(input_ids, layout, slots, adapters)
        mx.eval(logits, self.pools())
        assert isinstance(self._reader, GatherReader)
        for window in {layer.window for layer in self._layers}:
            for group, held in zip(layout.groups_for(window), self._reader._copies.plan(window), strict=True):
                if held is None:
                    continue
                view = layout.view(group, window)
                first = layout.first_blocks(group, window) * layout.block_tokens
                for pool, array in held._arrays.items():
                    in_pool = pool.read_joined(layout.reads(group, window, pool.heads))
                    for row, (begin, end) in enumerate(zip(first, layout.ends[group.slice], strict=True)):
                        low = int(begin - held._base[row])
                        kept = array[row, :, low : low + int(end - begin)]
                        assert mx.array_equal(kept, in_pool[row, :, : int(end - begin)])
                        self.compared += 1
                assert view.sight.high <= held.capacity
        return logits


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_copy_holds_what_the_pool_gives(architecture: str, dtype: mx.Dtype, kv_bits: int | None) -> None:
    """Also of the tokens that were new when it was added to, and however these were rounded."""
    network = tiny_model(architecture)
    network.set_dtype(dtype)
    model = Compared(network, blocks=90, block_tokens=4, copy_bytes=1 << 20, kv_bits=kv_bits)
    rows = Rows(model, prompts_of())
    rows.read(chunk=9)
    rows.decode(12)
    assert model.compared > 100


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_rounded_rows_say_the_same_from_copies_and_from_pools(architecture: str) -> None:
    """With new tokens exact until the pool gives them back they would differ a hundred times as much."""
    network = tiny_model(architecture)
    logits = []
    for copy_bytes in (0, 20_000, None):
        rows = Rows(paged(network, copy_bytes=copy_bytes, kv_bits=8), prompts_of())
        rows.read(chunk=9)
        rows.decode(25)
        logits.append(np.array([[np.array(one) for one in row.logits] for row in rows.rows]))
    spread = float(np.std(logits[0]))
    assert max(float(np.abs(other - logits[0]).max()) for other in logits[1:]) < 1e-4 * spread
