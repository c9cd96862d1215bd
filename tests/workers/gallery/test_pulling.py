"""Models come from the hub whole, go on where they were cut, are refused where they cannot run, and torn files show."""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from pathlib import Path

import pytest

from tests.hub_stand_in import Hub, Repository, single_file_repository
from tests.waiting import PATIENCE_S, until
from tests.workers.gallery.conftest import CHUNK_BYTES, MODEL
from workers.engine import find_model
from workers.gallery.errors import (
    BadModelName,
    DiskFull,
    HubUnreachable,
    NotAllowed,
    NotInTheHub,
    PullStopped,
    PullUnderWay,
    TornFile,
    UnfitModel,
)
from workers.gallery.hub import ModelName
from workers.gallery.pulling import Pull, PullProgress

ONLY = "model.safetensors"
LARGE = "model-00002-of-00002.safetensors"


def pull(name: str = MODEL, *, verify: bool = False, stop: threading.Event | None = None) -> list[PullProgress]:
    """Run one to its end; what it said."""
    said: list[PullProgress] = []
    Pull(ModelName.read(name), said.append, stop or threading.Event()).run(verify=verify)
    return said


def folder_of(said: list[PullProgress]) -> Path:
    assert said[-1].folder is not None
    return Path(said[-1].folder)


def finished() -> bool:
    """Pull, unless a download that was left behind has the file for a moment yet."""
    try:
        return pull()[-1].state == "done"
    except PullUnderWay:
        return False


def test_a_pulled_model_has_what_it_needs_and_no_pickle_and_is_found_by_its_name(hub: Hub) -> None:
    repository = hub.repositories[MODEL]
    said = pull()
    folder = folder_of(said)
    wanted = {path for path in repository.files if path.rpartition(".")[2] in ("json", "jinja", "safetensors")}
    assert {path.name for path in folder.iterdir()} == wanted
    assert all((folder / path).read_bytes() == repository.files[path] for path in wanted)
    total = sum(len(repository.files[path]) for path in wanted)
    assert (said[-1].state, said[-1].done_bytes, said[-1].total_bytes) == ("done", total, total)
    assert find_model(MODEL) == folder
    assert find_model(f"{MODEL}@{repository.commit}") == folder


