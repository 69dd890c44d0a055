"""The wall clock as actors should read it: the system's own, unless whoever tests the node has put it wrong.

A test of a node cannot set the machine's clock.  It can put this one wrong, by a symbolic link in the
directory that $COLOS_RUN names, whose text is three numbers: at which true time it was put wrong, what it
showed then, and how many seconds it goes on in one true second.  A link is read in one call, which needs no
descriptor, and replaced in one, so nobody reads half of it.  Where there is none, time.time() is the answer.

The monotonic clock is never touched: deadlines, timeouts and everything else in the runtime go by that one.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

__all__ = ["Skew", "put_right", "put_wrong", "read_skew", "wall_time"]

_LINK = ".wall-clock"


@dataclass(frozen=True)
class Skew:
    """A clock that showed `shown` at the true time `true`, and goes `rate` seconds a second (0: it stands)."""

    true: float
    shown: float
    rate: float

    def at(self, true: float) -> float:
        """What it shows at a true time.  All are seconds since the epoch."""
        return self.shown + (true - self.true) * self.rate


def wall_time() -> float:
    """Seconds since the epoch, as time.time() gives them, unless the test of this node has put its clock wrong.

    It may jump, back too, drift or stand still, as any machine's may: never measure with it how long something took.
    """
    directory = os.environ.get("COLOS_RUN")
    if directory is None:
        return time.time()
    skew = read_skew(directory)
    return time.time() if skew is None else skew.at(time.time())


def read_skew(directory: str) -> Skew | None:
    """How the clock of the nodes under this directory is wrong, or None."""
    try:
        true, shown, rate = map(float, os.readlink(f"{directory}/{_LINK}").split())
    except (OSError, ValueError):  # it is right; or somebody else's file
        return None
    return Skew(true, shown, rate)


def put_wrong(directory: str, skew: Skew) -> None:
    """Put it wrong for every process of those nodes, from its next reading on.  Raises `OSError`."""
    draft = f"{directory}/{_LINK}.new"
    os.symlink(f"{skew.true!r} {skew.shown!r} {skew.rate!r}", draft)
    os.rename(draft, f"{directory}/{_LINK}")


def put_right(directory: str) -> None:
    """Have it show the true time again.  Raises `OSError`, except when it does already."""
    try:
        os.unlink(f"{directory}/{_LINK}")
    except FileNotFoundError:
        return
