"""Processes of a farm for a benchmark: started in order, watched for their memory and CPU time, stopped at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil


class FarmProcess:
    """`python -m <arguments>`, ready; `facts` are those of its READY line. What else it prints is thrown away."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("READY "):
                self.facts: dict[str, Any] = json.loads(line.removeprefix("READY "))
                break
        else:
            raise RuntimeError(f"{' '.join(arguments)} did not start")
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    @property
    def rss_mb(self) -> float:
        """Resident memory, of its children too."""
        return float(sum(process.memory_info().rss for process in self._family())) / 2**20

    @property
    def cpu_s(self) -> float:
        """Processor time used so far, by its children too."""
        return sum(float(sum(process.cpu_times()[:2])) for process in self._family())

    def stop(self) -> None:
        """SIGTERM; SIGKILL for whoever does not hear it."""
        family = self._family()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        return []


@contextmanager
def farm_processes(roles: Mapping[str, Sequence[str]], settings: Mapping[str, str]) -> Iterator[dict[str, FarmProcess]]:
    """Start the roles in their order with FARM_… settings; stop them in the opposite one."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    own = {f"FARM_{name.upper()}": value for name, value in settings.items()}
    environment = inherited | own | {"FARM_SUPERVISED": "1"}  # they do not outlive the benchmark
    started: dict[str, FarmProcess] = {}
    try:
        for name, arguments in roles.items():
            started[name] = FarmProcess(arguments, environment)
        yield started
    finally:
        for process in reversed(started.values()):
            process.stop()
