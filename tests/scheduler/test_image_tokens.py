"""An image's place in a prompt: as many tokens as the rule says, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.image_tokens import ImageRule
from scheduler.images import ImageRefused
from scheduler.models import ModelCard
from tests.scheduler.builders import make_card

FIXED = ImageRule(marker="<img>", token="<tok>", token_id=9, before="\n<a>", after="<b>\n", tokens=3)
SCALED = ImageRule(
    marker="<pad>", token="<pad>", token_id=9, cell_pixels=28, min_pixels=4 * 28**2, max_pixels=36 * 28**2
)

BY_SIDE = ImageRule(marker="[I]", token="[I]", token_id=9, after="[E]", cell_pixels=16, max_side=32, row_break="|")
TILED = ImageRule(
    marker="<i>",
    token="<i>",
    token_id=9,
    before="<f>",
    after="<f>",
    tokens=2,
    tile_pixels=64,
    max_side=64,
    whole_mark="<all>",
)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_a_scaled_image_has_a_bounded_number_of_tokens(width: int, height: int) -> None:
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ImageRefused, match="200 times"):
            SCALED.tokens_of(width, height)
        return
    assert 1 <= SCALED.tokens_of(width, height) <= 36 * 200
    assert FIXED.tokens_of(width, height) == 3


RULES = {"fixed": FIXED, "cells by area": SCALED, "cells by side": BY_SIDE, "tiles": TILED}
sides = st.integers(1, 900)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(texts=st.lists(st.text(alphabet="ab <>", max_size=5), min_size=1, max_size=4), data=st.data())
def test_images_stand_where_the_template_put_them(rule: ImageRule, texts: list[str], data: st.DataObject) -> None:
    if rule.marker in "".join(texts):
        return
    sizes = [data.draw(st.tuples(sides, sides)) for _ in texts[1:]]
    try:
        images = [rule.shown(*size) for size in sizes]
    except ImageRefused:
        with pytest.raises(ImageRefused):
            rule.written(rule.marker.join(texts), sizes)
        return
    assert [image.count(rule.token) for image in images] == [rule.tokens_of(*size) for size in sizes]
    written = rule.written(rule.marker.join(texts), sizes)
    assert written == "".join(part for pair in zip(texts, [*images, ""], strict=True) for part in pair)
    assert rule.written(rule.marker.join(texts), [*sizes, (9, 9)]) is None


@pytest.mark.parametrize(
    ("rule", "size", "written"),
    [
        (FIXED, (7, 900), "\n<a><tok><tok><tok><b>\n"),
        (SCALED, (56, 84), "<pad>" * 6),
        (BY_SIDE, (50, 50), "[I][I]|[I][I][E]"),
        (BY_SIDE, (17, 16), "[I][I][E]"),
        (BY_SIDE, (1, 1), "[I][E]"),
        (TILED, (50, 50), "<f><all><i><i><f>"),
    ],
)
def test_each_form_is_written_as_its_processor_does(rule: ImageRule, size: tuple[int, int], written: str) -> None:
    assert rule.shown(*size) == written


def test_tiles_are_written_with_their_places_and_the_whole_behind_them() -> None:
    rows = "<f><row_1_col_1><i><i><f><row_1_col_2><i><i>\n", "<f><row_2_col_1><i><i><f><row_2_col_2><i><i>\n"
    large = replace(TILED, max_side=128)
    assert large.shown(300, 200) == "".join(rows) + "\n<f><all><i><i><f>"
    assert large.shown(300, 20) == rows[0] + "\n<f><all><i><i><f>"


def test_an_image_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(ImageRefused, match="narrow"):
        BY_SIDE.shown(1, 65)


def test_a_card_carries_its_rule() -> None:
    card = make_card(images=SCALED)
    assert ModelCard.decode(card.encode()) == card
    raw = msgpack.unpackb(card.encode())
    raw["images"]["newer"] = 1
    assert ModelCard.decode(msgpack.packb(raw)) == card
    assert len({card, make_card(images=SCALED), make_card()}) == 2
