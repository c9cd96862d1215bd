"""A hub on this machine, and huggingface_hub in this process set to ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

from tests.hub_stand_in import Hub, running_hub, tiny_repository
from tests.waiting import PATIENCE_S

MODEL = "farm/tiny"
CHUNK_BYTES = 16 * 1024


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """One with a tiny model; what is downloaded goes to tmp_path/hub, in small pieces."""
    with running_hub() as hub:
        hub.repositories[MODEL] = tiny_repository()
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
        for limit in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
            monkeypatch.setattr(constants, limit, PATIENCE_S)
        disable_progress_bars()
        yield hub
        enable_progress_bars()
