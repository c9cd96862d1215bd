"""`mlx-farm service install` prints units that launchd and systemd read as they are meant."""

from __future__ import annotations

import configparser
import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from farm.services import Process, Service, launchd_plist, systemd_unit
from tests.farm.command_line.conftest import CommandLine

PROCESSES = [process.value for process in Process]


def a_service(folder: Path, process: Process = Process.SERVE) -> Service:
    """In a folder whose name has to be quoted."""
    home = folder / "farm's 100% $HOME"
    return Service(
        process=process,
        python=Path(sys.executable),
        home=home,
        environment=home / "environment",
        logs=home / "logs",
        user="farm",
    )


@pytest.mark.parametrize("process", Process)
def test_a_launchd_agent_runs_the_process_with_its_settings_and_starts_it_again(
    process: Process, tmp_path: Path
) -> None:
    service = a_service(tmp_path, process)
    unit = plistlib.loads(launchd_plist(service).encode())
    assert unit["Label"] == f"mlx-farm.{process.value}"
    shell, option, script = unit["ProgramArguments"]
    assert (shell, option) == ("/bin/sh", "-c")
    assert shlex.split(script.rpartition("exec ")[2]) == [sys.executable, "-P", "-m", "farm", process.value]
    assert unit["EnvironmentVariables"]["FARM_HOME"] == str(service.home)
    assert (unit["RunAtLoad"], unit["KeepAlive"]) == (True, {"SuccessfulExit": False})
    assert unit["StandardOutPath"] == unit["StandardErrorPath"] == str(service.log)


def test_the_shell_of_a_launchd_agent_hands_the_settings_over(tmp_path: Path) -> None:
    """The very command line, with another program in the place of ours."""
    service = a_service(tmp_path)
    service.home.mkdir()
    script = plistlib.loads(launchd_plist(service).encode())["ProgramArguments"][2]
    script = script.replace(shlex.join(service.command), 'printf "%s" "$FARM_API_KEY-$FARM_PORT"')
    without = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True, env={})
    assert without.stdout == "-"
    service.environment.write_text("# settings\nFARM_API_KEY='a b'\nFARM_PORT=8123\n")
    read = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True, env={})
    assert read.stdout == "a b-8123"


@pytest.mark.parametrize("process", Process)
def test_a_systemd_unit_says_the_same(process: Process, tmp_path: Path) -> None:
    service = a_service(tmp_path, process)
    unit = configparser.RawConfigParser(strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(systemd_unit(service))
    section = unit["Service"]
    assert shlex.split(section["ExecStart"]) == [sys.executable, "-P", "-m", "farm", process.value]
    assert section["User"] == "farm"
    assert section["EnvironmentFile"] == "-" + str(service.environment).replace("%", "%%")
    assert (section["Restart"], section["RestartPreventExitStatus"]) == ("on-failure", "2 4")
    assert section["StandardOutput"] == "append:" + str(service.log).replace("%", "%%")
    assert unit["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("process", [Process.SERVE, Process.WORKER])
def test_systemd_accepts_the_unit(process: Process, tmp_path: Path) -> None:
    path = tmp_path / f"mlx-farm-{process.value}.service"
    path.write_text(systemd_unit(a_service(tmp_path, process)))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if path.name in line]
    assert said == []


@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_of_a_unit_is_a_command(mlx_farm: CommandLine, process: str) -> None:
    assert f"mlx-farm {process}" in mlx_farm(process, "--help").stdout.replace("python -m farm", "mlx-farm")


def test_the_command_prints_the_unit_and_says_what_to_do_with_it(mlx_farm: CommandLine, tmp_path: Path) -> None:
    done = mlx_farm(
        "service", "install", "--system", "launchd", "--process", "worker", "--home", str(tmp_path / "home")
    )
    assert done.returncode == 0
    unit = plistlib.loads(done.stdout.encode())
    assert unit["EnvironmentVariables"]["FARM_HOME"] == str(tmp_path / "home")
    assert "launchctl bootstrap" in done.stderr
    assert str(tmp_path / "home" / "environment") in done.stderr
    systemd = mlx_farm("service", "install", "--system", "systemd", "--user", "me", "--env-file", "/etc/farm.env")
    assert "\nUser=me\n" in systemd.stdout
    assert "\nEnvironmentFile=-/etc/farm.env\n" in systemd.stdout
    assert "systemctl enable --now mlx-farm.serve" in systemd.stderr
    refused = mlx_farm("service", "install", "--system", "launchd", "--user", "me")
    assert (refused.returncode, "systemd" in refused.stderr) == (2, True)
