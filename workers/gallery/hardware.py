"""The machine that models run on: its memory for them, and how fast it reads them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Final

from scheduler.settings import WorkerSettings
from workers.describing import model_budget_bytes
from workers.engine import PROCESS_BYTES, Backend, installed_backend, machine_memory_bytes
from workers.engine.estimating import COPIES_SHARE
from workers.gallery.advice import Machine

import mlx.core as mx  # isort: skip  (after the engine, which chooses the BLAS that it uses)

GB: Final = 10**9
CHIPS_GB_PER_S: Final[Mapping[str, float]] = {
    **{"Apple M1": 68.25, "Apple M1 Pro": 200, "Apple M1 Max": 400, "Apple M1 Ultra": 800},
    **{"Apple M2": 100, "Apple M2 Pro": 200, "Apple M2 Max": 400, "Apple M2 Ultra": 800},
    **{"Apple M3": 100, "Apple M3 Pro": 150, "Apple M3 Max": 300, "Apple M3 Ultra": 819},
    **{"Apple M4": 120, "Apple M4 Pro": 273, "Apple M4 Max": 410},
    **{"Apple M5": 153},
}
"""Memory bandwidth as Apple's technical specifications say (support.apple.com/specs); of two variants the lower."""

LARGE_CHIPS_GB_PER_S: Final[Mapping[tuple[str, int], float]] = {("Apple M3 Max", 16): 400, ("Apple M4 Max", 16): 546}
"""Variants that have more, told by the number of their cores."""

SIDE: Final = 5792
"""Of a square float32 matrix of 128 MiB: more than any cache holds."""

TRIES: Final = 5


def this_machine(settings: WorkerSettings) -> Machine:
    """What is known of this one; what is not is measured, in about a second."""
    chip = _chip()
    stated = LARGE_CHIPS_GB_PER_S.get((chip, os.cpu_count() or 0)) or CHIPS_GB_PER_S.get(chip)
    on_cpu = installed_backend() is Backend.CPU
    if stated and not on_cpu:
        bandwidth, source = stated * GB, "Apple's specifications"
    else:
        bandwidth, source = measured_bytes_per_s(), "measured: a matrix of 128 MiB times a vector"
    return Machine(
        chip=chip,
        memory_bytes=machine_memory_bytes(),
        budget_bytes=model_budget_bytes(settings),
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_source=source,
        computes_float32=on_cpu,
        process_bytes=PROCESS_BYTES,
        copies_share=COPIES_SHARE,
    )


def measured_bytes_per_s() -> float:
    """How fast a matrix is read when it is multiplied by a vector, which is what decoding does; the best of some."""
    matrix, vector = mx.ones((SIDE, SIDE)), mx.ones((SIDE, 1))
    mx.eval(matrix, vector)
    best_s = float("inf")
    for _ in range(1 + TRIES):
        began_s = time.perf_counter()
        mx.eval(matrix @ vector)
        best_s = min(best_s, time.perf_counter() - began_s)
    return float(matrix.nbytes) / best_s


def _chip() -> str:
    """The processor's name."""
    if sys.platform == "darwin":
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if name := done.stdout.strip():
            return name
    return platform.processor() or platform.machine()
