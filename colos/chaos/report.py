"""What a person reads: a failure, a replay, a summary, in the words of DESIGN 2."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colos.chaos.scenario import Heal, Inject, Scenario, Step

if TYPE_CHECKING:
    from colos.chaos.outcomes import Exploration, Failure, Replay

__all__ = ["describe_failure", "describe_replay", "explain", "numbered", "summary_lines", "tally"]

_OUTPUT_LINES = 15
_LONGEST_ARGUMENT = 70


def explain(step: Step) -> str:
    """One step in words."""
    match step:
        case Inject():
            on = f" on {step.target}" if step.target is not None else ""
            how = "".join(f", {name} {value}" for name, value in step.args.items())
            return f"fault  {step.fault}{on}{how}"
        case Heal():
            return f"heal   {step.id}"
        case _:
            arguments = ", ".join(f"{name}={_shorten(repr(value))}" for name, value in step.args.items())
            results = f"{', '.join(step.results)} = " if step.results else ""
            return f"op     {results}{step.name}({arguments})"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_ARGUMENT else text[: _LONGEST_ARGUMENT - 1] + "…"


def numbered(steps: Sequence[Step]) -> str:
    """Steps, one a line, as a report shows them; a fault that is healed later says its name."""
    healed = {step.id for step in steps if isinstance(step, Heal)}
    lines = []
    for number, step in enumerate(steps, 1):
        name = f"  (as {step.id})" if isinstance(step, Inject) and step.id in healed else ""
        lines.append(f"  {number:>2}. {explain(step)}{name}")
    return "\n".join(lines)


def _relative(path: Path) -> str:
    shorter = os.path.relpath(path)
    return shorter if not shorter.startswith("..") else str(path)


def _output(text: str) -> list[str]:
    tail = text.rstrip().splitlines()[-_OUTPUT_LINES:]
    return ["", "the system's own output ended:", *(f"    {line}" for line in tail)] if tail else []


def describe_failure(failure: Failure, *, replay: str, seed: int) -> str:
    """Law 10: the property, the minimal steps, how often, where the journal is, the command that replays."""
    shorter = f", from {len(failure.found)} found" if len(failure.found) != len(failure.minimal) else ""
    gave_up = " (the budget ended the minimising: there may be a shorter one)" if failure.exhausted else ""
    lines = [
        f"{failure.violation.name} is violated",
        textwrap.indent(failure.violation.detail, "    "),
        "",
        f"{'minimal steps' if failure.repro.failed else 'steps'} ({len(failure.minimal)}{shorter}){gave_up}:",
        numbered(failure.minimal),
        "",
        f"reproduced  {failure.repro.failed} of {failure.repro.runs} runs",
    ]
    if failure.saved is not None:
        lines.append(f"scenario    {_relative(failure.saved)}")
        lines.append(f"replay      {replay.format(name=failure.saved.stem)}")
    else:
        why = failure.not_saved or "it did not happen again when the same steps were run"
        lines.append(f"not saved   {why}; to search the same way: --colos-seed={seed}")
    lines.append(f"journal     {_relative(failure.journal)}")
    return "\n".join(lines + _output(failure.output))


def describe_replay(path: Path, scenario: Scenario, replay: Replay) -> str:
    """What a replayed scenario came to, when it came to a violation."""
    violation = replay.verdict.violation
    assert violation is not None
    other = "" if violation.name == scenario.violates else f" (the scenario is about {scenario.violates})"
    lines = [
        f"{violation.name} is violated{other}",
        textwrap.indent(violation.detail, "    "),
        "",
        f"steps of {_relative(path)}:",
        numbered(scenario.steps),
        "",
        f"failed      {replay.failed} of {replay.runs} runs",
        f"journal     {_relative(replay.journal)}",
    ]
    return "\n".join(lines + _output(replay.output))


def tally(counts: Mapping[str, int]) -> str:
    """Counts by name, such as ``disk-full ×3, kill ×12``."""
    return ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items())) or "nothing"


def summary_lines(name: str, exploration: Exploration) -> list[str]:
    """What an exploration came to, for the end of the run."""
    lines = [f"{name}: {exploration.examples} examples; faults fired: {tally(exploration.fired)}"]
    idle = Counter({kind: count for kind, count in exploration.injected.items() if not exploration.fired[kind]})
    if idle:
        lines.append(f"  injected, but never shown to have fired: {tally(idle)}")
    lines += [f"  unavailable: {kind}: {reason}" for kind, reason in sorted(exploration.unavailable.items())]
    lines += [f"  never drawn: {kind}: {reason}" for kind, reason in sorted(exploration.never_drawn.items())]
    lines += [f"  known failure met {count} times: {known}" for known, count in sorted(exploration.known.items())]
    if exploration.never:
        lines.append(f"  not exercised: sometimes:{', sometimes:'.join(exploration.never)}")
    return lines
