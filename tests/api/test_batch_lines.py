"""Properties of reading a batch's input: any bytes are a request or a named fault, any window reads the same lines."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from api.anthropic.batch_lines import MessageBatches, read_request, request_line
from api.batch_format import BadLine, RequestLine
from api.batches.reading import raw_lines, take_lines, validate
from api.errors import ApiError
from api.openai.batch_lines import OpenAIBatches
from scheduler.batches.states import Outcome

ENDPOINT = "/v1/chat/completions"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
requests = st.fixed_dictionaries(
    {"custom_id": st.text(max_size=4), "method": st.sampled_from(["POST", "GET"])},
    optional={"url": st.sampled_from([ENDPOINT, "/v1/x"]), "body": json_values},
)
lines = st.one_of(st.binary(max_size=30), json_values.map(orjson.dumps), requests.map(orjson.dumps))


def file_of(folder: str, content: list[bytes]) -> Path:
    path = Path(folder) / "in.jsonl"
    path.write_bytes(b"\n".join(content))
    return path


@given(lines)
def test_any_line_is_a_request_or_has_a_named_fault(raw: bytes) -> None:
    try:
        found = OpenAIBatches().read(raw, ENDPOINT)
    except BadLine as bad:
        faults = (bad.code, str(bad))
    else:
        faults = ("none", "none")
        assert found.custom_id
        assert isinstance(found.body, dict)
    assert all(faults)


@given(st.lists(lines, max_size=12), st.integers(1, 5), st.integers(1, 60))
def test_reading_on_from_an_offset_gives_the_lines_of_one_reading(
    content: list[bytes], at_once: int, most_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(folder, content)
        whole = [line.raw for line in raw_lines(path, 0, 1000)]
        parts: list[bytes] = []
        offset = 0
        while part := take_lines(path, offset, at_once, 1000, most_bytes=most_bytes):
            assert len(part) <= at_once
            assert all(line.end - offset < most_bytes for line in part[:-1])
            parts += [line.raw for line in part]
            offset = part[-1].end
        assert parts == whole
        assert all(raw.strip() for raw in whole)


@given(st.lists(lines, min_size=1, max_size=12))
def test_a_valid_input_has_only_requests_with_ids_of_their_own(content: list[bytes]) -> None:
    form = OpenAIBatches()
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(folder, content)
        found = validate(path, form, ENDPOINT, max_requests=100, line_limit_bytes=1000)
        if not found.errors:
            ids = [form.read(line.raw, ENDPOINT).custom_id for line in raw_lines(path, 0, 1000)]
            assert len(ids) == len(set(ids)) == found.total > 0


def test_a_line_that_is_too_long_ends_the_reading() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(folder, [b"x" * 2000, b"{}"])
        found = validate(path, OpenAIBatches(), ENDPOINT, max_requests=100, line_limit_bytes=1000)
        assert [error["code"] for error in found.errors] == ["line_too_large"]


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4))
def test_a_message_request_is_the_same_after_its_way_over_the_disk(body: dict[str, Any]) -> None:
    request = RequestLine("a_b-1", "messages", body)
    assert MessageBatches().read(request_line(request), "/v1/messages") == request
    assert read_request({"custom_id": "a_b-1", "params": body}) == request


def test_every_outcome_has_a_line_in_both_protocols() -> None:
    for form in (OpenAIBatches(), MessageBatches()):
        written = [
            form.answered("c", "batch_1-1", {"a": 1}),
            form.refused("c", "batch_1-1", ApiError(400, "no")),
            form.dropped("c", "batch_1-1", Outcome.EXPIRED),
            form.dropped("c", "batch_1-1", Outcome.CANCELED),
        ]
        assert {orjson.loads(line)["custom_id"] for line in written} == {"c"}
        assert all(b"\n" not in line for line in written)
