"""`mlx-farm serve` as a user runs it: from the command to the first token, Ctrl-C, kill -9, and a second start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bench.tiny_encoders import SIZES, write_embedder, write_scorer
from farm import valkey
from farm.home import Home
from tests.farm.streams import get
from tests.waiting import PATIENCE_S


class Serving:
    """A running `mlx-farm serve`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "farm", "serve", "--port", "0"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.banner: list[str] = []
        for line in self.process.stdout:
            self.banner.append(line.strip())
            if line.startswith("export ANTHROPIC_BASE_URL="):
                break
        assert self.process.poll() is None, self.process.communicate()[1]
        self.url = self.banner[-1].removeprefix("export ANTHROPIC_BASE_URL=")

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C; the exit code and what it has written to stderr."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """For one data folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="farm-", ignore_cleanup_errors=True) as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
        patience = {"FARM_LEASE_S": "40", "FARM_DRAIN_S": "100"}  # what runs may finish, also on a slow machine
        yield environment | patience | {"FARM_HOME": folder, "PYTHONPATH": str(Path(__file__).parents[2])}
        for pid in farm_processes({"FARM_HOME": folder}):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def serve(environment: dict[str, str]) -> Iterator[Callable[[], Serving]]:
    """Start `serve`; whatever a failed test leaves is killed."""
    started: list[Serving] = []

    def start() -> Serving:
        started.append(Serving(environment))
        return started[-1]

    yield start
    for serving in started:
        if serving.process.poll() is None:
            serving.process.terminate()
        serving.process.communicate(timeout=PATIENCE_S)


def farm_processes(environment: dict[str, str]) -> dict[int, str]:
    """Pids and command lines of the living processes that have this FARM_HOME in their environment (Linux)."""
    wanted = f"FARM_HOME={environment['FARM_HOME']}".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return {pid: command for pid, command in found.items() if command}


def ask(url: str, **changes: Any) -> Any:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, **changes}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S)


def test_the_first_start_answers_and_ctrl_c_leaves_nothing(
    serve: Callable[[], Serving], environment: dict[str, str]
) -> None:
    serving = serve()
    assert f"export OPENAI_BASE_URL={serving.url}/v1" in serving.banner
    assert any("demo" in line and "BLAS" in line for line in serving.banner)
    assert ask(serving.url).json()["choices"][0]["message"]["content"]
    code, errors = serving.interrupt()
    assert code == 0
    assert "Traceback" not in errors
    assert farm_processes(environment) == {}


def test_an_open_stream_ends_properly_at_ctrl_c(serve: Callable[[], Serving]) -> None:
    serving = serve()
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 300,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx2.stream("POST", f"{serving.url}/v1/chat/completions", json=body, timeout=PATIENCE_S) as response:
        lines: list[str] = []
        for line in response.iter_lines():
            if line.startswith("data:"):
                if not lines:
                    serving.process.send_signal(signal.SIGINT)
                lines.append(line)
    assert lines[-1] == "data: [DONE]"
    assert serving.process.wait(PATIENCE_S) == 0


def test_after_kill_9_nothing_runs_on_and_the_next_start_finds_everything(
    serve: Callable[[], Serving], environment: dict[str, str], eventually: Callable[..., Any]
) -> None:
    first = serve()
    job = ask(first.url).headers["farm-job-id"]
    first.process.kill()
    second = serve()  # at once: perhaps while the Valkey of the first still runs
    assert get(f"{second.url}/v1/jobs/{job}")["state"] == "finished"
    second.process.kill()
    eventually(lambda: farm_processes(environment) == {})
    socket = Home(Path(environment["FARM_HOME"])).socket()
    eventually(lambda: not valkey.ping(socket))


def test_a_second_serve_on_the_same_data_is_refused(serve: Callable[[], Serving], environment: dict[str, str]) -> None:
    first = serve()
    command = [sys.executable, "-m", "farm", "serve", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert f"pid {first.process.pid}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert first.interrupt()[0] == 0


def test_a_part_that_cannot_start_ends_serve_with_its_reason(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "farm", "serve", "--port", "0", "--model", "/no/such/model"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert "The worker did not start" in done.stderr
    assert "/no/such/model" in done.stderr
    assert farm_processes(environment) == {}


def test_models_that_embed_and_rank_are_served_beside_the_one_that_chats(
    environment: dict[str, str], serve: Callable[[], Serving], tmp_path: Path
) -> None:
    environment["FARM_MODEL_NAME"] = "chat"  # a name of the first model alone
    environment["FARM_EMBEDDING_MODEL"] = str(write_embedder(tmp_path / "texts", "bert"))
    environment["FARM_RERANK_MODEL"] = str(write_scorer(tmp_path / "pairs", "bert"))
    serving = serve()
    assert "Beside  texts, pairs" in serving.banner
    with httpx2.Client(base_url=serving.url, timeout=PATIENCE_S) as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["chat", "pairs", "texts"]
        embedded = http.post("/v1/embeddings", json={"model": "texts", "input": "a text"}).raise_for_status().json()
        assert len(embedded["data"][0]["embedding"]) == SIZES["hidden_size"]
        asked = {"model": "pairs", "query": "which", "documents": ["one", "two"]}
        assert len(http.post("/v1/rerank", json=asked).raise_for_status().json()["results"]) == 2
        chat = {"model": "chat", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
        http.post("/v1/chat/completions", json=chat).raise_for_status()
    assert serving.interrupt()[0] == 0
    assert farm_processes(environment) == {}
