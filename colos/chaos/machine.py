"""ChaosMachine: a Hypothesis state machine whose rules become steps.

Hypothesis only generates here.  Rules are wrapped so that calling one records a step and has the
executor apply it; faults and heals are rules of their own, made from the class's declarations.
Everything that touches a system is the executor's.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from hypothesis import strategies as st
from hypothesis.errors import InvalidDefinition
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.stateful import (
    INITIALIZE_RULE_MARKER,
    INVARIANT_MARKER,
    RULE_MARKER,
    MultipleResults,
    RuleBasedStateMachine,
    multiple,
    precondition,
    rule,
)

from colos.chaos.alarm import OpDeadline, call_within
from colos.chaos.draws import Draws
from colos.chaos.fault import Fault, matches
from colos.chaos.nemesis import Nemesis, Options
from colos.chaos.properties import Property, Violation, properties_of
from colos.chaos.recording import BundleValues, new_names, recorded, recorded_arguments, with_draws
from colos.chaos.scenario import Heal, Inject, Op
from colos.chaos.system import System
from colos.chaos.telling import told
from colos.chaos.tolerance import check_budget
from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from colos.chaos.executor import Executor

__all__ = [
    "ChaosMachine",
    "SearchEnded",
    "SeededProvider",
    "author_rules",
    "declared_properties",
    "in_time",
]

_T = TypeVar("_T")
_AUTHOR = "__colos_author__"
#: Where Hypothesis keeps that a class was decorated with @settings.
_SETTINGS_APPLIED = "_hypothesis_internal_settings_applied"


class SeededProvider(HypothesisProvider):
    """Hypothesis's own distribution of values, drawn anew for every example.

    Being a backend of its own, it keeps Hypothesis's tree of choices out: the outcomes of real
    faults differ from run to run, and a tree that sees them calls the strategies flaky.
    """


AVAILABLE_PROVIDERS["colos"] = SeededProvider


class SearchEnded(BaseException):
    """Leaves Hypothesis, past its replaying and shrinking of live processes: at the first violation, or at an error
    that is to be raised."""

    def __init__(self, reason: Violation | InvalidSpecification) -> None:
        super().__init__(reason)
        self.reason = reason


def in_time(seconds: float, what: str, function: Callable[..., _T], *args: Any) -> _T:
    """Call what the author wrote outside of a step.  Raises `InvalidSpecification` where it still waits then."""
    try:
        return cast("_T", call_within(seconds, function, *args))
    except OpDeadline as late:
        raise InvalidSpecification(
            f"{what} takes too long: {told(late)}\nOnly rules and properties may wait for the system"
        ) from None


class ChaosMachine(RuleBasedStateMachine):
    """Declare `system`, `faults`, rules and properties; pytest does the rest.

    `refusals` are exceptions that a client may be told (the operation did not happen), `unknowns`
    those after which it may or may not have happened; any other exception from a rule is a
    violation.  `tolerates` is what the system claims to survive, such as `[Kill("kv/*", at_most=1),
    DiskFull()]`: beyond it nothing is injected, and after a scenario that goes beyond it nothing is
    demanded of it but safety.  `without` switches built-in properties off by name.  `data_bytes` and
    `data_inodes` are the size of the data disk.  `aliases` maps names that saved scenarios may still
    have to today's: ``"pay": "deposit"`` a rule, ``"deposit.sum": "amount"`` an argument.  Inside
    rules and properties, `self.system` is the running system, and `self.tasks` a task group that
    lives as long as the example.
    """

    system: ClassVar[Any]
    faults: ClassVar[Sequence[Fault]] = ()
    tolerates: ClassVar[Sequence[Fault] | None] = None
    refusals: ClassVar[tuple[type[BaseException], ...]] = ()
    unknowns: ClassVar[tuple[type[BaseException], ...]] = ()
    without: ClassVar[Sequence[str]] = ()
    backend: ClassVar[str] = "asyncio"
    data_bytes: ClassVar[int] = 64 << 20
    data_inodes: ClassVar[int] = 16384
    deadline_s: ClassVar[float] = 10.0
    writable: ClassVar[Sequence[str]] = ()
    aliases: ClassVar[Mapping[str, str]] = {}

    tasks: TaskGroup
    # Set by the driver on each instance.
    _executor: Executor | None = None
    _unavailable: Mapping[str, str] = {}
    _passes_over: Callable[[Executor], bool] = staticmethod(lambda executor: executor.violation is None)
    #: The example is over though Hypothesis goes on with it: a known failure was met, or there is no verdict.
    _over: bool = False
    _deaths: int = 0
    _nemesis: ClassVar[Any] = None
    inject_or_heal: ClassVar[Any] = None

    def __init_subclass__(cls, **extra: object) -> None:
        super().__init_subclass__(**extra)
        base = next(base for base in cls.__mro__[1:] if issubclass(base, ChaosMachine))
        if base is not ChaosMachine:
            # Hypothesis gives each class settings of its own, and takes a base's decorator for this class's.
            cls.TestCase.settings = base.TestCase.settings
            setattr(cls, _SETTINGS_APPLIED, False)
        for name, member in inspect.getmembers(cls):
            for marker in (RULE_MARKER, INITIALIZE_RULE_MARKER):
                declared = getattr(member, marker, None)
                if declared is not None and not hasattr(declared.function, _AUTHOR):
                    setattr(cls, name, _as_step(member, marker, declared))
        if "faults" in cls.__dict__:
            cls._declare_faults()
        check_budget(cls.__name__, cls.tolerates, cls.faults)

    @classmethod
    def _declare_faults(cls) -> None:
        """One rule for all faults and heals; beside the author's rules it is kept apart (`_turn`)."""
        declared = cls.faults
        if isinstance(declared, Fault) or not isinstance(declared, Sequence):
            raise InvalidSpecification(
                f"{cls.__name__}.faults is {declared!r}; it is a list such as [Kill('ledger/*')]"
            )
        for fault in declared:
            if not isinstance(fault, Fault):
                raise InvalidSpecification(f"{cls.__name__}.faults holds {fault!r}; faults look like Kill('ledger/*')")
        nemesis = _nemesis() if cls.faults else None
        cls._nemesis = getattr(nemesis, RULE_MARKER, None)
        cls.inject_or_heal = None if author_rules(cls) else nemesis

    def __init__(self) -> None:
        super().__init__()
        self._rules_strategy: Any = _turn(self, self._rules_strategy)
        self.names_to_values = BundleValues()
        self._chooser = Nemesis(self.faults, self._topology)

    # --- what Hypothesis calls ----------------------------------------------------------

    def check_invariants(self, settings: Any, output: Any, runtimes: Any) -> None:
        """Nothing: the executor checks every property after each step."""

    def teardown(self) -> None:
        """Finish the run and destroy its sandbox; a run that an exception left is only destroyed."""
        executor = self._executor
        if executor is None:
            return
        left = sys.exc_info()[1] is not None or self._over
        try:
            if not left:
                executor.finish()
        finally:
            executor.close()
        if not left:
            self._judge()

    def _judge(self) -> None:
        """Leave Hypothesis at a violation; at one that is known already or inconclusive, end this example only."""
        executor = self._require_executor()
        if executor.over:
            if not self._passes_over(executor):
                assert executor.violation is not None
                raise SearchEnded(executor.violation)
            self._over = True

    # --- what the rules call ------------------------------------------------------------

    def _apply_op(self, function: Callable[..., Any], declared: Any, kwargs: dict[str, Any]) -> Any:
        executor = self._require_executor()
        if self._over:
            return multiple() if declared.targets else None
        drawn = self._take_drawn()
        draws = Draws(record=lambda value: recorded(value, {**drawn, **self._take_drawn()}))
        step = Op(function.__name__, recorded_arguments(kwargs, drawn), (), ())
        done, value = executor.op(step, function, with_draws(kwargs, draws))
        values = value.values if isinstance(value, MultipleResults) else (value,)
        results = new_names(self.names_counters, declared.targets, len(values)) if done else ()
        executor.amend(dataclasses.replace(step, results=results, draws=draws.taken()))
        self._judge()
        if declared.targets and not done:
            return multiple()  # what was refused has no result
        return value

    def _apply_fault(self, fault: Fault, target: str | None, arguments: dict[str, object]) -> None:
        if not self._over:
            executor = self._require_executor()
            executor.inject(Inject(fault.kind, executor.next_lease_id(), target, fault.shorten(arguments)))
            self._deaths += fault.deaths(target, self._topology())
            self._judge()

    def _apply_heal(self, lease: str) -> None:
        if not self._over:
            self._require_executor().heal(Heal(lease))
            self._judge()

    def _take_drawn(self) -> dict[str, Any]:
        """The bundle values by name that were drawn since this was last asked."""
        assert isinstance(self.names_to_values, BundleValues)
        return self.names_to_values.take_read()

    def _require_executor(self) -> Executor:
        if self._executor is None:
            raise InvalidSpecification(
                f"{type(self).__name__} is a ChaosMachine: name it Test… in a test module and run it with pytest; "
                "its rules do nothing by themselves"
            )
        return self._executor

    # --- which faults may come next -----------------------------------------------------

    @classmethod
    def _topology(cls) -> tuple[str, ...]:
        return _topology_of(cast("Any", cls.system_declaration()))

    def _possible_choices(self) -> Options:
        """Each fault that may be injected now with its targets; and None with the leases that may end."""
        if self._executor is None or self._over:
            return []
        choices: Options = [(fault, targets) for fault in self.faults if (targets := self._possible(fault))]
        if self._executor.leases:
            choices.append((None, list(self._executor.leases)))
        return choices

    def _draw_choice(self, draw: Any, options: Options) -> tuple[Fault | None, Any]:
        return self._chooser.draw(draw, options, self._require_executor().active_steps())

    def _possible(self, fault: Fault) -> list[str | None]:
        """The targets that a step of this fault may name now: none that it acts on already, none beyond `tolerates`."""
        executor = self._executor
        if executor is None or fault.kind in self._unavailable:
            return []
        targets = self._survivable(fault, executor)
        if self.tolerates is None:
            return targets
        return [target for target in targets if executor.excess(fault.kind, target) is None]

    def _survivable(self, fault: Fault, executor: Executor) -> list[str | None]:
        topology = self._topology()
        active = [step.target for step in executor.active_steps() if step.fault == fault.kind]
        tolerance = self.system_declaration().tolerance()
        left = None if tolerance is None else tolerance - self._deaths
        if not fault.targeted:
            ends = fault.deaths(None, topology)
            survived = not ends or (self._restarts() and (left is None or ends <= left))
            return [None] if survived and not active else []
        return [
            target
            for target in fault.candidates(topology)
            if not any(other is not None and (matches(target, other) or matches(other, target)) for other in active)
            and (left is None or fault.deaths(target, topology) <= left)
        ]

    @classmethod
    def _restarts(cls) -> bool:
        """Whether anything starts the system again once all of it has ended."""
        return cls.system_declaration().program().restarts is not None

    @classmethod
    def never_drawn(cls) -> dict[str, str]:
        """The declared kinds that no step is ever drawn of, and why; scenarios may still name them."""
        ends = [fault for fault in cls.faults if not fault.targeted and fault.deaths(None, cls._topology())]
        why = "it ends the system, and nothing starts that again (of a command: restarts=Restarts(…))"
        never = {fault.kind: why for fault in ends} if ends and not cls._restarts() else {}
        if cls.tolerates is not None:
            claimed = {fault.kind for fault in cls.tolerates}
            never |= {fault.kind: "it is not in tolerates" for fault in cls.faults if fault.kind not in claimed}
        return never

    @classmethod
    def system_declaration(cls) -> System:
        """What the class declares as its system.  Raises `InvalidSpecification` when it declares none."""
        declared: Any = getattr(cls, "system", None)
        if not _is_system(cast("Any", type(declared))):
            raise InvalidSpecification(
                f"{cls.__name__}.system is {declared!r}; declare system = ActorSystem(…) or CommandSystem(…)"
            )
        return cast("System", declared)


