"""How long work tells that it goes on: one line that is written over on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["QUIET_EVERY_S", "Progress"]

QUIET_EVERY_S = 5.0
"""Where nobody watches, at most one line in so many seconds, and none in the first."""
_TERMINAL_EVERY_S = 0.05
_LONGEST = 110


class Progress:
    """Passes on what it is told, not more often than somebody can read it.

    `write` gets a line without its end; `rewrite` one that replaces the last one, and None where there is no
    terminal.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        rewrite: Callable[[str], None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._rewrite = rewrite
        self._clock = clock
        self._next_s = clock() + (0.0 if rewrite is not None else QUIET_EVERY_S)

    def __call__(self, text: str) -> None:
        """Work has come so far."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        if self._rewrite is not None:
            self._next_s = now_s + _TERMINAL_EVERY_S
            self._rewrite(text[:_LONGEST])
        else:
            self._next_s = now_s + QUIET_EVERY_S
            self._write(text)
