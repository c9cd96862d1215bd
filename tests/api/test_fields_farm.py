"""Every field of every endpoint in the OpenAPI description is on the endpoint's page, which names no others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from scheduler.settings import ApiSettings

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "/v1/chat/completions": "fields-openai.md",
    "/v1/completions": "fields-openai.md",
    "/v1/moderations": "fields-openai.md",
    "/v1/models": "fields-openai.md",
    "/tokenize": "fields-openai.md",
    "/detokenize": "fields-openai.md",
    "/v1/responses": "responses.md",
    "/v1/messages/batches": "fields-farm.md",
    "/v1/messages": "anthropic.md",
    "/v1/embeddings": "embeddings.md",
    "/v1/rerank": "embeddings.md",
    "/v1/score": "embeddings.md",
}
"""By the beginning of the path; all others are on fields-farm.md, endpoint by endpoint."""

ROW = re.compile(r"^\| `(?P<method>[A-Z]+) (?P<path>/\S*)` \|(?P<fields>[^|]*)\|", re.MULTILINE)
NAME = re.compile(r"`([\w\[\]]+)`")


class Operations:
    """What the OpenAPI description says."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        self._described = described

    def __iter__(self) -> Iterator[tuple[str, str, set[str]]]:
        """(method, path, names of query parameters and of the body's fields)"""
        for path, methods in self._described["paths"].items():
            for method, operation in methods.items():
                yield method.upper(), path, self._fields(operation)

    def _fields(self, operation: Mapping[str, Any]) -> set[str]:
        query = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        return query | set(self._properties(body))

    def _properties(self, schema: Mapping[str, Any]) -> Iterator[str]:
        if reference := schema.get("$ref"):
            schema = self._described["components"]["schemas"][reference.rpartition("/")[2]]
        for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            yield from self._properties(choice)
        yield from schema.get("properties", ())


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, set[str]]]:
    settings = ApiSettings(home=tmp_path_factory.mktemp("home"), redis_url="unix:///nowhere", database_url="sqlite://")
    return list(Operations(create_app(settings).openapi()))


def page_of(path: str) -> str:
    """The name of the page with the endpoint's fields."""
    return next((page for start, page in PAGES.items() if path.startswith(start)), "fields-farm.md")


def test_every_field_has_its_place_on_the_page_of_its_protocol(operations: list[tuple[str, str, set[str]]]) -> None:
    texts = {page: (DOCS / page).read_text(encoding="utf-8") for page in set(PAGES.values())}
    missing = {
        (method, path, name)
        for method, path, names in operations
        for name in names
        if (page := page_of(path)) != "fields-farm.md" and not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", texts[page])
    }
    assert missing == set()


def test_every_endpoint_of_the_farms_own_has_a_row_with_its_fields(
    operations: list[tuple[str, str, set[str]]],
) -> None:
    text = (DOCS / "fields-farm.md").read_text(encoding="utf-8")
    told = {(row["method"], row["path"]): set(NAME.findall(row["fields"])) for row in ROW.finditer(text)}
    known = {(method, path): names for method, path, names in operations if page_of(path) == "fields-farm.md"}
    known[("POST", "/v1/files")] = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}  # a form
    known[("POST", "/v1/messages/batches")] = {"requests"}  # read as it arrives
    assert told == known
