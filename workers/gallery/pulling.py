"""`python -m workers.gallery.pulling NAME`: bring a model from the hub, all of it or what is missing, and check it.

With --json each line on standard output says how far it is; SIGINT and SIGTERM stop it, and what has come is kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from huggingface_hub import hf_hub_download
from huggingface_hub.utils.tqdm import disable_progress_bars
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from workers.engine import ModelError
from workers.engine.loading import MODEL_FILES
from workers.gallery.errors import DiskFull, GalleryError, PullStopped, UnfitModel
from workers.gallery.facts import check_kind
from workers.gallery.hub import HubFile, ModelName, fetch_small_files, hub_errors, hub_folder, wanted_files
from workers.gallery.transfer import difference, fetch

AT_ONCE = 4
"""Files."""

SPARE_DISK_BYTES = 256 << 20
NEWS_S = 0.25
GRACE_S = 1.0
"""For downloads to end when they are to stop; one that waits for the hub is left behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullProgress:
    """`state`: asking, downloading or done. Bytes are of all the model's files."""

    model: str
    state: str
    done_bytes: int = 0
    total_bytes: int = 0
    folder: str | None = None


Tell = Callable[[PullProgress], None]


class Pull:
    """One model on its way here; `stop` ends it from any thread."""

    def __init__(self, name: ModelName, tell: Tell, stop: threading.Event) -> None:
        self._name = name
        self._tell = tell
        self._stop = stop
        self._lock = threading.Lock()
        self._here: dict[str, int] = {}
        self._total_bytes = 0
        self._told_s = 0.0
        self._is_untold = False

    def run(self, *, verify: bool = False) -> Path:
        """The model's folder, with all its files. `verify`: read again what was here before. Raises GalleryError."""
        self._say("asking")
        folder = fetch_small_files(self._name, MODEL_FILES)
        self._refuse_unfit(folder)
        files = wanted_files(self._name, folder.name, MODEL_FILES) or []
        weights = [file for file in files if file.path.endswith(".safetensors")]
        if not weights:
            raise UnfitModel(str(self._name), "it has no model*.safetensors; look for a conversion by mlx-community")
        self._total_bytes = sum(file.size_bytes for file in files)
        for file in files:
            self._look_at(folder, file, verify=verify)
        missing = [
            file for file in files if self._here[file.path] < file.size_bytes or not (folder / file.path).exists()
        ]
        self._find_room(missing)
        self._say("downloading")
        self._fetch_all(missing, folder.name)
        self._say("done", folder)
        return folder

    def _refuse_unfit(self, folder: Path) -> None:
        """Before gigabytes come. Raises UnfitModel."""
        try:
            check_kind(folder)
        except ModelError as error:
            raise UnfitModel(str(self._name), str(error)) from error

    def _look_at(self, folder: Path, file: HubFile, *, verify: bool) -> None:
        """How much of a file is here; what is not what it should be goes."""
        path, part = folder / file.path, self._name.folder / "blobs" / f"{file.blob}.incomplete"
        if path.exists():
            with path.open("rb") as content:
                wrong = path.stat().st_size != file.size_bytes or (verify and difference(content, file))
            if wrong:
                path.resolve().unlink()
                path.unlink(missing_ok=True)
            else:
                part.unlink(missing_ok=True)  # somebody else has brought it whole
        elif path.is_symlink():
            path.unlink()
        self._here[file.path] = file.size_bytes if path.exists() else part.stat().st_size if part.exists() else 0

    def _find_room(self, missing: Sequence[HubFile]) -> None:
        """Raises DiskFull."""
        needed_bytes = sum(file.size_bytes - self._here[file.path] for file in missing)
        free_bytes = shutil.disk_usage(hub_folder()).free
        if needed_bytes and needed_bytes + SPARE_DISK_BYTES > free_bytes:
            raise DiskFull(str(hub_folder()), needed_bytes, free_bytes)

    def _fetch_all(self, files: Sequence[HubFile], commit: str) -> None:
        """Raises what has kept one from coming, when the others have ended too."""
        by_content = {file.blob: [other for other in files if other.blob == file.blob] for file in files}
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="pull")
        tasks = {pool.submit(self._fetch, alike, commit) for alike in by_content.values()}
        waiting = tasks
        while waiting and not self._stop.is_set():
            _, waiting = wait(tasks, timeout=NEWS_S, return_when=FIRST_EXCEPTION)
            if any(task.done() and task.exception() for task in tasks):
                self._stop.set()
            if self._is_untold:  # and nothing more has come since, which would have brought it
                self._say("downloading")
        done, waiting = wait(tasks, timeout=GRACE_S)
        pool.shutdown(wait=not waiting, cancel_futures=True)
        errors = [error for task in done if not task.cancelled() and (error := task.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, PullStopped)):
            raise error
        if waiting:
            raise PullStopped(str(self._name))

    def _fetch(self, files: Sequence[HubFile], commit: str) -> None:
        """A content, and the names that it has in the revision's folder."""
        with hub_errors(str(self._name)):
            fetch(self._name, commit, files[0], self._stop, self._note)
            for file in files:
                hf_hub_download(self._name.repo, file.path, revision=commit)  # finds the content, and links it
                self._note(file.path, file.size_bytes)

    def _note(self, path: str, at_bytes: int) -> None:
        with self._lock:
            self._here[path] = at_bytes
            due = time.monotonic() - self._told_s >= NEWS_S
            self._is_untold = not due
        if due:
            self._say("downloading")

    def _say(self, state: str, folder: Path | None = None) -> None:
        with self._lock:
            self._told_s, self._is_untold = time.monotonic(), False
            progress = PullProgress(
                model=str(self._name),
                state=state,
                done_bytes=sum(self._here.values()),
                total_bytes=self._total_bytes,
                folder=str(folder) if folder else None,
            )
            self._tell(progress)


def main() -> int:
    """Exit codes: those of GalleryError, and 0."""
    parser = argparse.ArgumentParser(prog="mlx-farm pull", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    disable_progress_bars()
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: _interrupted(stop))
    try:
        name = ModelName.read(arguments.name)
        if arguments.json:
            Pull(name, _print_json, stop).run(verify=arguments.verify)
        else:
            _pull_for_people(name, stop, verify=arguments.verify)
    except GalleryError as error:
        sys.stderr.write(f"mlx-farm: {error}\n")
        return error.exit_code
    except OSError as error:  # the disk is full after all, or not ours to write on
        sys.stderr.write(f"mlx-farm: {hub_folder()}: {error}\n")
        return GalleryError.exit_code
    return 0


def _interrupted(stop: threading.Event) -> None:
    """Once: in order. Twice: at once."""
    if stop.is_set():
        os._exit(PullStopped.exit_code)
    stop.set()


def _print_json(progress: PullProgress) -> None:
    sys.stdout.write(f"{orjson.dumps(asdict(progress)).decode()}\n")
    sys.stdout.flush()


def _pull_for_people(name: ModelName, stop: threading.Event, *, verify: bool) -> None:
    """A bar on a terminal, and in the end the folder."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(str(name), total=None)

        def tell(progress: PullProgress) -> None:
            bar.update(task, completed=progress.done_bytes, total=progress.total_bytes or None)

        folder = Pull(name, tell, stop).run(verify=verify)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # a download that waits for the hub must not keep it
