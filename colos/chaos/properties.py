"""What must hold, as an author declares it, and the verdicts on it.

`always` is checked after every step; `eventually` after every fault is healed, under its
deadline; `sometimes` over all examples.  A property fails by raising or by returning False.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, overload

from colos.errors import InvalidSpecification

__all__ = ["Outcome", "Property", "Verdict", "Violation", "always", "eventually", "properties_of", "sometimes"]

_MARK = "__colos_property__"
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Property:
    """One declared property: its kind, its method's name, and for `eventually` the deadline."""

    kind: str
    name: str
    function: Callable[..., Any]
    within_s: float = 0.0

    @property
    def full_name(self) -> str:
        """As scenarios and reports name it, such as ``always:balanced``."""
        return f"{self.kind}:{self.name}"

    def bound(self, machine: object) -> Callable[[], Any]:
        """Its function, ready to be called for a machine; a coroutine function stays one."""
        return functools.partial(self.function, machine)


class Outcome(Enum):
    """How a run ended.  One whose harness broke has no outcome: `HarnessBroken` is raised."""

    HELD = "held"
    VIOLATED = "violated"
    NOT_EXERCISED = "not exercised"
    #: What the environment did keeps it from a verdict; the verdict's reason says what that was.
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Violation:
    """A property that did not hold, after which step (0 is the first; None after the last), and the evidence."""

    name: str
    detail: str
    step: int | None = None


@dataclass(frozen=True)
class Verdict:
    """The judgement on one run."""

    outcome: Outcome
    violation: Violation | None = None
    reason: str = ""


def _mark(function: _F, kind: str, within_s: float = 0.0) -> _F:
    if hasattr(function, _MARK):
        raise InvalidSpecification(f"{function.__qualname__} is declared as a property twice")
    setattr(function, _MARK, Property(kind, function.__name__, function, within_s))
    return function


def always(function: _F) -> _F:
    """Safety: holds after every step, faults or no faults."""
    return _mark(function, "always")


@overload
def eventually(function: _F) -> _F: ...
@overload
def eventually(*, within: float) -> Callable[[_F], _F]: ...
def eventually(function: _F | None = None, *, within: float = 5.0) -> _F | Callable[[_F], _F]:
    """Liveness: comes to hold within so many seconds after the last fault is healed."""
    if within <= 0:
        raise InvalidSpecification(f"eventually(within={within}) leaves no time; give seconds above 0")
    if function is not None:
        return _mark(function, "eventually", within)
    return lambda function: _mark(function, "eventually", within)


def sometimes(function: _F) -> _F:
    """Coverage: true after some step of some example, else the run says 'not exercised'."""
    return _mark(function, "sometimes")


def properties_of(cls: type) -> tuple[Property, ...]:
    """The declared properties of a class and its bases, in the order of their names."""
    found = []
    for _, function in inspect.getmembers(cls, inspect.isfunction):
        declared: Property | None = getattr(function, _MARK, None)
        if declared is not None:
            found.append(declared)
    return tuple(found)