@functools.cache
def _is_system(kind: Any) -> bool:
    return issubclass(kind, System)  # asking a protocol is slow, and the generator asks at every step


@functools.cache
def _topology_of(system: Any) -> tuple[str, ...]:
    return tuple(system.topology())


# --- from rules to steps and back --------------------------------------------------------


def author_rules(cls: type[ChaosMachine]) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Every rule of the author's by name: the function, and Hypothesis's declaration of it."""
    found = {}
    for _, member in inspect.getmembers(cls):
        for marker in (RULE_MARKER, INITIALIZE_RULE_MARKER):
            declared = getattr(member, marker, None)
            author = getattr(getattr(declared, "function", None), _AUTHOR, None)
            if author is not None:
                found[author.__name__] = (author, declared)
    return found


def declared_properties(cls: type[ChaosMachine]) -> tuple[Property, ...]:
    """The author's properties; a Hypothesis `invariant` counts as `always`."""
    invariants = [
        Property("always", declared.function.__name__, _guarded(declared))
        for _, member in inspect.getmembers(cls)
        if (declared := getattr(member, INVARIANT_MARKER, None)) is not None
    ]
    return (*properties_of(cls), *invariants)


def _guarded(declared: Any) -> Callable[..., Any]:
    """An invariant under its preconditions; a coroutine stays one."""
    if not declared.preconditions:
        return cast("Callable[..., Any]", declared.function)

    def holds(machine: ChaosMachine) -> bool:
        return all(condition(machine) for condition in declared.preconditions)

    if inspect.iscoroutinefunction(declared.function):

        async def checked_async(machine: ChaosMachine) -> Any:
            return await declared.function(machine) if holds(machine) else None

        return checked_async
    return lambda machine: declared.function(machine) if holds(machine) else None


