"""The sandbox as the test holds it: its paths from both sides, its processes, its events, its end."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from colos.chaos.sandbox import wire
from colos.chaos.sandbox.join import Connect, Remount
from colos.chaos.sandbox.keeper import OUTPUT
from colos.chaos.sandbox.processes import Process, descendants, read_process
from colos.chaos.sandbox.segments import SEGMENTS, Segment, read_segments
from colos.chaos.sandbox.spec import BARE, NAMESPACES, Place, Program
from colos.errors import HarnessBroken

if TYPE_CHECKING:
    from colos.chaos.sandbox.session import Session

__all__ = ["Sandbox", "Target"]

_END_S = 5.0
_OUTPUT_TAIL = 8192


class Target:
    """One process of a sandbox, held by pidfd so that its number cannot come to mean another."""

    def __init__(self, process: Process, pidfd: int) -> None:
        self.process = process
        self.pid = process.pid
        self.pidfd = pidfd

    def alive(self) -> bool:
        """Whether it has not exited yet."""
        return not wire.readable(self.pidfd, 0)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its exit; False at the deadline."""
        return wire.readable(self.pidfd, timeout_s)

    def signal(self, number: int) -> bool:
        """Send a signal; False when it is gone already."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let go of the pidfd.  May be called twice."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Sandbox:
    """One throwaway machine.  `destroy` ends it; the kernel or the watchdog does when we cannot."""

    def __init__(
        self, session: Session, tier: str, channel: socket.socket, keeper: int, pidfds: list[int], *, trapping: bool
    ) -> None:
        self.session = session
        self.tier = tier
        self.trapping = trapping
        self.keeper = keeper
        self.starts = 0
        self.exits: list[tuple[int, bool]] = []
        self.main_pid = 0
        self.ready = False
        self.stopped = False
        #: The program that starts or runs here.
        self.started: Program | None = None
        #: Held by whoever stops or continues a process, so that none continues what another has just stopped.
        self.stopping = threading.Lock()
        #: What the harness itself runs in here: no process of the system's.
        self.harness_pids: set[int] = set()
        self._channel = channel
        self._pidfds = pidfds
        #: Of its System V segments, opened inside (`namespaces` only).
        self._tables: list[int] = []
        self._output_start = 0
        #: A file without a name that holds a page of the data disk, while a fault limits it.
        self.ballast = -1
        self._place: Place | None = None
        self._answers: list[Any] = []

    # --- making -------------------------------------------------------------------------

    def furnish(self, timeout_s: float) -> str | None:
        """Wait until the machine is furnished; the reason when it refused."""
        message, tables = self.session.await_message(self._channel, "being furnished", timeout_s)
        self._tables += tables
        if message[0] != "furnished":
            return str(message[1])
        self._place = message[1]
        return None

    @property
    def place(self) -> Place:
        """Where things are, as the system sees them."""
        assert self._place is not None
        return self._place

    def outside(self, path: str) -> str:
        """The same file as `path` inside, as this process can open it."""
        path = self.place.expand(path)
        return f"/proc/{self.keeper}/root{path}" if self.tier == NAMESPACES else path

    # --- the program --------------------------------------------------------------------

    def start(self, program: Program) -> None:
        """Have the keeper fork the program; `ready` and `exits` follow with `pump`."""
        if self.started != program:
            self._tell(("start", program))
        self.started = program

    def ask_to_stop(self) -> None:
        """SIGTERM to the program, and no restart any more."""
        self._tell(("stop",))

    def trap(self, *request: Any, timeout_s: float = 5.0) -> Any:
        """Ask the keeper's trap (`trapping` says whether there is one)."""
        self._answers.clear()
        self._tell(("trap", request))
        deadline = time.monotonic() + timeout_s
        while not self._answers:
            if not self.pump(deadline - time.monotonic()):
                raise HarnessBroken(
                    "the keeper's system call trap", f"did not answer {request!r} within {timeout_s:g} s"
                )
        return self._answers.pop()

    def _tell(self, message: tuple[Any, ...]) -> None:
        try:
            wire.send(self._channel, message)
        except OSError as error:
            raise HarnessBroken("the sandbox's keeper", f"is gone: {error}") from None

    def pump(self, timeout_s: float) -> bool:
        """Take one event from the keeper, waiting up to `timeout_s`; False when none came."""
        if self._channel.fileno() < 0:
            raise HarnessBroken("the sandbox", "has been destroyed already")
        if not wire.readable(self._channel, timeout_s):
            return False
        received = wire.receive(self._channel)
        if received is None:
            raise HarnessBroken("the sandbox's keeper", "has died")
        match received[0]:
            case ("started", pid, count, written):
                self.main_pid, self.starts, self.ready, self._output_start = pid, count, False, written
            case ("ready", count):
                self.ready = count == self.starts
            case ("exited", code, _, again):
                self.exits.append((code, again))
                self.ready, self.stopped, self.main_pid = False, not again, 0
            case ("gone",):
                self.stopped = True
            case ("trapped", answer):
                self._answers.append(answer)
            case (_, trouble):
                raise HarnessBroken("the sandbox's keeper", str(trouble))
        return True

    def catch_up(self) -> None:
        """Take every event that has come already."""
        while self.pump(0):
            pass

    def output(self) -> str:
        """The end of what the program wrote to its standard output and error."""
        return self._read_output(lambda size: max(0, size - _OUTPUT_TAIL))

    def output_since_start(self) -> str:
        """All that the program wrote since it was last started."""
        return self._read_output(lambda _: self._output_start)

    def _read_output(self, begin: Callable[[int], int]) -> str:
        try:
            with open(self.outside("{run}/" + OUTPUT), "rb") as file:
                file.seek(begin(os.fstat(file.fileno()).st_size))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    # --- its processes ------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """Everything that runs in the sandbox, without the harness's own keeper and `harness_pids`."""
        return [process for process in descendants(self.keeper) if process.pid not in self.harness_pids]

    def segments(self) -> dict[int, Segment]:
        """The System V shared memory segments that its processes can see, by their identifiers."""
        if self._tables:
            return read_segments(self._tables[0])
        if self.tier == NAMESPACES or not os.path.exists(SEGMENTS):
            return {}
        table = os.open(SEGMENTS, os.O_RDONLY)
        try:
            return read_segments(table)
        finally:
            os.close(table)

    def target(self, inner_pid: int) -> Target | None:
        """The process that the system knows as `inner_pid`, by pidfd, or None when it is gone."""
        for process in self.processes():
            if process.inner_pid == inner_pid:
                try:
                    pidfd = os.pidfd_open(process.pid)
                except ProcessLookupError:
                    return None
                again = read_process(process.pid)  # the number may have come to mean another meanwhile
                # A zombie is gone, too: a signal to one would count as delivered and do nothing.
                if again is not None and again.start_time == process.start_time and again.state not in "ZX":
                    return Target(process, pidfd)
                os.close(pidfd)
        return None

    # --- acting inside ------------------------------------------------------------------

    def join(self, request: Callable[[], tuple[Any, tuple[int, ...]]]) -> tuple[Any, list[int]]:
        """Do something inside its namespaces (`namespaces` only), as root of them, in a process of its own.

        `request` is picklable (a frozen dataclass of a module that imports nothing of a test's), is called
        inside, and gives a plain value and descriptors to pass out; these are the caller's to close.  Raises `OSError`:
        ESRCH when the sandbox is gone.
        """
        if not self._pidfds:
            raise ProcessLookupError(errno.ESRCH, "the sandbox has been destroyed already")
        return self.session.join(self._pidfds[0], request)

    def remount_data(self, *, size: int | None = None, inodes: int | None = None) -> None:
        """Give the data disk new limits (`namespaces` only).  Raises `OSError`."""
        self.join(Remount(self.place.data, size, inodes))

    def connect_tcp(self, host: str, port: int) -> socket.socket:
        """A connected TCP socket of the sandbox's own loopback.  Raises `OSError`."""
        if self.tier == BARE:
            connection = socket.create_connection((host, port), timeout=_END_S)
            connection.settimeout(None)
            return connection
        _, descriptors = self.join(Connect(host, port))
        return socket.socket(fileno=descriptors[0])

    # --- the end ------------------------------------------------------------------------

    def ended(self) -> bool:
        """Whether its first process is gone, and with it (in `namespaces`) everything else."""
        return not self._pidfds or wire.readable(self._pidfds[0], 0)

    def destroy(self) -> None:
        """End everything in the sandbox and wait until it is gone.  May be called twice.

        Raises `HarnessBroken` when something still stands at the deadline.
        """
        try:
            if self.tier == NAMESPACES and self._pidfds:
                try:
                    signal.pidfd_send_signal(self._pidfds[0], signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it ended by itself
            self._channel.close()
            deadline = time.monotonic() + _END_S
            for pidfd in self._pidfds:
                if not wire.readable(pidfd, deadline - time.monotonic()):
                    left = tuple(f"{process.command} (pid {process.pid})" for process in self.processes())
                    raise HarnessBroken("a sandbox does not end", f"{_END_S:g} s after its destruction", left)
        finally:
            if self.ballast >= 0:
                os.close(self.ballast)
                self.ballast = -1
            for held in (self._pidfds, self._tables):
                while held:
                    os.close(held.pop())
