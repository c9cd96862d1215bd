"""The Hugging Face hub as models come from it: names, searches, file lists; and its errors in our words.

The address is HF_ENDPOINT (https://huggingface.co), the token HF_TOKEN, the folder HF_HUB_CACHE, as for all of
huggingface_hub; HF_HUB_OFFLINE=1 keeps it from being asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub._tree_cache import read_tree_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._paths import filter_repo_objects

from workers.gallery.errors import BadModelName, HubUnreachable, NotAllowed, NotInTheHub

NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII)
LONGEST_NAME_CHARS = 256
WEIGHTS = "*.safetensors"
SHOWN: Final = ("downloads", "likes", "lastModified", "pipeline_tag", "gated")
"""What the hub is asked to tell of a model that it has found."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A repository of the hub, at a branch, a tag or a commit (None: its main branch)."""

    repo: str
    revision: str | None = None

    @staticmethod
    def read(text: str) -> ModelName:
        """`OWNER/NAME` or `OWNER/NAME@REVISION`. Raises BadModelName."""
        found = NAME.fullmatch(text)
        if found is None or ".." in text or "--" in text or len(text) > LONGEST_NAME_CHARS:
            raise BadModelName(text)
        return ModelName(found["repo"], found["revision"])

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @property
    def folder(self) -> Path:
        """Where all its revisions are on this disk, if they are."""
        return hub_folder() / repo_folder_name(repo_id=self.repo, repo_type="model")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file as the hub lists it: its SHA-256, or the hash of its git blob where it is a small one."""

    path: str
    size_bytes: int
    sha256: str | None
    git_sha1: str

    @property
    def blob(self) -> str:
        """Under which name its content is in the cache."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model that the hub has."""

    name: str
    downloads: int
    likes: int
    task: str | None
    gated: bool
    changed: str | None
    is_here: bool


def hub_folder() -> Path:
    """Where downloaded models are."""
    return Path(constants.HF_HUB_CACHE).expanduser()


def search(text: str, *, limit: int, any_format: bool = False) -> list[Found]:
    """Models whose names hold `text`, the most downloaded first: those for MLX, or all. Raises GalleryError."""
    with hub_errors(text):
        tags = None if any_format else "mlx"
        models = list(HfApi().list_models(search=text, filter=tags, sort="downloads", limit=limit, expand=list(SHOWN)))
    return [
        Found(
            name=model.id,
            downloads=model.downloads or 0,
            likes=model.likes or 0,
            task=model.pipeline_tag,
            gated=bool(model.gated),
            changed=model.last_modified.date().isoformat() if model.last_modified else None,
            is_here=ModelName(model.id).folder.is_dir(),
        )
        for model in models
    ]


def fetch_small_files(name: ModelName, patterns: Sequence[str]) -> Path:
    """Download all but the weights; the folder of the revision, which is named by its commit. Raises GalleryError.

    Where the hub is away and all is here already, that is enough.
    """
    with hub_errors(str(name)):
        folder = snapshot_download(
            name.repo, revision=name.revision, allow_patterns=list(patterns), ignore_patterns=[WEIGHTS]
        )
    return Path(folder)


def wanted_files(name: ModelName, commit: str, patterns: Sequence[str]) -> list[HubFile] | None:
    """What the hub lists of a commit that was asked for before, as far as it is wanted; None where that is not known.

    The list is kept beside the files; huggingface_hub's public reader of it leaves the hashes out.
    """
    files = read_tree_cache(str(name.folder), commit)
    if files is None:
        return None
    return [
        HubFile(
            path=path,
            size_bytes=files[path].size,
            sha256=files[path].lfs_sha256,
            git_sha1=files[path].blob_id,
        )
        for path in sorted(filter_repo_objects(files, allow_patterns=list(patterns)))
    ]


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into GalleryError; `name` is what was asked for."""
    try:
        yield
    except GatedRepoError as error:
        raise NotAllowed(name, constants.ENDPOINT) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotInTheHub(name) from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachable(constants.ENDPOINT, "HF_HUB_OFFLINE is set") from error
    except LocalEntryNotFoundError as error:
        offline = isinstance(error.__cause__, OfflineModeIsEnabled)
        raise HubUnreachable(constants.ENDPOINT, "HF_HUB_OFFLINE is set" if offline else _reason(error)) from error
    except (HfHubHTTPError, httpx2.HTTPError) as error:
        raise HubUnreachable(constants.ENDPOINT, _reason(error)) from error


def _reason(error: Exception) -> str:
    """What has happened, in one line."""
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0][:200]}" if lines else type(cause).__name__
