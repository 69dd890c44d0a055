"""What a person reads: a failure, a replay, a summary, in the words of DESIGN 2."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colos.chaos.replay import POWER
from colos.chaos.scenario import Heal, Inject, Scenario, Step

if TYPE_CHECKING:
    from colos.chaos.outcomes import Exploration, Failure, Replay

__all__ = [
    "describe_failure",
    "describe_replay",
    "explain",
    "numbered",
    "plural",
    "power_note",
    "relative",
    "summary_lines",
    "tally",
    "told_outcome",
]

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


def relative(path: Path) -> str:
    """A path as seen from here, where that is shorter."""
    shorter = os.path.relpath(path)
    return shorter if not shorter.startswith("..") else str(path)


def _output(text: str) -> list[str]:
    tail = text.rstrip().splitlines()[-_OUTPUT_LINES:]
    return ["", "the system's own output ended:", *(f"    {line}" for line in tail)] if tail else []


def describe_failure(failure: Failure, *, replay: str, seed: int, with_found: bool = False) -> str:
    """Law 10: the property, the minimal steps, how often, where the journal is, the command that replays.

    With `with_found` also the steps as they were found.
    """
    shorter = f", from {len(failure.found)} found" if len(failure.found) != len(failure.minimal) else ""
    gave_up = " (the budget ended the minimising: there may be a shorter one)" if failure.exhausted else ""
    lines = [
        f"{failure.violation.name} is violated",
        textwrap.indent(failure.violation.detail, "    "),
        "",
        f"{'minimal steps' if failure.repro.failed else 'steps'} ({len(failure.minimal)}{shorter}){gave_up}:",
        numbered(failure.minimal),
        "",
        *([f"found steps ({len(failure.found)}):", numbered(failure.found), ""] if with_found and shorter else []),
        f"reproduced  {failure.repro.failed} of {failure.repro.runs} runs",
    ]
    if failure.saved is not None:
        lines.append(f"scenario    {relative(failure.saved)}")
        lines.append(f"replay      {replay.format(name=failure.saved.stem)}")
    else:
        why = failure.not_saved or "it did not happen again when the same steps were run"
        lines.append(f"not saved   {why}; to search the same way: --colos-seed={seed}")
    lines.append(f"journal     {relative(failure.journal)}")
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
        f"steps of {relative(path)}:",
        numbered(scenario.steps),
        "",
        f"outcome     {replay.outcome.value}",
        f"failed      {replay.failed} of {replay.runs} runs",
        f"journal     {relative(replay.journal)}",
    ]
    return "\n".join(lines + _output(replay.output))


def told_outcome(replay: Replay) -> str:
    """A replay's outcome in a line, such as ``flaky 1 of 5``; what a limit has cost is said."""
    match replay.outcome.value:
        case "flaky":
            return f"flaky {replay.failed} of {replay.runs}"
        case "different" if replay.verdict.violation is not None:
            return f"different: {replay.verdict.violation.name} in place of {replay.scenario.violates}"
        case "fixed":
            return f"fixed: never failed in {plural(replay.runs, 'run')}{power_note(replay)}"
        case "not exercised" | "inconclusive":
            return f"{replay.outcome.value}: {replay.verdict.reason}"
    return f"{replay.outcome.value} {replay.failed} of {replay.runs}"


def power_note(replay: Replay) -> str:
    """What the runs are worth where they are fewer than it takes, else nothing."""
    if replay.power >= POWER:
        return ""
    return f" (a failure as frequent as the file says shows itself in so many with {100 * replay.power:.0f} %)"


def plural(count: int, what: str) -> str:
    """A count with its noun."""
    return f"{count} {what}{'' if count == 1 else 's'}"


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
    lines += [f"  inconclusive ×{count}: {why}" for why, count in sorted(exploration.inconclusive.items())]
    if exploration.never:
        lines.append(f"  not exercised: sometimes:{', sometimes:'.join(exploration.never)}")
    return lines
