"""A model process, alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.settings import WorkerSettings
from workers.engine import Prompt, SamplingParams, StopRule
from workers.model_process import load_generator


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A model process under a supervisor, with its model loaded, that finds no Redis."""
    environment = os.environ | {
        "FARM_HOME": str(tmp_path),
        "FARM_REDIS_URL": f"unix://{tmp_path}/nobody.sock",
        "FARM_SUPERVISED": "1",
        "FARM_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-P", "-m", "workers.model_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b'"event": "engine"' in line:
                break
        else:
            pytest.fail(f"it ended with {process.wait()}")
        yield process
        process.kill()


def test_one_that_waits_for_redis_ends_when_its_supervisor_is_gone(waiting: subprocess.Popen[bytes]) -> None:
    assert waiting.stdin is not None
    waiting.stdin.close()
    assert waiting.wait(60) == 0


def test_one_that_waits_for_redis_ends_when_it_is_asked_to(waiting: subprocess.Popen[bytes]) -> None:
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(60) == 0


def steps_to_the_first_token(settings: WorkerSettings) -> int:
    """Of a prompt of 400 tokens."""
    engine, _ = load_generator(settings)
    stop = StopRule(max_tokens=1, ignore_eos=True)
    engine.submit(Prompt(id="1", token_ids=tuple(range(100, 500)), sampling=SamplingParams(), stop=stop))
    steps = 1
    while not engine.step():
        steps += 1
    engine.close()
    return steps


def test_a_step_reads_no_more_of_a_prompt_than_the_setting_says() -> None:
    usual = steps_to_the_first_token(WorkerSettings())
    short = steps_to_the_first_token(WorkerSettings(step_tokens=64))
    assert short == usual + 6  # seven steps instead of one
