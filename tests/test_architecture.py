"""The shape of the code: size budgets, imports at the top and without cycles, few broad excepts, no machine's name."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("api", "scheduler", "workers", "farm")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_DOCSTRING_LINES = 20
LONGEST_POLL_S = 0.05
VAGUE = {"utils", "util", "manager", "helpers", "helper", "common", "base", "misc", "shared"}
BROAD = {"Exception", "BaseException"}
PROCESSES = {
    "api/batches": "batches",
    "api": "api",
    "scheduler": "scheduler",
    "workers/engine": "model process",
    "workers/model_process.py": "model process",
    "workers/engine_thread.py": "model process",
    "workers/consumer.py": "model process",
    "workers/agent.py": "node agent",
    "farm": "farm",
}

# Written so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:Us" r"ers|home)/(?!farm\b)[a-z]\w*|(?<![\w.~}])/(?:ro" r"ot|wo" r"rk)/\w")
REGISTRY = re.compile(
    r"index-" r"url|find-" r"links|trusted-" r"host|py" r"pi\.org|python" r"hosted\.org|PIP_" r"INDEX"
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file that is or would be in git; all files where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return tuple(path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file())


@cache
def python_files() -> dict[str, ast.Module]:
    """Relative path → syntax tree."""
    files = sorted(path for path in tracked_files() if path.suffix == ".py")
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def sources() -> dict[str, ast.Module]:
    """The same, of our packages only."""
    return {name: tree for name, tree in python_files().items() if name.split("/")[0] in PACKAGES}


def functions(tree: ast.Module) -> Iterator[Function]:
    """All functions and methods, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the end, without decorators and docstring."""
    end = function.end_lineno or function.lineno
    docstring = function.body[0] if ast.get_docstring(function) else None
    spared = (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1 if docstring else 0
    return end - function.lineno + 1 - spared


def test_no_file_is_longer_than_its_budget() -> None:
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in python_files()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_its_budget() -> None:
    long = {
        f"{name}:{function.lineno} {function.name}": length(function)
        for name, tree in python_files().items()
        for function in functions(tree)
        if length(function) > MAX_FUNCTION_LINES and not name.startswith("migrations/versions/")
    }
    assert long == {}


def test_imports_stand_at_the_top_of_their_file() -> None:
    lazy = [
        f"{name}:{node.lineno}"
        for name, tree in python_files().items()
        for function in functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert lazy == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    names = {_module(name) for name in sources()}
    graph: dict[str, set[str]] = {}
    for name, tree in sources().items():
        module = _module(name)
        graph[module] = {found for found in _imported(tree, names) if found != module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_every_module_says_in_a_few_lines_what_it_owns() -> None:
    wrong = []
    for name, tree in sources().items():
        docstring = ast.get_docstring(tree)
        if docstring is None or len(docstring.splitlines()) > MAX_DOCSTRING_LINES:
            wrong.append(name)
    assert wrong == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name for name in sources() if Path(name).stem in VAGUE or VAGUE & set(Path(name).parts)] == []


def test_each_process_has_at_most_one_broad_except() -> None:
    found: dict[str, list[str]] = {}
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node):
                process = next((value for start, value in PROCESSES.items() if name.startswith(start)), name)
                found.setdefault(process, []).append(f"{name}:{node.lineno}")
    assert {process: places for process, places in found.items() if len(places) > 1} == {}


def test_tests_wait_for_conditions_and_do_not_sleep() -> None:
    asleep = [
        f"{name}:{node.lineno}"
        for name, tree in python_files().items()
        if name.startswith("tests/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "asyncio.sleep", "sleep")
        if not _is_poll(node.args[0])
    ]
    assert asleep == []


def test_no_file_names_a_machine_a_registry_or_work_left_undone() -> None:
    undone = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b")
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line) or REGISTRY.search(line) or (path.suffix == ".py" and undone.search(line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def _module(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(tree: ast.Module, names: set[str]) -> Iterator[str]:
    """The modules of ours that a file's import statements name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & names
            yield from submodules
            if node.module in names and len(submodules) < len(node.names):
                yield node.module


def _is_poll(pause: ast.expr) -> bool:
    """A pause between two looks at a condition, too short to be waited for by itself."""
    return isinstance(pause, ast.Constant) and isinstance(pause.value, int | float) and pause.value <= LONGEST_POLL_S


def _is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(kind) in BROAD for kind in caught)
