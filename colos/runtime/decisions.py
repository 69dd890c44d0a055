"""What a supervisor does when a child ends: pure functions over plain values.

The rules are those of OTP's supervisor(3): "Restart Strategies", "Restart intensity and period",
"Automatic Shutdown".  Nothing here has a clock, a process or an effect: carrying the decisions out
is `root`'s business.  As in OTP, where a supervisor does nothing else meanwhile, an event is decided
when the decision before it has been carried out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one", "dynamic"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]


@dataclass(frozen=True)
class ChildState:
    """A child as far as decisions go.  `alive`: it is ready and has not ended."""

    id: str
    restart: Restart
    significant: bool
    alive: bool


@dataclass(frozen=True)
class State:
    """What a supervisor decides from: its children in start order, and its late restarts (seconds)."""

    strategy: Strategy
    auto_shutdown: AutoShutdown
    intensity: int
    period_s: float
    children: tuple[ChildState, ...]
    restarts: tuple[float, ...] = ()

    def child(self, id: str) -> ChildState | None:  # noqa: A002 - the field's name
        """The child of that id, if there is one."""
        return next((child for child in self.children if child.id == id), None)

    def with_alive(self, id: str, alive: bool) -> State:  # noqa: A002
        """The same, but for whether that child lives.  Raises KeyError if there is none."""
        if self.child(id) is None:
            raise KeyError(id)
        return replace(
            self, children=tuple(replace(one, alive=alive) if one.id == id else one for one in self.children)
        )

    def with_child(self, child: ChildState) -> State:
        """The same with one more child, the last in start order.  Raises ValueError if its id is taken."""
        if self.child(child.id) is not None:
            raise ValueError(f"there is a child {child.id!r} already")
        return replace(self, children=(*self.children, child))

    def without(self, id: str) -> State:  # noqa: A002
        """The same without that child, if there was one."""
        return replace(self, children=tuple(child for child in self.children if child.id != id))


@dataclass(frozen=True)
class ChildExited:
    """A living child ended by itself: the supervisor had not asked for it."""

    child: str
    reason: object


@dataclass(frozen=True)
class RestartFailed:
    """A child that a decision was to start did not become ready; those after it were not tried."""

    child: str
    reason: object


Event = ChildExited | RestartFailed


@dataclass(frozen=True)
class Decision:
    """What to do, in the order of the fields, and the state when `stop` and `remove` are done.

    `stop`: living children, in this order.  `start`: children, in this order, until one fails; none
    of them is alive in `state` before the executor says so (`State.with_alive`).  `remove`: children
    whose specifications are dropped.  `end`: the reason with which the supervisor itself ends once
    all have stopped, and `why` it does.
    """

    stop: tuple[str, ...]
    start: tuple[str, ...]
    remove: tuple[str, ...]
    end: str | None
    why: Literal["", "intensity", "automatic"]
    state: State


def is_abnormal(reason: object) -> bool:
    """Whether a reason is anything but a clean end: "normal", "shutdown", ("shutdown", ...)."""
    if isinstance(reason, tuple):
        return not (len(reason) == 2 and reason[0] == "shutdown")
    return reason not in ("normal", "shutdown")


def decide(state: State, event: Event, now: float) -> Decision:
    """What OTP's supervisor would do about `event` at `now` (seconds of a clock that never goes back).

    A permanent child is always restarted, a transient one after an abnormal end, a temporary one
    never.  A restart that fails is tried again, and every try counts.  What is said of a child that
    is not there, or is dead already, changes nothing, as an exit of an unknown pid does in OTP.
    """
    child = state.child(event.child)
    if child is None or (isinstance(event, ChildExited) and not child.alive):
        return Decision((), (), (), None, "", state)
    if _is_restarted(child, event):
        return _restart(state, child, now)
    return _leave(state, child)


def _is_restarted(child: ChildState, event: Event) -> bool:
    if child.restart == "temporary":
        return False
    # A failed start has no clean end: whatever its reason, the child is still missing.
    return child.restart == "permanent" or isinstance(event, RestartFailed) or is_abnormal(event.reason)


def _leave(state: State, child: ChildState) -> Decision:
    # A dynamic child has no specification of its own to come back by (supervisor.erl, del_child/2).
    removed = (child.id,) if child.restart == "temporary" or state.strategy == "dynamic" else ()
    after = _settle(state, (child.id,), removed)
    if _shuts_down(after, child):
        return _end(after, "automatic", removed)
    return Decision((), (), removed, None, "", after)


def _shuts_down(after: State, child: ChildState) -> bool:
    """Whether the supervisor goes with a significant child that is not restarted (do_auto_shutdown/2)."""
    if not child.significant or after.auto_shutdown == "never":
        return False
    if after.auto_shutdown == "any_significant":
        return True
    # A dynamic child that is dead but not removed is being restarted, which OTP counts as active.
    return not any(one.significant and (one.alive or after.strategy == "dynamic") for one in after.children)


def _restart(state: State, child: ChildState, now: float) -> Decision:
    # One window over all children; a restart of exactly `period_s` ago still counts (add_restart/3).
    late = tuple(at for at in state.restarts if at >= now - state.period_s)
    counted = replace(state.with_alive(child.id, False), restarts=(*late, now))
    if len(counted.restarts) > state.intensity:
        removed = (child.id,) if state.strategy == "dynamic" else ()
        return _end(_settle(counted, (), removed), "intensity", removed)
    concerned = _concerned(counted, child.id)
    stop = _living(concerned)
    remove = _temporary(concerned)
    # All others start, also a transient one that had ended cleanly: start_children/2 asks for no past.
    start = tuple(one.id for one in concerned if one.id not in remove)
    return Decision(stop, start, remove, None, "", _settle(counted, stop, remove))


def _concerned(state: State, id_: str) -> tuple[ChildState, ...]:
    """The children that a restart of one touches, in start order."""
    if state.strategy == "one_for_all":
        return state.children
    at = next(index for index, child in enumerate(state.children) if child.id == id_)
    return state.children[at:] if state.strategy == "rest_for_one" else state.children[at : at + 1]


def _end(state: State, why: Literal["intensity", "automatic"], removed: tuple[str, ...]) -> Decision:
    stop = _living(state.children)
    dropped = _temporary(state.children)
    return Decision(stop, (), (*removed, *dropped), "shutdown", why, _settle(state, stop, dropped))


def _living(children: tuple[ChildState, ...]) -> tuple[str, ...]:
    """Who has to be stopped, in the order of stopping: the last to start is the first to stop."""
    return tuple(child.id for child in reversed(children) if child.alive)


def _temporary(children: tuple[ChildState, ...]) -> tuple[str, ...]:
    return tuple(child.id for child in children if child.restart == "temporary")


def _settle(state: State, dead: Iterable[str], removed: Iterable[str]) -> State:
    """The state when these have ended and those are dropped."""
    for id_ in dead:
        state = state.with_alive(id_, False)
    for id_ in removed:
        state = state.without(id_)
    return state