def _as_step(member: Any, marker: str, declared: Any) -> Any:
    """The same rule, whose function records a step and has the executor apply it."""
    author = declared.function

    @functools.wraps(author)
    def apply(self: ChaosMachine, **kwargs: Any) -> Any:
        return self._apply_op(author, declared, kwargs)

    setattr(apply, _AUTHOR, author)

    @functools.wraps(member)
    def direct(*args: Any, **kwargs: Any) -> Any:
        return member(*args, **kwargs)  # one rule that calls another: a plain call, part of the same step

    setattr(direct, marker, dataclasses.replace(declared, function=apply))
    return direct


def _nemesis() -> Any:
    """The rule that breaks and mends the machine: Jepsen's nemesis, as one rule among the author's."""

    def inject_or_heal(self: ChaosMachine, choice: tuple[Fault | None, Any]) -> None:
        fault, chosen = choice
        if fault is None:
            self._apply_heal(chosen)
        else:
            self._apply_fault(fault, *chosen)

    setattr(inject_or_heal, _AUTHOR, None)
    possible = precondition(lambda self: bool(self._possible_choices()))
    return possible(rule(choice=_choices())(inject_or_heal))


def _idle() -> Any:
    """The rule for when there is nothing left to do: what is left of the example goes by in no time."""

    def nothing_is_left(self: ChaosMachine) -> None:
        """Neither a step nor an error."""

    return getattr(rule()(nothing_is_left), RULE_MARKER)


