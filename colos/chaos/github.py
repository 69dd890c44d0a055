"""What GitHub shows when the tests run there: an annotation for each failure, and a summary of the job.

The forms are GitHub's own: "Workflow commands for GitHub Actions", ``::error`` and ``GITHUB_STEP_SUMMARY``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from colos.chaos.told import ORDER, Entry, of_orphans

__all__ = ["append_summary", "errors", "markdown"]

_FAILURES = ("new", "again", "unreproduced", "failed", "different", "flaky", "stale")


def errors(entries: Sequence[Entry], root: Path) -> Iterator[str]:
    """A workflow command for each failure, at its machine's class; paths as seen from the repository's folder."""
    workspace = Path(os.environ.get("GITHUB_WORKSPACE") or root)
    for entry in entries:
        if entry["outcome"] in _FAILURES:
            file = os.path.relpath(entry["file"], workspace)
            title = f"{entry['outcome']}: {entry['violated'] or entry['name']}"
            message = "\n".join([f"{entry['name']}: {entry['line']}", *entry["details"]])
            yield f"::error file={_property(file)},line={entry['at']},title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def markdown(entries: Sequence[Entry], orphans: Mapping[str, str]) -> str:
    """The job's summary: a table of outcomes, worst first, and what explorations came to."""
    rows = sorted(entries, key=lambda entry: ORDER.index(entry["outcome"]))
    lines = ["### ColOS", "", "| outcome | item | |", "| --- | --- | --- |"]
    lines += [f"| {_cell(row['outcome'])} | {_cell(row['name'])} | {_cell(row['line'])} |" for row in rows]
    details = [*(line for entry in entries for line in entry["details"]), *of_orphans(orphans)]
    if details:
        # Indented, because a fence would end at the first one within.
        lines += ["", *(f"    {line}" for line in details)]
    return "\n".join([*lines, "", ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").splitlines())


def append_summary(entries: Sequence[Entry], orphans: Mapping[str, str]) -> None:
    """Append `markdown` to the file that GitHub names, if it does.  Raises `OSError`."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(markdown(entries, orphans))
