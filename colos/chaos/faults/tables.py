"""The machine's tables are full: no open file more in the whole system, no thread more.

Mechanism: seccomp user notification, because the real tables are the host's and must never be filled.
Proof: the keeper's count of the calls it has refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hypothesis import strategies as st

from colos.chaos.fault import Site
from colos.chaos.mechanisms.rules import Fail, Rule, errno_of
from colos.chaos.trapped import TrappedFault

__all__ = ["FileTableFull", "ThreadFails"]

_OPENING: Final = (
    "open", "openat", "openat2", "creat", "socket", "socketpair", "accept", "accept4", "pipe", "pipe2",
    "epoll_create1", "eventfd2", "timerfd_create", "inotify_init1", "memfd_create",
)  # fmt: skip
_CLONING: Final = ("clone", "clone3")


class FileTableFull(TrappedFault):
    """Every call that would open a file, a socket or a pipe gives ENFILE: the system-wide limit is reached.

    The target's own descriptors are not at their limit, so closing some does not help.  open(2), ENFILE.
    """

    kind = "file-table-full"
    family = "descriptors"
    summary = "the whole system is out of open files: open, socket, accept and pipe give ENFILE"
    sees = "ENFILE, however few descriptors it has open"
    proof = "the keeper's count of the calls it has refused"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """There is nothing to choose."""
        return st.just({})

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Whatever makes a new open file."""
        del arguments
        return _OPENING

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """ENFILE."""
        del site, arguments
        return (Rule(_OPENING, Fail(errno_of("ENFILE"))),)


class ThreadFails(TrappedFault):
    """No thread can be made: pthread_create gives EAGAIN, and Python raises "can't start new thread".

    Processes can still be forked: that is `fork-fails`.  clone(2), EAGAIN.
    """

    kind = "thread-fails"
    family = "processes"
    summary = "no new thread can be made: EAGAIN"
    sees = "EAGAIN of pthread_create; RuntimeError in Python"
    proof = "the keeper's count of the clones it has refused"

    def arguments(self) -> st.SearchStrategy[dict[str, object]]:
        """There is nothing to choose."""
        return st.just({})

    @classmethod
    def calls(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """What makes threads, and processes too."""
        del arguments
        return _CLONING

    @classmethod
    def rules(cls, site: Site, arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
        """EAGAIN for threads."""
        del site, arguments
        return (Rule(_CLONING, Fail(errno_of("EAGAIN")), subject="thread"),)
