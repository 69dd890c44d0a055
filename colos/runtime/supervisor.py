"""Child specifications, and the decisions of a supervisor as a pure function.

Carrying the decisions out is `root`'s business.  One-for-one is the only strategy, and a
supervisor's children are actors: nested supervisors are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Literal

from colos.errors import InvalidSpecification
from colos.runtime.actor import Actor

Restart = Literal["permanent", "transient", "temporary"]
_RESTARTS: Final = ("permanent", "transient", "temporary")
_WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True)
class ChildSpec:
    """One child: what it is, and how it is started, restarted and stopped.

    `id` is its place under the supervisor; `name`, if given, its registered name in the node.
    `restart`: "permanent" always, "transient" only after an abnormal end, "temporary" never.
    `shutdown_s`: how long it may take to stop when asked, before SIGKILL; 0 kills without asking.
    `start_s`: how long construction and init() may take.
    """

    id: str
    actor: type[Actor]
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    name: str | None = None
    restart: Restart = "permanent"
    shutdown_s: float = 5.0
    start_s: float = 10.0


class Supervisor:
    """Subclass it and say which `children` it has; they start in that order and stop in reverse.

    More than `intensity` restarts within `period_s` seconds, and the supervisor gives up: it
    stops its children and ends with reason shutdown.
    """

    name: ClassVar[str] = ""
    """Its place in the tree; by default from the class's name: LedgerSupervisor -> ledger."""
    intensity: ClassVar[int] = 3
    period_s: ClassVar[float] = 5.0

    def children(self) -> Sequence[ChildSpec]:
        """The children, in start order."""
        raise InvalidSpecification(f"{type(self).__qualname__} does not say which children() it has")


@dataclass(frozen=True)
class TreeSpec:
    """A supervisor, checked: what the root starts."""

    name: str
    label: str
    children: tuple[ChildSpec, ...]
    intensity: int
    period_s: float


def topology(supervisor: type[Supervisor]) -> tuple[str, ...]:
    """The paths of a supervisor's actors, in start order, without starting anything."""
    tree = specify(supervisor)
    return tuple(f"{tree.name}/{child.id}" for child in tree.children)


def specify(supervisor: type[Supervisor]) -> TreeSpec:
    """Ask a supervisor for its children and check everything.  Raises InvalidSpecification."""
    if not (isinstance(supervisor, type) and issubclass(supervisor, Supervisor)):
        raise InvalidSpecification(f"{supervisor!r} is not a subclass of colos.runtime.Supervisor")
    label = f"{supervisor.__module__}:{supervisor.__qualname__}"
    name = supervisor.name or _default_name(supervisor.__name__)
    _check_word(label, "its name", name)
    if not isinstance(supervisor.intensity, int) or supervisor.intensity < 0:
        raise InvalidSpecification(f"{label}: intensity is {supervisor.intensity!r}; it must be an int, 0 or more")
    if not supervisor.period_s > 0:
        raise InvalidSpecification(f"{label}: period_s is {supervisor.period_s!r}; it must be more than 0 seconds")
    children = tuple(supervisor().children())
    ids: set[str] = set()
    names: set[str] = set()
    for child in children:
        _check_child(label, child)
        for word, taken, what in ((child.id, ids, "id"), (child.name, names, "name")):
            if word in taken:
                raise InvalidSpecification(f"{label}: two children have the {what} {word!r}")
            if word is not None:
                taken.add(word)
    return TreeSpec(name, label, children, supervisor.intensity, supervisor.period_s)


def _default_name(class_name: str) -> str:
    stem = class_name.removesuffix("Supervisor") or class_name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", stem).lower()


def _check_word(label: str, what: str, word: object) -> None:
    if not isinstance(word, str) or not _WORD.match(word):
        raise InvalidSpecification(
            f"{label}: {what} is {word!r}; it must be letters, digits, '_', '-' and '.', not beginning with '-' or '.'"
        )


def _check_child(label: str, child: object) -> None:
    if not isinstance(child, ChildSpec):
        raise InvalidSpecification(f"{label}: children() holds {child!r}, which is not a ChildSpec")
    _check_word(label, "a child's id", child.id)
    where = f"{label}, child {child.id!r}"
    if isinstance(child.actor, type) and issubclass(child.actor, Supervisor):
        raise InvalidSpecification(f"{where}: {child.actor.__qualname__} is a supervisor; they cannot be nested")
    if not (isinstance(child.actor, type) and issubclass(child.actor, Actor)):
        raise InvalidSpecification(f"{where}: {child.actor!r} is not a subclass of colos.runtime.Actor")
    if child.name is not None:
        _check_word(where, "its name", child.name)
    if child.restart not in _RESTARTS:
        raise InvalidSpecification(f"{where}: restart is {child.restart!r}; it must be one of {', '.join(_RESTARTS)}")
    if not child.shutdown_s >= 0:
        raise InvalidSpecification(f"{where}: shutdown_s is {child.shutdown_s!r}; it must be 0 seconds or more")
    if not child.start_s > 0:
        raise InvalidSpecification(f"{where}: start_s is {child.start_s!r}; it must be more than 0 seconds")
    limit = child.actor.mailbox_limit
    if not isinstance(limit, int) or limit < 1:
        raise InvalidSpecification(f"{where}: mailbox_limit is {limit!r}; it must be an int, 1 or more")


# --- decisions ---------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What a supervisor decides from: who is to be restarted how, and the restarts of late (seconds)."""

    restart: Mapping[str, Restart]
    intensity: int
    period_s: float
    restarts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Exited:
    """A child that was running ended."""

    child: str
    reason: str


@dataclass(frozen=True)
class RestartFailed:
    """A child that was being restarted did not become ready."""

    child: str
    reason: str


Event = Exited | RestartFailed


@dataclass(frozen=True)
class Decision:
    """What to do about an event, and the state afterwards.

    `action`: "restart" the child; "leave" it stopped; "give up": stop all others in reverse order.
    """

    action: Literal["restart", "leave", "give up"]
    state: State


def is_abnormal(reason: str) -> bool:
    """Whether a reason is anything but a clean end."""
    return reason not in ("normal", "shutdown")


def decide(state: State, event: Event, now: float) -> Decision:
    """OTP's rule (supervisor.erl, restart/2 and add_restart/3) for one-for-one.

    The restart that would exceed `intensity` within `period_s` is not carried out any more.
    A restart that fails is tried again, and every try counts.
    """
    kind = state.restart[event.child]
    if isinstance(event, Exited) and (kind == "temporary" or (kind == "transient" and not is_abnormal(event.reason))):
        return Decision("leave", state)
    recent = tuple(at for at in state.restarts if at >= now - state.period_s)
    after = replace(state, restarts=(*recent, now))
    if len(after.restarts) > state.intensity:
        return Decision("give up", after)
    return Decision("restart", after)
