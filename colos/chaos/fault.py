"""Faults as kinds, leases as what is given for one, and the site where they act.

A kind is one class in one file of `colos.chaos.faults`; defining it registers it.  An instance is
an author's declaration ("kill any of these"), from which steps are drawn; a step names a kind, a
target and arguments, and injecting it gives a `Lease`, whose end heals (after turmoil's guards and
TigerBeetle's habit of a check beside every heal).
"""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from colos.errors import InvalidSpecification

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from colos.chaos.mechanisms.syscalls import Trap
    from colos.chaos.sandbox.handle import Sandbox, Target
    from colos.chaos.sandbox.session import Session

__all__ = [
    "EVERYTHING",
    "FAMILIES",
    "REGISTRY",
    "Fault",
    "Lease",
    "Overlays",
    "Reach",
    "Site",
    "count_of",
    "environment_of",
    "matches",
]

#: The headings of the catalogue, in its order.
FAMILIES = (
    "process",
    "disk",
    "descriptors",
    "processes",
    "memory",
    "cpu",
    "scheduling",
    "clock",
    "network",
    "names and chance",
    "system calls",
    "hardware",
)

#: The pattern of a declaration that names no target.
EVERYTHING = "*"


def matches(path: str, pattern: str) -> bool:
    """Whether a target's path is meant by a path or a pattern such as ``ledger/*``."""
    return path == pattern or fnmatch.fnmatchcase(path, pattern)


def count_of(value: object, what: str) -> int:
    """A step's argument that counts something.  Raises `InvalidSpecification` for anything but a whole number ≥ 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidSpecification(f"{what} is a whole number, 0 or more, not {value!r}")
    return value


class Reach(Protocol):
    """What a fault asks of a running system: its live processes by path or pattern."""

    def targets(self, pattern: str) -> list[Target]:
        """Every live process that is meant; the caller closes them."""
        ...


class Overlays:
    """Several leases on one quantity: the tightest holds; the last one out restores.

    Leases may end in any order, so none may simply put back what it found.
    """

    def __init__(self) -> None:
        self._held: dict[object, dict[int, float]] = {}
        self._original: dict[object, Any] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def hold(self, key: object, lease: Lease, value: float, original: Callable[[], Any]) -> float:
        """Add a lease's value; returns the one that holds now."""
        if key not in self._original:
            self._original[key] = original()
        held = self._held.setdefault(key, {})
        held[id(lease)] = value
        return min(held.values())

    def release(self, key: object, lease: Lease) -> tuple[float | None, Any]:
        """Drop a lease's value: what holds now (None when nothing does), and what was there first."""
        held = self._held.get(key, {})
        held.pop(id(lease), None)
        original = self._original.get(key)
        if not held:
            self._held.pop(key, None)
            self._original.pop(key, None)
            return None, original
        return min(held.values()), original


class Site:
    """Where faults act during one run: a sandbox, the system in it, and what is held already."""

    def __init__(self, sandbox: Sandbox, reach: Reach) -> None:
        self.sandbox = sandbox
        self.reach = reach
        self.overlays = Overlays()
        #: Processes that a lease keeps stopped, by pid and start time: nobody else may continue them.
        self.stopped: set[tuple[int, int]] = set()


class Lease(ABC):
    """One injected fault.  `mechanism` names the OS facility that made it real."""

    mechanism: str = ""
    #: Whether it acts until healed; a kill is over at once.
    lasting: bool = True

    @abstractmethod
    def fired(self) -> str | None:
        """The proof that it acts or acted, in a few words; None when it did not."""

    @abstractmethod
    def heal(self) -> None:
        """End it.  Raises `OSError` when the kernel refuses.  May be called twice."""

    @abstractmethod
    def is_healed(self) -> bool:
        """Whether the machine shows that it is over (observed, not remembered)."""


#: Every kind that was defined so far, by name; `colos.chaos.faults.fault_kinds` imports them all first.
REGISTRY: dict[str, type[Fault]] = {}


