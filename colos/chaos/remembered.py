"""What the last replay of each saved scenario came to, in ``.colos/outcomes.json``: for `colos scenarios` to show.

A convenience that may be deleted at any time: a file that cannot be read counts as empty, and a folder that
cannot be written keeps nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from colos.runtime.process import lock_file

__all__ = ["Remembered", "recall", "remember"]

_LOCK_S = 2.0
_PAUSE_S = 0.01


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
        lock = _locked(folder / "outcomes.lock")
        try:
            merged = recall(root) | {os.path.relpath(path, root): entry for path, entry in outcomes.items()}
            _write(folder / "outcomes.json", {name: asdict(entry) for name, entry in sorted(merged.items())})
        finally:
            if lock is not None:
                os.close(lock)
    except OSError:
        pass  # a folder in which nothing may be written: then nothing is remembered, which costs no verdict


def _locked(path: Path) -> int | None:
    """The lock's descriptor; None when it could not be had in time: an outcome may be lost, never the file."""
    deadline = time.monotonic() + _LOCK_S
    while (descriptor := lock_file(str(path))) is None and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    return descriptor


def _write(path: Path, content: object) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".outcomes-", suffix=".tmp")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
