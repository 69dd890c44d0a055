"""How often a saved scenario is run, and what its runs are taken to say; with simulated runs, in microseconds."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from colos.chaos.journal import Journal
from colos.chaos.outcomes import Replay, ReplayOutcome
from colos.chaos.properties import Outcome, Verdict, Violation
from colos.chaos.replay import power, replay, runs_needed
from colos.chaos.scenario import Inject, Repro, Scenario

HELD = Verdict(Outcome.HELD)
IDLE = Verdict(Outcome.NOT_EXERCISED, reason="no fault fired")
SAME = Verdict(Outcome.VIOLATED, Violation("always:a", "it broke", 0))
OTHER = Verdict(Outcome.VIOLATED, Violation("always:b", "that broke", 0))
UNSURE = Verdict(Outcome.INCONCLUSIVE, reason="an OOM kill that nobody injected")
STEPS = (Inject("kill", "f1", "box"),)


def run(
    tmp_path: Path,
    *verdicts: Any,
    repro: Repro | None = None,
    most: int = 30,
    until_failed: bool = False,
    steps: tuple[Any, ...] = STEPS,
) -> tuple[Replay, int]:
    """Replay runs that end like that, the last one again and again; and how many there were."""
    done = 0
    setting: Any = SimpleNamespace(journal=Journal(tmp_path / "journal.jsonl"), fired=Counter(kill=1))

    def rerun(_: object) -> tuple[Any, Any]:
        nonlocal done
        done += 1
        setting.journal.restart()
        setting.journal.record("note", run=done)
        return verdicts[min(done, len(verdicts)) - 1], SimpleNamespace(last_output=f"output {done}")

    scenario = Scenario("test_x.py::TestX", "always:a", steps, repro)
    of_rerun: Any = rerun
    told = replay(setting, of_rerun, scenario, until_failed=until_failed, most=most, progress=lambda _: None)
    setting.journal.close()
    return told, done


@pytest.mark.parametrize(
    ("repro", "runs"),
    [
        (Repro(10, 10), 3),  # 2 would do
        (Repro(5, 10), 7),
        (Repro(1, 10), 26),
        (Repro(0, 0), 7),
        (None, 7),  # written by hand: as good as nothing known
        (Repro(1, 1000), math.ceil(math.log(0.01) / math.log(1 - 2 / 1002))),
    ],
)
def test_there_are_as_many_runs_as_would_show_the_failure(repro: Repro | None, runs: int) -> None:
    assert runs_needed(repro) == runs
    assert power(repro, runs) >= 0.99
    assert runs == 3 or power(repro, runs - 1) < 0.99


def test_what_never_fails_is_fixed(tmp_path: Path) -> None:
    told, done = run(tmp_path, HELD, repro=Repro(5, 10))
    assert (told.outcome, told.failed, told.runs, done) == (ReplayOutcome.FIXED, 0, 7, 7)
    assert told.power >= 0.99


def test_a_limit_that_cuts_the_runs_lowers_the_power(tmp_path: Path) -> None:
    told, done = run(tmp_path, HELD, repro=Repro(1, 10), most=5)
    assert (told.outcome, done) == (ReplayOutcome.FIXED, 5)
    assert told.power == pytest.approx(1 - (1 - 2 / 12) ** 5)


def test_what_fails_each_time_is_failed_after_three(tmp_path: Path) -> None:
    told, done = run(tmp_path, SAME, repro=Repro(1, 10))
    assert (told.outcome, told.failed, told.runs, done) == (ReplayOutcome.FAILED, 3, 3, 3)


@pytest.mark.parametrize(
    ("verdicts", "failed", "runs"),
    [((SAME, HELD), 1, 3), ((HELD, HELD, HELD, HELD, SAME), 1, 5), ((OTHER, SAME), 2, 3)],
)
def test_what_fails_now_and_then_is_flaky(tmp_path: Path, verdicts: Any, failed: int, runs: int) -> None:
    told, done = run(tmp_path, *verdicts, repro=Repro(5, 10))
    assert (told.outcome, told.failed, told.runs, done) == (ReplayOutcome.FLAKY, failed, runs, runs)
    assert told.verdict is SAME


def test_another_property_is_another_outcome(tmp_path: Path) -> None:
    told, done = run(tmp_path, OTHER, HELD)
    assert (told.outcome, told.failed, told.verdict, done) == (ReplayOutcome.DIFFERENT, 0, OTHER, 3)


def test_one_failure_is_enough_for_a_known_one(tmp_path: Path) -> None:
    told, done = run(tmp_path, HELD, SAME, until_failed=True)
    assert (told.failed, done) == (1, 2)


def test_runs_without_a_verdict_are_repeated_and_do_not_count(tmp_path: Path) -> None:
    told, done = run(tmp_path, UNSURE, UNSURE, HELD, repro=Repro(10, 10))
    assert (told.outcome, told.runs, done) == (ReplayOutcome.FIXED, 3, 5)
    spoilt, done = run(tmp_path, HELD, UNSURE, repro=Repro(10, 10))
    assert (spoilt.outcome, spoilt.runs, done) == (ReplayOutcome.INCONCLUSIVE, 1, 4)
    assert "OOM" in spoilt.verdict.reason


def test_runs_in_which_nothing_fired_prove_nothing(tmp_path: Path) -> None:
    told, _ = run(tmp_path, IDLE, repro=Repro(5, 10))
    assert (told.outcome, told.power) == (ReplayOutcome.NOT_EXERCISED, 0.0)
    half, _ = run(tmp_path, IDLE, IDLE, IDLE, HELD, repro=Repro(5, 10))
    assert (half.outcome, half.power) == (ReplayOutcome.FIXED, 1 - 0.5**4)
    no_fault, _ = run(tmp_path, IDLE, repro=Repro(5, 10), steps=())
    assert no_fault.outcome is ReplayOutcome.FIXED
    assert no_fault.power >= 0.99


def test_the_journal_and_the_output_are_of_the_run_that_is_told(tmp_path: Path) -> None:
    told, done = run(tmp_path, OTHER, SAME, HELD, repro=Repro(5, 10))
    assert (told.output, done) == ("output 2", 3)
    assert '"run":2' in told.journal.read_text().replace(" ", "")
