"""What neither dies nor moves: a hung engine and a stopped process are killed, and their jobs go on elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.farm.conftest import Farm
from tests.farm.streams import Answer, ask
from tests.waiting import PATIENCE_S

BODY = ask("Tell me a story.", temperature=1.1, seed=8)


@pytest.fixture(scope="module")
def hanging(start_farm: Callable[..., Farm], tmp_path_factory: pytest.TempPathFactory) -> Farm:
    """A farm whose worker's engine can hang."""
    return start_farm(failpoints=True, variables={"LOG_FILE": str(tmp_path_factory.mktemp("hanging") / "log")})


def test_health_tells_of_a_step_that_takes_long(hanging: Farm, eventually: Callable[..., Any]) -> None:
    """F7: the heartbeat goes on, no step ends; and when it ends after all, nothing has happened."""
    undisturbed = Answer(hanging.url, BODY).read()
    hanging.fail_at("hang 15")
    with Answer(hanging.url, BODY) as answer:
        eventually(lambda: "has made no step for" in health(hanging))
        hanging.go_on()
        assert answer.read() == undisturbed
    eventually(lambda: "has made no step for" not in health(hanging))
    assert hanging.get(f"/v1/jobs/{answer.job_id}")["attempts"] == 1


def health(farm: Farm) -> str:
    return str(httpx2.get(f"{farm.url}/health", timeout=PATIENCE_S).text)


@pytest.fixture(scope="module")
def impatient(hanging: Farm) -> Farm:
    """The same farm with another worker, which is killed when it makes no step for some seconds."""
    hanging.start("workers", FARM_PROGRESS_LIMIT_S="7")
    assert hanging.worker.stop() == 0
    return hanging


def test_a_hung_engine_is_killed_with_its_stacks_in_the_log(impatient: Farm) -> None:
    """F7: its job resumes in the next process."""
    undisturbed = Answer(impatient.url, BODY).read()
    process = psutil.Process(impatient.model_pid())
    impatient.fail_at("hang 15")
    assert Answer(impatient.url, BODY).read() == undisturbed
    assert not process.is_running()
    text = Path(impatient.environment["LOG_FILE"]).read_text()
    assert "an engine step takes longer than" in text
    assert "engine_thread.py" in text


def test_a_stopped_process_is_killed_and_its_job_goes_on(impatient: Farm) -> None:
    """F5: SIGSTOP for good. The agent's watch gets rid of the process and gives the job back."""
    undisturbed = Answer(impatient.url, BODY).read()
    process = psutil.Process(impatient.model_pid())
    impatient.fail_at("SIGSTOP 15")
    assert Answer(impatient.url, BODY).read() == undisturbed
    assert not process.is_running()
    assert "no sign of life" in Path(impatient.environment["LOG_FILE"]).read_text()
