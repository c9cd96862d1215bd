"""`python -m workers.gallery.shelf [--json]`: the models on this disk, whole or half pulled; `rm NAME` gives one up."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, CacheNotFound, scan_cache_dir
from rich import box
from rich.console import Console
from rich.table import Table

from workers.engine import ModelError
from workers.engine.loading import MODEL_FILES
from workers.gallery.errors import GalleryError, NotHere
from workers.gallery.facts import ModelFacts, missing_weights, read_facts
from workers.gallery.hub import HubFile, ModelName, hub_folder, wanted_files

MAIN = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfModel:
    """A revision of a model on this disk. `total_bytes` is None where the hub's list of its files is not here.

    `facts` is None, and `unreadable` says why, where its files do not tell what it is.
    """

    name: str
    revision: str
    folder: Path
    complete: bool
    here_bytes: int
    total_bytes: int | None
    facts: ModelFacts | None
    unreadable: str

    def as_json(self) -> dict[str, Any]:
        """For scripts and for the API."""
        return asdict(self) | {"folder": str(self.folder), "facts": asdict(self.facts) if self.facts else None}


def shelf_models() -> list[ShelfModel]:
    """All of them, by name."""
    found = [_shelf_model(repo, revision) for repo, revision in _revisions()]
    return sorted(found, key=lambda model: (model.name.lower(), model.revision))


def _revisions() -> list[tuple[CachedRepoInfo, CachedRevisionInfo]]:
    """Of every model; empty where nothing was ever downloaded."""
    try:
        cache = scan_cache_dir(hub_folder())
    except CacheNotFound:
        return []
    return [(repo, revision) for repo in cache.repos if repo.repo_type == "model" for revision in repo.revisions]


def _shelf_model(repo: CachedRepoInfo, revision: CachedRevisionInfo) -> ShelfModel:
    refs = sorted(revision.refs)
    shown = None if MAIN in refs else refs[0] if refs else revision.commit_hash
    name = ModelName(repo.repo_id, shown)
    folder = revision.snapshot_path
    files = wanted_files(name, revision.commit_hash, MODEL_FILES)
    try:
        facts, unreadable = read_facts(folder), ""
    except ModelError as error:
        facts, unreadable = None, str(error)
    if files is None:
        here_bytes, total_bytes = revision.size_on_disk, None
        complete = not missing_weights(folder)
    else:
        here_bytes, total_bytes = sum(_here(folder, name, file) for file in files), sum(f.size_bytes for f in files)
        complete = bool(files) and all(_is_whole(folder / file.path, file.size_bytes) for file in files)
    return ShelfModel(
        name=str(name),
        revision=revision.commit_hash,
        folder=folder,
        complete=complete,
        here_bytes=here_bytes,
        total_bytes=total_bytes,
        facts=facts,
        unreadable=unreadable,
    )


def _is_whole(path: Path, size_bytes: int) -> bool:
    return path.exists() and path.stat().st_size == size_bytes


def _here(folder: Path, name: ModelName, file: HubFile) -> int:
    """How much of a file has come."""
    for path in (folder / file.path, name.folder / "blobs" / f"{file.blob}.incomplete"):
        if path.exists():
            return min(path.stat().st_size, file.size_bytes)
    return 0


def remove(name: ModelName) -> int:
    """Give a model up, or one revision of it; the bytes that are free now. Raises NotHere."""
    chosen = [
        (repo, revision)
        for repo, revision in _revisions()
        if repo.repo_id == name.repo
        and (name.revision is None or name.revision in revision.refs or revision.commit_hash == name.revision)
    ]
    if name.revision is None and name.folder.is_dir():
        freed_bytes = sum(path.stat().st_size for path in (name.folder / "blobs").glob("*") if path.is_file())
        shutil.rmtree(name.folder)
        return freed_bytes
    if not chosen:
        raise NotHere(str(name))
    plan = scan_cache_dir(hub_folder()).delete_revisions(*(revision.commit_hash for _, revision in chosen))
    plan.execute()
    return plan.expected_freed_size


def table(models: Sequence[ShelfModel]) -> Table:
    """For people."""
    columns = ("MODEL", "KIND", "PARAMETERS", "BITS", "CONTEXT", "SIZE", "TOOLS", "THINKS", "TEMPLATE", "STATE")
    grid = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for model in models:
        grid.add_row(*row(model))
    return grid


def row(model: ShelfModel) -> list[str]:
    """The cells of one model; what cannot be told stays empty."""
    facts, told, marks = model.facts, [""] * 4, [""] * 3
    if facts is not None:
        parameters = "" if facts.parameters is None else billions(facts.parameters)
        context = "" if facts.context_tokens is None else str(facts.context_tokens)
        told = [facts.kind.value, parameters, facts.quantization or "", context]
        marks = [facts.tool_format or "", facts.think_start or "", "yes" if facts.has_chat_template else "no"]
    return [model.name, *told, f"{model.here_bytes / 1e9:.2f} GB", *marks, state(model)]


def state(model: ShelfModel) -> str:
    """Whole or not, and whether it can be served."""
    if not model.complete:
        part = f" {100 * model.here_bytes // model.total_bytes} %" if model.total_bytes else ""
        return f"half pulled{part}"
    if model.facts is None:
        return model.unreadable
    return f"refused: {model.facts.refused}" if model.facts.refused else "complete"


def billions(parameters: int) -> str:
    """`4.02 B`, `135 M`."""
    return f"{parameters / 1e9:.3g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"


def main() -> int:
    """Exit codes: those of GalleryError, and 0."""
    parser = argparse.ArgumentParser(prog="mlx-farm ls --local", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("ls", "rm"), default="ls")
    parser.add_argument("name", nargs="?")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        if arguments.command == "rm":
            freed_bytes = remove(ModelName.read(arguments.name or ""))
            answer: Any = {"removed": arguments.name, "freed_bytes": freed_bytes}
            text = f"{arguments.name}: removed, {freed_bytes / 1e9:.2f} GB are free again"
        else:
            models = shelf_models()
            answer = {"folder": str(hub_folder()), "data": [model.as_json() for model in models]}
            text = ""
    except GalleryError as error:
        sys.stderr.write(f"mlx-farm: {error}\n")
        return error.exit_code
    if arguments.json:
        sys.stdout.write(f"{orjson.dumps(answer).decode()}\n")
    elif text:
        sys.stdout.write(f"{text}\n")
    else:
        _print(models)
    return 0


def _print(models: Sequence[ShelfModel]) -> None:
    if sys.stdout.isatty():
        Console().print(table(models))
        return
    for model in models:
        sys.stdout.write("\t".join(row(model)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
