"""From a machine's declarations to what all of its runs share; refuses what cannot be meant."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from types import ModuleType

from colos.chaos.bridge import BACKENDS, Outlet
from colos.chaos.builtin import BUILTIN
from colos.chaos.executor import REFUSALS, UNKNOWNS, Deadlines, Setting
from colos.chaos.fault import Fault, environment_of
from colos.chaos.faults import fault_kinds
from colos.chaos.journal import Journal
from colos.chaos.machine import ChaosMachine, declared_properties
from colos.chaos.mechanisms.syscalls import merged
from colos.chaos.sandbox.session import Session
from colos.chaos.sandbox.spec import SandboxSpec, kept_paths
from colos.chaos.tolerance import check_patterns
from colos.errors import InvalidSpecification

__all__ = ["prepare"]


def prepare(cls: type[ChaosMachine], session: Session, journal: Path, deadlines: Deadlines) -> Setting:
    """The setting of one item; its outlet and journal are the caller's to close.

    Raises `InvalidSpecification`.
    """
    system = cls.system_declaration()
    _check_declarations(cls, system.topology())
    unavailable = _unavailable_faults(cls.faults, session)
    if system.modules():
        session.prepare(_with_packages([sys.modules[cls.__module__], *system.modules()]), system.rehearsal())
    return Setting(
        session=session,
        outlet=Outlet(cls.backend),
        system=system,
        properties=declared_properties(cls),
        kinds=fault_kinds(),
        journal=Journal(journal),
        spec=SandboxSpec(
            data_bytes=cls.data_bytes,
            data_inodes=cls.data_inodes,
            writable=tuple(cls.writable),
            kept=kept_paths(),
            traps=merged(trap for fault in cls.faults for trap in fault.needed()),
            environment=environment_of(cls.faults, unavailable),
        ),
        refusals=(*REFUSALS, *cls.refusals),
        unknowns=(*UNKNOWNS, *cls.unknowns),
        without=frozenset(cls.without),
        unavailable=unavailable,
        deadlines=deadlines,
    )


def _unavailable_faults(faults: Sequence[Fault], session: Session) -> dict[str, str]:
    """The declared kinds that cannot be made real here, and why."""
    found = {}
    for fault in faults:
        reason = fault.unavailable(session)
        if reason is not None:
            found[fault.kind] = "; ".join(part for part in reason if part)
    return found


def _with_packages(modules: Sequence[ModuleType]) -> Iterator[ModuleType]:
    """Modules after the packages that they are in: under pytest's importlib mode no path leads to those."""
    for module in modules:
        parts = module.__name__.split(".")
        for length in range(1, len(parts)):
            package = sys.modules.get(".".join(parts[:length]))
            if package is not None and getattr(package, "__file__", None):
                yield package
        yield module


def _check_declarations(cls: type[ChaosMachine], topology: tuple[str, ...]) -> None:
    for fault in cls.faults:
        fault.candidates(topology)  # raises for a pattern that matches nothing
    check_patterns(cls.tolerates or (), topology)
    if isinstance(cls.deadline_s, bool) or not isinstance(cls.deadline_s, int | float) or not 0 < cls.deadline_s < inf:
        raise InvalidSpecification(f"{cls.__name__}.deadline_s is {cls.deadline_s!r}; it is seconds, more than 0")
    for name in ("refusals", "unknowns"):
        declared = getattr(cls, name)
        if not isinstance(declared, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in declared
        ):
            raise InvalidSpecification(
                f"{cls.__name__}.{name} is {declared!r}; it is a tuple of exception classes such as (OSError,)"
            )
    if cls.backend not in BACKENDS:
        raise InvalidSpecification(f"{cls.__name__}.backend is {cls.backend!r}; allowed are {', '.join(BACKENDS)}")
    unknown = {cls.without} if isinstance(cls.without, str) else set(cls.without) - set(BUILTIN)
    if unknown:
        raise InvalidSpecification(
            f"{cls.__name__}.without names {', '.join(sorted(unknown))}; it is a tuple of names such as "
            f"({BUILTIN[0]!r},), and the built-in properties are {', '.join(BUILTIN)}"
        )
