"""docs/fields-openai.md names every field that the request models know, and says of each what becomes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from api.openai.parameters import NO_OPS
from api.openai.schemas import ChatRequest, CompletionRequest, Message, StreamOptions, StructuredOutputs
from api.openai.tokenizing import DetokenizeRequest, TokenizeRequest

PAGE = (Path(__file__).parents[2] / "docs" / "fields-openai.md").read_text(encoding="utf-8").partition("## Calls")[0]
ROW = re.compile(r"^\| (?P<names>`.+?) \| (?P<fate>honoured|refused|listed) \|", re.MULTILINE)
MODELS: list[type[BaseModel]] = [ChatRequest, CompletionRequest, Message, StreamOptions, StructuredOutputs]


def named() -> dict[str, set[str]]:
    """What the page says of each field."""
    fates: dict[str, set[str]] = {}
    for row in ROW.finditer(PAGE):
        for name in re.findall(r"`(\w+)`", row["names"]):
            fates.setdefault(name, set()).add(row["fate"])
    return fates


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_of_a_request_is_honoured_by_name(model: type[BaseModel]) -> None:
    names = {field.alias or name for name, field in model.model_fields.items()}
    assert {name for name in names if named().get(name) != {"honoured"}} == set()


def test_every_documented_field_without_an_implementation_is_refused_by_name() -> None:
    own = {name for model in MODELS for name in model.model_fields}
    assert {name for name in NO_OPS if name not in own and named().get(name) != {"refused"}} == set()


def test_nothing_is_promised_that_nobody_knows() -> None:
    known = {field.alias or name for model in MODELS for name, field in model.model_fields.items()}
    assert {name for name, fates in named().items() if fates == {"honoured"}} <= known
    assert {name for name, fates in named().items() if fates == {"refused"}} <= set(NO_OPS)


@pytest.mark.parametrize("model", [TokenizeRequest, DetokenizeRequest], ids=lambda model: model.__name__)
def test_the_small_endpoints_have_their_fields(model: type[BaseModel]) -> None:
    assert {name for name in model.model_fields if f"`{name}`" not in PAGE} == set()
