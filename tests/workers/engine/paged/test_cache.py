"""A model over pools: what it says, what it costs, and that MLX never copies a pool."""

from collections.abc import Callable

import numpy as np
import pytest

from bench.tiny_models import tiny_model
from tests.workers.engine.paged.plain_rows import SIZE, Row, Rows, alone, best_of, paged, prompts_of
from workers.engine.paged.cache import CannotPage
from workers.engine.paged.layout import ForwardLayout, Span, arrange_rows

import mlx.core as mx  # isort: skip


PLAIN = ("llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "glm4")
SLIDING = ("gemma3_text", "gpt_oss", "exaone4")
GATHERED = ("gemma2", "deepseek_v2", "deepseek_v3", "gemma4_text")
RECURRENT = ("mamba", "jamba", "falcon_h1", "qwen3_next", "lfm2", "recurrent_gemma")


@pytest.mark.parametrize("architecture", [*PLAIN, *SLIDING, *GATHERED, *RECURRENT])
def test_a_batch_says_what_each_row_says_alone(architecture: str) -> None:
    network = tiny_model(architecture)
    model = paged(network)
    together = Rows(model, prompts_of())
    together.read(chunk=5)
    together.decode(10)
    said = set()
    for row, prompt in zip(together.rows, prompts_of(), strict=True):
        tokens, logits = alone(network, prompt, 10)
        assert row.token_ids == tokens
        spread = float(mx.std(mx.stack(logits)))
        assert float(mx.max(mx.abs(mx.stack(row.logits) - mx.stack(logits)))) < 1e-4 * max(spread, 1.0)
        said.add(tuple(tokens[-10:]))
    assert len(said) > 1


@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        ("llama", {"direct": 2, "gathered": 0, "window": 0, "state": 0}),
        ("gemma3_text", {"direct": 4, "gathered": 0, "window": 2, "state": 0}),
        ("deepseek_v3", {"direct": 0, "gathered": 2, "window": 0, "state": 0}),
        ("gemma4_text", {"direct": 0, "gathered": 2, "window": 1, "state": 0}),
        ("falcon_h1", {"direct": 2, "gathered": 0, "window": 0, "state": 2}),
        ("mamba", {"direct": 0, "gathered": 0, "window": 0, "state": 2}),
    ],
)
def test_layers_are_told_apart_by_the_probe(architecture: str, kinds: dict[str, int]) -> None:
    model = paged(tiny_model(architecture))
    assert model.kinds == kinds
    assert model.has_state == bool(kinds["state"])
    assert model.batched_prefill == (not kinds["state"])
    assert model.window_tokens is None
    assert (model.slot_bytes > 0) == model.has_state


def test_a_model_that_slides_everywhere_knows_how_far_back_it_looks() -> None:
    network = tiny_model("exaone_moe", layer_types=["sliding_attention"] * 4)
    assert paged(network).window_tokens == 12


def test_without_direct_layers_a_model_says_the_same() -> None:
    network = tiny_model("gpt_oss")
    one, other = (Rows(paged(network, direct=direct), prompts_of()) for direct in (True, False))
    for rows in (one, other):
        rows.read(chunk=6)
        rows.decode(8)
    assert other.model.kinds["direct"] == 0
    assert [row.token_ids for row in one.rows] == [row.token_ids for row in other.rows]


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("afm7", "afm7: it takes the position of a token from the length of the keys"),
        ("deepseek_v32", "no attribute 'keys'"),
        ("gpt_bigcode", "the model fails over a paged cache"),
        ("llama4", "a layer asks for a ChunkedKVCache"),
        ("longcat_flash_ngram", "a recurrent layer's state grows with its tokens"),
        ("deepseek_v41", "a layer asks for a LayerCache"),
    ],
)
def test_a_model_that_cannot_be_paged_says_why(architecture: str, reason: str) -> None:
    with pytest.raises(CannotPage, match=reason):
        paged(tiny_model(architecture))


def test_a_recurrent_model_needs_slots() -> None:
    with pytest.raises(CannotPage, match="needs state slots"):
        paged(tiny_model("mamba"), state_slots=0)


