"""`mlx-farm batch run` against an API that refuses, breaks and answers as the test says."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_S


def write_lines(path: Path, *names: str) -> None:
    path.write_text("".join(json.dumps(line(name)) + "\n" for name in names))


def line(name: str, **changes: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": {"model": name}, **changes}


def results(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert len({entry["custom_id"] for entry in lines}) == len(lines), "a line was written twice"
    return {entry["custom_id"]: entry for entry in lines}


def echo(stub_api: Any) -> Any:
    """Answer each completion with the model it names."""

    def answer(request: Any) -> Any:
        if request.method == "GET":
            return stub_api.reply({"data": []})
        return stub_api.reply({"echo": request.body["model"]}, x_request_id="r1")

    return answer


def test_every_line_gets_its_answer_in_openais_format(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    stub_api.answer = echo(stub_api)
    names = [f"n{number}" for number in range(40)]
    write_lines(mlx_farm.folder / "in.jsonl", *names)
    done = mlx_farm("batch", "run", "in.jsonl", "out.jsonl", "--concurrency", "8")
    assert done.returncode == 0, done.stderr
    written = results(mlx_farm.folder / "out.jsonl")
    assert written.keys() == set(names)
    entry = written["n7"]
    assert entry["response"] == {"status_code": 200, "request_id": "r1", "body": {"echo": "n7"}}
    assert entry["error"] is None
    assert entry["id"].startswith("batch_req_")
    posts = [request for request in stub_api.requests if request.method == "POST"]
    assert {request.headers["farm-lane"] for request in posts} == {"low"}
    assert len({request.headers["idempotency-key"] for request in posts}) == 40


def test_a_second_start_cuts_off_a_torn_line_and_sends_only_what_is_left(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    stub_api.answer = echo(stub_api)
    out = mlx_farm.folder / "out.jsonl"
    write_lines(mlx_farm.folder / "in.jsonl", "a", "b")
    assert mlx_farm("batch", "run", "in.jsonl", "out.jsonl").returncode == 0
    keys = {r.body["model"]: r.headers["idempotency-key"] for r in stub_api.requests if r.method == "POST"}
    whole = out.read_text().splitlines(keepends=True)
    kept = next(text for text in whole if json.loads(text)["custom_id"] == "b")
    out.write_text(kept + '{"id": "batch_req_1", "custom')
    stub_api.requests.clear()
    done = mlx_farm("batch", "run", "in.jsonl", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 lines are already there" in done.stderr
    assert results(out).keys() == {"a", "b"}
    posts = [request for request in stub_api.requests if request.method == "POST"]
    assert [(request.body["model"], request.headers["idempotency-key"]) for request in posts] == [("a", keys["a"])]
    assert mlx_farm("batch", "run", "in.jsonl", "out.jsonl").returncode == 0


def test_busy_and_broken_answers_are_tried_again_with_the_same_key(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    busy = stub_api.reply({"error": {"message": "The queue is full"}}, 429, retry_after="0.1")
    tries = [busy, stub_api.reply({}, 503, retry_after="0.1"), stub_api.reply({"ok": 1})]
    stub_api.answer = lambda request: stub_api.reply([]) if request.method == "GET" else tries.pop(0)
    write_lines(mlx_farm.folder / "in.jsonl", "a")
    done = mlx_farm("batch", "run", "in.jsonl", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert "The queue is full (HTTP 429); trying again in 0.1 s" in done.stderr
    posts = [request for request in stub_api.requests if request.method == "POST"]
    assert len(posts) == 3
    assert len({request.headers["idempotency-key"] for request in posts}) == 1


def test_a_line_whose_earlier_result_has_expired_is_sent_under_a_new_key(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    gone = stub_api.reply({"error": {"message": "no longer kept"}}, 409)
    tries = [gone, stub_api.reply({"ok": 1})]
    stub_api.answer = lambda request: stub_api.reply([]) if request.method == "GET" else tries.pop(0)
    write_lines(mlx_farm.folder / "in.jsonl", "a")
    assert mlx_farm("batch", "run", "in.jsonl", "out.jsonl").returncode == 0
    assert len({request.headers.get("idempotency-key") for request in stub_api.requests}) == 3  # one GET without


def test_other_errors_are_results_and_the_exit_code_tells(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    refused = {"error": {"message": "max_tokens must be positive", "param": "max_tokens"}}
    stub_api.answer = lambda request: stub_api.reply(refused, 200 if request.method == "GET" else 400)
    write_lines(mlx_farm.folder / "in.jsonl", "a")
    done = mlx_farm("batch", "run", "in.jsonl", "out.jsonl")
    assert done.returncode == 1
    assert "0 answered, 1 failed" in done.stderr
    assert results(mlx_farm.folder / "out.jsonl")["a"]["response"]["body"] == refused


def test_a_wrong_key_stops_the_run_and_writes_nothing(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    stub_api.answer = lambda request: stub_api.reply({"error": {"message": "Wrong key"}}, 401)
    write_lines(mlx_farm.folder / "in.jsonl", "a")
    assert mlx_farm("batch", "run", "in.jsonl", "out.jsonl").returncode == 1
    assert not (mlx_farm.folder / "out.jsonl").exists()


def test_bad_lines_are_listed_before_anything_is_sent(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    stub_api.answer = echo(stub_api)
    bad = [
        "{not json",
        "[]",
        json.dumps({"custom_id": "x"}),
        json.dumps(line("get", method="GET")),
        json.dumps(line("away", url="http://elsewhere/v1")),
        json.dumps(line("flow", body={"stream": True})),
        json.dumps(line("good")),
        json.dumps(line("good")),
    ]
    (mlx_farm.folder / "in.jsonl").write_text("\n".join(bad))
    done = mlx_farm("batch", "run", "in.jsonl", "out.jsonl")
    assert done.returncode == 2
    assert stub_api.requests == []
    for number in (1, 2, 3, 4, 5, 6, 8):
        assert f"in.jsonl line {number}: " in done.stderr
    assert "line 7:" not in done.stderr
    assert "already used in line 7" in done.stderr
    assert mlx_farm("batch", "run", "in.jsonl", "out.jsonl", "--skip-invalid").returncode == 0
    assert results(mlx_farm.folder / "out.jsonl").keys() == {"good"}


def test_a_file_that_is_no_result_file_is_left_alone(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    stub_api.answer = echo(stub_api)
    write_lines(mlx_farm.folder / "in.jsonl", "a")
    letter = mlx_farm.folder / "letter.txt"
    letter.write_text("Dear reader,\nhello\n")
    assert mlx_farm("batch", "run", "in.jsonl", "letter.txt").returncode == 2
    assert letter.read_text() == "Dear reader,\nhello\n"
    assert mlx_farm("batch", "run", "in.jsonl", "in.jsonl").returncode == 2


def test_an_interrupt_keeps_what_has_arrived_and_exits_130(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["FARM_URL"] = stub_api.url
    held, asked = threading.Event(), threading.Semaphore(0)

    def answer(request: Any) -> Any:
        if request.method == "POST" and request.body["model"] == "slow":
            asked.release()
            held.wait()
        return stub_api.reply({"data": []})

    stub_api.answer = answer
    out = mlx_farm.folder / "out.jsonl"
    write_lines(mlx_farm.folder / "in.jsonl", "fast", "slow")
    with mlx_farm.start("batch", "run", "in.jsonl", "out.jsonl", "--concurrency", "1") as process:
        assert asked.acquire(timeout=PATIENCE_S), "the second line was never sent"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    held.set()
    assert process.returncode == 130
    assert errors == "Interrupted: 1 lines are left. The same command continues.\n"
    assert results(out).keys() == {"fast"}
