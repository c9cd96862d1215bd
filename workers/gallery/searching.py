"""`python -m workers.gallery.searching TEXT`: models that the hub has; where it is away, those that are here."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

import orjson

from workers.gallery.errors import GalleryError
from workers.gallery.hub import Found, hub_folder, search


def downloaded(text: str) -> list[str]:
    """Names of models on this disk that hold the text, by their folders alone."""
    names = (path.name.removeprefix("models--").replace("--", "/") for path in hub_folder().glob("models--*--*"))
    return sorted(name for name in names if text.lower() in name.lower())


def main() -> int:
    """Exit codes: those of GalleryError, and 0."""
    parser = argparse.ArgumentParser(prog="mlx-farm search", description=__doc__)
    parser.add_argument("text")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--any-format", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found, error = _asked(arguments)
    here = downloaded(arguments.text)
    if arguments.json:
        answer = {"data": [asdict(model) for model in found], "local": here, "error": str(error) if error else None}
        sys.stdout.write(f"{orjson.dumps(answer).decode()}\n")
    else:
        for line in [_line(model) for model in found] if error is None else here:
            sys.stdout.write(f"{line}\n")
    if error is None:
        return 0
    sys.stderr.write(f"mlx-farm: {error}\n")
    return error.exit_code


def _asked(arguments: argparse.Namespace) -> tuple[list[Found], GalleryError | None]:
    try:
        return search(arguments.text, limit=arguments.limit, any_format=arguments.any_format), None
    except GalleryError as error:
        return [], error


def _line(model: Found) -> str:
    marks = [*(["here"] if model.is_here else []), *(["gated"] if model.gated else [])]
    told = (model.name, f"{model.downloads} downloads", f"{model.likes} likes", model.task or "", model.changed or "")
    return "\t".join([*told, ", ".join(marks)])


if __name__ == "__main__":
    sys.exit(main())
