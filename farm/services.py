"""`mlx-farm service install`: the launchd or systemd unit that keeps a farm, or one of its processes, running."""

from __future__ import annotations

import getpass
import os
import plistlib
import shlex
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from farm.errors import UsageRefused

app = typer.Typer(name="service", help="Run as a service of the system.", no_args_is_help=True)

STOP_S = 90
"""Longer than any process drains: 20 s of running jobs, and what a supervisor gives its children beyond."""

RESTART_S = 5
OPEN_FILES = 65536
WRONG_SETTINGS, WRONG_MODEL = 2, 4
"""Exit codes after which starting again would not help."""


class Process(StrEnum):
    """What the service runs."""

    SERVE = "serve"
    API = "api"
    WORKER = "worker"
    SCHEDULER = "scheduler"
    BATCHES = "batches"


class System(StrEnum):
    """Whose unit it is."""

    LAUNCHD = "launchd"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One process as a service: with whose rights, and where its settings and its output are."""

    process: Process
    python: Path
    home: Path
    environment: Path
    logs: Path
    user: str

    @property
    def command(self) -> list[str]:
        """What is run: the command line of this installation."""
        return [str(self.python), "-P", "-m", "farm", self.process.value]

    @property
    def label(self) -> str:
        """Its name among other services."""
        return f"mlx-farm.{self.process.value}"

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.logs / f"service-{self.process.value}.log"


@app.callback()
def service() -> None:
    """Run as a service of the system."""


@app.command()
def install(
    process: Annotated[Process, typer.Option(help="What to run.")] = Process.SERVE,
    system: Annotated[
        System | None, typer.Option(help="Whose unit.", show_default="launchd on a Mac, systemd elsewhere")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of all data.", show_default="FARM_HOME, or ~/.mlx-farm")
    ] = None,
    env_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="NAME=value lines.", show_default="environment in that folder")
    ] = None,
    log_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For its output.", show_default="logs in that folder")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Who runs it; systemd only.", show_default="who runs this command")
    ] = None,
) -> None:
    """Print a unit that starts with the machine, and again after a crash; stderr says what to do with it."""
    system = system or (System.LAUNCHD if sys.platform == "darwin" else System.SYSTEMD)
    if user is not None and system is System.LAUNCHD:
        raise UsageRefused("--user is for systemd: a launchd agent belongs to the user whose folder it is in.")
    folder = (home or Path(os.environ.get("FARM_HOME") or "~/.mlx-farm")).expanduser().absolute()
    made = Service(
        process=process,
        python=Path(sys.executable),
        home=folder,
        environment=(env_file or folder / "environment").expanduser().absolute(),
        logs=(log_dir or folder / "logs").expanduser().absolute(),
        user=user or getpass.getuser(),
    )
    typer.echo(launchd_plist(made) if system is System.LAUNCHD else systemd_unit(made), nl=False)
    typer.echo(what_to_do(made, system), err=True)


def launchd_plist(service: Service) -> str:
    """A launchd agent (launchd.plist(5)). A shell reads the settings, because launchd has no file of them."""
    file = shlex.quote(str(service.environment))
    script = f"set -a; if [ -f {file} ]; then . {file}; fi; set +a; exec {shlex.join(service.command)}"
    unit = {
        "Label": service.label,
        "ProgramArguments": ["/bin/sh", "-c", script],
        "EnvironmentVariables": {"FARM_HOME": str(service.home), "FARM_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"},
        "WorkingDirectory": str(service.home),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_S,
        "ExitTimeOut": STOP_S,
        "ProcessType": "Interactive",
        "StandardOutPath": str(service.log),
        "StandardErrorPath": str(service.log),
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
    }
    return plistlib.dumps(unit, sort_keys=False).decode()


def systemd_unit(service: Service) -> str:
    """A system unit (systemd.service(5)), run with a user's rights."""
    lines = [
        "[Unit]",
        f"Description=mlx-farm {service.process.value}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=exec",
        f"User={service.user}",
        f"WorkingDirectory={_escaped(str(service.home))}",
        f"Environment={_word(f'FARM_HOME={service.home}')} FARM_LOG_FORMAT=json PYTHONUNBUFFERED=1",
        f"EnvironmentFile=-{_escaped(str(service.environment))}",
        f"ExecStart={' '.join(_word(word) for word in service.command)}",
        "Restart=on-failure",
        f"RestartSec={RESTART_S}",
        f"RestartPreventExitStatus={WRONG_SETTINGS} {WRONG_MODEL}",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_S}",
        f"LimitNOFILE={OPEN_FILES}",
        "NoNewPrivileges=yes",
        f"StandardOutput=append:{_escaped(str(service.log))}",
        "StandardError=inherit",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def what_to_do(service: Service, system: System) -> str:
    """The commands that bring the unit to life."""
    folders = shlex.join(["mkdir", "-p", str(service.home), str(service.logs)])
    again = shlex.join(["mlx-farm", *sys.argv[1:]])
    if system is System.LAUNCHD:
        path = f"~/Library/LaunchAgents/{service.label}.plist"
        steps = [folders, f"{again} > {path}", f"launchctl bootstrap gui/$(id -u) {path}"]
    else:
        path = f"/etc/systemd/system/{service.label}.service"
        steps = [folders, f"{again} | sudo tee {path}", f"sudo systemctl enable --now {service.label}"]
    settings = f"Settings (FARM_API_KEY=…, FARM_REDIS_URL=…; chmod 600): {service.environment}"
    return "\n".join(["", settings, *(f"  {step}" for step in steps)])


def _word(text: str) -> str:
    """One word of a systemd line, quoted where it has to be."""
    escaped = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"' if any(character.isspace() or character in "\"'\\;" for character in text) else escaped


def _escaped(text: str) -> str:
    """Without specifiers."""
    return text.replace("%", "%%")
