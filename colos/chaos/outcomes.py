"""What searching, minimising and replaying come to, as plain data: driver and report agree on it here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from colos.chaos.executor import Deadlines
from colos.chaos.properties import Verdict, Violation
from colos.chaos.scenario import Repro, Scenario, Step

__all__ = ["Exploration", "Failure", "Options", "Replay", "ReplayOutcome"]


@dataclass(frozen=True)
class Options:
    """How long and how to search.  `examples` and `steps` of None leave it to the machine's own settings."""

    examples: int | None = None
    steps: int | None = None
    seed: int = 0
    #: At most so many runs, of a failure that does not happen again.
    confirm_runs: int = 30
    minimise_runs: int = 500
    minimise_s: float = 60.0
    #: At most so many runs of a saved scenario.
    replay_runs: int = 30
    #: None: the machine's own.
    deadlines: Deadlines | None = None


@dataclass(frozen=True)
class Failure:
    """A violation, the steps that led to it, the shortest that do, and where it is saved."""

    violation: Violation
    found: tuple[Step, ...]
    minimal: tuple[Step, ...]
    repro: Repro
    output: str
    journal: Path
    saved: Path | None = None
    not_saved: str = ""
    exhausted: bool = False
    minimising_runs: int = 0

    @property
    def reproduced(self) -> bool:
        """Whether it happened again when the same steps were run."""
        return self.repro.failed > 0


@dataclass
class Exploration:
    """What exploring came to."""

    examples: int = 0
    steps: int = 0
    seed: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    never_drawn: Mapping[str, str] = field(default_factory=dict)
    #: Known failures met, by the name of their scenario.
    known: Counter[str] = field(default_factory=Counter)
    #: Examples without a verdict, by what the environment did to them.
    inconclusive: Counter[str] = field(default_factory=Counter)
    #: Operations that were refused though no fault acted and none was over fewer than two steps ago, by rule.
    refused_idle: Counter[str] = field(default_factory=Counter)
    #: `sometimes` that never held.
    never: tuple[str, ...] = ()
    failure: Failure | None = None

    @property
    def exercised(self) -> bool:
        """Whether any fault fired."""
        return bool(self.fired)


class ReplayOutcome(Enum):
    """What a scenario's replay says about its failure."""

    #: It never happened, in as many runs as would have shown it with 99 %.
    FIXED = "fixed"
    #: It happened in every run.
    FAILED = "failed"
    #: It happened in some runs, and not in others.
    FLAKY = "flaky"
    #: Another property was violated instead.
    DIFFERENT = "different"
    #: No fault of the scenario fired, so nothing was tested.
    NOT_EXERCISED = "not exercised"
    #: The environment kept it from a verdict.
    INCONCLUSIVE = "inconclusive"
    #: The file names what is no longer there.  No replay comes to it: there is none.
    STALE = "stale"


@dataclass(frozen=True)
class Replay:
    """What replaying a scenario came to.

    `failed` of `runs` violated the property that the file names; `power` is the chance that a failure as frequent
    as the file says would have shown itself in those runs in which a fault fired.  `verdict` is that of the run
    which says most, and `output` and `journal` are of the same run; `fired` counts over all of them.
    """

    scenario: Scenario
    outcome: ReplayOutcome
    failed: int
    runs: int
    power: float
    verdict: Verdict
    fired: Counter[str]
    output: str
    journal: Path
