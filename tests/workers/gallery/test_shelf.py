"""What is on the disk is listed with what its files say, whole or half pulled, without the hub; and can be given up."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from tests.hub_stand_in import Hub, single_file_repository, tiny_repository
from tests.workers.gallery.conftest import CHUNK_BYTES, MODEL
from tests.workers.gallery.test_pulling import LARGE, folder_of, pull
from workers.gallery.errors import HubUnreachable, NotHere
from workers.gallery.hub import ModelName, search
from workers.gallery.searching import downloaded
from workers.gallery.shelf import remove, row, shelf_models


def test_an_empty_disk_has_no_models(hub: Hub) -> None:
    assert shelf_models() == []


def test_a_pulled_model_is_listed_with_what_its_files_say_and_the_hub_is_not_asked(hub: Hub) -> None:
    pull()
    hub.asked.clear()
    [model] = shelf_models()
    assert hub.asked == []
    assert (model.name, model.complete, model.here_bytes) == (MODEL, True, model.total_bytes)
    assert model.facts is not None
    assert (model.facts.kind, model.facts.context_tokens, model.facts.parameters) == ("text", 4096, 128 * (256 + 320))
    assert row(model)[-1] == "complete"


def test_a_half_pulled_model_is_listed_as_that(hub: Hub) -> None:
    hub.repositories[MODEL] = single_file_repository()
    hub.troubles.cut_at = 4 * CHUNK_BYTES
    with pytest.raises(HubUnreachable):
        pull()
    [model] = shelf_models()
    assert not model.complete
    assert model.total_bytes is not None
    assert 0 < model.here_bytes < model.total_bytes
    assert model.facts is not None
    assert model.facts.parameters is None
    assert row(model)[-1].startswith("half pulled")


def test_a_torn_model_is_not_called_complete(hub: Hub) -> None:
    blob = (folder_of(pull()) / LARGE).resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    [model] = shelf_models()
    assert not model.complete


def test_a_model_is_given_up_whole_and_a_revision_alone(hub: Hub) -> None:
    old = hub.repositories[MODEL]
    pull()
    hub.repositories[MODEL] = tiny_repository(seed=2)
    pull()
    assert {model.name for model in shelf_models()} == {MODEL, f"{MODEL}@{old.commit}"}
    assert remove(ModelName(MODEL, old.commit)) > 0
    [left] = shelf_models()
    assert (left.name, left.complete) == (MODEL, True)
    assert remove(ModelName(MODEL)) > 0
    assert shelf_models() == []
    with pytest.raises(NotHere):
        remove(ModelName(MODEL))
    with pytest.raises(NotHere):
        remove(ModelName(MODEL, "v1"))


def test_the_hub_is_searched_and_what_is_here_is_known(hub: Hub) -> None:
    hub.repositories["farm/tiny-popular"] = tiny_repository()
    hub.repositories["farm/tiny-popular"].downloads = 10
    hub.repositories["farm/tiny-torch"] = tiny_repository()
    hub.repositories["farm/tiny-torch"].tags = ("pytorch",)
    pull()
    found = search("TINY", limit=5)
    assert [(model.name, model.downloads, model.is_here) for model in found] == [
        ("farm/tiny-popular", 10, False),
        (MODEL, 0, True),
    ]
    assert len(search("tiny", limit=5, any_format=True)) == 3
    assert len(search("tiny", limit=1)) == 1
    assert search("nothing like it", limit=5) == []


def test_a_hub_that_is_away_is_told_and_what_is_here_is_still_known(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pull()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        search("tiny", limit=5)
    assert downloaded("TIN") == [MODEL]
    assert downloaded("other") == []
    assert pull()[-1].state == "done"  # all is here: nothing has to be asked
