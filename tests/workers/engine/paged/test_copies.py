"""Copies of contexts, kept between steps, change nothing of what rows say."""

import pytest

from bench.tiny_models import tiny_model
from tests.workers.engine.paged.plain_rows import Rows, alone, paged, prompts_of


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
