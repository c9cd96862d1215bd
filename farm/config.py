"""`python -m farm.config`: the settings in effect and the origin of each value; also for `serve` and `doctor`."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import typer
from pydantic import SecretStr, ValidationError

from farm.errors import CommandError, UsageRefused
from farm.output import table
from scheduler.provider_settings import ProviderWorkerSettings
from scheduler.settings import (
    ApiSettings,
    BatchSettings,
    FarmSettings,
    SchedulerSettings,
    ServeSettings,
    WorkerSettings,
    config_files,
)

CLASSES: tuple[type[FarmSettings], ...] = (
    *(ApiSettings, BatchSettings, WorkerSettings, ProviderWorkerSettings, SchedulerSettings, ServeSettings),
)
AnySettings = TypeVar("AnySettings", bound=FarmSettings)


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of `config show`."""

    name: str
    value: str
    origin: str


def load(settings: type[AnySettings]) -> AnySettings:
    """Read one class of settings. Raises UsageRefused naming the variable, what is wrong and what it was."""
    try:
        return settings()
    except ValidationError as error:
        problems = [_problem(settings, detail) for detail in error.errors()]
        raise UsageRefused("\n".join(problems)) from None
    except tomllib.TOMLDecodeError as error:
        files = ", ".join(str(path) for path in config_files() if path.exists())
        raise UsageRefused(f"A configuration file is not valid TOML ({files}): {error}") from error


def effective() -> list[Setting]:
    """Every setting of every process, once."""
    files = [(path, _read(path)) for path in reversed(config_files())]
    lines: dict[str, Setting] = {}
    for settings_class in CLASSES:
        settings = load(settings_class)
        for name in settings_class.model_fields:
            lines[name] = Setting(name, masked(getattr(settings, name)), _origin(settings_class, name, files))
    return [lines[name] for name in sorted(lines)]


def unknown() -> list[str]:
    """Names in the files, and FARM_ variables, that no setting has (a typing error, most likely)."""
    known = {name for settings_class in CLASSES for name in settings_class.model_fields}
    also_known = {"FARM_URL", "FARM_SUPERVISED", "FARM_EXTRA", "FARM_UNDER_MAKE"}
    found = [f"{name} in {path}" for path in config_files() for name in _read(path) if name not in known]
    variables = [name for name in os.environ if name.startswith("FARM_") and name not in also_known]
    return found + [name for name in variables if name.removeprefix("FARM_").lower() not in known]


def masked(value: Any) -> str:
    """A value for the screen: secrets and passwords in URLs are stars."""
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, dict):
        value = ",".join(f"{name}={item}" for name, item in value.items())
    text = "" if value is None else str(value)
    if "://" in text:
        parts = urlsplit(text)
        if parts.password:
            text = urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":********@")))
        text = re.sub(r"(password=)[^&]+", r"\1********", text)
    return text


def _problem(settings: type[FarmSettings], detail: Any) -> str:
    name = str(detail["loc"][0]) if detail["loc"] else "?"
    given = "" if name == "api_key" else f" (it is {detail['input']!r})"
    origin = _origin(settings, name, [(path, _read(path)) for path in reversed(config_files())])
    return f"FARM_{name.upper()}: {detail['msg']}{given}; set by {origin}."


def _origin(settings: type[FarmSettings], name: str, files: list[tuple[Path, dict[str, Any]]]) -> str:
    variable = f"FARM_{name.upper()}"
    if variable in (key.upper() for key in os.environ):
        return f"environment or flag ({variable})"
    for path, values in files:
        if name in values:
            return str(path)
    return "default"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CommandError(f"Cannot read {path}: {error.strerror}") from error


def main() -> None:
    """Print the table, or JSON with --json."""
    try:
        settings, strays = effective(), unknown()
    except CommandError as error:
        typer.echo(f"mlx-farm: {error}", err=True)
        sys.exit(error.exit_code)
    if "--json" in sys.argv[1:]:
        typer.echo(json.dumps({s.name: {"value": s.value, "origin": s.origin} for s in settings}, indent=2))
    else:
        table(["setting", "value", "from"], [[s.name, s.value, s.origin] for s in settings])
    for stray in strays:
        typer.echo(f"not a setting: {stray}", err=True)


if __name__ == "__main__":
    main()
