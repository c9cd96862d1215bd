"""`mlx-farm batch run` over 2,000 lines: killed, started again, each line written once, nobody at work disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.waiting import PATIENCE_S

LINES = 2000


def write_input(path: Path) -> None:
    """2,000 small sums."""
    with path.open("w") as file:
        for index in range(LINES):
            body = {
                "model": "demo",
                "messages": [{"role": "user", "content": f"What is {index % 10} + {index // 10 % 10}?"}],
                "max_tokens": 6,
                "temperature": 0,
            }
            line = {"custom_id": f"line-{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def start_batch(farm: Any, source: Path, target: Path) -> subprocess.Popen[str]:
    environment = farm.environment | {"FARM_URL": farm.url}
    return subprocess.Popen(
        [sys.executable, "-m", "farm", "batch", "run", str(source), str(target), "--concurrency", "24"],
        env=environment,
        text=True,
    )


def lines_in(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def interactive_answer(farm: Any) -> str:
    """One streamed answer, as a person would wait for it."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "stream": True}
    text = ""
    with httpx2.stream("POST", f"{farm.url}/v1/chat/completions", json=body, timeout=PATIENCE_S) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                text += "".join(choice["delta"].get("content") or "" for choice in choices)
    return text


def test_a_killed_batch_continues_and_writes_each_line_once(
    farm: Any, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_input(source)
    alone = interactive_answer(farm)
    first = start_batch(farm, source, target)
    eventually(lambda: lines_in(target) > 300)
    first.kill()
    first.wait()
    with target.open("a") as file:
        file.write('{"custom_id": "line-19')  # a torn last line, as a power cut leaves it
    second = start_batch(farm, source, target)
    while second.poll() is None:
        assert interactive_answer(farm) == alone
    assert second.returncode == 0
    results = [json.loads(line) for line in target.read_text().splitlines()]
    counts = Counter(result["custom_id"] for result in results)
    assert counts == Counter({f"line-{index}": 1 for index in range(LINES)})
    assert all(result["response"]["status_code"] == 200 for result in results)
