"""Trapped system calls of a sandbox's system, answered in the keeper's poll loop.

The program's process installs the filter before it becomes the program, and everything that it forks inherits
it.  The keeper takes the listener out of that process by pidfd_getfd(2).  Two things answer: the rules that faults
have armed, and in `bare` the quota that makes a disk full.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from colos.chaos.mechanisms.answers import Answers
from colos.chaos.mechanisms.diskcalls import CREATING
from colos.chaos.mechanisms.diskquota import TRAPS, DiskQuota
from colos.chaos.mechanisms.diskusage import BLOCK, Tree
from colos.chaos.mechanisms.rules import Rule, Rules
from colos.chaos.mechanisms.syscalls import Listener, Notification, Trap, install, merged, open_of
from colos.chaos.sandbox import wire
from colos.chaos.sandbox.processes import read_process

__all__ = ["SyscallTrap"]

_HANDOVER_S: Final = 5.0
_PAUSE_S: Final = 0.0005
_QUOTA_CALLS: Final = frozenset(trap.call for trap in TRAPS)
_VANISHED: Final = (errno.ENOENT, errno.ESRCH, errno.EFAULT, errno.EBADF, errno.ENAMETOOLONG)
"""The caller is gone, or its arguments are bad: then the kernel says so itself."""

Handover = tuple[socket.socket, socket.socket]


def _start_time(pid: int) -> int:
    process = read_process(pid)
    return process.start_time if process is not None else 0


class SyscallTrap:
    """What is trapped in one sandbox, who answers, and the listener of every start of its program."""

    def __init__(self, traps: Sequence[Trap], quota: str | None) -> None:
        """`quota` is the data directory whose size is counted, where the disk has none of its own."""
        self._traps = merged((*traps, *(TRAPS if quota is not None else ())))
        self._disk = _Disk(quota) if quota is not None else None
        self._rules = Rules(_start_time)
        self._answers = Answers()
        self.listeners: dict[int, Listener] = {}
        """By descriptor: of every start of the program that still has processes."""
        self._poll: select.poll | None = None
        self._troubles: dict[str, int] = {}

    # --- the listener -----------------------------------------------------------------------

    def prepare(self) -> Handover:
        """Before the fork: the pair through which keeper and child tell each other when."""
        return wire.pair()

    def install(self, handover: Handover) -> None:
        """In the child: say where the listener will be, trap, and wait until the keeper has taken it.

        It cannot be sent: sending may be trapped, and nobody answers yet.
        """
        ours, theirs = handover
        ours.close()
        free = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.close(free)
        wire.send(theirs, free)
        listener = install(self._traps)
        if listener != free:
            raise OSError(errno.EBADF, f"the listener is descriptor {listener}, not {free} as foreseen")
        os.read(theirs.fileno(), 1)
        theirs.close()
        os.close(listener)

    def accept(self, handover: Handover, child: int, poll: select.poll) -> None:
        """In the keeper: take the listener, or notice that the child died first."""
        ours, theirs = handover
        theirs.close()
        with ours:
            ours.settimeout(_HANDOVER_S)
            received = wire.receive(ours)
            descriptor = _take(child, received[0]) if received is not None else None
            if descriptor is not None:
                listener = Listener(descriptor)
                self.listeners[descriptor] = listener
                poll.register(descriptor, select.POLLIN)
                ours.send(b"k")
        self._poll = poll

    # --- serving ----------------------------------------------------------------------------

    def serve(self, descriptor: int, event: int) -> None:
        """One trapped call; a listener whose last process is gone is let go."""
        listener = self.listeners[descriptor]
        if event & select.POLLIN:
            notification = listener.receive()
            if notification is not None:
                self._handle(listener, notification)
        elif self._poll is not None:
            self._poll.unregister(descriptor)
            del self.listeners[descriptor]
            listener.close()

    @property
    def delays(self) -> bool:
        """Whether calls wait that are to go on."""
        return self._answers.waiting

    def next_due_s(self) -> float | None:
        """How long the poll loop may sleep before a delayed call is to go on."""
        return self._answers.next_due_s()

    def go_on(self) -> None:
        """Let the calls go whose delay is over."""
        for listener, notification in self._answers.go_on():
            self._let_go(listener, notification)

    def _handle(self, listener: Listener, notification: Notification) -> None:
        try:
            judged = self._rules.judge(notification)
            if judged is not None:
                name, action, luck = judged
                done = self._answers.act(listener, notification, name, action, luck)
                if done is not None:
                    if done:
                        self._rules.hit(name, notification.call)
                    return
        except OSError as error:
            if error.errno not in _VANISHED and listener.is_valid(notification):
                self._trouble(notification, error)
        self._let_go(listener, notification)

    def _let_go(self, listener: Listener, notification: Notification) -> None:
        if self._disk is not None and notification.call in _QUOTA_CALLS:
            self._disk.handle(listener, notification)
        else:
            listener.proceed(notification)

    def _trouble(self, notification: Notification, error: OSError) -> None:
        text = f"{notification.call} was let go: {error}"
        if len(self._troubles) < 100 or text in self._troubles:
            self._troubles[text] = self._troubles.get(text, 0) + 1

    # --- what the faults ask of the keeper ----------------------------------------------------

    def answer(self, request: tuple[Any, ...]) -> Any:
        """Arm and disarm rules, and tell what they did; the rest is the disk's."""
        match request:
            case ("arm", int(name), Rule() as rule):
                missing = [call for call in rule.calls if all(trap.call != call for trap in self._traps)]
                if missing:
                    return f"not trapped in this sandbox: {', '.join(missing)}"
                self._rules.arm(name, rule)
                return None
            case ("disarm", int(name)):
                self._rules.disarm(name)
                for listener, notification in self._answers.release(name):
                    self._let_go(listener, notification)
                return None
            case ("rule-hits", int(name)):
                return self._rules.hits(name)
            case ("troubles",):
                overrun = {"a delay was left out: too many at a time": self._answers.overrun}
                return {**self._troubles, **(overrun if self._answers.overrun else {})}
        return self._disk.answer(request) if self._disk is not None else f"unknown request {request!r}"


