"""A model process, alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


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
