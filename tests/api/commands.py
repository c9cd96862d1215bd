"""The command line on a real node of a test's own."""

from __future__ import annotations

import asyncio
import os
import sys

from tests.api.scripted_farm import NodeServer


async def mlx_farm(server: NodeServer, *words: str, code: int = 0) -> str:
    """What `mlx-farm …` prints; its errors, where it prints nothing else."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "farm", *words),
        env=os.environ | {"FARM_URL": server.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == code, errors.decode()
    return (out or errors).decode().strip()
