"""What a misspelt word may have meant.  Imports nothing of ColOS."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["closest"]


def closest(word: str, known: Collection[str]) -> str:
    """A cure for a misspelt word: the nearest known one, and the list of them all."""
    listed = ", ".join(sorted(known)) or "none"
    near = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {listed}"
