"""Batches with real processes: every one of them is killed while a batch runs, and each line has one result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.farm.conftest import Farm

LINES = 24


@pytest.fixture(scope="module")
def batch_farm(start_farm: Callable[..., Farm]) -> Farm:
    farm = start_farm(apis=2, batch_window="8")
    farm.start("api.batches")
    return farm


def client_of(farm: Farm, api: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{farm.apis[api].facts['url']}/v1", api_key="unused", max_retries=9, timeout=60)


def line(number: int, max_tokens: int, **changes: Any) -> str:
    messages = [{"role": "user", "content": f"Tell me about the number {number}."}]
    body = {"model": "demo", "temperature": 0, "max_tokens": max_tokens, "messages": messages} | changes
    return json.dumps({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def submit(client: openai.OpenAI, lines: list[str]) -> Any:
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"n": str(len(lines))}
    )


def results_of(client: openai.OpenAI, file_id: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


def test_every_line_has_one_result_whatever_dies(batch_farm: Farm, eventually: Callable[..., Any]) -> None:
    farm, client = batch_farm, client_of(batch_farm, 1)
    lines = [line(number, 8) for number in range(LINES)]
    quiet = submit(client, lines)
    eventually(lambda: client.batches.retrieve(quiet.id).status == "completed")
    expected = results_of(client, client.batches.retrieve(quiet.id).output_file_id or "")

    batch = submit(client, lines)

    def done() -> int:
        counts = client.batches.retrieve(batch.id).request_counts
        return counts.completed if counts is not None else 0

    deaths: list[Callable[[], Any]] = [
        lambda: restart(farm, "api.batches"),
        lambda: os.kill(farm.model_pid(), signal.SIGKILL),
        lambda: restart(farm, "scheduler"),
        lambda: farm.apis[0].kill(),
        lambda: restart(farm, "api.batches"),
    ]
    for number, death in enumerate(deaths, 1):
        eventually(lambda number=number: done() >= number)
        death()
    eventually(lambda: client.batches.retrieve(batch.id).status == "completed")
    ended = client.batches.retrieve(batch.id)
    assert ended.error_file_id is None
    assert results_of(client, ended.output_file_id or "") == expected
    assert ended.request_counts is not None
    assert ended.request_counts.to_dict() == {"total": LINES, "completed": LINES, "failed": 0}
    query = f"SELECT request_id FROM v_requests WHERE request_id LIKE '{batch.id}-%'"
    twice = farm.query(f"{query} GROUP BY request_id HAVING COUNT(*) > 1")
    assert twice == []


def test_the_command_line_submits_waits_and_fetches(batch_farm: Farm, tmp_path: Path) -> None:
    farm = batch_farm
    environment = farm.environment | {"FARM_URL": str(farm.apis[1].facts["url"])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "farm", "batch", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    (tmp_path / "in.jsonl").write_text("".join(f"{line(number, 4)}\n" for number in range(3)))
    done = run("submit", "in.jsonl", "--wait", "--metadata", "night=1", "--window", "8h")
    assert done.returncode == 0, done.stderr
    batch_id = done.stdout.strip()
    assert json.loads(run("get", batch_id).stdout)["metadata"] == {"night": "1"}
    assert f"{batch_id}\tcompleted\t3\t0\t3\tdemo" in run("ls").stdout
    assert run("results", batch_id, "out.jsonl").returncode == 0
    assert [json.loads(text)["custom_id"] for text in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        "r0",
        "r1",
        "r2",
    ]
    assert run("results", batch_id, "--errors").stdout == ""
    late = run("cancel", batch_id)
    assert (late.returncode, "completed" in late.stderr) == (1, True)
    (tmp_path / "bad.jsonl").write_text(f"{line(0, 4)}\n{line(0, 4)}\n")
    failed = run("submit", "bad.jsonl", "--wait")
    assert (failed.returncode, "line 2" in failed.stderr) == (1, True)


def test_people_go_before_a_batch(batch_farm: Farm, eventually: Callable[..., Any]) -> None:
    client = client_of(batch_farm, 1)
    endless = [line(number, 1500, ignore_eos=True) for number in range(8, 200)]
    batch = submit(client, [line(number, 4) for number in range(8)] + endless)
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed)  # type: ignore[union-attr]
    message: Any = {"role": "user", "content": "Hi"}
    assert client.chat.completions.create(model="demo", messages=[message], max_tokens=5).choices
    assert client.batches.retrieve(batch.id).status == "in_progress"
    client.batches.cancel(batch.id)
    eventually(lambda: client.batches.retrieve(batch.id).status == "cancelled")
    ended = client.batches.retrieve(batch.id)
    assert ended.request_counts is not None
    assert ended.request_counts.completed + ended.request_counts.failed == 200


def restart(farm: Farm, name: str) -> None:
    """kill -9, and a new one."""
    [victim] = [role for role in farm.roles if name.endswith(role.facts["role"]) and role.process.poll() is None]
    victim.kill()
    farm.start(name)
