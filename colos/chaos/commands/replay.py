"""``colos replay FILE…``: each scenario as often as it takes, and a block about each."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from colos.chaos.commands.work import Line, noted, opened, read
from colos.chaos.fitting import unknown_property
from colos.chaos.outcomes import Options, Replay, ReplayOutcome
from colos.chaos.report import numbered, relative, told_outcome
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import Scenario
from colos.errors import FaultUnavailable, HarnessBroken, InvalidScenario, InvalidSpecification, StaleScenario

__all__ = ["replay"]

_VIOLATED = (ReplayOutcome.FAILED, ReplayOutcome.FLAKY, ReplayOutcome.DIFFERENT)
GOOD, BAD, UNUSABLE = 0, 1, 2


def replay(files: Sequence[str], sandbox: str | None, runs: int | None) -> int:
    """Print what each file comes to.

    Returns 0 when nothing failed, 1 when something did (failed, different, flaky, a known one that is fixed, or
    no verdict because the harness broke), 2 when some file could not be used.
    """
    options = Options(replay_runs=runs) if runs is not None else Options()
    session = Session(sandbox)
    try:
        return max(_one(Path(file), session, options) for file in files)
    finally:
        session.close()


def _one(path: Path, session: Session, options: Options) -> int:
    line = Line()
    try:
        scenario = read(path)
        driver, scenario = opened(path, scenario, session, options, line.progress)
        with driver:
            found = driver.replay(scenario, until_failed=scenario.known is not None)
            unknown = unknown_property(driver.cls, scenario)
    except StaleScenario as error:
        noted(path, ReplayOutcome.STALE.value)
        return _unusable(line, f"stale: {error}")
    except (InvalidScenario, InvalidSpecification) as error:
        return _unusable(line, str(error))
    except FaultUnavailable as error:
        line.clear()
        print(f"{relative(path)}\n  outcome  not exercised: {error}\n")
        return GOOD
    except HarnessBroken as error:
        line.clear()
        print(f"{path}: harness broken (no verdict on the system): {error}\n", file=sys.stderr)
        return BAD
    line.clear()
    noted(path, found.outcome.value, found.failed, found.runs)
    _tell(path, scenario, found, unknown)
    if scenario.known is not None:
        return BAD if found.outcome in (ReplayOutcome.FIXED, ReplayOutcome.DIFFERENT) else GOOD
    return BAD if found.outcome in _VIOLATED else GOOD


def _unusable(line: Line, text: str) -> int:
    line.clear()
    print(f"{text}\n", file=sys.stderr)
    return UNUSABLE


def _tell(path: Path, scenario: Scenario, found: Replay, unknown: str) -> None:
    violation = found.verdict.violation
    print(relative(path))
    print(f"  test     {scenario.test}")
    print(f"  outcome  {told_outcome(found)}")
    if scenario.known is not None:
        mended = "; it is fixed: take the line 'known' out of the file" if not violation else ""
        print(f"  known    {scenario.known}{mended}")
    if unknown and found.outcome in (ReplayOutcome.FIXED, ReplayOutcome.DIFFERENT):
        print(f"  note     {unknown}")
    if violation is not None:
        print(f"  violated {violation.name}")
        print(textwrap.indent(violation.detail.rstrip(), "           "))
    print("  steps")
    print(textwrap.indent(numbered(scenario.steps), "  "))
    print(f"  journal  {shlex.quote(relative(found.journal))}\n")
