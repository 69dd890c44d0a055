"""Classes that a scenario file names: looked up among what is imported already, and nothing else.

Here, no code of anybody's runs: no import, no module's or descriptor's ``__getattr__``.
"""

from __future__ import annotations

import functools
import operator
import sys
from enum import Enum, Flag
from types import ModuleType

from colos.spelling import closest

__all__ = ["DecodeError", "NotImported", "find_class", "find_enum"]


class DecodeError(ValueError):
    """A value in a scenario file that is not what its tag promises."""


class NotImported(Exception):
    """A value names a class of a module that is not imported."""

    def __init__(self, module: str) -> None:
        super().__init__(f"the module {module} is not imported")
        self.module = module


def find_class(where: str) -> type:
    """The class ``module:Name``, or ``module:Outer.Name``, of a module that is imported; no code runs."""
    module, colon, path = where.partition(":")
    if not (module and colon and path):
        raise DecodeError(f"{where!r} names no class; write it as 'module:Class'")
    if module not in sys.modules:
        raise NotImported(module)
    found: object = sys.modules[module]
    for name in path.split("."):
        # By the namespace, not by getattr: that may run code of a module's or of a descriptor's.
        found = vars(found).get(name) if isinstance(found, ModuleType | type) else None
    if not isinstance(found, type):
        raise DecodeError(f"the module {module} has no class {path}")
    return found


def find_enum(where: str) -> Enum:
    """``module:Class.MEMBER``; of flags also ``A|B``, and ``0`` for none."""
    name, _, members = where.rpartition(".")
    cls = find_class(name if ":" in name else where)
    if not issubclass(cls, Enum):
        raise DecodeError(f"{name or where} is no Enum")
    if issubclass(cls, Flag) and members == "0":
        return cls(0)
    names = members.split("|") if issubclass(cls, Flag) else [members]
    for member in names:
        if member not in cls.__members__:
            raise DecodeError(f"{name} has no member {member!r}; {closest(member, cls.__members__)}")
    return functools.reduce(operator.or_, (cls.__members__[member] for member in names))
