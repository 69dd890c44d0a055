"""The record of a run: what happened, in order, with times, one JSON object a line.

A step is recorded before it runs, and every line is handed to the kernel at once, so that the file
tells the truth up to the very step that killed us.  It is written for a person (``cat``, ``jq``)
and for the report; nothing in it is read back for a decision.  Keeping it never disturbs the run:
what cannot be written is counted in `Journal.lost` and said in the file as soon as that works again.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

__all__ = ["Event", "Journal", "Kind", "read"]

Kind: TypeAlias = Literal["example", "step", "outcome", "fault-fired", "heal", "settle", "property", "verdict", "note"]

_ITEMS_MAX = 200  # of one list or dict
_DEPTH_MAX = 12


@dataclass(frozen=True)
class Event:
    """One thing that happened: `t_s` are monotonic seconds since the journal began; `wall` stands in the first only."""

    seq: int
    t_s: float
    kind: str
    data: Mapping[str, object] = field(default_factory=dict)
    wall: str | None = None


class Journal:
    """Appends events to a file and remembers the latest; one process and one example at a time.

    The file appears, with its parents, at the first event.  `events_max` bounds the file (a verdict
    is written even so) and `event_bytes_max` one line of it; both say in the file that they cut.
    `remember` events stay in memory.  No method raises for what the disk does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Callable[[], float] = time.monotonic,
        *,
        events_max: int = 20_000,
        event_bytes_max: int = 16_384,
        remember: int = 2_000,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._events_max = events_max
        self._event_bytes_max = max(event_bytes_max, 512)  # the frame of a line needs some itself
        self._memory: deque[Event] = deque(maxlen=remember)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._descriptor: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._memory.clear()
        self._started_s = self._clock()
        self._seq = 0
        self._size = 0  # bytes of whole lines in the file
        self._lost_unsaid = 0
        self._was_truncated = False
        self.lost = 0
        """Events that are missing in the file because writing failed."""

    def record(self, kind: Kind, /, **data: object) -> Event:
        """Appends an event, written when this returns.  Values that JSON does not know are kept by their repr."""
        with self._lock:
            event = self._next(kind, data)
            if self._seq <= self._events_max or kind == "verdict":
                self._keep(event)
            elif self._seq == self._events_max + 1:
                cut = {"cut": f"the file ends after {self._events_max} events; only a verdict is still added"}
                self._keep(Event(event.seq, event.t_s, "note", cut))
            return event

    def _next(self, kind: str, data: Mapping[str, object]) -> Event:
        wall = datetime.now(UTC).isoformat(timespec="milliseconds") if self._seq == 0 else None
        plain = {key: _plain(value) for key, value in data.items()}
        event = Event(self._seq, round(self._clock() - self._started_s, 6), kind, plain, wall)
        self._seq += 1
        self._memory.append(event)
        return event

    def _keep(self, event: Event) -> None:
        lines = _line(event, self._event_bytes_max)
        if self._lost_unsaid:
            said = Event(event.seq, event.t_s, "note", {"lost": self._lost_unsaid})
            lines = _line(said, self._event_bytes_max) + lines
        if self._append(lines):
            self._lost_unsaid = 0
        else:
            self.lost += 1
            self._lost_unsaid += 1

    def _append(self, lines: bytes) -> bool:
        if os.getpid() != self._owner:
            return False  # a forked child would write between its parent's lines
        try:
            descriptor = self._open()
            written = 0
            while written < len(lines):
                written += os.write(descriptor, lines[written:])
        except OSError:
            self._cut_torn_line()
            return False
        self._size += len(lines)
        return True

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # An earlier run's journal of that name is over; within ours, `_size` says what to keep.
            truncate = 0 if self._was_truncated else os.O_TRUNC
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | truncate
            self._descriptor = os.open(self.path, flags, 0o644)
            self._was_truncated = True
        return self._descriptor

    def _cut_torn_line(self) -> None:
        """After a write that failed half-way: a full disk takes part of a line."""
        try:
            if self._descriptor is not None:
                os.ftruncate(self._descriptor, self._size)
        except OSError:
            pass  # then `read` meets a torn line, which it can

    def events(self) -> tuple[Event, ...]:
        """The latest events, oldest first, as far as they are remembered."""
        with self._lock:
            return tuple(self._memory)

    def restart(self, path: str | os.PathLike[str] | None = None) -> None:
        """Begins again for the next example: times, numbers and counts from 0, and the file empty or another one."""
        self.close()
        with self._lock:
            self.path = self.path if path is None else Path(path)
            self._begin()

    def close(self) -> None:
        """Closes the file; the next event would open it again and go on.  May be called twice."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                try:
                    os.close(descriptor)
                except OSError:
                    pass  # every line was written already; there is nothing left to say or to save

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read(path: str | os.PathLike[str]) -> Iterator[Event]:
    """The events in a journal file.  Raises `OSError`.

    A torn last line is left out: its writer was killed.  Any other line that is no event comes as a
    note of what stands there.
    """
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        last_seq = -1
        for line in file:
            event = _parse(line)
            if event is None and not line.endswith("\n"):
                return
            yield event or Event(last_seq, math.nan, "note", {"unreadable": line.rstrip("\n")})
            last_seq = event.seq if event else last_seq


def _parse(line: str) -> Event | None:
    try:
        found = json.loads(line)
        return Event(found["seq"], found["t"], found["kind"], found["data"], found.get("wall"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


# --- values ------------------------------------------------------------------------------


def _line(event: Event, bytes_max: int) -> bytes:
    """An event as one line of ASCII, of at most `bytes_max` bytes: its longest values are cut, and it says so."""
    head: dict[str, object] = {"seq": event.seq, "t": event.t_s}
    if event.wall is not None:
        head["wall"] = event.wall
    head["kind"] = event.kind
    line = _dump({**head, "data": event.data})
    if len(line) <= bytes_max:
        return line
    size, share = len(line), bytes_max
    while share > 8:
        share //= 2
        cut = {key[:share]: _cut(value, share) for key, value in itertools.islice(event.data.items(), share)}
        line = _dump({**head, "cut": f"from {size} bytes", "data": cut})
        if len(line) <= bytes_max:
            return line
    return _dump({**head, "cut": f"from {size} bytes", "data": {}})


def _dump(line: Mapping[str, object]) -> bytes:
    return (json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


def _cut(value: object, length: int) -> object:
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= length else text[:length] + "…"


def _plain(value: object, depth: int = 0) -> object:
    """What JSON can say of a value; the rest by repr."""
    match value:
        case None | bool():
            return value
        # Exact types: a subclass may print itself in any way.
        case int() if type(value) is int and value.bit_length() <= 64:
            return value
        case float() if type(value) is float and math.isfinite(value):
            return value
        case str() if type(value) is str:
            return value
        case list() | tuple() if type(value) in (list, tuple) and depth < _DEPTH_MAX:
            items = [_plain(item, depth + 1) for item in value[:_ITEMS_MAX]]
            return items + ([f"… {len(value) - _ITEMS_MAX} more"] if len(value) > _ITEMS_MAX else [])
        case dict() if type(value) is dict and depth < _DEPTH_MAX:
            return _plain_dict(value, depth)
        case _:
            return _repr(value)


def _plain_dict(value: dict[object, object], depth: int) -> dict[str, object]:
    shown = itertools.islice(value.items(), _ITEMS_MAX)
    plain = {key if type(key) is str else _repr(key): _plain(item, depth + 1) for key, item in shown}
    if len(value) > _ITEMS_MAX:
        plain["…"] = f"{len(value) - _ITEMS_MAX} more"
    return plain


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # an author's __repr__ may raise anything, and the run must go on
        return f"<{type(value).__qualname__}: its repr raised {type(error).__name__}>"
