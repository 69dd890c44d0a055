"""The system under test: what is declared, and what runs in a sandbox.

A declaration (`ActorSystem`, `CommandSystem`) is plain data on a machine's class.  `boot` turns it
into a running system, which the machine's rules see as ``self.system``.  The executor and the
faults know no more of either than the protocols here; below them is what both have in common.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import Any, Generic, Protocol, Self, TypeVar, overload, runtime_checkable

from colos.chaos.sandbox.handle import Sandbox, Target
from colos.chaos.sandbox.spec import Program
from colos.errors import StartFailed

__all__ = ["Declaration", "Running", "RunningSystem", "System", "exit_text"]

_R = TypeVar("_R")


class RunningSystem(Protocol):
    """A system in its sandbox, as the executor and the faults use it."""

    sandbox: Sandbox

    def targets(self, pattern: str) -> list[Target]:
        """Every live process that a path or pattern means; the caller closes them."""
        ...

    def client(self) -> AbstractAsyncContextManager[Any] | None:
        """What the executor enters on the event loop once the system is ready, if anything."""
        ...

    def attach(self, client: Any) -> None:
        """Take what entering `client()` gave."""
        ...

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the system serves.  Raises `StartFailed` with its stderr."""
        ...

    async def quiet(self, timeout_s: float) -> bool:
        """Wait until nothing is being restarted; False at the deadline."""
        ...

    def births(self) -> int:
        """A number that grows whenever its supervisor starts a process."""
        ...

    def deaths(self, since: int) -> dict[str, tuple[int, str]]:
        """Whom its supervisor has had to start again since `births` was that: how often at least, and why last."""
        ...

    def stop(self, timeout_s: float) -> bool:
        """Ask it to end, and wait; False at the deadline."""
        ...


@runtime_checkable
class System(Protocol):
    """A declaration of a system under test."""

    def topology(self) -> tuple[str, ...]:
        """The paths of the processes that it declares: what faults may name."""
        ...

    def modules(self) -> tuple[ModuleType, ...]:
        """What the template must have imported before it forks."""
        ...

    def rehearsal(self) -> Callable[[], None] | None:
        """What the template runs once, so that its forks start faster; picklable, and harmless there."""
        ...

    def tolerance(self) -> int | None:
        """How many deaths it promises to survive in one run; None for no bound."""
        ...

    def is_host_bound(self) -> bool:
        """Whether two of it would get into each other's way on one host, by a port above all (see `hostlock`)."""
        ...

    def program(self) -> Program:
        """What starts in the sandbox."""
        ...

    def boot(self, sandbox: Sandbox) -> RunningSystem:
        """Start it in a sandbox."""
        ...


class Declaration(Generic[_R]):
    """A system on a machine's class: there it is itself; on an instance, the running one.

    The executor puts the running system into the instance, where Python finds it first.
    """

    def __init__(self, *, host_bound: bool) -> None:
        self._host_bound = host_bound

    def is_host_bound(self) -> bool:
        """As its author says."""
        return self._host_bound

    @overload
    def __get__(self, machine: None, owner: type) -> Self: ...
    @overload
    def __get__(self, machine: object, owner: type) -> _R: ...
    def __get__(self, machine: object, owner: type) -> Self | _R:
        if machine is None:
            return self
        raise RuntimeError("self.system runs from the first step on; in __init__ there is none yet")


class Running:
    """What both kinds of running system share: waiting on the keeper's events."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Take events until something holds; False at the deadline, or when the program has ended for good."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            left = deadline - time.monotonic()
            if left <= 0 or (self.sandbox.stopped and not holds()):
                return holds()
            self.sandbox.pump(left)
        return True

    def stop(self, timeout_s: float) -> bool:
        """SIGTERM, and wait for the exit."""
        self.sandbox.catch_up()
        if not self.sandbox.stopped:
            self.sandbox.ask_to_stop()
            self.wait_until(lambda: self.sandbox.stopped, timeout_s)
        return self.sandbox.stopped

    def failure(self, what: str, timeout_s: float) -> StartFailed:
        """Why it did not start, with what it wrote."""
        if self.sandbox.exits:
            reason = f"it exited with {exit_text(self.sandbox.exits[-1][0])} before it was ready"
        else:
            reason = f"it was not ready within {timeout_s:g} s"
        return StartFailed(what, reason, self.sandbox.output())


def exit_text(code: int) -> str:
    """An exit code as a process has it, such as ``status 1`` or ``signal SIGKILL``."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
