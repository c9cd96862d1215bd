"""Embeddings, rerank and scores from real workers: the openai SDK's way, other clients' way, and as jobs."""

from __future__ import annotations

import asyncio
import base64
import json
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from bench.tiny_encoders import CONTEXT_TOKENS, letter_tokenizer, write_embedder, write_scorer
from tests.waiting import PATIENCE_S
from workers.encoder import load_encoder
from workers.engine import Prompt, SamplingParams, StopRule, Task

TEXTS = ["a cat sits on the mat", "b", "the quick brown fox"]
CLOSE = 2e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that embed (one whose vectors may be cut) and a cross-encoder."""
    root = tmp_path_factory.mktemp("models")
    return {
        "embed": write_embedder(root / "embed", "bert"),
        "short": write_embedder(root / "short", "qwen3", pooling="lasttoken", matryoshka_dimensions=[8, 16]),
        "rank": write_scorer(root / "rank", "xlm-roberta"),
    }


@pytest.fixture(scope="module")
def vector_farm(start_farm: Callable[..., Any], folders: dict[str, Path]) -> Any:
    """A farm with a worker for each."""
    farm = start_farm(model=str(folders["embed"]), failpoints=True)
    for name in ("short", "rank"):
        farm.start("workers", FARM_MODEL=str(folders[name]))
    return farm


@pytest.fixture
def http(vector_farm: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=vector_farm.url, timeout=2 * PATIENCE_S) as client:
        yield client


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> np.ndarray:
    """What the engine says of TEXTS, without a farm around it."""
    tokenizer = letter_tokenizer()
    tokenizer.no_truncation()
    engine, _ = load_encoder(str(folders["embed"]), task=Task.EMBED)
    answers = []
    for text in TEXTS:
        ids = tuple(tokenizer.encode(text).ids)
        engine.submit(Prompt(id="r/0", token_ids=ids, sampling=SamplingParams(), stop=StopRule(max_tokens=0)))
        [chunk] = engine.step()
        assert chunk.vector is not None
        answers.append(np.frombuffer(chunk.vector, "<f4"))
    return np.array(answers)


def test_the_sdk_gets_the_same_vectors_as_floats_and_in_base64(vector_farm: Any, expected: np.ndarray) -> None:
    with OpenAI(base_url=f"{vector_farm.url}/v1", api_key="none", max_retries=9) as client:
        default = client.embeddings.create(model="embed", input=TEXTS)  # the SDK asks for base64 and decodes it
        floats = client.embeddings.create(model="embed", input=TEXTS, encoding_format="float")
        single = client.embeddings.create(model="embed", input=TEXTS[0], user="me")
    for answer in (default, floats):
        assert [item.index for item in answer.data] == [0, 1, 2]
        assert np.abs(np.array([item.embedding for item in answer.data]) - expected).max() < CLOSE
        assert (answer.object, answer.model, answer.data[0].object) == ("list", "embed", "embedding")
    assert np.abs(np.array(single.data[0].embedding) - expected[0]).max() < CLOSE
    assert floats.usage.prompt_tokens == floats.usage.total_tokens == sum(len(t.replace(" ", "")) + 2 for t in TEXTS)


async def test_many_requests_at_once_get_their_own_vectors(vector_farm: Any, expected: np.ndarray) -> None:
    async with AsyncOpenAI(base_url=f"{vector_farm.url}/v1", api_key="none", max_retries=9) as client:
        calls = [client.embeddings.create(model="embed", input=TEXTS[i % 3]) for i in range(24)]
        answers = await asyncio.gather(*calls)
    for index, answer in enumerate(answers):
        assert np.abs(np.array(answer.data[0].embedding) - expected[index % 3]).max() < CLOSE


def test_token_ids_are_taken_as_they_are(http: httpx2.Client, expected: np.ndarray) -> None:
    tokenizer = letter_tokenizer()
    tokenizer.no_truncation()
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    many = http.post("/v1/embeddings", json={"model": "embed", "input": ids}).raise_for_status().json()
    one = http.post("/v1/embeddings", json={"model": "embed", "input": ids[0]}).raise_for_status().json()
    assert np.abs(np.array([item["embedding"] for item in many["data"]]) - expected).max() < CLOSE
    assert np.abs(np.array(one["data"][0]["embedding"]) - expected[0]).max() < CLOSE


def test_base64_is_little_endian_float32(http: httpx2.Client, expected: np.ndarray) -> None:
    asked = {"model": "embed", "input": TEXTS[0], "encoding_format": "base64"}
    [item] = http.post("/v1/embeddings", json=asked).raise_for_status().json()["data"]
    raw = base64.b64decode(item["embedding"])
    assert np.abs(np.frombuffer(raw, "<f4") - expected[0]).max() < CLOSE
    assert len(array("f", raw)) == 32


def test_fewer_dimensions_only_where_the_model_was_trained_for_them(vector_farm: Any) -> None:
    with OpenAI(base_url=f"{vector_farm.url}/v1", api_key="none", max_retries=9) as client:
        whole = np.array(client.embeddings.create(model="short", input="hello").data[0].embedding)
        short = np.array(client.embeddings.create(model="short", input="hello", dimensions=8).data[0].embedding)
        assert np.allclose(short, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-5)
        assert len(client.embeddings.create(model="embed", input="hello", dimensions=32).data[0].embedding) == 32
        with pytest.raises(BadRequestError, match="8, 16"):
            client.embeddings.create(model="short", input="hello", dimensions=9)
        with pytest.raises(BadRequestError, match="all 32") as caught:
            client.embeddings.create(model="embed", input="hello", dimensions=8)
    assert (caught.value.param, caught.value.code) == ("dimensions", "unsupported_parameter")


def test_a_long_input_is_refused_or_cut_as_asked(http: httpx2.Client) -> None:
    long = "x" * 200

    def ask(**more: Any) -> Any:
        return http.post("/v1/embeddings", json={"model": "embed", "input": ["ok", long], **more})

    error = ask().json()["error"]
    assert (error["param"], error["code"]) == ("input.1", "context_length_exceeded")
    assert f"202 tokens, 'embed' takes {CONTEXT_TOKENS}" in error["message"]
    assert ask(truncate_prompt_tokens=-1).raise_for_status().json()["usage"]["prompt_tokens"] == 4 + CONTEXT_TOKENS
    first = ask(truncate_prompt_tokens=10).raise_for_status().json()
    same = http.post("/v1/embeddings", json={"model": "embed", "input": "x" * 8}).json()
    assert first["usage"]["prompt_tokens"] == 14
    assert np.allclose(first["data"][1]["embedding"], same["data"][0]["embedding"], atol=CLOSE)
    tail = ask(input="x" * 20 + "tail", truncate_prompt_tokens=6, truncation_side="left").json()
    begin, *letters, end = letter_tokenizer().encode("qtail").ids
    same = http.post("/v1/embeddings", json={"model": "embed", "input": [begin, *letters[1:], end]}).json()
    assert np.allclose(tail["data"][0]["embedding"], same["data"][0]["embedding"], atol=CLOSE)
    assert "more than that" in ask(truncate_prompt_tokens=1000).json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input.0"),
        ({"input": ["a", ""]}, "input.1"),
        ({"input": [1, "a"]}, "input.1"),
        ({"input": [99_999]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncation_side": "left"}, "truncation_side"),
        ({"stream": True}, "stream"),
        ({"embed_dtype": "float16"}, "embed_dtype"),
        ({"model": "rank"}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(http: httpx2.Client, change: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/embeddings", json={"model": "embed", "input": "hello"} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_model_that_embeds_does_not_chat(http: httpx2.Client) -> None:
    asked = {"model": "embed", "messages": [{"role": "user", "content": "hi"}]}
    error = http.post("/v1/chat/completions", json=asked).json()["error"]
    assert (error["code"], error["param"]) == ("model_not_supported", "model")
    assert "/v1/embeddings" in error["message"]


def test_documents_are_ranked_by_their_scores(http: httpx2.Client) -> None:
    asked = {"model": "rank", "query": "which fox", "documents": [*TEXTS, {"text": "zebra"}]}
    answer = http.post("/v1/rerank", json=asked).raise_for_status().json()
    scores = [item["relevance_score"] for item in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(item["index"] for item in answer["results"]) == [0, 1, 2, 3]
    texts = [*TEXTS, "zebra"]
    assert all(item["document"]["text"] == texts[item["index"]] for item in answer["results"])
    best = http.post("/v2/rerank", json=asked | {"top_n": 2, "return_documents": False}).raise_for_status().json()
    assert [item["index"] for item in best["results"]] == [item["index"] for item in answer["results"][:2]]
    assert all(set(item) == {"index", "relevance_score"} for item in best["results"])
    scored = http.post("/v1/score", json={"model": "rank", "text_1": "which fox", "text_2": texts}).json()
    by_index = {item["index"]: item["relevance_score"] for item in answer["results"]}
    assert all(abs(item["score"] - by_index[item["index"]]) < CLOSE for item in scored["data"])


def test_long_documents_are_refused_or_cut_and_bad_pairs_refused(http: httpx2.Client) -> None:
    asked = {"model": "rank", "query": "fox", "documents": ["a", "b" * 200]}
    error = http.post("/v1/rerank", json=asked).json()["error"]
    assert (error["param"], error["code"]) == ("documents.1", "context_length_exceeded")
    cut = http.post("/v1/rerank", json=asked | {"max_tokens_per_doc": 5}).raise_for_status().json()
    assert cut["usage"]["prompt_tokens"] == 3 + 3 + 1 + 3 + 3 + 5
    whole = http.post("/v1/rerank", json=asked | {"truncate_prompt_tokens": -1}).raise_for_status().json()
    assert whole["usage"]["prompt_tokens"] == 3 + 3 + 1 + CONTEXT_TOKENS
    query = http.post("/v1/rerank", json=asked | {"query": "q" * 200, "truncate_prompt_tokens": -1}).json()["error"]
    assert "More cannot be cut off" in query["message"]
    pairs = http.post("/v1/score", json={"model": "rank", "text_1": ["a", "b"], "text_2": ["c"]})
    assert (pairs.status_code, pairs.json()["error"]["param"]) == (400, "text_2")


def test_an_async_job_keeps_its_vectors_and_its_record(vector_farm: Any, http: httpx2.Client, eventually: Any) -> None:
    body = {"model": "embed", "input": TEXTS, "encoding_format": "base64"}
    direct = http.post("/v1/embeddings", json=body).raise_for_status().json()
    accepted = http.post("/v1/jobs", json={"kind": "embeddings", "body": body})
    assert accepted.status_code == 202
    job_id = accepted.json()["id"]
    job = eventually(lambda: (found := http.get(f"/v1/jobs/{job_id}").json())["state"] == "finished" and found)
    assert job["result"] == direct
    lines = http.get(f"/v1/jobs/{job_id}/events").raise_for_status().text.splitlines()
    *events, done = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    told = [item for event in events for item in json.loads(event)["data"]]
    assert (sorted(told, key=lambda item: item["index"]), done) == (direct["data"], "[DONE]")
    query = f"SELECT kind, prompt_tokens, output_tokens FROM jobs WHERE id = '{job_id}' AND state = 'finished'"
    [row] = eventually(lambda: vector_farm.query(query))
    assert (row["kind"], row["prompt_tokens"], row["output_tokens"]) == (
        "embeddings",
        sum(len(t.replace(" ", "")) + 2 for t in TEXTS),
        0,
    )


def test_a_request_outlives_the_worker_that_computed_half_of_it(vector_farm: Any, http: httpx2.Client) -> None:
    texts = [TEXTS[index % 3] + " and so on" * 8 for index in range(512)]
    undisturbed = np.array([item["embedding"] for item in _embed(http, texts[:3])])
    vector_farm.fail_at("SIGKILL 3")
    data = _embed(http, texts)
    assert vector_farm.has_failed()
    found = np.array([item["embedding"] for item in data])
    assert [item["index"] for item in data] == list(range(512))
    assert np.abs(found - undisturbed[np.arange(512) % 3]).max() < CLOSE


def _embed(http: httpx2.Client, texts: list[str]) -> list[dict[str, Any]]:
    answer = http.post("/v1/embeddings", json={"model": "embed", "input": texts}).raise_for_status().json()
    data: list[dict[str, Any]] = answer["data"]
    return data
