"""`python -m farm.doctor`: all checks, one line each, the fix below; exit code 1 when one has failed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

import typer

from farm import checks, config
from farm.checks import Finding, Verdict
from farm.errors import CommandError
from scheduler.settings import ApiSettings, SchedulerSettings

_COLOURS = {Verdict.OK: typer.colors.GREEN, Verdict.WARN: typer.colors.YELLOW, Verdict.FAIL: typer.colors.RED}


def findings() -> Iterator[Finding]:
    """Run the checks in order; those that need settings end with the first wrong setting."""
    independent: tuple[Callable[[], Finding], ...] = (checks.python, checks.memory, checks.mlx, checks.blas)
    for check in independent:
        yield check()
    yield checks.models()
    try:
        api, scheduler = config.load(ApiSettings), config.load(SchedulerSettings)
    except CommandError as error:
        yield Finding("settings", Verdict.FAIL, str(error), "Correct it; mlx-farm config show lists all settings.")
        return
    yield _settings()
    for check_api in (checks.disk, checks.port, checks.key, checks.queue):
        yield check_api(api)
    yield checks.record(scheduler)


def _settings() -> Finding:
    strays = config.unknown()
    if strays:
        found = f"not settings of the farm: {', '.join(strays)}"
        return Finding("settings", Verdict.WARN, found, "Correct the names; mlx-farm config show lists all settings.")
    return Finding("settings", Verdict.OK, "valid")


def main() -> None:
    """Print the report, or JSON with --json."""
    as_json = "--json" in sys.argv[1:]
    report = []
    for finding in findings():
        report.append(finding)
        if not as_json:
            verdict = typer.style(f"{finding.verdict:<4}", fg=_COLOURS[finding.verdict])
            typer.echo(f"{verdict}  {finding.check:<9} {finding.found}")
            if finding.fix:
                typer.echo(f"      {'':<9} → {finding.fix}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in report], indent=2))
    sys.exit(any(finding.verdict is Verdict.FAIL for finding in report))


if __name__ == "__main__":
    main()
