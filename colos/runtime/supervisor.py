"""Child specifications and supervisors, as authors write them and as the node's root is given them.

What a supervisor then does is decided in `decisions` and carried out by `root`.
"""

from __future__ import annotations

import inspect
import math
import pickle
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

from colos.errors import InvalidSpecification, NotPicklable
from colos.runtime.actor import Actor
from colos.runtime.decisions import AutoShutdown as AutoShutdown
from colos.runtime.decisions import Restart as Restart
from colos.runtime.decisions import Strategy as Strategy

Kind = Literal["actor", "process", "supervisor", "task"]
_WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_DEPTH_MAX: Final = 32
"""Supervisors within supervisors: one that declares itself as its child has no end."""
_SHUTDOWN_S: Final = 5.0
_SOME_TIME: Final = "more than 0 seconds"


class Supervisor:
    """Subclass it and say which `children` it has; they start in that order and stop in reverse.

    More than `intensity` restarts within `period_s` seconds, and the supervisor gives up: it
    stops its children and ends with reason shutdown.  `auto_shutdown` ends it likewise when any, or
    the last, of its significant children ends by itself and is not restarted.
    """

    name: ClassVar[str] = ""
    """Its place in the tree when it is the node's own; by default LedgerSupervisor -> ledger."""
    strategy: ClassVar[Strategy] = "one_for_one"
    intensity: ClassVar[int] = 3
    period_s: ClassVar[float] = 5.0
    auto_shutdown: ClassVar[AutoShutdown] = "never"

    def children(self) -> Sequence[ChildSpec]:
        """The children, in start order; for strategy "dynamic" exactly one: the template of all."""
        raise InvalidSpecification(f"{type(self).__qualname__} does not say which children() it has")


Target: TypeAlias = type[Actor] | type[Supervisor] | Callable[..., Coroutine[Any, Any, object]]


@dataclass(frozen=True)
class ChildSpec:
    """One child: what it is, and how it is started, restarted and stopped.

    `id` is its place under the supervisor; `name`, if given, its registered name in the node.
    `restart`: "permanent" always, "transient" only after an abnormal end, "temporary" never.
    `shutdown_s`: how long it may take to stop when asked, before SIGKILL; 0 kills without asking,
    `math.inf` waits; None is 5 for a worker and `math.inf` for a supervisor.
    `start_s`: how long construction and init() may take.
    `significant`: its end may be its supervisor's; see `Supervisor.auto_shutdown`.
    `heartbeat_s`: it is killed when its event loop has not turned for so long; None: never.
    """

    id: str
    actor: Target
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    name: str | None = None
    restart: Restart = "permanent"
    shutdown_s: float | None = None
    start_s: float = 10.0
    significant: bool = False
    heartbeat_s: float | None = None


# --- what root is given ------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One child, checked, as the root needs it: plain data, but for the target and its arguments.

    A supervisor's plan has no target: its `tree` says everything.
    """

    id: str
    kind: Kind
    label: str
    name: str | None
    restart: Restart
    shutdown_s: float
    start_s: float
    significant: bool
    heartbeat_s: float | None
    tree: TreeSpec | None
    target: object = None
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    payload: bytes | None = None

    def packed(self) -> Plan:
        """The same with target and arguments as bytes in `payload`: the root never unpickles an author's classes.

        Raises InvalidSpecification for a target that another process cannot import by its name, and
        NotPicklable for arguments.
        """
        if self.tree is not None:
            return replace(self, tree=self.tree.packed())
        if self.payload is not None:
            return self
        _check_importable(self.label, self.target)
        try:
            payload = pickle.dumps((self.target, self.args, dict(self.kwargs)), 5)
        except Exception as error:  # pickling runs the author's code, which may raise anything
            raise NotPicklable(self.id, self.label, f"{type(error).__name__}: {error}") from error
        return replace(self, target=None, args=(), kwargs={}, payload=payload)

    @staticmethod
    def unpack(payload: bytes) -> tuple[Any, tuple[object, ...], dict[str, object]]:
        """(target, args, kwargs) of a payload.  Imports the author's modules: anything may be raised."""
        target, args, kwargs = pickle.loads(payload)
        return target, args, kwargs


@dataclass(frozen=True)
class TreeSpec:
    """A supervisor, checked.  `template` is what a dynamic one starts; its `children` are none at first."""

    name: str
    label: str
    strategy: Strategy
    children: tuple[Plan, ...]
    intensity: int
    period_s: float
    auto_shutdown: AutoShutdown
    template: Plan | None = None

    def packed(self) -> TreeSpec:
        """The same with every plan in it packed; see Plan.packed."""
        template = None if self.template is None else self.template.packed()
        return replace(self, children=tuple(child.packed() for child in self.children), template=template)


def topology(supervisor: type[Supervisor]) -> tuple[str, ...]:
    """The paths of a supervisor's actors and processes, in start order, without starting anything.

    What a dynamic supervisor will start is not known and not in it.
    """
    tree = specify(supervisor)
    return tuple(_leaves(tree.name, tree))


