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
from typing import TYPE_CHECKING, Any, ClassVar, cast

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
from hypothesis.strategies import DataObject

from colos.chaos.draws import Draws, RecordedData, exchanged, snapshot
from colos.chaos.fault import Fault, matches
from colos.chaos.nemesis import Nemesis, Options
from colos.chaos.properties import Property, Violation, properties_of
from colos.chaos.scenario import Heal, Inject, Op, Ref
from colos.chaos.system import System
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
    "required_arguments",
]

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
    """Leaves Hypothesis at the first violation, past its replaying and shrinking of live processes."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(violation.name)
        self.violation = violation


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
        done, value = executor.op(step, function, _with_draws(kwargs, draws))
        values = value.values if isinstance(value, MultipleResults) else (value,)
        results = new_names(self, declared.targets, len(values)) if done else ()
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
    """The next step is one of the author's rules or the nemesis, at even chances.

    Hypothesis leaves rules out of whole examples, to find what only a few of them together do;
    among the author's own that is kept, but an example of nothing but faults would test nothing.
    A state in which no rule is possible is an author's mistake for Hypothesis; but faults lead into
    such states rightly (a system has died as often as it may), and so does a failure that is known.
    """
    if machine._over:
        return _IDLE, {}
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


_DATA = type(st.data())


def required_arguments(declared: Any) -> tuple[str, ...]:
    """The arguments of a rule that a step must carry: all but those that draw while it runs."""
    return tuple(name for name, strategy in declared.arguments.items() if not isinstance(strategy, _DATA))


def _is_data(value: object) -> bool:
    return isinstance(value, DataObject)


def _with_draws(kwargs: Mapping[str, Any], draws: Draws) -> dict[str, Any]:
    return {name: RecordedData(value, draws) if _is_data(value) else value for name, value in kwargs.items()}


class BundleValues(dict[str, Any]):
    """A machine's bundle values by name, which remembers what was looked up: that is what was drawn.

    Seen from a value alone, nobody could tell a bundle's 3 from any other 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        self._read[name] = value
        return value

    def take_read(self) -> dict[str, Any]:
        """What was looked up since the last call."""
        read, self._read = self._read, {}
        return read


def recorded_arguments(kwargs: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, object]:
    """A rule's arguments as a scenario keeps them: bundle values by name, everything else by value."""
    return {name: recorded(value, drawn) for name, value in kwargs.items() if not _is_data(value)}


def recorded(value: object, drawn: Mapping[str, Any]) -> object:
    """A value in which those that were drawn from a bundle (`drawn`, by name) are references, however deep.

    A mapped bundle gives new values, which nothing can name: they are kept as they are.
    """
    if not drawn:
        return snapshot(value)
    latest_first = [*drawn.items()][::-1]

    def named(part: object) -> object:
        return next((Ref(name) for name, made in latest_first if made is part), part)

    return exchanged(value, named)


def new_names(machine: ChaosMachine, targets: Sequence[str], count: int) -> tuple[str, ...]:
    """The names that Hypothesis is about to give the results of a rule."""
    return tuple(f"{target}_{machine.names_counters[target] + n}" for target in targets for n in range(count))
