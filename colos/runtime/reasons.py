"""Exit reasons: why a process ended, as plain data that every process can read.

Source: Erlang Reference Manual, Processes (exit signals); observed.txt.
"""

from __future__ import annotations

from typing import Final

from colos.errors import InvalidSpecification

NORMAL: Final = "normal"
SHUTDOWN: Final = "shutdown"
KILL: Final = "kill"
"""As an explicit signal it cannot be trapped; as a reason it is like any other."""
KILLED: Final = "killed"
NOPROC: Final = "noproc"
"""Nobody was there."""
NOCONNECTION: Final = "noconnection"
"""The other node is gone; what became of the process there is unknown."""
UNRESPONSIVE: Final = "unresponsive"
"""Its event loop stood still for longer than its heartbeat_s, so it was killed."""

_TEXT_MAX: Final = 1000
_SIMPLE: Final = (str, int, float, bytes, type(None))


def checked(reason: object) -> object:
    """The reason, if it is plain data.  Raises InvalidSpecification."""
    if not _is_plain(reason):
        raise InvalidSpecification(
            f"{reason!r} cannot be an exit reason: it must be a string, a number, bytes, None, or a tuple of these, "
            "so that every process can read it"
        )
    return reason


def _is_plain(value: object) -> bool:
    return type(value) in (*_SIMPLE, bool) or (type(value) is tuple and all(map(_is_plain, value)))


def text(reason: object) -> str:
    """A reason for people, in one line."""
    return " ".join(reason.splitlines()) if isinstance(reason, str) else repr(reason)


def describe(error: BaseException) -> str:
    """The reason that a Python exception gives: `error: ValueError: no such account`."""
    try:
        words = " ".join(str(error).split())
    except Exception as broken:  # an exception's __str__ is the author's code
        words = f"<its text cannot be had: {type(broken).__name__}>"
    return f"error: {type(error).__name__}{': ' if words else ''}{words[:_TEXT_MAX]}"


class Exit(Exception):
    """``raise Exit(reason)`` ends the process that raises it, with that reason.  Source: erlang:exit/1."""

    def __init__(self, reason: object = NORMAL) -> None:
        super().__init__(checked(reason))
        self.reason = reason
