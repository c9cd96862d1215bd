"""How a test changes what a real process does: its modules are patched while that process imports them.

A folder with a `sitecustomize.py` stands first in the process's PYTHONPATH, which says what is patched.
"""

import builtins
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Patch = tuple[str, str, Callable[[Any], None]]
"""A module, a name that it must have to be complete, and what is done to it then."""


def patched(folder: str, **variables: str) -> dict[str, str]:
    """The environment of a process that imports the `sitecustomize.py` of a folder beside this file."""
    here = Path(__file__)
    return {"PYTHONPATH": os.pathsep.join([str(here.with_name(folder)), str(here.parents[2])]), **variables}


_import_as_usual = builtins.__import__
_left: list[Patch] = []


def patch_when_complete(patches: Sequence[Patch]) -> None:
    """Patch each module once it is complete, before anybody takes a name from it."""
    _left.extend(patches)
    builtins.__import__ = _import_and_look


def _import_and_look(*arguments: Any, **options: Any) -> Any:
    imported = _import_as_usual(*arguments, **options)
    for patch in tuple(_left):
        name, needed, change = patch
        if patch in _left and hasattr(sys.modules.get(name), needed):
            _left.remove(patch)
            change(sys.modules[name])
    if not _left:
        builtins.__import__ = _import_as_usual
    return imported