class Fault(ABC):
    """An author's declaration of one kind of fault, and the kind itself.

    `parameters` are the names that a step of this kind may carry, with the default of each:
    a step leaves defaults out.
    """

    kind: ClassVar[str]
    parameters: ClassVar[Mapping[str, object]] = {}
    #: Whether a step of this kind names processes.
    targeted: ClassVar[bool] = True
    #: Under which heading it stands: one of `FAMILIES`.
    family: ClassVar[str] = ""
    #: The OS facility that makes it real, as its leases name it, where that is the same on every machine.
    uses: ClassVar[str] = ""
    #: What a person reads in the documentation and in `colos doctor`: what really happens, in a line.
    summary: ClassVar[str] = ""
    #: What a program under it sees: the errno, the signal, the delay.
    sees: ClassVar[str] = ""
    #: What is taken as proof that it fired.
    proof: ClassVar[str] = ""

    def __init_subclass__(cls, **extra: object) -> None:
        super().__init_subclass__(**extra)
        if "kind" in cls.__dict__:
            REGISTRY[cls.kind] = cls

    def __init__(self, target: str = EVERYTHING, *, at_most: int | None = None) -> None:
        """`at_most` is for `ChaosMachine.tolerates`: how many processes of these may be affected at a time."""
        if at_most is not None:
            if not self.targeted:
                raise InvalidSpecification(f"{type(self).__name__} names no processes, so at_most= has no meaning")
            if count_of(at_most, f"{type(self).__name__}(at_most=…)") < 1:
                raise InvalidSpecification(
                    f"{type(self).__name__}({target!r}, at_most=0) tolerates nothing: leave the fault out"
                )
        self.target = target
        self.at_most = at_most

    def __repr__(self) -> str:
        limit = "" if self.at_most is None else f", at_most={self.at_most}"
        return f"{type(self).__name__}({self.target!r}{limit})"

    # --- what a machine can do ----------------------------------------------------------

    @classmethod
    @abstractmethod
    def unavailable(cls, session: Session) -> tuple[str, str] | None:
        """None where it can be made real; else the reason and the cure."""

    @classmethod
    def mechanism(cls, session: Session) -> str:
        """The OS facility that it would use here, as its leases name it."""
        del session
        return cls.uses

    @classmethod
    def traps(cls, arguments: Mapping[str, Any]) -> tuple[Trap, ...]:
        """The system calls that must be trapped, from the system's start, for a step with these arguments."""
        del arguments
        return ()

    def needed(self) -> tuple[Trap, ...]:
        """The same for every step that this declaration may give."""
        return self.traps(self.parameters)

    @classmethod
    def environment(cls) -> Mapping[str, str]:
        """What the system must find in its environment from its start, for this kind to act on it later.

        The values may use ``{data}``, ``{run}``, ``{home}`` and ``{tmp}``.
        """
        return {}

    # --- generation ---------------------------------------------------------------------

    def candidates(self, topology: Sequence[str]) -> tuple[str, ...]:
        """What a step may name: each declared process that matches, and the pattern for all of them."""
        if not self.targeted:
            return ()
        single = [path for path in topology if matches(path, self.target)]
        if not single and any(self.target.startswith(f"{path}/") for path in topology):
            return (self.target,)  # what a declared process has forked: a program's workers
        if not single:
            raise InvalidSpecification(
                f"{self!r} matches nothing in the system's topology; it has: {', '.join(topology)}"
            )
        return (*single, self.target) if len(single) > 1 else tuple(single)

    @abstractmethod
    def arguments(self) -> SearchStrategy[dict[str, object]]:
        """What a step may carry beside its target."""

    def deaths(self, target: str | None, topology: Sequence[str]) -> int:
        """How many processes a step of this fault may end: a system survives only so many (`tolerance`)."""
        del target, topology
        return 0

    # --- action -------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def inject(cls, site: Site, target: str | None, arguments: Mapping[str, Any]) -> Lease:
        """Make it real.  Raises `OSError` when the kernel refuses, `FaultUnavailable` where it cannot be."""

    @classmethod
    def complete(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A step's arguments with the defaults put back."""
        return {**cls.parameters, **arguments}

    @classmethod
    def shorten(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A step's arguments without those that are at their default."""
        return {name: value for name, value in arguments.items() if cls.parameters.get(name, ...) != value}


def environment_of(faults: Sequence[Fault], unavailable: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What declared faults need in the system's environment, but for the kinds that cannot be had."""
    wanted: dict[str, str] = {}
    for fault in faults:
        if fault.kind not in unavailable:
            wanted.update(fault.environment())
    return tuple(sorted(wanted.items()))
