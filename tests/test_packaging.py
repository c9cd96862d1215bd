"""The installed package: nothing shadows our plain names, the wheel is complete, and the command line starts light."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
OURS = "mlx-farm"
HEAVY = {
    "mlx",
    "mlx_lm",
    "transformers",
    "tokenizers",
    "sqlalchemy",
    "alembic",
    "fastapi",
    "pydantic",
    "redis",
    "asyncio",
}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _names(requirements: list[str]) -> Iterator[str]:
    for requirement in requirements:
        yield _canonical(re.split(r"[\[<>=!;~ ]", requirement, maxsplit=1)[0])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_other_distribution_installs_a_package_of_our_name() -> None:
    owners = packages_distributions()
    for name in ("api", "scheduler", "workers", "farm"):
        assert set(owners.get(name, [OURS])) == {OURS}


def test_help_loads_nothing_heavy() -> None:
    code = "import sys\nfrom farm.main import app\nprint(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert HEAVY & {name.split(".")[0] for name in done.stdout.split()} == set()


def test_every_dependency_is_pinned_exactly_and_without_an_address(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin)] == []
    pinned = {_canonical(pin.partition("==")[0]) for pin in pins}
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["cpu"], *extras["cuda"], *extras["dev"]]
    wanted += extras["sdk-suites"]
    assert set(_names(wanted)) - pinned == set()
    assert {"mlx-metal", "mlx-cpu", "mlx-cuda-13"} <= pinned


def test_what_the_code_imports_is_declared(project: dict[str, Any]) -> None:
    """A dependency of a dependency may go away with its next release."""
    owners = packages_distributions()
    extras = project["project"]["optional-dependencies"]
    declared = set(
        _names([*project["project"]["dependencies"], *extras["train"], *extras["embeddings"], *extras["vision"]])
    )
    declared |= {"mlx", "mlx-cpu", "mlx-metal", "mlx-cuda-13"}
    undeclared = {}
    for package in ("api", "scheduler", "workers", "farm", "migrations"):
        for path in (ROOT / package).rglob("*.py"):
            for found in re.findall(r"^(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
                names = {_canonical(owner) for owner in owners.get(found, [])}
                if names and OURS not in names and not names & declared:
                    undeclared[found] = str(path.relative_to(ROOT))
    assert undeclared == {}


@pytest.mark.skipif(find_spec("hatchling") is None, reason="the build back end is not installed")
def test_the_wheel_has_scripts_migrations_and_the_demo_model_and_no_training(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    scripts = {f"scheduler/scripts/{path.name}" for path in (ROOT / "scheduler/scripts").glob("*.lua")}
    migrations = {f"scheduler/migrations/versions/{p.name}" for p in (ROOT / "migrations/versions").glob("*.py")}
    model = {f"workers/demo/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json")}
    assert scripts
    assert migrations
    assert (scripts | migrations | model | {"scheduler/migrations/env.py"}) - names == set()
    assert [name for name in names if "training" in name] == []
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"api", "scheduler", "workers", "farm"}