def _leaves(path: str, tree: TreeSpec) -> Iterable[str]:
    for child in tree.children:
        if child.tree is None:
            yield f"{path}/{child.id}"
        else:
            yield from _leaves(f"{path}/{child.id}", child.tree)


def specify(supervisor: type[Supervisor]) -> TreeSpec:
    """Ask a supervisor, and those below it, for their children and check all.  Raises InvalidSpecification."""
    if not _is_a(supervisor, Supervisor):
        raise InvalidSpecification(f"{supervisor!r} is not a subclass of colos.runtime.Supervisor")
    name = supervisor.name or _default_name(supervisor.__name__)
    _check_word(_label(supervisor), "its name", name)
    return _Survey().tree(supervisor, name, (), {})


def plan_of(spec: ChildSpec, label: str, auto_shutdown: AutoShutdown | None = None) -> Plan:
    """The plan of one child more, for the supervisor that `label` names.  Raises InvalidSpecification.

    Without `auto_shutdown`, the supervisor's, `check_significant` is left to who knows it.
    """
    return _Survey().child(spec, label, auto_shutdown)


def plan_process(
    target: Target,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    name: str | None,
    path_id: str,
    kind: Kind | None = None,
) -> Plan:
    """The plan of an unsupervised process.  Raises InvalidSpecification, also if `kind` does not fit the target."""
    where = f"process {path_id!r}"
    if _kind(where, target) == "supervisor":
        raise InvalidSpecification(f"{where}: {_label(target)} is a supervisor; it must be a child of one, or a node's")
    plan = _Survey().plan(ChildSpec(path_id, target, args, kwargs, name, "temporary"), where)
    if kind is not None and kind != plan.kind and (kind, plan.kind) != ("task", "process"):
        raise InvalidSpecification(f"{where}: {plan.label} cannot be started as kind {kind!r}; it is {plan.kind!r}")
    return replace(plan, kind=kind or plan.kind)


# --- checking ----------------------------------------------------------------------------


