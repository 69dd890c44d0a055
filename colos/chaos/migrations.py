"""Older file formats, brought to the present one before a file is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from colos.chaos.steps import FORMAT

__all__ = ["MIGRATIONS", "Migration", "migrated"]

Migration: TypeAlias = Callable[[dict[str, object]], dict[str, object]]
"""Makes a file of the next format out of one of its own, both as `tomllib` reads them.

It raises `ValueError`, with a sentence, for content that its format never allowed.
"""

MIGRATIONS: Mapping[int, Migration] = {}
"""By the format that they start from.  There has been one format only so far."""


def migrated(document: Mapping[str, object], form: int, migrations: Mapping[int, Migration]) -> dict[str, object]:
    """A file of an older format as one of the present `FORMAT`, step by step.

    There has to be a migration for each format on the way.  Raises `ValueError` as migrations do.
    """
    entries = {**document, "format": form}
    for step in range(form, FORMAT):
        entries = {**migrations[step](entries), "format": step + 1}
    return entries
