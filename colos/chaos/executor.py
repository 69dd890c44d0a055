"""THE interpreter: boots a system in a fresh sandbox, applies steps, checks, heals, judges.

Searching, confirming, minimising and replaying all drive this one class, which alone touches a
system (DESIGN 5).  It runs on the main thread; the author's coroutines run on the loop beside it.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis.errors import HypothesisException, StopTest, UnsatisfiedAssumption

from colos.chaos import builtin
from colos.chaos.bridge import OpDeadline, OpStuck
from colos.chaos.environment import MEMORY_CGROUP, shortage
from colos.chaos.fault import Lease, Site
from colos.chaos.properties import Outcome, Property, Verdict, Violation
from colos.chaos.sandbox.spec import BARE
from colos.chaos.scenario import Heal, Inject, Op, describe
from colos.chaos.system import RunningSystem
from colos.chaos.telling import name_of, short, told
from colos.chaos.terms import REFUSALS, UNKNOWNS, Deadlines, Setting
from colos.chaos.tolerance import Tolerance
from colos.errors import (
    FaultUnavailable,
    HarnessBroken,
    StartFailed,
)

if TYPE_CHECKING:
    from colos.chaos.machine import ChaosMachine

__all__ = ["REFUSALS", "UNKNOWNS", "Deadlines", "Executor", "Setting"]

#: How Hypothesis steers a test case; never an outcome of an operation.
_STEERING = (StopTest, UnsatisfiedAssumption, HypothesisException)
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.05
#: How many steps a healed or restarted system has to come to itself before it is blamed for not answering.
_AFTERMATH_STEPS = 2
#: How long a coroutine that could not be ended may take to end when its sandbox is gone.
_UNSTUCK_S = 2.0


class Executor:
    """One run of one machine in one sandbox.  `close` must follow, whatever happened."""

    def __init__(self, setting: Setting, machine: ChaosMachine, *, planned: int) -> None:
        self.setting = setting
        #: How many steps there will be, as far as one knows: at the last, the next sandbox is asked for.
        self.planned = planned
        self.machine = machine
        self.steps: list[Op | Inject | Heal] = []
        self.violation: Violation | None = None
        #: What the environment did, where that keeps the run from a verdict; it is over then.
        self.inconclusive = ""
        self._oom_kills: Sequence[int | None] = ()
        self.leases: dict[str, Lease] = {}
        self.fired: Counter[str] = Counter()
        #: The end of what the system wrote to its standard output and error, once the run is closed.
        self.last_output = ""
        self._kind_of: dict[str, tuple[str, str | None]] = {}
        #: How many steps were begun since the last fault was over; None before the first.
        self._since_fault: int | None = None
        self._stuck: OpStuck | None = None
        self._tolerance = Tolerance(machine.tolerates, setting.system.topology())
        #: Whom a counted fault that is over may have ended, as long as they are not seen alive again.
        self._down: set[str] = set()
        #: How a step went beyond what the system claims to survive: liveness is not demanded any more.
        self.beyond = ""
        self._stack = ExitStack()
        self._running: RunningSystem | None = None
        self._site: Site | None = None
        self._builtin: builtin.Builtin | None = None
        self._tasks = ExitStack()
        self._journal = setting.journal
        self._journal.restart()

    # --- boot ---------------------------------------------------------------------------

    @property
    def booted(self) -> bool:
        """Whether the system stands."""
        return self._running is not None

    @property
    def over(self) -> bool:
        """Whether nothing that follows could tell more: something was violated, or the environment was met."""
        return self.violation is not None or bool(self.inconclusive)

    def boot(self) -> None:
        """Make the sandbox and start the system in it.  Raises `HarnessBroken` when it does not start."""
        self._journal.record("example", tier=self.setting.session.tier, system=repr(self.setting.system))
        sandbox = self.setting.session.sandbox(self.setting.spec, self.setting.system.program())
        self._stack.callback(sandbox.destroy)
        running = self.setting.system.boot(sandbox)
        self._running = running
        try:
            running.wait_ready(self.setting.deadlines.start_s)
        except StartFailed as error:
            raise HarnessBroken("the system under test", str(error)) from None
        group = self._stack.enter_context(self._tasks).enter_context(self.setting.outlet.example())
        client = running.client()
        if client is not None:
            running.attach(self.setting.outlet.enter(self._stack, client))
        self._site = Site(sandbox, running)
        self._builtin = builtin.Builtin(running, self.setting.without, self.setting.system.tolerance())
        self.machine.__dict__["system"] = running
        self.machine.__dict__["tasks"] = group
        self._check_always()

    # --- steps --------------------------------------------------------------------------

    def op(self, step: Op, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> tuple[bool, Any]:
        """Apply an operation: call the author's rule; returns whether it was done, and what it returned."""
        self._begin(step)
        if self.inconclusive:
            return False, None
        try:
            # Bound first: an author's parameter may be called as one of call()'s own.
            bound = functools.partial(function, self.machine, **kwargs)
            value = self._call(bound)
        except _STEERING:
            raise
        # First: CallTimeout is an OSError too, and may be named so by the author's refusals.
        except self.setting.unknowns as error:
            self._journal.record("outcome", outcome="unknown", detail=short(error))
            self._blame_hang(step.name, error)
        except self.setting.refusals as error:
            self._journal.record("outcome", outcome="refused", detail=short(error))
            self.setting.refused_idle[step.name] += self.is_calm()
        except Exception as error:
            self._violate(name_of(error, f"rule:{step.name}"), told(error))
        else:
            self._journal.record("outcome", outcome="done")
            self._end_step()
            return True, value
        if not self.over:
            self._end_step()
        return False, None

    def excess(self, kind: str, target: str | None) -> str | None:
        """How a fault would go beyond what the system claims to survive, beside those that act; None when it does not.

        One that was killed counts until it is seen alive again after a step.
        """
        counted = [step for step in self.active_steps() if self._tolerance.counts(step.fault)]
        affected = self._down.union(*(self._tolerance.subjects(step.target) for step in counted))
        return self._tolerance.excess(kind, target, affected)

    def _look_who_is_back(self) -> None:
        for path in sorted(self._down):
            assert self._running is not None
            targets = self._running.targets(path)
            if any(target.alive() for target in targets):
                self._down.discard(path)
            for target in targets:
                target.close()

    def is_calm(self) -> bool:
        """Whether no fault acts, and none was over fewer than two steps ago: nothing excuses the system now."""
        return not self.leases and (self._since_fault is None or self._since_fault >= _AFTERMATH_STEPS)

    def _call(self, function: Callable[..., Any]) -> Any:
        """Call what the author wrote, under the step's deadline.

        For what cannot be ended, every fault is healed: what it waits for may be what they hold.
        """
        wait_s = self.setting.deadlines.step_s
        try:
            return self.setting.outlet.call(function, timeout_s=wait_s)
        except OpStuck as stuck:
            if self.leases:
                self._journal.record("note", healing_early=short(stuck))
                self.heal_all()
            if not stuck.ends(wait_s):
                self._stuck = stuck
            raise
        except OpDeadline:
            self.setting.interrupted |= not inspect.iscoroutinefunction(function)
            raise

    def _blame_hang(self, name: str, error: BaseException) -> bool:
        """Whether what is still waiting at its deadline is a violation: in calm, or when nothing ends it."""
        excused = self.beyond or not self.is_calm()
        if not isinstance(error, OpDeadline) or (excused and self._stuck is not error):
            return False
        since = "no fault acts" if self._since_fault is not None else "no fault was injected yet"
        self._violate(f"hang:{name}", f"{since}, and {told(error)}")
        return True

    def amend(self, step: Op) -> None:
        """Put what the last operation gave (results, draws) into its recorded step."""
        self.steps[-1] = step

    def inject(self, step: Inject) -> None:
        """Apply a fault.  Raises `FaultUnavailable` where it cannot be made real here."""
        self._begin(step)
        if self.inconclusive:
            return
        assert self._site is not None
        kind = self.setting.kinds[step.fault]
        unavailable = kind.unavailable(self.setting.session)
        if unavailable is not None:
            raise FaultUnavailable(step.fault, *unavailable)
        excess = self.excess(step.fault, step.target)
        if excess is not None:
            self.beyond = excess
            self._journal.record("note", beyond_the_declared_tolerance=excess)
        try:
            lease = kind.inject(self._site, step.target, step.args)
        except OSError as error:
            if not self._spoilt_by(error, injecting=describe(step)):
                raise HarnessBroken(f"injecting {describe(step)}", str(error)) from error
            return
        self.setting.injected[step.fault] += 1
        self.setting.mechanisms[step.fault] = lease.mechanism
        self._kind_of[step.id] = (step.fault, step.target)
        self.leases[step.id] = lease
        self._journal.record("fault-fired", id=step.id, mechanism=lease.mechanism, proof=lease.fired())
        if not lease.lasting:
            self._end_lease(step.id)
        self._end_step()
        if self._builtin is not None:
            self._builtin.look(killed=not lease.lasting)  # whoever was restarted has counts of its own

    def skip(self, step: Op, why: str) -> None:
        """Leave out an operation that has no meaning in this run."""
        self._journal.record("note", skipped=describe(step), why=why)

    def next_lease_id(self) -> str:
        """A name for the next fault's lease."""
        return f"f{sum(isinstance(step, Inject) for step in self.steps) + 1}"

    def active_steps(self) -> list[Inject]:
        """The faults that act now."""
        return [step for step in self.steps if isinstance(step, Inject) and step.id in self.leases]

    def heal(self, step: Heal) -> None:
        """Apply a heal; one whose fault is over already does nothing."""
        self._begin(step)
        if self.inconclusive:
            return
        self._end_lease(step.id)
        self._end_step()

    def _begin(self, step: Op | Inject | Heal) -> None:
        if not self.booted:
            self._boot_unless_spoilt()
        self.steps.append(step)
        if self._since_fault is not None:
            self._since_fault += 1
        if len(self.steps) == self.planned and not self.inconclusive:
            self._prefetch()
        self._journal.record("step", n=len(self.steps), step=describe(step))

    def _boot_unless_spoilt(self) -> None:
        self._oom_kills = self.setting.environment.oom_kills()
        try:
            self.boot()
        except (OSError, HarnessBroken) as error:
            if not self._spoilt_by(error, booting=True):
                raise

    def _end_step(self) -> None:
        self._settle()
        self._check_always()
        if not self.over:
            self._look_for_sometimes()

    def _settle(self) -> None:
        quiet = self._ask_quiet()
        if not quiet:
            self._journal.record("settle", quiet=False, waited_s=self.setting.deadlines.settle_s)
        self._look_who_is_back()

    def _ask_quiet(self) -> bool:
        assert self._running is not None
        wait_s = self.setting.deadlines.settle_s
        try:
            return bool(self.setting.outlet.call(self._running.quiet, wait_s, timeout_s=wait_s + 1.0))
        except (*REFUSALS, *UNKNOWNS):
            return False  # a stopped or dead root cannot tell; the properties will

    # --- properties ---------------------------------------------------------------------

    def _check_always(self) -> None:
        if self.machine._initialize_rules_to_run:
            return  # the author's model is not complete yet, as for Hypothesis's invariants
        for declared in self.setting.properties:
            if declared.kind == "always" and not self.over:
                failure = self._evaluate(declared)
                if failure is not None and not self.over:
                    self._violate(declared.full_name, failure)

    def _look_for_sometimes(self) -> None:
        """What such a property raises beyond saying no is its author's mistake, and no verdict on the system."""
        unseen: tuple[type[BaseException], ...] = (AssertionError, *self.setting.refusals, *self.setting.unknowns)
        for declared in self.setting.properties:
            if declared.kind == "sometimes" and declared.name not in self.setting.seen_sometimes:
                try:
                    seen = self._call(declared.bound(self.machine))
                except unseen as error:
                    if self._blame_hang(declared.name, error):
                        return
                    seen = False
                if seen or seen is None:
                    self.setting.seen_sometimes.add(declared.name)
                    self._journal.record("property", name=declared.full_name, seen=True)

    def _evaluate(self, declared: Property, *, final: bool = False) -> str | None:
        """Why a property does not hold now, or None.

        While faults act, a system that cannot be asked has not violated anything (`final` is not such a time).
        """
        try:
            value = self._call(declared.bound(self.machine))
        except _STEERING:
            raise
        except (*self.setting.refusals, *self.setting.unknowns) as error:
            self._journal.record("property", name=declared.full_name, unobserved=short(error))
            if final:
                return f"it could not be observed: {short(error)}"
            self._blame_hang(declared.name, error)
            return None
        except Exception as error:
            return told(error)
        return "it returned False" if value is False else None

    def _violate(self, name: str, detail: str, *, step: int | None = -1) -> None:
        at = len(self.steps) - 1 if step == -1 else step
        if self._is_spoilt(property=name, step=at, detail=detail):
            return
        self.violation = Violation(name, detail, at)
        self._journal.record("verdict", outcome=Outcome.VIOLATED.value, property=name, step=at, detail=detail)

    # --- the environment ----------------------------------------------------------------

    def _is_spoilt(self, reason: str | None = None, **seen: object) -> bool:
        """Whether the environment, and not the system, is to blame for what was seen: no verdict is possible then."""
        injected = {self.setting.kinds[step.fault].uses for step in self.steps if isinstance(step, Inject)}
        reason = reason or self.setting.environment.excuse(
            self._oom_kills, self._on_host(), oom_injected=MEMORY_CGROUP in injected
        )
        if reason is None:
            return False
        self.inconclusive = reason
        self._journal.record("verdict", outcome=Outcome.INCONCLUSIVE.value, reason=reason, **seen)
        return True

    def _spoilt_by(self, error: OSError | HarnessBroken, **doing: object) -> bool:
        """The same of what the harness itself could not do."""
        families = {self.setting.kinds[step.fault].family for step in self.steps if isinstance(step, Inject)}
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = shortage(cause, families) if isinstance(cause, OSError) else None
        return self._is_spoilt(reason, detail=str(error), **doing)

    def _on_host(self) -> list[str | Path]:
        """The directories that this run writes to on the host: for the journal, and in `bare` for data."""
        directories: list[str | Path] = [self._journal.path.parent]
        if self._running is not None and self.setting.session.tier == BARE:
            directories.append(self._running.sandbox.place.data)
        return directories

    # --- the end ------------------------------------------------------------------------

    def finish(self) -> Verdict:
        """Heal everything, check what must come to hold, stop the system, check the built-in properties."""
        if not self.booted and not self.inconclusive:
            return Verdict(Outcome.NOT_EXERCISED, reason="there was no step")
        self._prefetch()
        self.heal_all()
        if not self.over:
            assert self._builtin is not None
            self._builtin.healed()
            self._settle()
            self._builtin.settled()
            self._check_eventually()
        if not self.over:
            self._check_builtin()
        if self.inconclusive:
            return Verdict(Outcome.INCONCLUSIVE, reason=self.inconclusive)
        if self.violation is not None:
            return Verdict(Outcome.VIOLATED, self.violation)
        outcome = Outcome.HELD if self.fired else Outcome.NOT_EXERCISED
        self._journal.record("verdict", outcome=outcome.value, fired=dict(self.fired))
        beyond = f"beyond the declared tolerance: {self.beyond}" if self.beyond else ""
        return Verdict(outcome, reason=beyond if self.fired else "no fault fired")

    def _prefetch(self) -> None:
        """Have the next run's sandbox made while this one comes to its end."""
        self.setting.session.prefetch(self.setting.spec, self.setting.system.program())

    def heal_all(self) -> None:
        """End every lease, last first.  Raises `HarnessBroken` for one that does not heal."""
        for lease_id in reversed(list(self.leases)):
            self._end_lease(lease_id)

    def _end_lease(self, lease_id: str) -> None:
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            return
        kind, target = self._kind_of[lease_id]
        try:
            proof = lease.fired()
            lease.heal()
        except OSError as error:
            raise HarnessBroken(f"healing {kind} ({lease_id})", str(error), (kind,)) from error
        if proof is not None:
            self.fired[kind] += 1
            self.setting.fired[kind] += 1
        deadline = time.monotonic() + self.setting.deadlines.heal_s
        while not lease.is_healed():
            if time.monotonic() > deadline:
                raise HarnessBroken(
                    f"healing {kind} ({lease_id})",
                    f"the machine still shows it after {self.setting.deadlines.heal_s:g} s",
                    (kind,),
                )
            time.sleep(_FIRST_PAUSE_S)  # observing: the kernel tells nobody when a limit or a mount changed
        self._since_fault = 0
        if self._tolerance.counts(kind):
            self._down |= self._tolerance.subjects(target)
        self._journal.record("heal", id=lease_id, fault=kind, proof=proof)

    def _check_eventually(self) -> None:
        for declared in self.setting.properties:
            if declared.kind != "eventually" or self.over:
                continue
            if self.beyond:
                self._journal.record("property", name=declared.full_name, not_judged=f"beyond tolerance: {self.beyond}")
                continue
            deadline, pause_s = time.monotonic() + declared.within_s, _FIRST_PAUSE_S
            while (failure := self._evaluate(declared, final=True)) is not None:
                if time.monotonic() + pause_s > deadline or self._stuck is not None:
                    self._violate(declared.full_name, f"not within {declared.within_s:g} s: {failure}", step=None)
                    return
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _check_builtin(self) -> None:
        """What the kernel's tables must show after healing, and after the system has stopped."""
        assert self._running is not None
        assert self._builtin is not None
        wait_s = self.setting.deadlines.stop_s
        # What the author runs beside the rules is ended first where it would count: a system in use is not idle.
        found = self._builtin.of_the_running(self._tasks.close)
        if found is None:
            found = self._builtin.of_the_stopped(wait_s, self._running.stop(wait_s))
        if found is not None:
            self._violate(found.name, found.detail, step=None)

    def _note_troubles(self) -> None:
        """What the keeper met while it answered system calls: calls it let go, delays it left out."""
        if self._running is not None and self._running.sandbox.trapping:
            troubles = self._running.sandbox.trap("troubles")
            if troubles:
                self._journal.record("note", system_calls=troubles)

    def close(self) -> None:
        """Destroy the sandbox and everything in it.

        A run that is left early ends its leases first, so that no thread of ours goes on signalling, but
        does not watch them heal: what they acted on is about to be gone.
        """
        try:
            if self._running is not None:
                self.last_output = self._running.sandbox.output()
            for lease in reversed(list(self.leases.values())):
                lease.heal()
            self._note_troubles()
        except (OSError, HarnessBroken) as error:
            self._journal.record("note", abandoned=str(error))  # the sandbox is gone already, or goes now
        finally:
            self.leases.clear()
            self._leave_loop()
            self._stack.close()

    def _leave_loop(self) -> None:
        """While something is stuck, nothing can be taken down in order: the sandbox goes first, then the loop."""
        if self._stuck is None or self._running is None:
            return
        self._running.sandbox.destroy()  # a socket that it waits for is closed by this
        if not self._stuck.ends(_UNSTUCK_S):
            self._journal.record("note", abandoned="what does not end, with its thread and the event loop")
            self.setting.outlet = self.setting.outlet.abandon(self._stack.pop_all())