class _Survey:
    """One walk over a tree: what may be there only once, and which supervisors we are inside."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._inside: list[type[Supervisor]] = []

    def tree(self, of: type[Supervisor], name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> TreeSpec:
        label = _label(of)
        if len(self._inside) >= _DEPTH_MAX:
            chain = " > ".join(one.__qualname__ for one in (*self._inside[-3:], of))
            raise InvalidSpecification(f"{label}: it is nested more than {_DEPTH_MAX} deep: … > {chain}")
        made = _made(label, of, args, kwargs)  # whose __init__ may set what the class only has by default
        _check_flags(label, made)
        self._inside.append(of)
        children: dict[str, Plan] = {}
        for spec in _declared(label, made):
            plan = self.child(spec, label, made.auto_shutdown)
            if plan.id in children:
                raise InvalidSpecification(f"{label}: two children have the id {plan.id!r}")
            children[plan.id] = plan
        self._inside.pop()
        plans = tuple(children.values())
        tree = TreeSpec(name, label, made.strategy, plans, made.intensity, made.period_s, made.auto_shutdown)
        if made.strategy != "dynamic":
            return tree
        _require(len(plans) == 1, label, "the number of children()", len(plans), "1 for strategy 'dynamic'")
        return replace(tree, children=(), template=plans[0])

    def child(self, spec: object, label: str, auto_shutdown: AutoShutdown | None) -> Plan:
        if not isinstance(spec, ChildSpec):
            raise InvalidSpecification(f"{label}: a child is {spec!r}; it must be a ChildSpec")
        _check_word(label, "a child's id", spec.id)
        where = f"{label}, child {spec.id!r}"
        if auto_shutdown is not None:
            check_significant(where, spec.significant, auto_shutdown)
        return self.plan(spec, where)

    def plan(self, spec: ChildSpec, where: str) -> Plan:
        kind = _kind(where, spec.actor)
        _check_child(where, spec, kind)
        if spec.name in self._names:
            raise InvalidSpecification(f"{where}: its name {spec.name!r} is also that of {self._names[spec.name]}")
        if spec.name is not None:
            self._names[spec.name] = where
        default_s = math.inf if kind == "supervisor" else _SHUTDOWN_S
        shutdown_s = default_s if spec.shutdown_s is None else spec.shutdown_s
        how = (spec.restart, shutdown_s, spec.start_s, spec.significant, spec.heartbeat_s)
        plan = Plan(spec.id, kind, _label(spec.actor), spec.name, *how, tree=None)
        if isinstance(spec.actor, type) and issubclass(spec.actor, Supervisor):
            return replace(plan, tree=self.tree(spec.actor, spec.id, spec.args, spec.kwargs))
        return replace(plan, target=spec.actor, args=spec.args, kwargs=dict(spec.kwargs))


def _made(
    label: str, supervisor: type[Supervisor], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Supervisor:
    try:
        inspect.signature(supervisor).bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidSpecification(f"{label}: it does not take its ChildSpec's args and kwargs: {error}") from None
    return supervisor(*args, **kwargs)


def _declared(label: str, supervisor: Supervisor) -> tuple[object, ...]:
    children: object = supervisor.children()
    if not isinstance(children, Iterable):
        raise InvalidSpecification(f"{label}: children() gives {children!r}; it must be a list of ChildSpecs")
    return tuple(children)


def _is_a(target: object, base: type) -> bool:
    return isinstance(target, type) and issubclass(target, base)


def _label(target: object) -> str:
    return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', repr(target))}"


def _default_name(class_name: str) -> str:
    stem = class_name.removesuffix("Supervisor") or class_name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", stem).lower()


def _kind(where: str, target: object) -> Kind:
    if _is_a(target, Actor):
        return "actor"
    if _is_a(target, Supervisor):
        return "supervisor"
    # A functools.partial counts as a coroutine function too, but has no name to be known by.
    if inspect.iscoroutinefunction(target) and hasattr(target, "__qualname__"):
        return "process"
    allowed = "a subclass of colos.runtime.Actor or colos.runtime.Supervisor, or an `async def` function"
    raise InvalidSpecification(f"{where}: {target!r} cannot be started; it must be {allowed}")


def _check_importable(label: str, target: object) -> None:
    why = "it is a lambda, or defined inside a function" if "<" in label else ""
    try:
        pickle.dumps(target, 5)
    except Exception as error:  # a bound method pickles its object, which is the author's code
        why = why or str(error)
    if why:
        raise InvalidSpecification(
            f"{label}: another process cannot import it by its name: {why}; define it at the top level of a module"
        )


def _check_flags(label: str, of: Supervisor) -> None:
    _check_choice(label, "strategy", of.strategy, get_args(Strategy))
    _check_choice(label, "auto_shutdown", of.auto_shutdown, get_args(AutoShutdown))
    counts = isinstance(of.intensity, int) and of.intensity >= 0
    _require(counts, label, "intensity", of.intensity, "an int, 0 or more")
    _require(_exceeds_0(of.period_s), label, "period_s", of.period_s, _SOME_TIME)


def _check_child(where: str, spec: ChildSpec, kind: Kind) -> None:
    if spec.name is not None:
        _check_word(where, "its name", spec.name)
    _require(isinstance(spec.args, tuple), where, "args", spec.args, "a tuple")
    keyed = isinstance(spec.kwargs, Mapping) and all(isinstance(key, str) for key in spec.kwargs)
    _require(keyed, where, "kwargs", spec.kwargs, "a dict with strings as keys")
    _check_choice(where, "restart", spec.restart, get_args(Restart))
    _require(_exceeds_0(spec.start_s), where, "start_s", spec.start_s, _SOME_TIME)
    stops = spec.shutdown_s is None or spec.shutdown_s == 0 or _exceeds_0(spec.shutdown_s)
    _require(stops, where, "shutdown_s", spec.shutdown_s, "0 seconds or more, math.inf, or None")
    beats = spec.heartbeat_s is None or _exceeds_0(spec.heartbeat_s)
    _require(beats, where, "heartbeat_s", spec.heartbeat_s, f"{_SOME_TIME}, or None")
    # A supervisor is no process of its own: there is no event loop to watch.
    if kind == "supervisor":
        _require(spec.heartbeat_s is None, where, "heartbeat_s", spec.heartbeat_s, "None for a supervisor")
    _require(isinstance(spec.significant, bool), where, "significant", spec.significant, "True or False")
    if spec.significant:
        _check_choice(where, "restart", spec.restart, ("transient", "temporary"), " for a significant child")
    if kind == "actor":
        limit = getattr(spec.actor, "mailbox_limit", 1)
        _require(isinstance(limit, int) and limit >= 1, where, "mailbox_limit", limit, "an int, 1 or more")
        overflow = getattr(spec.actor, "mailbox_overflow", "wait")
        _check_choice(where, "mailbox_overflow", overflow, ("wait", "drop_oldest"))


def check_significant(where: str, significant: bool, auto_shutdown: AutoShutdown) -> None:
    """Refuse a significant child where its end could have no effect (supervisor.erl, validSignificant/3)."""
    if significant:
        allowed = ("any_significant", "all_significant")
        _check_choice(where, "its supervisor's auto_shutdown", auto_shutdown, allowed, " for a significant child")


def _check_word(where: str, what: str, word: object) -> None:
    fine = isinstance(word, str) and _WORD.match(word) is not None
    _require(fine, where, what, word, "letters, digits, '_', '-' and '.', not beginning with '-' or '.'")


def _check_choice(where: str, what: str, value: object, allowed: tuple[str, ...], when: str = "") -> None:
    _require(value in allowed, where, what, value, f"one of {', '.join(allowed)}{when}")


def _exceeds_0(value: object) -> bool:
    """Also false for nan, which compares to nothing."""
    return isinstance(value, int | float) and value > 0


def _require(fine: bool, where: str, what: str, value: object, allowed: str) -> None:
    if not fine:
        raise InvalidSpecification(f"{where}: {what} is {value!r}; it must be {allowed}")
