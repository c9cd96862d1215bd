"""What neither dies nor moves: a hung engine and a stopped process are killed, and their jobs go on elsewhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.faults.streams import Answer, ask

FAILPOINTS = Path(__file__).parent / "failpoints"
BODY = ask("Tell me a story.", temperature=1.1, seed=8)


@pytest.fixture(scope="module")
def hanging(start_farm: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A farm with a second worker whose engine the test can hang, and no other worker."""
    folder = tmp_path_factory.mktemp("hanging")
    farm = start_farm(lease_s="2")
    path = f"{FAILPOINTS}{os.pathsep}{farm.environment['PYTHONPATH']}"
    farm.environment |= {"LOG_FILE": str(folder / "log"), "HANG_FILE": str(folder / "hang")}
    farm.start("workers", PYTHONPATH=path, FARM_PROGRESS_LIMIT_S="7")
    assert farm.worker.stop() == 0
    return farm


def test_a_hung_engine_is_killed_with_its_stacks_in_the_log(hanging: Any, eventually: Callable[..., Any]) -> None:
    """F7: the heartbeat goes on, no step ends; health says so meanwhile; the job resumes in the next process."""
    log, hang = Path(hanging.environment["LOG_FILE"]), Path(hanging.environment["HANG_FILE"])
    undisturbed = Answer(hanging.url, BODY).read()
    with Answer(hanging.url, BODY) as answer:
        answer.read(events=10)
        pid = hanging.model_pid()
        hang.touch()
        health = f"{hanging.url}/health"
        eventually(lambda: httpx2.get(health).json()["status"] == "degraded")
        assert "has made no step for" in httpx2.get(health).text
        eventually(lambda: not psutil.pid_exists(pid))
        hang.unlink()
        assert answer.read() == undisturbed
    text = log.read_text()
    assert "an engine step takes longer than" in text
    assert "engine_thread.py" in text


def test_a_stopped_process_is_killed_and_its_job_goes_on(hanging: Any, eventually: Callable[..., Any]) -> None:
    """F5: SIGSTOP for good. The lease's end gives the job back, the agent's watch gets rid of the process."""
    undisturbed = Answer(hanging.url, BODY).read()
    with Answer(hanging.url, BODY) as answer:
        answer.read(events=10)
        pid = hanging.model_pid()
        os.kill(pid, signal.SIGSTOP)
        assert answer.read() == undisturbed
    assert not psutil.pid_exists(pid)
    assert "no sign of life" in Path(hanging.environment["LOG_FILE"]).read_text()