def test_several_new_tokens_of_a_row_get_their_logits() -> None:
    network = tiny_model("gpt_oss")
    rows = Rows(paged(network), prompts_of())
    rows.read(chunk=9)
    drafts = [[7, 9], [3], [11, 12, 13], [], [1, 2]]
    for row, draft in zip(rows.rows, drafts, strict=True):
        row.token_ids += draft
    logits = rows.forward(rows.rows, [1 + len(draft) for draft in drafts])
    for place, (row, draft) in enumerate(zip(rows.rows, drafts, strict=True)):
        expected = network(mx.array([row.token_ids]))[0, -1 - len(draft) :]
        assert float(mx.max(mx.abs(logits[place, : 1 + len(draft)] - expected))) < 1e-3


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text", "deepseek_v3"])
@pytest.mark.parametrize("steps", [3, 9])
def test_a_row_may_go_back_and_take_another_way(architecture: str, steps: int) -> None:
    network = tiny_model(architecture)
    rows = Rows(paged(network), prompts_of())
    rows.read(chunk=9)
    rows.decode(steps)
    for row in rows.rows:  # all but the first token of them was wrong
        del row.token_ids[1 - steps :]
        row.token_ids[-1] = 5
        row.done -= steps - 1
    rows.decode(6)
    for row, prompt in zip(rows.rows, prompts_of(), strict=True):
        assert row.token_ids == alone(network, [*prompt, 5], 6)[0]


def test_rows_that_share_blocks_say_what_they_say_alone() -> None:
    network = tiny_model("llama")
    model = paged(network, blocks=120)
    common = prompts_of([70])[0]
    prompts = [[*common, *tail] for tail in prompts_of([3, 9, 5])] + prompts_of([11])
    rows = Rows(model, prompts, most_tokens=100)
    [first, *others] = rows.rows
    for row in others[:2]:
        row.table[:17] = first.table[:17]
    rows.forward([first], [68])
    mx.eval(model.pools())
    for row in others[:2]:
        row.done = 68
    rows.read(chunk=8)
    order, groups = arrange_rows([row.table for row in rows.rows], [row.done for row in rows.rows], block_tokens=SIZE)
    assert [group.shared_blocks for group in groups] == [17, 0]
    rows.rows = [rows.rows[place] for place in order]
    for _ in range(8):
        tokens = best_of(rows.forward(rows.rows, [1] * 4, groups)[:, -1])
        for row, token in zip(rows.rows, tokens, strict=True):
            row.token_ids.append(token)
    for row, place in zip(rows.rows, order, strict=True):
        assert row.token_ids == alone(network, prompts[place], 8)[0]


# What it costs.


def peak_bytes(work: Callable[[], object]) -> int:
    """How much more than before MLX holds at the worst moment."""
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    work()
    mx.synchronize()
    return int(mx.get_peak_memory() - before)


@pytest.fixture(scope="module", params=[None, 8])
def large(request: pytest.FixtureRequest) -> Rows:
    """Few rows in pools of 60 MB each, codes and scales in one apiece, so that a copy could not be overlooked."""
    blocks = 60_000 if request.param is None else 240_000
    model = paged(tiny_model("llama"), blocks=blocks, block_tokens=SIZE, kv_bits=request.param)
    rows = Rows(model, prompts_of([40] * 4), most_tokens=200)
    rows.read(chunk=16)
    rows.decode(3)
    return rows


SMALL_BYTES = 4 << 20


def test_reading_a_prompt_copies_no_pool(large: Rows) -> None:
    fresh = Rows(large.model, prompts_of([40] * 4))
    assert large.model.block_bytes * large.model.blocks > 20 * SMALL_BYTES
    assert peak_bytes(lambda: fresh.read(chunk=16)) < SMALL_BYTES


def test_decoding_copies_no_pool(large: Rows) -> None:
    assert peak_bytes(lambda: large.decode(6)) < SMALL_BYTES


def test_building_ahead_copies_no_pool(large: Rows) -> None:
    rows = large.rows

    def run() -> None:
        tokens, running = mx.array([row.token_ids[-1] for row in rows]), None
        for step in range(6):
            spans = [Span(row.table, row.done + step, 1) for row in rows]
            logits = large.model.forward(tokens[:, None], ForwardLayout(spans, block_tokens=SIZE))
            tokens = mx.argmax(logits[:, -1], axis=-1)
            del logits
            if running is not None:
                running.tolist()
            mx.async_eval(tokens)  # type: ignore[no-untyped-call]
            running = tokens
        tokens.tolist()

    assert peak_bytes(run) < SMALL_BYTES


