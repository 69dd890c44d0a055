"""``colos scenarios``: the saved scenarios of a folder, as a table."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from colos.chaos.commands.locate import project_of
from colos.chaos.remembered import Remembered, recall
from colos.chaos.scenario import Scenario, load
from colos.errors import InvalidScenario

__all__ = ["age", "scenarios"]

_HEAD = ("name", "test", "property", "steps", "rate", "age", "last outcome")
_UNITS = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"))


def scenarios(folder: str) -> int:
    """Print them; returns 0, 1 when some file is no scenario, 2 when there is no such folder."""
    place = Path(folder)
    if not place.is_dir():
        print(
            f"there is no folder {folder!r}; give the one with the scenarios: colos scenarios FOLDER", file=sys.stderr
        )
        return 2
    now_s = time.time()
    rows: list[tuple[str, ...]] = [_HEAD]
    bad = []
    for path in sorted(place.glob("**/*.toml")):
        root = project_of(path).resolve()
        last = recall(root).get(os.path.relpath(path.resolve(), root))
        try:
            rows.append(_row(path, load(path), last, now_s))
        except (InvalidScenario, OSError) as error:
            bad.append(str(error))
    for line in _lines(rows) if len(rows) > 1 else (f"there are no scenarios in {folder}",):
        print(line)
    for problem in bad:
        print(problem, file=sys.stderr)
    return 1 if bad else 0


def _row(path: Path, scenario: Scenario, last: Remembered | None, now_s: float) -> tuple[str, ...]:
    repro = scenario.repro
    outcome = "—"
    if last is not None:
        count = f" {last.failed} of {last.runs}" if last.runs else ""
        outcome = f"{last.outcome}{count}, {age(now_s - last.at_s)} ago"
    return (
        path.stem,
        scenario.test,
        scenario.violates,
        str(len(scenario.steps)),
        f"{repro.failed}/{repro.runs}" if repro is not None else "—",
        age(now_s - path.stat().st_mtime),
        f"{outcome}{f'; known: {scenario.known}' if scenario.known is not None else ''}",
    )


def age(seconds: float) -> str:
    """Such as ``3 d``: in the biggest unit that fits."""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
