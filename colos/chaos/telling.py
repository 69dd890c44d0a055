"""What an author's exception is told as: its text, and where it came from."""

from __future__ import annotations

import os
import traceback

import anyio
import hypothesis

import colos
from colos.errors import PropertyViolated

__all__ = ["name_of", "short", "told"]

#: Whose frames tell a user nothing about the system under test.
_PACKAGE = os.path.dirname(str(colos.__file__))
_OURS = (
    f"{_PACKAGE}/chaos/",
    f"{_PACKAGE}/runtime/",
    *(f"{os.path.dirname(str(package.__file__))}/" for package in (anyio, hypothesis)),
)


def name_of(error: Exception, otherwise: str) -> str:
    """The violated property's name, as the exception says it."""
    return error.name if isinstance(error, PropertyViolated) else otherwise


def short(error: BaseException) -> str:
    """Class and text."""
    return f"{type(error).__name__}: {error}"


def told(error: BaseException) -> str:
    """The exception for a person: its text first, then where it came from, without our own frames."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    where = "".join(traceback.format_list(frames)).rstrip()
    notes = "\n".join(getattr(error, "__notes__", ()))
    said = "".join(traceback.format_exception_only(error)).rstrip() if not notes else f"{short(error)}\n{notes}"
    return f"{said}\n{where}" if where else said
