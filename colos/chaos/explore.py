"""Searching: Hypothesis generates examples of a machine until one violates a property."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping

from hypothesis import HealthCheck, Phase, settings
from hypothesis.reporting import with_reporter
from hypothesis.stateful import run_state_machine_as_test

from colos.chaos.executor import Executor, Setting
from colos.chaos.fingerprint import is_instance_of_known
from colos.chaos.machine import ChaosMachine, SearchEnded
from colos.chaos.outcomes import Exploration, Options
from colos.chaos.rerun import Rerun
from colos.chaos.scenario import Scenario
from colos.errors import InvalidSpecification

__all__ = ["DEFAULT_EXAMPLES", "DEFAULT_STEPS", "explore"]

DEFAULT_EXAMPLES = 50
DEFAULT_STEPS = 12
#: How often examples without a verdict are made up for.
_AGAIN = 2
_HYPOTHESIS_NOTES = ("Falsifying example", "Failing test case", "You can reproduce", "Explanation:")


def explore(
    setting: Setting,
    make: Callable[[int], ChaosMachine],
    rerun: Rerun,
    of: type[ChaosMachine],
    known: Mapping[str, Scenario],
    options: Options,
    progress: Callable[[str], None],
) -> tuple[Exploration, Executor | None]:
    """Search machines that `make` gives, each for at most so many steps; the run that violated something, or None.

    `known` are failures to count and pass over, by name.  An example that the environment kept from a verdict is
    repeated with `rerun`; for those of which still nothing is known, as many others are drawn, with another seed.
    What an author's own code raises is raised.
    """
    found = Exploration(seed=options.seed)
    chosen = _settings(of, options)
    latest: list[Executor] = []
    spoilt: list[Executor] = []

    def passes_over(executor: Executor) -> bool:
        if executor.violation is None:
            found.inconclusive[executor.inconclusive] += 1
            spoilt.append(executor)
            return True
        for name, scenario in known.items():
            if is_instance_of_known(scenario, executor.violation, executor.steps):
                found.known[name] += 1
                return True
        return False

    def factory() -> ChaosMachine:
        try:
            machine = make(chosen.stateful_step_count)
        except InvalidSpecification as error:
            raise SearchEnded(error) from None
        machine._passes_over = passes_over
        assert machine._executor is not None
        latest[:] = [machine._executor]
        found.examples += 1
        fired = ", ".join(f"{kind} ×{count}" for kind, count in sorted(setting.fired.items()))
        progress(f"exploring: example {found.examples}/{wanted}; fired: {fired or 'nothing yet'}")
        return machine

    def repeated() -> Executor | None:
        """Repeat what was spoilt until a run violates something, which is given, or is spoilt in its turn.

        What is left without a verdict stays in `spoilt`.
        """
        waiting = [executor for executor in spoilt if executor.steps]
        spoilt[:] = [executor for executor in spoilt if not executor.steps]
        while waiting:
            progress(f"exploring: repeating spoilt examples, {len(waiting)} left")
            _, executor = rerun(waiting.pop(0).steps)
            found.examples += 1
            if executor.over and not passes_over(executor):
                return executor
            if executor.inconclusive:
                spoilt.extend(waiting)
                break
        return None

    wanted = chosen.max_examples
    violating = latest[0] if _generate(factory, chosen, options.seed) else repeated()
    for again in range(1, _AGAIN + 1):
        lost = len(spoilt)
        if violating is not None or not lost:
            break
        spoilt.clear()
        wanted = found.examples + lost
        is_violated = _generate(factory, settings(chosen, max_examples=lost), options.seed + again)
        violating = latest[0] if is_violated else repeated()
    found.fired.update(setting.fired)
    found.injected.update(setting.injected)
    found.refused_idle.update(+setting.refused_idle)
    declared = {p.name for p in setting.properties if p.kind == "sometimes"}
    found.never = tuple(sorted(declared - setting.seen_sometimes))
    return found, violating


def _generate(factory: Callable[[], ChaosMachine], chosen: settings, seed: int) -> bool:
    """Have Hypothesis generate; whether the last example violated something."""
    factory._hypothesis_internal_use_seed = seed  # type: ignore[attr-defined]
    try:
        # Hypothesis would print how to reproduce with @seed; a saved scenario says it better.
        with with_reporter(lambda text: None), contextlib.redirect_stdout(io.StringIO()):
            run_state_machine_as_test(factory, settings=chosen)  # type: ignore[arg-type]
    except SearchEnded as ended:
        if isinstance(ended.reason, Exception):
            raise ended.reason from None
        return True
    except Exception as error:
        # From an author's `__init__`, precondition or strategy: what Hypothesis notes on it is about its own runs.
        if hasattr(error, "__notes__"):
            error.__notes__ = [note for note in error.__notes__ if not note.startswith(_HYPOTHESIS_NOTES)]
        raise
    return False


def _settings(of: type[ChaosMachine], options: Options) -> settings:
    own, default = of.TestCase.settings, settings.get_profile("default")
    return settings(
        own,
        max_examples=options.examples or _chosen(own.max_examples, default.max_examples, DEFAULT_EXAMPLES),
        stateful_step_count=options.steps
        or _chosen(own.stateful_step_count, default.stateful_step_count, DEFAULT_STEPS),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        backend="colos",
        print_blob=False,
    )


def _chosen(own: int, default: int, ours: int) -> int:
    """The author's own setting, where there is one that differs from Hypothesis's default."""
    return own if own != default else ours
