"""The mailbox: what has arrived and not been taken, in order; bounded; with selective receive.

Source: Erlang Reference Manual, Expressions, Receive: a message that matches is taken, what was
skipped stays in its order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from colos.runtime import message
from colos.runtime.waiting import Event, event

if TYPE_CHECKING:
    from colos.runtime.callers import Caller

Overflow = Literal["wait", "drop_oldest"]
Match = type | tuple[type, ...] | Callable[[Any], bool] | None
_UNREAD: Final = object()
_HUNGER: Final = 10


class Letter:
    """One thing in a mailbox: a call or cast, or a message (`value`, or a frame that still holds it)."""

    __slots__ = ("caller", "frame", "value")

    def __init__(self, frame: message.Frame | None, caller: Caller | None, value: object = _UNREAD) -> None:
        self.frame = frame
        self.caller = caller
        self.value = value

    @property
    def is_message(self) -> bool:
        """Whether it is for `receive` and `info`, not a call or a cast."""
        return self.frame is None or self.frame.kind == message.SEND

    def open(self) -> object:
        """The message.  Unpickling runs the author's code and may raise anything."""
        if self.value is _UNREAD:
            assert self.frame is not None
            self.value = message.decode(self.frame)
        return self.value


class Mailbox:
    """One process's.  Whoever fills it asks `full` first; what the runtime itself puts is always taken."""

    def __init__(self, limit: int, overflow: Overflow = "wait") -> None:
        self.limit = limit
        self.overflow = overflow
        self.dropped = 0
        self.items: deque[Letter] = deque()
        self.closed = False
        self.hungry = 0
        self.on_call: Callable[[Letter], None] | None = None
        """Takes calls and casts instead, in a process that does not serve them in turn."""
        self._filled: Event | None = None
        """There while somebody waits for it."""
        self._drained = event()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def full(self) -> bool:
        """Whether senders have to wait.

        While a `receive` waits for what is not here, up to ten times as much is taken in: what it
        waits for may stand behind what it skips.
        """
        return len(self.items) >= (_HUNGER * self.limit if self.hungry else self.limit)

    async def turn(self) -> None:
        """Wait until something was taken, or `let_in` is called."""
        await self._drained.wait()

    def put(self, letter: Letter) -> None:
        """Append."""
        if self.on_call is not None and not letter.is_message:
            self.on_call(letter)
            return
        if len(self.items) >= self.limit and self.overflow == "drop_oldest":
            self._drop_oldest()
        self.items.append(letter)
        if self._filled is not None:
            self._wake()

    def _wake(self) -> None:
        filled, self._filled = self._filled, None
        if filled is not None:
            filled.set()

    def _drop_oldest(self) -> None:
        for at, letter in enumerate(self.items):
            if letter.frame is not None and letter.frame.kind != message.CALL:
                del self.items[at]
                self.dropped += 1
                return

    def take(self) -> Letter | None:
        """The oldest, or None if there is none."""
        if not self.items:
            return None
        letter = self.items.popleft()
        if len(self.items) == self.limit - 1:
            self.let_in()
        return letter

    async def wait(self) -> None:
        """Wait until something is put, from now on, or until it is closed."""
        if not self.closed:
            await self._next()

    async def _next(self) -> None:
        if self._filled is None:
            self._filled = event()
        await self._filled.wait()

    async def wait_hungrily(self) -> None:
        """The same for a reader that has skipped what is here; when closed too, as the current message is finished."""
        self.hungry += 1
        try:
            if len(self.items) >= self.limit:
                self.let_in()
            await self._next()
        finally:
            self.hungry -= 1

    def let_in(self) -> None:
        """Wake who waits for room, to look again."""
        drained, self._drained = self._drained, event()
        drained.set()

    def find(self, match: Match, start: int = 0) -> tuple[object, bool, int]:
        """Take the first message that matches, from the `start`-th on: (message, True, …), else (None, False, length).

        Raises what `match` or unpickling raises; the message is then gone in the second case only.
        """
        if isinstance(match, type | tuple):
            kinds = match
            match = lambda value: isinstance(value, kinds)  # noqa: E731 - the two other forms in terms of the third
        for at in range(start, len(self.items)):
            letter = self.items[at]
            if not letter.is_message:
                continue
            try:
                value = letter.open()
            except Exception:
                self._remove(at)
                raise
            if match is None or match(value):
                self._remove(at)
                return value, True, at
        return None, False, len(self.items)

    def _remove(self, at: int) -> None:
        del self.items[at]
        if len(self.items) == self.limit - 1:
            self.let_in()

    def purge(self, unwanted: Callable[[object], bool]) -> None:
        """Take out what the runtime itself put, where it is unwanted."""
        kept = [letter for letter in self.items if letter.frame is not None or not unwanted(letter.value)]
        if len(kept) < len(self.items):
            self.items.clear()
            self.items.extend(kept)
            self.let_in()

    def close(self) -> None:
        """Wake its reader, to find `closed`."""
        self.closed = True
        self._wake()
