"""What the last replay of each saved scenario came to, in ``.colos/outcomes.json``: for `colos scenarios` to show.

A convenience that may be deleted at any time: a file that cannot be read counts as empty, and a folder that
cannot be written keeps nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from colos.chaos.mechanisms.atomicfile import written
from colos.chaos.mechanisms.filelock import locked

__all__ = ["Remembered", "recall", "remember"]

_LOCK_S = 2.0


@dataclass(frozen=True)
class Remembered:
    """An outcome such as ``fixed``, the runs it was told by, and when (Unix time, seconds)."""

    outcome: str
    failed: int
    runs: int
    at_s: int


def recall(root: Path) -> dict[str, Remembered]:
    """The last outcomes by the scenario file's path, relative to the project's folder `root`."""
    try:
        raw = json.loads((root / ".colos" / "outcomes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = {}
    for name, entry in raw.items() if isinstance(raw, dict) else ():
        with suppress(TypeError):  # an entry of another version says nothing to us
            found[name] = Remembered(**entry)
    return found


def remember(root: Path, outcomes: Mapping[Path, Remembered]) -> None:
    """Add these outcomes, by the scenario's path; beside other processes that do so at the same time."""
    folder = root / ".colos"
    try:
        folder.mkdir(exist_ok=True)
        with locked(folder, _LOCK_S):  # without it an outcome may be lost, never the file
            merged = recall(root) | {os.path.relpath(path, root): entry for path, entry in outcomes.items()}
            content = json.dumps({name: asdict(entry) for name, entry in sorted(merged.items())}, indent=1)
            with written(folder / "outcomes.json", content.encode(), 0o644) as temporary:
                os.replace(temporary, folder / "outcomes.json")
    except OSError:
        pass  # a folder in which nothing may be written: then nothing is remembered, which costs no verdict
