"""``colos minimise FILE``: confirm a saved scenario again, shorten it, and rewrite its file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from colos.chaos.commands.work import Line, opened, read
from colos.chaos.outcomes import Options
from colos.chaos.report import numbered, relative
from colos.chaos.sandbox.session import Session
from colos.chaos.scenario import rewrite
from colos.errors import FaultUnavailable, HarnessBroken, InvalidScenario, InvalidSpecification

__all__ = ["minimise"]


def minimise(file: str, sandbox: str | None, seconds: float | None) -> int:
    """Print what was found; returns 0 when the file holds the shortest, 1 when its failure did not recur, 2 when
    it could not be used.

    A file that cannot be shortened is rewritten all the same, for its rate is new; one whose failure did not
    recur is left as it is.
    """
    path, line = Path(file), Line()
    options = Options(minimise_s=seconds) if seconds is not None else Options()
    session = Session(sandbox)
    try:
        scenario = read(path)
        driver, scenario = opened(path, scenario, session, options, line.progress)
        with driver:
            small = driver.minimise(scenario)
        line.clear()
        if not small.repro.failed:
            print(f"{relative(path)}: its failure did not happen in {small.repro.runs} runs; the file is as it was")
            return 1
        rewrite(path, dataclasses.replace(scenario, steps=small.steps, repro=small.repro))
    except (InvalidScenario, InvalidSpecification, FaultUnavailable, OSError) as error:
        line.clear()
        print(error, file=sys.stderr)
        return 2
    except HarnessBroken as error:
        line.clear()
        print(f"harness broken (no verdict on the system): {error}", file=sys.stderr)
        return 1
    finally:
        session.close()
    gave_up = " (the budget ended the minimising: there may be a shorter one)" if small.exhausted else ""
    print(f"{relative(path)}: {len(scenario.steps)} → {len(small.steps)} steps, in {small.runs_used} runs{gave_up}")
    print(numbered(small.steps))
    print(f"reproduced {small.repro.failed} of {small.repro.runs} runs")
    return 0
