"""What an item came to, as plain data: for the summary, for JUnit's XML, for GitHub, and to remember.

It crosses from the workers of pytest-xdist on their reports, as a dict of texts and numbers.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from colos.chaos.outcomes import Exploration, Replay
from colos.chaos.report import plural, power_note, relative, summary_lines, tally, told_outcome

__all__ = ["ORDER", "Entry", "Told", "of_exploration", "of_orphans", "of_replay", "on_report", "summary"]

ORDER = (
    "new",
    "again",
    "unreproduced",
    "failed",
    "different",
    "flaky",
    "stale",
    "known",
    "inconclusive",
    "not exercised",
    "fixed",
    "held",
)
"""Every outcome of an item, those first that somebody has to do something about."""


@dataclass(frozen=True)
class Told:
    """An outcome (one of `ORDER`), a line about it, and more lines to go before.

    `name` is short, for lists; `properties` go into JUnit's XML; `violated` is the property that was, if any.
    """

    outcome: str
    name: str
    line: str
    details: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    violated: str = ""


def of_exploration(test: str, exploration: Exploration, *, idle: str, there: Container[Path] = ()) -> Told:
    """What exploring came to; `idle` is why nothing is known by it, or empty; `there` are the files from before."""
    failure = exploration.failure
    outcome, line, violated = "held", f"{exploration.examples} examples", ""
    if failure is not None:
        violated = failure.violation.name
        outcome = ("again" if failure.saved in there else "new") if failure.reproduced else "unreproduced"
        where = relative(failure.saved) if failure.saved is not None else "not saved"
        line = f"{violated} is violated, {failure.repro.failed} of {failure.repro.runs} runs: {where}"
    elif idle:
        outcome, line = "not exercised", idle
    elif exploration.never:
        outcome, line = "not exercised", f"sometimes:{', sometimes:'.join(exploration.never)}"
    elif exploration.examples and exploration.inconclusive.total() >= exploration.examples:
        outcome, line = "inconclusive", "; ".join(exploration.inconclusive)
    properties = {
        "colos_outcome": outcome,
        "colos_seed": str(exploration.seed),
        "colos_examples": str(exploration.examples),
        "colos_fired": tally(exploration.fired),
    }
    if failure is not None:
        properties |= {"colos_violates": violated, "colos_failed": f"{failure.repro.failed}/{failure.repro.runs}"}
        if failure.saved is not None:
            properties["colos_scenario"] = relative(failure.saved)
    details = tuple(summary_lines(f"{test}::explore", exploration))
    return Told(outcome, f"{test}::explore", line, details, properties, violated)


def of_replay(path: Path, replay: Replay, *, unknown: str = "") -> Told:
    """What replaying came to; `unknown` says that its property is, where that is so."""
    scenario, outcome = replay.scenario, replay.outcome.value
    known = scenario.known is not None and replay.failed > 0
    violation = replay.verdict.violation
    properties = {
        "colos_outcome": outcome,
        "colos_scenario": relative(path),
        "colos_violates": violation.name if violation is not None else scenario.violates,
        "colos_failed": f"{replay.failed}/{replay.runs}",
        "colos_power": f"{replay.power:.4f}",
        "colos_fired": tally(replay.fired),
    }
    line = told_outcome(replay)
    if known:
        line = f"{scenario.known} ({line})"
    elif scenario.known is not None:
        line += f"; its line 'known' ({scenario.known}) may go"
    if unknown and outcome in ("fixed", "different"):
        line += f"; {unknown}"
    # That all went as it should is one line for all scenarios; what a limit has cost is one for each.
    listed = outcome == "fixed" and scenario.known is None and not power_note(replay) and not unknown
    return Told(
        "known" if known else outcome,
        path.stem,
        "" if listed else line.removeprefix(f"{outcome}: ").removeprefix(f"{outcome} "),
        properties=properties,
        violated=violation.name if violation is not None and not known else "",
    )


# --- for the end of a run ----------------------------------------------------------------

Entry: TypeAlias = Mapping[str, Any]
"""What `on_report` made of an item."""


def on_report(told: Told, place: tuple[str, int]) -> dict[str, Any]:
    """An item as its report carries it, with the file and line of its machine."""
    return {
        "outcome": told.outcome,
        "name": told.name,
        "line": told.line,
        "details": list(told.details),
        "violated": told.violated,
        "file": place[0],
        "at": place[1],
    }


def summary(entries: Sequence[Entry]) -> Iterator[str]:
    """The lines of the summary: what explorations came to, then each outcome with what came to it."""
    for entry in entries:
        yield from entry["details"]
    for outcome in ORDER:
        of_outcome = [entry for entry in entries if entry["outcome"] == outcome]
        for entry in of_outcome:
            # An exploration that held has said so above.
            if entry["line"] and outcome != "held":
                yield f"{outcome}: {entry['name']}: {entry['line']}"
        short = [entry["name"] for entry in of_outcome if not entry["line"]]
        if short:
            yield f"{outcome}: {plural(len(short), 'scenario')}: {', '.join(short)}"


def of_orphans(orphans: Mapping[str, str]) -> Iterator[str]:
    """A line for each scenario whose machine is gone."""
    for name, problem in sorted(orphans.items()):
        yield f"orphaned: {name}: {problem}"
