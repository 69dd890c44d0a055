"""What happens in a process, told to whoever watches: an event for each message in and out.

Nothing is done, and nothing costs, while nobody watches.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from colos.runtime import message
from colos.runtime.transport import BrokenConnectionError, Connection

_KINDS: Final = {
    message.CALL: "call",
    message.CAST: "cast",
    message.RESULT: "result",
    message.FAILURE: "failure",
    message.SEND: "message",
    message.NOTICE: "signal",
}
_TEXT_MAX: Final = 200


class TraceEvent(NamedTuple):
    """One message.  `direction` is "in" or "out"; `other` is who sent or gets it; `at` in seconds since the epoch."""

    at: float
    direction: str
    kind: str
    other: str
    what: str

    def __str__(self) -> str:
        arrow = "<-" if self.direction == "in" else "->"
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        return f"{clock}.{int(self.at % 1 * 1e6):06d} {arrow} {self.kind:8} {self.other}  {self.what}"


class Tracer:
    """Sends events to its watchers; a watcher that does not read misses events, it slows nobody."""

    def __init__(self) -> None:
        self.watchers: list[Connection] = []

    def watch(self, connection: Connection) -> None:
        """Send events over this connection from now on."""
        if connection not in self.watchers:
            self.watchers.append(connection)

    def tell(self, direction: str, kind: int, other: str, what: object) -> None:
        """An event; call it only where there are watchers."""
        text = what if isinstance(what, str) else _repr(what)
        event = TraceEvent(time.time(), direction, _KINDS.get(kind, str(kind)), other, text[:_TEXT_MAX])
        frame = message.encode_plain(message.TRACE, tuple(event))
        for connection in list(self.watchers):
            try:
                connection.post_now(frame)
            except BrokenConnectionError:
                self.watchers.remove(connection)

    def tell_frame(self, direction: str, frame: message.Frame, other: str) -> None:
        """The same for a frame that came in; it is opened once more, only for this."""
        try:
            what: object = message.decode(frame)
            if frame.kind in (message.CALL, message.CAST):
                what = request_text(*what)  # type: ignore[misc]
        except Exception as error:  # the author's unpickling
            what = f"<unreadable: {type(error).__name__}: {error}>"
        self.tell(direction, frame.kind, other, what)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # an author's __repr__
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"


def request_text(method: str, args: tuple[object, ...], kwargs: dict[str, object]) -> str:
    """A call as it would be written: `deposit('a', amount=5)`."""
    parts = [*map(_repr, args), *(f"{key}={_repr(value)}" for key, value in kwargs.items())]
    return f"{method}({', '.join(parts)})"
