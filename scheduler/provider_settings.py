"""Settings of the provider worker (see settings.py)."""

from __future__ import annotations

from pydantic import Field

from scheduler.settings import FarmSettings


class ProviderWorkerSettings(FarmSettings):
    """What `mlx-farm worker --providers` needs."""

    drain_s: float = Field(20.0, ge=0, description="How long running jobs may finish after a stop signal.")
    circuit_failures: int = Field(5, ge=1, description="Failures of a provider's model in a row that open its circuit.")
    circuit_window_s: float = Field(60.0, gt=0, description="They are forgotten when they are older than this.")
    circuit_open_s: float = Field(30.0, gt=0, description="An open circuit lets one request try after this time.")