def _take(child: int, number: int) -> int | None:
    """Our own descriptor of the child's listener, once it is there; None if the child dies first, or never traps."""
    deadline = time.monotonic() + _HANDOVER_S
    while time.monotonic() < deadline:
        try:
            if os.readlink(f"/proc/{child}/fd/{number}") == "anon_inode:seccomp notify":
                return open_of(child, number)
        except FileNotFoundError:  # not yet; or it is gone
            process = read_process(child)
            if process is None or process.state in "ZX":
                return None
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EBADF):
                raise
            return None
        time.sleep(_PAUSE_S)  # the kernel tells nobody when a process installs a filter
    return None


# --- a full disk, in bare -------------------------------------------------------------------


class _Disk:
    """The quota on one data directory, and the leases that limit it.

    Several leases may hold at once and end in any order: of each resource the tightest counts.
    """

    def __init__(self, data: str) -> None:
        self._quota = DiskQuota(data)
        self._tree = Tree(os.path.realpath(data))
        self._leases: dict[int, _Held] = {}

    def handle(self, listener: Listener, notification: Notification) -> None:
        """Answer one call that may need space."""
        self._tree.saw(notification.pid)
        before = dict(self._quota.hits)
        self._quota.handle(listener, notification)
        resource = "inodes" if notification.call in CREATING else "bytes"
        for name, count in self._quota.hits.items():
            new = count - before.get(name, 0)
            if new:
                for lease in self._leases.values():
                    if lease.resource == resource:
                        lease.hits[name] = lease.hits.get(name, 0) + new

    def answer(self, request: tuple[Any, ...]) -> Any:
        """What the disk-full fault asks of the keeper."""
        match request:
            case ("hold", name, resource, free):
                self._leases[name] = _Held(resource, self._used()[resource] + free)
                self._apply()
                return None
            case ("release", name):
                if self._leases.pop(name, None) is not None:
                    self._apply()
                return None
            case ("hits", name):
                lease = self._leases.get(name)
                return dict(lease.hits) if lease is not None else None
        return f"unknown request {request!r}"

    def _used(self) -> dict[str, int]:
        sizes = self._tree.measure()
        return {"bytes": sum(sizes.values()) * BLOCK, "inodes": len(sizes)}

    def _apply(self) -> None:
        """Limit each resource to the tightest of the leases that hold it."""
        if not self._leases:
            self._quota.lift()
            return
        used, free = self._used(), {}
        for resource, now in used.items():
            caps = [lease.cap for lease in self._leases.values() if lease.resource == resource]
            free[resource] = max(0, min(caps) - now) if caps else None
        self._quota.limit(bytes_free=free["bytes"], inodes_free=free["inodes"])


@dataclass
class _Held:
    """One lease's limit: no more of the resource than `cap` in all, and how often that was felt."""

    resource: str
    cap: int
    hits: dict[str, int] = field(default_factory=dict)