_IDLE = _idle()


_COIN = st.booleans()
_MACHINE = st.runner()


@st.composite
def _turn(draw: Any, machine: ChaosMachine, of_author: Any) -> Any:
    """The next step; the author's preconditions and strategies, which are asked for it, have a deadline."""
    if machine._over:
        return _IDLE, {}
    deadline_s = machine._require_executor().setting.deadlines.outside_s
    what = f"a precondition or strategy of {type(machine).__name__}"
    try:
        return in_time(deadline_s, what, _next_step, draw, machine, of_author)
    except InvalidSpecification as error:
        raise SearchEnded(error) from None


def _next_step(draw: Any, machine: ChaosMachine, of_author: Any) -> Any:
    """The next step is one of the author's rules or the nemesis, at even chances.

    Hypothesis leaves rules out of whole examples, to find what only a few of them together do;
    among the author's own that is kept, but an example of nothing but faults would test nothing.
    A state in which no rule is possible is an author's mistake for Hypothesis; but faults lead into
    such states rightly (a system has died as often as it may), and so does a failure that is known.
    """
    possible = any(of_author.is_valid(candidate) for candidate in machine.rules)
    chooser = machine._chooser
    options = chooser.among(draw, machine._possible_choices(), [*machine._unavailable])
    of_nemesis = chooser.has_urgent_fault() or not possible or (not chooser.takes_urgent_op() and draw(_COIN))
    if options and of_nemesis:
        return machine._nemesis, {"choice": machine._draw_choice(draw, options)}
    try:
        return draw(of_author)
    except InvalidDefinition:
        if machine._nemesis is None or not machine._require_executor().booted:
            raise
        return _IDLE, {}


@st.composite
def _choices(draw: Any) -> Any:
    machine = draw(_MACHINE)
    possible = machine._possible_choices()
    among = machine._chooser.among(draw, possible, [*machine._unavailable])
    return machine._draw_choice(draw, among or possible)
