"""An image's place in a prompt: as many tokens as the rule says, and nowhere else."""

from __future__ import annotations

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


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_a_scaled_image_has_a_bounded_number_of_tokens(width: int, height: int) -> None:
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ImageRefused, match="200 times"):
            SCALED.tokens_of(width, height)
        return
    assert 1 <= SCALED.tokens_of(width, height) <= 36 * 200
    assert FIXED.tokens_of(width, height) == 3


@given(st.lists(st.text(alphabet="ab <>", max_size=5), min_size=1, max_size=4))
def test_images_stand_where_the_template_put_them(texts: list[str]) -> None:
    counts = list(range(1, len(texts)))
    if "<img>" in "".join(texts):
        return
    written = FIXED.written("<img>".join(texts), counts)
    assert written is not None
    assert written.count("<tok>") == sum(counts)
    for count in counts:
        written = written.replace("\n<a>" + "<tok>" * count + "<b>\n", "<img>", 1)
    assert written == "<img>".join(texts)


def test_a_marker_without_an_image_is_not_written() -> None:
    assert FIXED.written("a<img>b", []) is None
    assert FIXED.written("a", [3]) is None
    assert SCALED.written("a<pad>b", [2]) == "a<pad><pad>b"


def test_a_card_carries_its_rule() -> None:
    card = make_card(images=SCALED)
    assert ModelCard.decode(card.encode()) == card
    raw = msgpack.unpackb(card.encode())
    raw["images"]["newer"] = 1
    assert ModelCard.decode(msgpack.packb(raw)) == card
    assert len({card, make_card(images=SCALED), make_card()}) == 2
