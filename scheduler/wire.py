"""What all records that one process writes and another one reads have in common.

During a rolling upgrade two versions share a farm: a reader leaves out the fields that it does not know, and a new
field has a default for the records that do not have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def known_fields(kind: type[Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that the dataclass `kind` has fields for."""
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in record.items() if key in names}