def test_the_token_is_for_the_hub_and_not_for_where_it_sends_us(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull()
    told = {asked.path.startswith("/cdn/"): asked.authorization for asked in hub.asked if asked.method == "GET"}
    assert told == {False: "Bearer hf_secret", True: None}


def test_a_cut_download_goes_on_where_it_was(hub: Hub) -> None:
    hub.repositories[MODEL] = single_file_repository()
    data = hub.repositories[MODEL].files[ONLY]
    hub.troubles.cut_at = 4 * CHUNK_BYTES
    with pytest.raises(HubUnreachable):
        pull()
    [part] = ModelName(MODEL).folder.glob("blobs/*.incomplete")
    assert part.stat().st_size == 4 * CHUNK_BYTES
    hub.troubles.is_down = False
    said = pull()
    assert hub.ranges(data)[-1] == f"bytes={4 * CHUNK_BYTES}-"
    assert (folder_of(said) / ONLY).read_bytes() == data
    assert not part.exists()


def test_what_is_here_is_not_asked_for_again(hub: Hub) -> None:
    pull()
    hub.asked.clear()
    pull()
    assert [asked for asked in hub.asked if asked.path.startswith("/cdn/")] == []


def test_a_pull_that_is_stopped_keeps_what_has_come(hub: Hub) -> None:
    hub.repositories[MODEL] = single_file_repository()
    hub.troubles.hold_at = 3 * CHUNK_BYTES
    stop, ended = threading.Event(), []

    def run() -> None:
        with pytest.raises(PullStopped) as stopped:
            pull(stop=stop)
        ended.append(stopped.value)

    thread = threading.Thread(target=run)
    thread.start()
    assert hub.troubles.held.wait(PATIENCE_S)
    stop.set()
    hub.troubles.go_on.set()
    thread.join(PATIENCE_S)
    assert len(ended) == 1
    assert any(part.stat().st_size for part in ModelName(MODEL).folder.glob("blobs/*.incomplete"))
    assert until(finished)


def test_what_has_come_is_told_while_nothing_more_comes(hub: Hub) -> None:
    hub.repositories[MODEL] = single_file_repository()
    hub.troubles.hold_at = 3 * CHUNK_BYTES
    said: list[PullProgress] = []
    thread = threading.Thread(target=Pull(ModelName.read(MODEL), said.append, threading.Event()).run)
    thread.start()
    assert hub.troubles.held.wait(PATIENCE_S)
    assert until(lambda: any(progress.done_bytes >= 2 * CHUNK_BYTES for progress in list(said)))
    hub.troubles.go_on.set()
    thread.join(PATIENCE_S)
    assert said[-1].state == "done"


def test_a_forged_file_is_noticed_and_not_kept(hub: Hub) -> None:
    hub.troubles.forged = hashlib.sha256(hub.repositories[MODEL].files[LARGE]).hexdigest()
    with pytest.raises(TornFile, match="hash"):
        pull()
    assert not list((ModelName(MODEL).folder / "blobs").glob(f"{hub.troubles.forged}*"))
    hub.troubles.forged = ""
    assert pull()[-1].state == "done"


def test_a_file_that_was_torn_on_the_disk_is_brought_again(hub: Hub) -> None:
    folder = folder_of(pull())
    data = hub.repositories[MODEL].files[LARGE]
    blob = (folder / LARGE).resolve()
    blob.write_bytes(data[:-1])
    pull()
    assert (folder / LARGE).read_bytes() == data
    changed = bytearray(data)
    changed[-1] ^= 1
    (folder / LARGE).resolve().write_bytes(changed)
    pull()
    assert (folder / LARGE).read_bytes() == changed  # of the right size: only `verify` reads it
    pull(verify=True)
    assert (folder / LARGE).read_bytes() == data


def test_two_processes_do_not_write_one_file(hub: Hub) -> None:
    blobs = ModelName(MODEL).folder / "blobs"
    blobs.mkdir(parents=True)
    entry = next(entry for entry in hub.repositories[MODEL].tree() if entry["path"] == LARGE)
    with (blobs / f"{entry['lfs']['oid']}.incomplete").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PullUnderWay, match=LARGE):
            pull()
    assert pull()[-1].state == "done"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "whisper"}, "audio"),
        ({"model_type": "nobody_knows"}, "nobody_knows"),
        ({"model_file": "run_me.py"}, "run_me.py"),
    ],
)
def test_a_model_that_could_not_run_is_refused_before_its_weights_come(
    hub: Hub, change: dict[str, str], reason: str
) -> None:
    files = hub.repositories[MODEL].files
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | change).encode()
    with pytest.raises(UnfitModel, match=reason):
        pull()
    assert not any(asked.path.startswith("/cdn/") for asked in hub.asked)


def test_a_model_without_safetensors_is_refused(hub: Hub) -> None:
    files = hub.repositories[MODEL].files
    hub.repositories["farm/pickled"] = Repository({n: d for n, d in files.items() if ".safetensors" not in n})
    with pytest.raises(UnfitModel, match="safetensors"):
        pull("farm/pickled")


def test_a_disk_without_room_is_told_before_anything_comes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.gallery.pulling.SPARE_DISK_BYTES", 1 << 62)
    with pytest.raises(DiskFull):
        pull()
    assert not any(asked.path.startswith("/cdn/") for asked in hub.asked)


def test_what_the_hub_does_not_give_is_told_in_our_words(hub: Hub) -> None:
    with pytest.raises(NotInTheHub):
        pull("farm/nobody")
    with pytest.raises(NotInTheHub):
        pull(f"{MODEL}@no-such-branch")
    hub.repositories["farm/gated"] = Repository({}, gated=True)
    with pytest.raises(NotAllowed, match="terms"):
        pull("farm/gated")
    hub.troubles.is_down = True
    with pytest.raises(HubUnreachable):
        pull("farm/another")


@pytest.mark.parametrize(
    "text", ["", "tiny", "../../etc", "a/b/c", "-o/b", "a/..", "a/b@", "a/b@../x", "a--b/c", "a b/c"]
)
def test_names_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BadModelName):
        ModelName.read(text)


def test_names_read_as_they_are_written() -> None:
    for text in ("mlx-community/Qwen3-4B-4bit", "a/b@refs/pr/1", "a/b.c_d@v1.0"):
        assert str(ModelName.read(text)) == text
