"""A key opens the farm only where it is the right one."""

from __future__ import annotations

import pytest

from scheduler.admission import DEFAULT_TENANT, Admission
from scheduler.errors import InvalidKey


@pytest.mark.parametrize("presented", [None, "", "anything"])
def test_without_a_key_everybody_is_the_default_tenant(presented: str | None) -> None:
    assert Admission(None).authenticate(presented).tenant == DEFAULT_TENANT


def test_the_right_key_opens() -> None:
    assert Admission("clé").authenticate("clé").key_id == "env"


@pytest.mark.parametrize("presented", [None, "", "cl", "clé ", "CLÉ"])
def test_any_other_key_does_not(presented: str | None) -> None:
    with pytest.raises(InvalidKey, match="Missing or wrong"):
        Admission("clé").authenticate(presented)
