"""`/v1/files` with the real SDK and raw forms: kept whole, within limits, by tenant, under names of the farm's own."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx2
import openai
import pytest

from scheduler.database import open_database
from scheduler.files import FileStore
from tests.api.conftest import StartNode
from tests.api.scripted_farm import NodeServer
from tests.waiting import PATIENCE_S

CONTENT = b'{"custom_id": "1"}\n' * 10_000


async def upload(
    http: httpx2.AsyncClient, content: bytes = b"x", fields: dict[str, str] | None = None
) -> httpx2.Response:
    data = {"purpose": "batch", **(fields or {})}
    return await http.post("/v1/files", data=data, files={"file": ("a.jsonl", content)})


async def test_the_sdk_uploads_lists_reads_and_deletes(sdk: openai.AsyncOpenAI) -> None:
    file = await sdk.files.create(file=("in.jsonl", CONTENT), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(CONTENT), "in.jsonl", "batch", "processed")
    assert file.model_dump()["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert await sdk.files.retrieve(file.id) == file
    assert (await sdk.files.content(file.id)).content == CONTENT
    assert [found.id async for found in sdk.files.list()] == [file.id]
    assert (await sdk.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await sdk.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.files.content(file.id)


async def test_the_synchronous_sdk_does_the_same(server: NodeServer) -> None:
    def run() -> bytes:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as sdk:
            file = sdk.files.create(file=("in.jsonl", CONTENT), purpose="batch")
            return sdk.files.content(file.id).read()

    assert await asyncio.to_thread(run) == CONTENT


async def test_lists_come_in_pages_in_either_order(sdk: openai.AsyncOpenAI) -> None:
    made = [await sdk.files.create(file=b"x", purpose=purpose) for purpose in ("batch", "user_data", "batch")]
    ids = sorted(file.id for file in made)
    assert [file.id async for file in sdk.files.list(order="asc", limit=2)] == ids
    assert [file.id async for file in sdk.files.list(limit=1)] == ids[::-1]
    assert {file.purpose async for file in sdk.files.list(purpose="batch")} == {"batch"}


async def test_a_file_may_have_an_end(sdk: openai.AsyncOpenAI) -> None:
    file = await sdk.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, "expires_after.seconds"),
    ],
)
async def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    client: httpx2.AsyncClient, fields: dict[str, str], param: str, tmp_path: Path
) -> None:
    answer = await upload(client, fields=fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"--x\r\n", "multipart/form-data", 415),
        (b"nothing", "multipart/form-data; boundary=x", 400),
        (b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch', "multipart/form-data; boundary=x", 400),
        (b"--x\r\nA: b\r\n\r\nbatch\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400),
    ],
)
async def test_a_body_that_is_no_form_is_refused(
    client: httpx2.AsyncClient, body: bytes, content_type: str, status: int, tmp_path: Path
) -> None:
    answer = await client.post("/v1/files", content=body, headers={"content-type": content_type})
    assert answer.status_code == status, answer.text
    assert contents(tmp_path) == []


async def test_a_name_never_becomes_a_path(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    form = {"file": ("../../../etc/pass\x00wd", b"evil")}
    answer = await client.post("/v1/files", data={"purpose": "batch"}, files=form)
    file = answer.json()
    assert "/" not in file["filename"]
    assert contents(tmp_path) == [tmp_path / "files" / file["id"]]
    assert (await client.get("/v1/files/..%2F..%2Ffarm.db/content")).status_code == 404


async def test_limits_hold_for_a_file_and_for_all_of_a_tenant(start_node: StartNode, tmp_path: Path) -> None:
    node = await start_node(file_limit_bytes=100, files_quota_bytes=150)
    async with httpx2.AsyncClient(base_url=node.url, timeout=PATIENCE_S) as http:
        too_large = await upload(http, b"x" * 101)
        assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "request_too_large")
        kept = (await upload(http, b"x" * 100)).json()
        over = await upload(http, b"x" * 100)
        assert (over.status_code, over.json()["error"]["code"]) == (403, "files_quota_exceeded")
        assert contents(tmp_path) == [tmp_path / "files" / kept["id"]]
        await http.delete(f"/v1/files/{kept['id']}")
        assert (await upload(http, b"x" * 100)).status_code == 200


async def test_what_a_crash_left_is_swept_and_what_is_known_stays(
    client: httpx2.AsyncClient, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (await upload(client)).json()["id"]
    engine = open_database(database_url)
    files = FileStore(engine, tmp_path / "files")
    (files.folder / "file-nobody").write_bytes(b"x")
    (files.folder / "incoming" / "half").write_bytes(b"x")
    assert await files.sweep() == 0
    monkeypatch.setattr("scheduler.files.STRAY_S", -1.0)
    assert await files.sweep() == 2
    assert contents(tmp_path) == [files.folder / kept]
    await engine.dispose()


def contents(home: Path) -> list[Path]:
    return [path for path in (home / "files").rglob("*") if path.is_file()]