def test_stages_built_together_and_run_one_by_one_copy_no_pool(large: Rows) -> None:
    fresh = Rows(large.model, prompts_of([40] * 4))

    def run() -> None:
        stages = []
        for _ in range(2):
            fresh.forward(fresh.rows, [19] * 4)
            stages.append(large.model.pools())
        stages.append([mx.argmax(fresh.forward(fresh.rows, [1] * 4), axis=-1)])
        while stages:
            mx.eval(stages.pop(0))

    assert peak_bytes(run) < SMALL_BYTES


def test_what_is_handed_over_is_queued_within_a_limit() -> None:
    """A chain of operations that hold each other's inputs, as those of a forward do."""
    model = paged(tiny_model("llama"))
    before_bytes = mx.set_memory_limit(1 << 40)
    wide, square = mx.ones((1 << 16, 16)), mx.ones((16, 16))
    mx.eval(wide, square)

    def chain() -> list[mx.array]:
        last = wide
        for _ in range(60):
            last = last @ square
        return [last]

    assert peak_bytes(lambda: mx.eval(chain())) > 20 * wide.nbytes
    assert peak_bytes(lambda: model.dispatch(chain())) < 10 * wide.nbytes
    assert mx.set_memory_limit(before_bytes) == 1 << 40


def test_blocks_are_copied_read_written_and_cleared_in_place(large: Rows) -> None:
    model = large.model
    blocks = large.rows[0].table[:2]

    def run() -> None:
        model.copy_blocks(blocks[:1], [59_000], [16])
        mx.eval(model.pools())
        model.write_blocks([59_001, 59_002], model.read_blocks(blocks))
        model.clear_blocks([59_003])

    assert peak_bytes(run) < SMALL_BYTES


def test_a_pool_stays_where_it_is(large: Rows) -> None:
    """Its memory, and so that of its scales, is the same before and after."""

    def addresses() -> list[int]:
        return [np.asarray(memoryview(stored.array)).ctypes.data for stored in large.model._stored.values()]  # type: ignore[arg-type]

    before = addresses()
    Rows(large.model, prompts_of([40] * 4)).read(chunk=16)
    large.decode(3)
    assert addresses() == before


def test_a_prompt_is_read_without_logits() -> None:
    model = paged(tiny_model("llama", vocab_size=60_000))
    rows = Rows(model, prompts_of([41]))
    logits_bytes = 40 * 60_000 * 4
    assert peak_bytes(lambda: rows.read(chunk=40)) < logits_bytes / 4


# Blocks.


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("llama", mx.bfloat16), ("llama", mx.float16), ("deepseek_v2", mx.float32)],  # the last one with two widths
)
@pytest.mark.parametrize("kv_bits", [None, 8])
def test_blocks_come_back_from_the_host_as_they_were(architecture: str, dtype: mx.Dtype, kv_bits: int | None) -> None:
    network = tiny_model(architecture)
    network.set_dtype(dtype)
    model = paged(network, kv_bits=kv_bits)
    rows = Rows(model, prompts_of([14]))
    rows.read(chunk=20)
    table = rows.rows[0].table
    kept = model.read_blocks(table[:3])
    assert all(array.shape[0] == 3 for array in kept.values())
    assert sum(array.nbytes for array in kept.values()) == 3 * model.block_bytes
    model.write_blocks([80, 81, 82], kept)
    again = model.read_blocks([80, 81, 82])
    assert kept.keys() == again.keys()
    assert all(np.array_equal(kept[name].view(np.uint8), again[name].view(np.uint8)) for name in kept)


def test_blocks_of_another_model_are_refused() -> None:
    model = paged(tiny_model("llama"))
    kept = model.read_blocks([1])
    name = next(iter(kept))
    with pytest.raises(ValueError, match="do not fit"):
        model.write_blocks([2], {name: kept[name]})
    with pytest.raises(ValueError, match="is not"):
        model.write_blocks([2], {**kept, name: kept[name].astype(np.float16)})
    with pytest.raises(ValueError, match="is not"):
        model.write_blocks([2, 3], kept)
    with pytest.raises(ValueError, match="not all among"):
        model.read_blocks([90])


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_blocks_of_other_bits_are_refused(kv_bits: int | None) -> None:
    network = tiny_model("llama")
    kept = paged(network, kv_bits=kv_bits).read_blocks([1])
    with pytest.raises(ValueError, match="do not fit"):
        paged(network, kv_bits=None if kv_bits else 8).write_blocks([2], kept)


def test_a_cleared_block_spoils_nobody() -> None:
    network = tiny_model("llama")
    model = paged(network)
    rows = Rows(model, prompts_of([6, 15]))
    spoilt = rows.rows[0].table[:4]
    content = model.read_blocks(spoilt)
    model.write_blocks(spoilt, {name: np.full_like(array, np.nan) for name, array in content.items()})
    model.clear_blocks(spoilt)
    rows.read(chunk=20)
    rows.decode(4)
    assert rows.rows[0].token_ids == alone(network, prompts_of([6, 15])[0], 4)[0]


def test_what_does_not_fit_the_pools_is_refused() -> None:
    model = paged(tiny_model("llama"))
    ids = mx.array([[1]])
    with pytest.raises(ValueError, match="outside of 0 to 89"):
        model.forward(ids, ForwardLayout([Span([90], 0, 1)], block_tokens=SIZE))
    with pytest.raises(ValueError, match="ids \\(1, 1\\) for 1 rows of 2 tokens"):
        model.forward(ids, ForwardLayout([Span([1], 0, 2)], block_tokens=SIZE))
    with pytest.raises(ValueError, match="blocks of 8 tokens"):
        model.forward(ids, ForwardLayout([Span([1], 0, 1)], block_tokens=8))
    with pytest.raises(ValueError, match="1 state slots for 1 rows"):
        model.forward(ids, ForwardLayout([Span([1], 0, 1)], block_tokens=SIZE), [0])


# Recurrent state.


@pytest.mark.parametrize("architecture", ["mamba", "jamba", "qwen3_next"])
def test_rows_with_state_may_come_and_go(architecture: str) -> None:
    network = tiny_model(architecture)
    rows = Rows(paged(network), [*prompts_of(), [9]])
    everyone = rows.rows
    rows.read(chunk=9)
    for members in ((0, 1, 2), (0, 1, 2), (1, 2), (5, 1, 2, 3, 4), (4, 3, 2, 1), (0,), (0,), (0, 4), (5, 4, 0)):
        rows.rows = [everyone[place] for place in members]
        rows.decode(2)
    for row, prompt in zip(everyone, [*prompts_of(), [9]], strict=True):
        assert row.token_ids == alone(network, prompt, len(row.token_ids) - len(prompt))[0]


def test_a_state_can_be_kept_and_taken_up_again() -> None:
    network = tiny_model("jamba")
    model = paged(network)
    prompt = prompts_of([23])[0]
    first = Rows(model, [prompt])
    first.forward(first.rows, [12])
    mx.eval(model.pools())
    model.snapshot(0, into=5)
    first.read(chunk=7)
    first.decode(5)
    again = Row([*prompt[:12], 3, 4, 5], [*first.rows[0].table[:3], *range(70, 80)], slot=1, done=12)
    others = Rows(model, prompts_of([9]))
    others.rows[0].slot = 2
    others.rows[0].table = [block for block in range(1, 60) if block not in first.rows[0].table][:12]
    others.read(chunk=9)
    model.restore(1, origin=5)
    others.rows.append(again)
    others.read(chunk=2)
    others.decode(5)
    assert first.rows[0].token_ids == alone(network, prompt, 5)[0]
    assert again.token_ids == alone(network, [*prompt[:12], 3, 4, 5], 5)[0]
    model.reset_slot(5)
    model.restore(1, origin=5)  # nothing: as if it began
    fresh = Row(prompts_of([6])[0], list(range(60, 70)), slot=1)
    others.rows = [fresh]
    others.read(chunk=9)
    others.decode(5)
    assert fresh.token_ids == alone(network, prompts_of([6])[0], 5)[0]


def test_slots_are_checked() -> None:
    model = paged(tiny_model("mamba"))
    layout = ForwardLayout([Span([1], 0, 1), Span([2], 0, 1)], block_tokens=SIZE)
    for slots in ([0, 6], [0, 0], [-1, 0]):
        with pytest.raises(ValueError, match="not 2 different ones below 6"):
            model.forward(mx.array([[1], [2]]), layout, slots)
    uneven = ForwardLayout([Span([1], 0, 1), Span([2], 0, 2)], block_tokens=SIZE)
    with pytest.raises(ValueError, match="cannot be padded"):
        model.forward(mx.array([[1, 1], [2, 2]]), uneven, [0, 1])
